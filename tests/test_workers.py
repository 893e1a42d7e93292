"""Waiting for the other processes of a cluster: said, ended by a signal, by a limit, or by all."""

import signal
import socket
import subprocess
import sys

import pytest

from tl_research import workers
from tl_research.cluster import Cluster
from tl_research.errors import MissingWorkerError, UserError


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _cluster(ports, index):
    return Cluster(tuple((f"worker {i}", f"127.0.0.1:{at}") for i, at in enumerate(ports)), index)


_PROGRAM = """
import sys
from tl_research import cli, workers
from tl_research.cluster import Cluster
workers._SILENT_SECONDS = 0.3
cluster = {cluster}
def main():
    workers.wait_for_all(cluster, 30)
    with workers._reached_at(*cluster.tasks[cluster.index]):  # as TensorFlow takes the port over
        print("all are there", flush=True)
        sys.stdin.read()
cli.define_flags()
cli.run(main)
"""


def _started(cluster):
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(cluster=cluster)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_find_each_other():
    ports = _free_ports(3)
    processes = [_started(_cluster(ports, index)) for index in range(3)]
    assert [process.stdout.readline() for process in processes] == ["all are there\n"] * 3
    for process in processes:
        process.communicate(timeout=10)
        assert process.returncode == 0


def test_missing_worker_is_named_and_a_signal_ends_the_waiting():
    ports = _free_ports(2)
    with _started(_cluster(ports, 0)) as process:
        line = process.stderr.readline()
        assert line == f"worker 0 is waiting for worker 1 at 127.0.0.1:{ports[1]}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143
        said = "stopped by SIGTERM, signal 15; the same command starts over\n"
        assert process.stderr.read() == said


def test_waiting_has_a_limit(capsys):
    ports = _free_ports(3)
    expected = (
        f"worker 0 at 127.0.0.1:{ports[0]}, worker 2 at 127.0.0.1:{ports[2]} did not start within "
        "--worker_timeout=0.5 s; expected all 3 processes; start them too, or wait longer"
    )
    with pytest.raises(MissingWorkerError) as error:
        workers.wait_for_all(_cluster(ports, 1), 0.5)
    assert str(error.value) == expected and error.value.exit_code == 11
    assert capsys.readouterr().err == ""


def test_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"worker 0 cannot have port {port} .Address already"):
            workers.wait_for_all(_cluster([port, *_free_ports(1)], 0), 1)


def test_signal_while_tensorflow_joins_them_ends_the_process():
    program = (
        "import signal; from tl_research import cli, signals\n"
        "def main():\n"
        "    with signals.answered_by(signal.SIG_DFL): signal.raise_signal(signal.SIGTERM)\n"
        "cli.define_flags(); cli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -signal.SIGTERM
