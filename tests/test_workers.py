"""Waiting for the other processes of a cluster: said, ended by a signal, by a limit, or by all."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tl_research import workers
from tl_research.errors import UserError


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _config(ports, index, job="worker"):
    cluster = {job: [f"127.0.0.1:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


_PROGRAM = """
import sys
from tl_research import cli, workers
workers._SILENT_SECONDS = 0.3
def main():
    workers.wait_for_all(30)
    name, tasks = workers.task()
    with workers._reached_at(name, tasks[name]):  # as TensorFlow takes the port over
        print("all are there", flush=True)
        sys.stdin.read()
cli.define_flags()
cli.run(main)
"""


def _started(tf_config):
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "TF_CONFIG": tf_config},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_find_each_other():
    ports = _free_ports(3)
    processes = [_started(_config(ports, index)) for index in range(3)]
    assert [process.stdout.readline() for process in processes] == ["all are there\n"] * 3
    for process in processes:
        process.communicate(timeout=10)
        assert process.returncode == 0


def test_missing_worker_is_named_and_a_signal_ends_the_waiting():
    ports = _free_ports(2)
    with _started(_config(ports, 0)) as process:
        line = process.stderr.readline()
        assert line == f"worker 0 waits for worker 1 at 127.0.0.1:{ports[1]}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143
        said = "stopped by SIGTERM, signal 15; the same command begins anew\n"
        assert process.stderr.read() == said


def test_waiting_has_a_limit(monkeypatch, capsys):
    ports = _free_ports(2)
    monkeypatch.setenv("TF_CONFIG", _config(ports, 0))
    expected = f"worker 1 at 127.0.0.1:{ports[1]} did not come within --worker_timeout=0.5 s"
    with pytest.raises(UserError, match=expected):
        workers.wait_for_all(0.5)
    assert capsys.readouterr().err == ""


def test_port_in_use_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", _config([port, *_free_ports(1)], 0))
        expected = f"worker 0 of TF_CONFIG cannot have port {port} .Address already in use"
        with pytest.raises(UserError, match=expected):
            workers.wait_for_all(1)


@pytest.mark.parametrize(
    "value, what",
    [
        (_config([1, 2], 0, "chief"), "has two chiefs, or one address twice"),
        (_config([1, 1], 0), "has two chiefs, or one address twice"),
        (_config([1, 99999], 0), "expected this process's task"),
        (_config(["x"], 0), "expected this process's task"),
        (_config([1], 1), "expected this process's task"),
    ],
)
def test_cluster_that_cannot_be_is_refused(monkeypatch, value, what):
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(UserError, match=what):
        workers.task()


def test_signal_while_tensorflow_joins_them_ends_the_process():
    program = (
        "import signal; from tl_research import cli, workers\n"
        "def main():\n"
        "    with workers.ended_by_signals(): signal.raise_signal(signal.SIGTERM)\n"
        "cli.define_flags(); cli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -signal.SIGTERM
