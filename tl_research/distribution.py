"""One training on several devices or machines (`--distribute`): each replica computes its rows of
every global batch.

`tf.distribute` keeps a copy of each variable on every replica. What computes asks for the strategy
in whose scope it is, so that nothing has to be handed on; without one every function here is the
plain call. Sums over the replicas are taken here, once a step, of the gradients and of what is
counted, and everything that follows (norms, clipping, whether to apply, the loss scale, early
stopping) is a function of these sums, and so the same on all. Keras would reduce the gradients
again inside a condition, which fails (keras#18666) or hangs (tensorflow#72686): see
`tl_research.optim.grouped_optimizer`.
"""

import contextlib
import functools
import io
import operator
import signal
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tl_research import cluster, signals, workers
from tl_research.config import Config
from tl_research.errors import Interrupted, UserError


@contextlib.contextmanager
def replicas(config: Config) -> Iterator[contextlib.ExitStack]:
    """Inside, what is built and computed is so on all replicas of `--distribute`.

    To be entered before anything is computed.

    Yields:
        A `contextlib.ExitStack`; to close it ends that.

    Raises:
        UserError: If the cluster or the batch size do not fit, or the workers were given different
            flags.
        MissingWorkerError: If a worker does not start within `--worker_timeout`.
        Interrupted: If another worker ends, which TensorFlow notices within seconds; the exit code
            is 143.
    """
    with _lost_workers(config), contextlib.ExitStack() as scope:
        strategy = _make_strategy(config)
        count = strategy.num_replicas_in_sync if strategy else 1
        if config.batch_size % count:
            raise UserError(
                f"--batch_size={config.batch_size} on {count} replicas; expected a multiple of "
                "their number; choose for example "
                f"--batch_size={max(1, config.batch_size // count) * count}"
            )
        if strategy:
            scope.enter_context(strategy.scope())
            for name, value in vars(config).items():
                if not name.endswith(("dir", "url")):  # which may be other ones on each machine
                    check_equal(f"--{name}", str(value))
        yield scope


def _make_strategy(config):
    """Returns a `tf.distribute` strategy, or None for one replica."""
    if config.distribute != "off":
        tf.get_logger().setLevel("WARNING")  # or it reports every sum that it traces
    if config.distribute == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return _of_devices(tuple(device.name for device in devices)) if len(devices) > 1 else None
    if config.distribute == "multi_worker":
        processes = cluster.described(config.cluster)
        if not config.workdir:
            raise UserError(
                "--distribute=multi_worker without --workdir; expected a directory that all "
                "workers reach; add it"
            )
        return _of_workers(processes, config.worker_timeout)
    return None


# A process has one strategy: a second one would begin TensorFlow's keys of sums anew, which still
# hold.


@functools.cache
def _of_devices(devices):
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _of_workers(processes, worker_timeout):
    """Returns the strategy of all processes, once they have started."""
    workers.wait_for_all(processes, worker_timeout)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": [address for _, address in processes.tasks]}),
        task_type="worker",
        task_id=processes.index,
        rpc_layer="grpc",
    )
    # a signal ends the process itself: Python answers none before TensorFlow returns
    with signals.answered_by(signal.SIG_DFL):
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)


# In a step.


def on_replicas(function: Callable, merged: Callable = operator.itemgetter(0)) -> Any:
    """Calls a function on every replica; returns a structure of tensors, each `merged` from those
    of this process's replicas, in the order of the batch: by default the first, which all equal if
    they are `summed`.
    """
    if not tf.distribute.has_strategy():
        return function()
    strategy = tf.distribute.get_strategy()
    return tf.nest.map_structure(
        lambda result: merged(strategy.experimental_local_results(result)), strategy.run(function)
    )


def of_each_process(indices: np.ndarray) -> list[np.ndarray]:
    """Returns the part [S, B / n] that each of n processes has of batches [S, B]."""
    return np.split(indices, num_processes(), axis=1)


def of_process(indices: np.ndarray) -> np.ndarray:
    """Returns this process's part [S, B / n] of batches [S, B]."""
    return of_each_process(indices)[process_index()]


def process_rows(batch: Any) -> Any:
    """Returns this process's rows of a tensor [B, ...] of the global batch, or of a structure of
    tensors and None.
    """
    return _part(batch, process_index(), num_processes())


def local_rows(batch: Any) -> Any:
    """Returns this replica's rows of what `process_rows` returns."""
    context = tf.distribute.get_replica_context()
    count = context.num_replicas_in_sync // num_processes()
    # sizes stay known when traced
    index = int(tf.get_static_value(context.replica_id_in_sync_group)) if count > 1 else 0
    return _part(batch, index % count, count)


def _part(batch, index, count):
    """Returns part `index` of `count` of the rows of a structure of tensors and None."""
    if count == 1:
        return batch

    def rows(tensor: tf.Tensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        size = tensor.shape[0] // count
        return tensor[index * size : (index + 1) * size]

    return tf.nest.map_structure(rows, batch)


def summed(tensors: Any) -> Any:
    """Returns a structure of tensors, summed over all replicas."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


# Between workers.


def is_multi_worker() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)


def num_processes() -> int:
    """Returns how many processes train together."""
    if not is_multi_worker():
        return 1
    return tf.distribute.get_strategy().cluster_resolver.cluster_spec().num_tasks("worker")


def process_index() -> int:
    """Returns this process's place among them, which is that of its rows in a batch."""
    return tf.distribute.get_strategy().cluster_resolver.task_id if is_multi_worker() else 0


def is_chief() -> bool:
    """Returns whether this process writes: one process does."""
    return process_index() == 0


def of_all_workers(number: int) -> list[int]:
    """Returns the whole numbers that the processes give, in their order: what one of them waits
    for, all do.
    """
    return (
        _gather(tf.constant([number], tf.int64)).numpy().tolist() if is_multi_worker() else [number]
    )


def all_gather(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the rows that all processes have of arrays [n, ...], in the order of the processes.

    Args:
        columns: {name: array}; n may differ between processes, names, types and shapes of rows not.
    """
    if not is_multi_worker():
        return columns
    packed = io.BytesIO()
    for array in columns.values():
        np.lib.format.write_array(packed, array)
    parts = [io.BytesIO(part) for part in _of_all(packed.getvalue())]
    read = np.lib.format.read_array  # which refuses arrays of objects
    return {name: np.concatenate([read(part) for part in parts]) for name in columns}


def _of_all(content):
    """Returns a list of the bytes that the processes give."""
    numbers = np.frombuffer(content + bytes(-len(content) % 8), np.int64)
    counts = of_all_workers(len(numbers))
    everything = _gather(tf.constant(numbers)).numpy()
    return [part.tobytes() for part in np.split(everything, np.cumsum(counts)[:-1])]


@tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
def _gather(numbers):
    """Returns the numbers of all processes, each from its first replica."""
    strategy = tf.distribute.get_strategy()
    local = strategy.num_replicas_in_sync // num_processes()

    def of_replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        is_first = int(tf.get_static_value(context.replica_id_in_sync_group)) % local == 0
        return numbers if is_first else numbers[:0]

    return strategy.gather(strategy.run(of_replica), axis=0)


def check_equal(what: str, text: str, error: type[UserError] = UserError) -> None:
    """Raises an error if the workers' texts differ."""
    if len(set(of_all_workers(zlib.crc32(text.encode(errors="surrogateescape"))))) > 1:
        raise error(
            f"the workers differ in {what}; this one has {text[:200]!r}; expected the same on all; "
            "give all of them the same flags, data and, by --workdir, directory"
        )


@contextlib.contextmanager
def _lost_workers(config):
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if config.distribute != "multi_worker":
            raise
        reason = error.message.partition("aborted by: ")[2] or error.message
        raise Interrupted(
            f"error: another worker ended or cannot be reached ({reason.splitlines()[0][:80]}); "
            "expected all to stay to the end; see what it says, and start all with the same "
            "flags to continue from the last checkpoint",
            signal.SIGTERM,
        ) from error
