"""The workers of `--distribute=multi_worker` before TensorFlow joins them: which one is missing,
and a wait that a signal ends. TensorFlow's own holds Python up without a word, for as long as it
takes.

Imports no TensorFlow.
"""

import contextlib
import socket
import time

from tl_research.cluster import Cluster
from tl_research.errors import MissingWorkerError, UserError, to_stderr

_SILENT_SECONDS = 10.0


def wait_for_all(cluster: Cluster, timeout: float) -> None:
    """Returns when all tasks of a cluster can be reached; after 10 s says which cannot.

    Args:
        cluster: Of which this process is one.
        timeout: Seconds; 0 waits for ever.

    Raises:
        MissingWorkerError: If they cannot then.
        UserError: If this task's own port is in use.
    """
    own, address = cluster.tasks[cluster.index]
    missing = {name: at for name, at in cluster.tasks if name != own}
    started, said = time.monotonic(), False
    with _reached_at(own, address):
        while missing := {name: at for name, at in missing.items() if not _answers(at)}:
            waited = time.monotonic() - started
            who = ", ".join(f"{name} at {at}" for name, at in missing.items())
            if timeout and waited >= timeout:
                raise MissingWorkerError(
                    f"{who} did not start within --worker_timeout={timeout:g} s; expected all "
                    f"{len(cluster.tasks)} processes; start them too, or wait longer"
                )
            if waited >= _SILENT_SECONDS and not said:
                to_stderr(f"{own} is waiting for {who}")
                said = True
            time.sleep(0.2)


@contextlib.contextmanager
def _reached_at(name, address):
    """Inside, the others reach this task at its port, which TensorFlow takes over then."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{name} cannot have port {port} ({error.strerror}); expected it free, and each "
                "task started once; end what uses it, or choose another port in TF_CONFIG"
            ) from error
        listening.listen(1024)
        yield


def _answers(address):
    """Returns whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True
