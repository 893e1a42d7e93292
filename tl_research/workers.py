"""The workers of `--distribute=multi_worker` before TensorFlow joins them: which one is missing,
and a wait that a signal ends. TensorFlow's own holds Python up without a word, for as long as it
takes.

Imports no TensorFlow.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

from tl_research.errors import UserError

_SILENT_SECONDS = 10.0
_EXAMPLE = (
    'set it to {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
)


def task() -> tuple[str, dict[str, str]]:
    """Returns (name of this process's task, {name: HOST:PORT} of all) of `TF_CONFIG`.

    Raises:
        UserError: If it is none of one chief at most and workers, each with an address of its own.
    """
    text = os.environ.get("TF_CONFIG")
    try:
        value = json.loads(text or "")
        jobs, job, index = value["cluster"], value["task"]["type"], int(value["task"]["index"])
        tasks = {f"{name} {i}": at for name in jobs for i, at in enumerate(jobs[name])}
        usable = set(jobs) <= {"chief", "worker"} and f"{job} {index}" in tasks
        ports = [0 < int(address.rpartition(":")[2]) < 1 << 16 for address in tasks.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not (usable and all(ports)):
        raise UserError(
            f"--distribute=multi_worker with TF_CONFIG={text!r}; expected this process's task "
            f"in a cluster of workers; {_EXAMPLE}"
        )
    if "chief 1" in tasks or len(set(tasks.values())) < len(tasks):
        raise UserError(
            f"TF_CONFIG={text!r} has two chiefs, or one address twice; expected one chief at most, "
            f"and an address for each process; {_EXAMPLE}"
        )
    return f"{job} {index}", tasks


def wait_for_all(timeout: float) -> None:
    """Returns when all tasks of `TF_CONFIG` can be reached; after 10 s says which cannot.

    Args:
        timeout: Seconds; 0 waits for ever.

    Raises:
        UserError: If they cannot then, or this task's own port is in use.
    """
    own, missing = task()
    started, said = time.monotonic(), False
    with _reached_at(own, missing.pop(own)):
        while missing := {name: at for name, at in missing.items() if not _answers(at)}:
            waited = time.monotonic() - started
            who = ", ".join(f"{name} at {at}" for name, at in missing.items())
            if timeout and waited >= timeout:
                raise UserError(
                    f"{who} did not come within --worker_timeout={timeout:g} s; expected all of "
                    "TF_CONFIG; start them too, or wait longer"
                )
            if waited >= _SILENT_SECONDS and not said:
                print(f"{own} waits for {who}", file=sys.stderr, flush=True)
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
                f"{name} of TF_CONFIG cannot have port {port} ({error.strerror}); expected it "
                "free, and each task started once; end what uses it, or choose another port"
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


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal ends the process itself: Python answers none before TensorFlow returns."""
    handlers = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where none are answered
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
