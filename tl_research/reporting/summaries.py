"""TensorBoard runs `train/` and `validation/`: the same tags, one global step over all phases."""

import contextlib
import os

from google.protobuf.message import DecodeError
import tensorflow as tf

from tl_research.files import storage_errors


class Summaries:
    """Writes scalars and text.

    Args:
        directory: The run directory.
        last_step: Records after this step are dropped first, as a resumed run writes them again; None drops all.

    Raises:
        StorageError: In every method, if the records cannot be written.
    """

    def __init__(self, directory, last_step):
        self._directory, self._writers = directory, {}
        with self._storage_errors():
            for side in ("train", "validation"):
                path = os.path.join(directory, side)
                drop_records_after(path, -1 if last_step is None else last_step)
                self._writers[side] = tf.summary.create_file_writer(path)

    @contextlib.contextmanager
    def _storage_errors(self):
        """Turns errors of the operating system, also those that TensorFlow reports, into StorageError."""
        with storage_errors(self._directory):
            try:
                yield
            except tf.errors.OpError as error:
                raise OSError(error.message) from error

    def scalar(self, side, tag, value, step):
        with self._storage_errors(), self._writers[side].as_default():
            tf.summary.scalar(tag, value, step=step)

    def text(self, side, tag, markdown, step):
        with self._storage_errors(), self._writers[side].as_default():
            tf.summary.text(tag, markdown, step=step)

    def flush(self):
        with self._storage_errors():
            for writer in self._writers.values():
                writer.flush()

    def close(self):
        with self._storage_errors():
            for writer in self._writers.values():
                writer.close()


def drop_records_after(directory, last_step):
    """Rewrites every event file in a directory, each as a whole, to its records up to a step; -1 removes them."""
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        if ".tmp-" in name or ("tfevents" in name and last_step < 0):
            os.remove(path)  # temporary: left by an interrupted rewriting
            continue
        if "tfevents" not in name:
            continue
        temporary = f"{path}.tmp-{os.getpid()}"
        with tf.io.TFRecordWriter(temporary) as writer:
            try:
                for record in tf.data.TFRecordDataset(path):
                    event = tf.compat.v1.Event.FromString(record.numpy())
                    if event.step <= last_step:
                        writer.write(record.numpy())
            except (tf.errors.DataLossError, DecodeError):
                pass  # a killed writer may leave half a record at the end
        os.replace(temporary, path)
