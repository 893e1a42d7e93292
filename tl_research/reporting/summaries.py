"""The TensorBoard runs `train/` and `validation/`: same tags, one global step over all phases."""

import contextlib
import glob
import itertools
import os
import uuid

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorboard.plugins.image import metadata as image_metadata

from tl_research.errors import to_stderr
from tl_research.files import Json, escaped, storage_reason, temporary_name
from tl_research.reporting import pictures

_SUFFIX = ".tl_research"  # of our event files; others are left alone


class Summaries:
    """Writes records for TensorBoard.

    A resumed run does not write records again that exist with the same tag and step. If records
    cannot be written the run continues, since `metrics.csv` has the numbers too.

    Args:
        directory: The run directory.
        last_step: Records after this step are dropped first, since a resumed run writes them again;
            -1 drops all.
    """

    def __init__(self, directory: str, last_step: int):
        self._directory, self._writers, self._kept, self._failed = directory, {}, {}, False
        with self._warning():
            for side in ("train", "validation"):
                path = f"{directory}/{side}"
                self._kept[side] = drop_records_after(path, last_step)
                self._writers[side] = tf.summary.create_file_writer(path, filename_suffix=_SUFFIX)

    @contextlib.contextmanager
    def _warning(self):
        """Turns an error of the operating system, also if TensorFlow reports it, into a warning and
        stops writing.
        """
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            reason = storage_reason(error) or str(error).splitlines()[0]
            to_stderr(
                f"warning: nothing more is written for TensorBoard to {self._directory}: {reason}"
            )

    def has(self, side: str, tag: str, step: int) -> bool:
        """Returns whether this record exists already, or cannot be written.

        Args:
            side: `train` or `validation`, here and below.
            tag: Name of the record.
            step: Global step.
        """
        return self._failed or (tag, step) in self._kept[side]

    def _once(self, side, tag, step, write):
        """Calls `write()` with the writer of a side unless the record exists."""
        if not self.has(side, tag, step):
            with self._warning(), self._writers[side].as_default():
                write()

    def scalar(self, side: str, tag: str, value: float, step: int) -> None:
        self._once(side, tag, step, lambda: tf.summary.scalar(tag, value, step=step))

    def text(self, side: str, tag: str, markdown: str, step: int) -> None:
        self._once(side, tag, step, lambda: tf.summary.text(tag, escaped(markdown), step=step))

    def image(self, side: str, tag: str, picture: np.ndarray, step: int) -> None:
        """Writes a picture; `tf.summary.image` would take most of a second to compress photographs.

        Args:
            side, tag: As for `has`.
            picture: uint8 [H, W, 3].
            step: Global step.
        """

        def _write():
            height, width = (str(size).encode() for size in picture.shape[:2])
            metadata = image_metadata.create_summary_metadata(tag, "", converted_to_tensor=False)
            content = tf.constant([width, height, pictures.png(picture)])
            tf.summary.write(tag, content, step=step, metadata=metadata)

        self._once(side, tag, step, _write)

    def graph(self, tag: str, graph: tf.Graph, step: int) -> None:
        """Writes a graph of training, once per tag, without the values of large constants.

        Args:
            tag: Name of the graph.
            graph: The graph.
            step: Global step.
        """

        def _write():
            definition = graph.as_graph_def()
            functions = (function.node_def for function in definition.library.function)
            for node in itertools.chain(definition.node, *functions):
                if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) > 1024:
                    node.attr["value"].tensor.tensor_content = b""
            graphs = [{"pre_optimization_graph": definition}]
            content = tf.compat.v1.RunMetadata(function_graphs=graphs).SerializeToString()
            plugin = {"plugin_name": "graph_run_metadata_graph", "content": b"1"}
            metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
            tf.summary.write(tag, content, step=step, metadata=metadata)
            self._kept["train"].add((tag, step))

        self._once("train", tag, step, _write)

    def hyperparameters(self, values: Json, metrics: dict[str, str]) -> None:
        """Writes the row of this run in HParams.

        Args:
            values: {setting: number, bool or text}.
            metrics: {tag of a scalar of `validation`: its name in HParams}.
        """
        from tensorboard.plugins.hparams import api  # takes a moment, and is needed once

        def _write():
            api.hparams_config(
                [api.HParam(name) for name in values],
                [api.Metric(tag, display_name=name) for tag, name in metrics.items()],
            )
            # Named by the last two parts of the path, since seeds share their names, and a number,
            # since users share paths.
            place = "/".join(os.path.abspath(self._directory).split(os.sep)[-2:])
            place = place.removeprefix("runs/")
            api.hparams(values, trial_id=f"{place} {uuid.uuid4().hex[:4]}")

        self._once("validation", "_hparams_/session_start_info", 0, _write)

    def close(self) -> None:
        with self._warning():
            for writer in () if self._failed else self._writers.values():
                writer.close()


def drop_records_after(directory: str, last_step: int) -> set[tuple[str, int]]:
    """Truncates our event files in a directory, atomically, to records up to a step; -1 removes
    them.

    Returns:
        The set of (tag, step) of the remaining records.
    """
    kept: set[tuple[str, int]] = set()
    for name in sorted(glob.glob(f"*{_SUFFIX}", root_dir=directory)):
        path = f"{directory}/{name}"
        if last_step < 0:
            os.remove(path)
            continue
        temporary = temporary_name(path)
        with tf.io.TFRecordWriter(temporary) as writer:
            try:
                for record in tf.data.TFRecordDataset(path):
                    event = tf.compat.v1.Event.FromString(record.numpy())
                    if event.step <= last_step:
                        writer.write(record.numpy())
                        kept.update((value.tag, event.step) for value in event.summary.value)
            except (tf.errors.DataLossError, DecodeError):
                pass  # a killed writer may leave half a record at the end
        os.replace(temporary, path)
    return kept
