"""TensorBoard runs `train/` and `validation/`: the same tags, one global step over all phases."""

import contextlib
import os
import sys
import uuid
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorboard.plugins.image import metadata as image_metadata

from tl_research.files import escaped, temporary_name
from tl_research.reporting import pictures

_SUFFIX = ".tl_research"  # of our event files; those of others stay as they are


class Summaries:
    """Writes what TensorBoard shows.

    A record that a resumed run finds written (same tag, same step) is not written again.

    The run goes on without what cannot be written: `metrics.csv` has its numbers too.

    Args:
        directory: The run directory.
        last_step: Records after this step are dropped first, as a resumed run writes them again;
            None drops all.
    """

    def __init__(self, directory: str, last_step: int | None):
        self._directory, self._writers, self._kept, self._failed = directory, {}, {}, False
        with self._warning():
            for side in ("train", "validation"):
                path = os.path.join(directory, side)
                self._kept[side] = drop_records_after(path, -1 if last_step is None else last_step)
                self._writers[side] = tf.summary.create_file_writer(path, filename_suffix=_SUFFIX)

    @contextlib.contextmanager
    def _warning(self):
        """Turns an error of the operating system, also one that TensorFlow reports, into a warning,
        the last one.
        """
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            reason = (
                getattr(error, "strerror", None)
                or getattr(error, "message", str(error))
                .split("\n")[0]
                .split("}} ")[-1]
                .split(" [Op:")[0]
            )
            print(
                f"warning: nothing more is written for TensorBoard to {self._directory}: {reason}",
                file=sys.stderr,
                flush=True,
            )

    def has(self, side: str, tag: str, step: int) -> bool:
        """Returns whether an interrupted run, of which this is the rest, wrote this record, or none
        can be written.
        """
        return self._failed or (tag, step) in self._kept[side]

    def _once(self, side, tag, step, write):
        """Calls `write()` with the writer of a side, which is flushed, unless the record is there.

        What a crash took of the records before a checkpoint, nobody would write again.
        """
        if not self.has(side, tag, step):
            with self._warning(), self._writers[side].as_default():
                write()

    def scalar(self, side: str, tag: str, value: float, step: int) -> None:
        self._once(side, tag, step, lambda: tf.summary.scalar(tag, value, step=step))

    def text(self, side: str, tag: str, markdown: str, step: int) -> None:
        self._once(side, tag, step, lambda: tf.summary.text(tag, escaped(markdown), step=step))

    def image(self, side: str, tag: str, picture: np.ndarray, step: int) -> None:
        """Writes a picture, uint8 [H, W, 3].

        `tf.summary.image` would spend most of a second on compressing photographs.
        """

        def write() -> None:
            height, width = (str(size).encode() for size in picture.shape[:2])
            metadata = image_metadata.create_summary_metadata(tag, "", converted_to_tensor=False)
            tf.summary.write(
                tag,
                tf.constant([width, height, pictures.png(picture)]),
                step=step,
                metadata=metadata,
            )

        self._once(side, tag, step, write)

    def graph(self, side: str, tag: str, graph: tf.Graph, step: int) -> None:
        """Writes a `tf.Graph`, once, without the values of its large constants.

        A run can have several, by their tags.
        """

        def write() -> None:
            definition = graph.as_graph_def()
            for nodes in (
                definition.node,
                *(function.node_def for function in definition.library.function),
            ):
                for node in nodes:
                    if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) > 1024:
                        node.attr["value"].tensor.tensor_content = b""
            data = tf.compat.v1.RunMetadata()
            data.function_graphs.add().pre_optimization_graph.CopyFrom(definition)
            metadata = tf.compat.v1.SummaryMetadata()
            metadata.plugin_data.plugin_name, metadata.plugin_data.content = (
                "graph_run_metadata_graph",
                b"1",
            )
            tf.summary.write(tag, data.SerializeToString(), step=step, metadata=metadata)
            self._kept[side].add((tag, step))

        self._once(side, tag, step, write)

    def hyperparameters(self, side: str, values: dict[str, Any], metrics: dict[str, str]) -> None:
        """Writes the row of this run in HParams.

        Args:
            side: The run that has the metrics.
            values: {name: number, bool or text}.
            metrics: {tag of a scalar to show beside them: its name}.
        """
        from tensorboard.plugins.hparams import api  # takes a moment, and is needed once

        def write() -> None:
            api.hparams_config(
                [api.HParam(name) for name in values],
                [api.Metric(tag, display_name=name) for tag, name in metrics.items()],
            )
            # Named by its place instead of a hash of the settings; the last two parts, since seeds
            # share their names, and a number, since people share those.
            place = "/".join(os.path.abspath(self._directory).split(os.sep)[-2:])
            place = place.removeprefix("runs/")
            api.hparams(values, trial_id=f"{place} {uuid.uuid4().hex[:4]}")

        self._once(side, "_hparams_/session_start_info", 0, write)

    def close(self) -> None:
        with self._warning():
            for writer in () if self._failed else self._writers.values():
                writer.close()


def drop_records_after(directory: str, last_step: int) -> set[tuple[str, int]]:
    """Rewrites every event file of ours in a directory, each as a whole, to its records up to a
    step; -1 removes them.

    Returns:
        The set of (tag, step) of the records that are left.
    """
    kept: set[tuple[str, int]] = set()
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        if not name.endswith(_SUFFIX):
            continue
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
