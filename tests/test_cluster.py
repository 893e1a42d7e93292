"""Which processes train together, by the variables of those who start them, and what
examples/cluster starts.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from tl_research import cluster
from tl_research.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_EXAMPLES = os.path.join(_ROOT, "examples", "cluster")
_NAMES = "TF_CONFIG SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_NTASKS SLURM_STEP_NODELIST"
_NAMES += " SLURM_JOB_NODELIST SLURM_NODELIST SLURM_STEP_TASKS_PER_NODE SLURM_TASKS_PER_NODE"
_NAMES += " SLURM_NTASKS_PER_NODE SLURM_LOCALID SLURM_JOB_ID SLURM_STEP_ID"
_NAMES += " JOB_COMPLETION_INDEX JOB_COMPLETIONS JOB_NAME JOB_SERVICE"

_SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[9-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_LOCALID": "0",
}
_POD = {
    "JOB_COMPLETION_INDEX": "1",
    "JOB_COMPLETIONS": "3",
    "JOB_NAME": "flowers-workers-0",
    "JOB_SERVICE": "flowers",
}


def _tf_config(index, job="worker", **jobs):
    return json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})


@pytest.fixture
def described(monkeypatch):
    """A function of a source and environment variables to the cluster that they describe."""

    def describe(variables, source="auto"):
        for name in _NAMES.split():
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return cluster.described(source)

    return describe


def _hosts(found):
    return [address.partition(":")[0] for _, address in found.tasks]


def test_chief_of_tf_config_comes_first_and_writes(described):
    value = _tf_config(1, worker=["a:1", "b:2"], chief=["c:3"])
    tasks = (("chief 0", "c:3"), ("worker 0", "a:1"), ("worker 1", "b:2"))
    assert described({"TF_CONFIG": value}) == cluster.Cluster(tasks, 2)


def test_processes_of_slurm_fill_one_node_after_the_other_each_with_a_port_of_its_own(described):
    found = described(_SLURM)
    names, addresses = zip(*found.tasks)
    assert names == ("worker 0", "worker 1", "worker 2") and found.index == 2
    assert _hosts(found) == ["n9", "n9", "n10"]
    first, *others = [int(address.partition(":")[2]) for address in addresses]
    assert others == [first + 1, first + 2] and 20000 <= first < 28192
    # steps of one job, and jobs, that share a node
    ports = {
        described({**_SLURM, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step}).tasks
        for job, step in (("7", "0"), ("7", "1"), ("8", "0"))
    }
    assert len(ports) == 3


@pytest.mark.parametrize(
    "listed, shares, hosts",
    [
        ("login", "3", "login login login"),
        ("a,b-1.x,c", "1(x3)", "a b-1.x c"),
        ("n[08-10]", "1(x3)", "n08 n09 n10"),
        ("n[1,3],m[2]", "1", "n1 n3 m2"),
        ("r[1-2]c[7],x", "1(x2),1", "r1c7 r2c7 x"),
        ("n[099-100]-ib", "2,1", "n099-ib n099-ib n100-ib"),
    ],
)
def test_node_lists_of_slurm(described, listed, shares, hosts):
    # as older versions name them, without those of a step
    found = described(
        {
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "3",
            "SLURM_NODELIST": listed,
            "SLURM_TASKS_PER_NODE": shares,
        }
    )
    assert " ".join(_hosts(found)) == hosts


def test_pods_of_an_indexed_job_are_reached_by_the_names_that_their_service_gives_them(described):
    assert described(_POD) == cluster.Cluster(
        (
            ("worker 0", "flowers-workers-0-0.flowers:20000"),
            ("worker 1", "flowers-workers-0-1.flowers:20001"),
            ("worker 2", "flowers-workers-0-2.flowers:20002"),
        ),
        1,
    )


# Several descriptions.


def test_descriptions_that_agree_are_one_and_tf_config_has_the_addresses(described):
    value = _tf_config(1, chief=["a:1"], worker=["b:2", "c:3"])
    assert _hosts(described({"TF_CONFIG": value, **_SLURM})) == ["a", "b", "c"]
    # an indexed job whose author wrote TF_CONFIG needs no other names
    value = _tf_config(1, worker=["a:1", "b:2"])
    assert _hosts(described({"TF_CONFIG": value, "JOB_COMPLETION_INDEX": "1"})) == ["a", "b"]


def test_processes_started_by_hand_within_a_job_of_one(described):
    value = {"TF_CONFIG": _tf_config(1, worker=["a:1", "b:2"])}
    job = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert described({**value, **job}).index == 1


@pytest.mark.parametrize(
    "variables, said",
    [
        (
            {"TF_CONFIG": _tf_config(0, worker=["a:1", "b:2"]), **_SLURM},
            "TF_CONFIG makes this process 0 of 2, SLURM_PROCID=2 and SLURM_STEP_NUM_TASKS=3 do "
            "not; expected one cluster; correct them, or give --cluster=tf_config or "
            "--cluster=slurm",
        ),
        (
            {"TF_CONFIG": _tf_config(0, worker=["a:1", "b:2", "c:3"]), **_SLURM},
            "TF_CONFIG makes this process 0 of 3, SLURM_PROCID=2 and SLURM_STEP_NUM_TASKS=3 do "
            "not; expected one cluster; correct them, or give --cluster=tf_config or "
            "--cluster=slurm",
        ),
        (
            {**_SLURM, **_POD},
            "SLURM_PROCID makes this process 2 of 3, JOB_COMPLETION_INDEX=1 and JOB_COMPLETIONS=3 "
            "do not; expected one cluster; correct them, or give --cluster=slurm or "
            "--cluster=kubernetes",
        ),
    ],
)
def test_descriptions_that_differ_are_refused_unless_one_is_chosen(described, variables, said):
    with pytest.raises(UserError) as error:
        described(variables)
    assert str(error.value) == said and error.value.exit_code == 1
    for source in said.split("--cluster=")[1:]:
        described(variables, source.split()[0])


# What is refused.

_SET_IT = '; set it to {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "ind'


@pytest.mark.parametrize(
    "value, what",
    [
        (_tf_config(0, "chief", chief=["a:1", "b:2"]), "has two chiefs, or one address twice"),
        (_tf_config(0, worker=["a:1", "a:1"]), "has two chiefs, or one address twice"),
        (_tf_config(0, worker=["a:1", "b:99999"]), "expected this process's task"),
        (_tf_config(0, worker=["x"]), "expected this process's task"),
        (_tf_config(1, worker=["a:1"]), "expected this process's task"),
        (_tf_config(0, "chief", worker=["a:1"]), "expected this process's task"),
        ("", "TF_CONFIG=''; expected this process's task in a cluster of workers" + _SET_IT),
    ],
)
def test_cluster_that_cannot_be_is_refused(described, value, what):
    with pytest.raises(UserError) as error:
        described({"TF_CONFIG": value})
    assert what in str(error.value)


_SRUN = "; start all processes by one srun, as examples/cluster/slurm.sh does"
_ENV = "; set it in the containers' env, as the JobSet of examples/cluster does"
_NODES = "; expected nodes such as n[1-3,7],m2" + _SRUN
_FIT = "nodes, n[9-10]; expected numbers that fit each other" + _SRUN


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID='x'; expected the number of this process" + _SRUN),
        (
            {"SLURM_STEP_NUM_TASKS": ""},
            "SLURM_STEP_NUM_TASKS is not set; expected the number of all processes" + _SRUN,
        ),
        ({"SLURM_STEP_NODELIST": "n[9-"}, "SLURM_STEP_NODELIST='n[9-'" + _NODES),
        ({"SLURM_STEP_NODELIST": "n[]"}, "SLURM_STEP_NODELIST='n[]'" + _NODES),
        ({"SLURM_STEP_NODELIST": "n9,,n10"}, "SLURM_STEP_NODELIST='n9,,n10'" + _NODES),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set" + _NODES),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "2x"},
            "SLURM_STEP_TASKS_PER_NODE='2x'; expected the number of processes on each node, such "
            "as 2(x3),1" + _SRUN,
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "4"},
            "SLURM_PROCID=2 of 4 processes, 2,1 of them on 2 " + _FIT,
        ),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "1(x3)"},
            "SLURM_PROCID=2 of 3 processes, 1(x3) of them on 2 " + _FIT,
        ),
        (
            {"SLURM_PROCID": "3"},
            "SLURM_PROCID=3 of 3 processes, 2,1 of them on 2 " + _FIT,
        ),
        (
            {"SLURM_LOCALID": "1"},  # the cyclic order: n9, n10, n9
            "SLURM_PROCID=2 with SLURM_LOCALID=1, 2,1 processes on n[9-10]; expected "
            "one node to be filled after the other; add --distribution=block to srun",
        ),
    ],
)
def test_variables_of_slurm_that_cannot_be_are_refused(described, changes, said):
    with pytest.raises(UserError) as error:
        described({**_SLURM, **changes}, "slurm")
    assert str(error.value) == said and error.value.exit_code == 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is not set; expected the pod's index"),
        ({"JOB_COMPLETIONS": "two"}, "JOB_COMPLETIONS='two'; expected the job's number of pods"),
        ({"JOB_NAME": ""}, "JOB_NAME is not set; expected the name of the job"),
        ({"JOB_SERVICE": ""}, "JOB_SERVICE is not set; expected that of its headless service"),
        ({"JOB_SERVICE": "a b"}, "JOB_SERVICE='a b'; expected that of its headless service"),
    ],
)
def test_variables_of_a_pod_that_cannot_be_are_refused(described, changes, said):
    with pytest.raises(UserError) as error:
        described({**_POD, **changes}, "kubernetes")
    assert str(error.value) == said + _ENV


def test_index_of_a_pod_is_below_their_number(described):
    with pytest.raises(UserError) as error:
        described({**_POD, "JOB_COMPLETION_INDEX": "3"})
    assert str(error.value) == (
        "JOB_COMPLETION_INDEX=3 with JOB_COMPLETIONS=3; expected an index below the number of "
        "pods; set it to the job's completions"
    )


# Two processes on the loopback address.

_SCRIPT = r"""
import json, os, sys
import fault_forks  # of benchmarks
from tl_research import cli, distribution
from tl_research.config import Config

def train(workdir, variables, flags):
    return fault_forks.train(workdir, flags, lambda: os.environ.update(variables))

def join(workdir, variables, flags):
    os.environ.update(variables)
    cli.define_flags(Config)
    cli.parse(["train.py", *flags])
    with distribution.replicas(cli.config_from_flags()):
        return distribution.of_all_workers(int(variables["JOB_COMPLETION_INDEX"]))

def case(name, *given):
    return lambda: {"train": train, "join": join}[name](*given)

cases = [case(*each) for each in json.load(sys.stdin)]
print(json.dumps(fault_forks.in_parallel(cases, len(cases))))
"""
_FLAGS = [
    *("--flagfile=flowers.flags", "--dataset=directory", "--backbone=Tiny", "--weights=none"),
    *("--image_size=16", "--batch_size=8", "--phases=only", "--epochs=1", "--unfreeze=block3"),
    *("--learning_rate=1e-2", "--lr_schedule=constant", "--warmup=0", "--patience=0"),
    *("--augment=none", "--augment_views=0", "--data_audit=off"),
]


def _of_slurm_script(flags, place):
    """Returns the flags that examples/cluster/slurm.sh gives to train.py when given some."""
    srun = place / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ["bash", os.path.join(_EXAMPLES, "slurm.sh"), *flags],
        env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    command = done.stdout.splitlines()
    assert command[:3] == ["--kill-on-bad-exit=1", ".venv/bin/python", "train.py"]
    assert "--workdir=runs/7" in command
    return command[3:]


def _of_jobset():
    """Returns (the flags, the variables with a value) of the container in the manifest."""
    text = open(os.path.join(_EXAMPLES, "jobset.yaml")).read()
    (arguments,) = re.findall(r"args:\n((?: +- --.*\n)+)", text)
    (subdomain,) = re.findall(r"subdomain: (\w+)", text)
    variables = dict(re.findall(r'- name: (\w+)\n +value: "?(\w+)"?', text))
    assert variables == {"JOB_COMPLETIONS": "2", "JOB_SERVICE": subdomain}
    assert "completions: 2\n        parallelism: 2\n" in text
    assert "- name: JOB_NAME\n" in text and "labels['batch.kubernetes.io/job-name']" in text
    return re.findall(r"- (--.*)", arguments), variables


def _alone(place):
    """Returns the beginning of a command that runs in a network of its own, where all ports are
    free and the names of two pods are known; empty where that is not allowed.
    """
    pods = " ".join(f"flowers-workers-0-{i}.flowers" for i in range(2))
    (place / "hosts").write_text(f"127.0.0.1 localhost {pods}\n")
    line = f'ip link set lo up && mount --bind {place}/hosts /etc/hosts && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "--net", "sh", "-c", line, "sh"]
    found = shutil.which("unshare") and shutil.which("ip")
    return command if found and not subprocess.run([*command, "true"]).returncode else []


def _by_hand():
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [stack.enter_context(server).getsockname()[1] for server in servers]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    return [{"TF_CONFIG": _tf_config(i, worker=addresses)} for i in range(2)]


def _by_slurm():
    step = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "SLURM_TASKS_PER_NODE": "2"}
    step["SLURM_JOB_ID"] = str(os.getpid())
    return [{**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]


@pytest.fixture(scope="module")
def ends(tmp_path_factory, write_images):
    """([exit codes], the directory of the runs "by hand" and "slurm" and of their logs, what the
    pods of the JobSet learn of each other or [] where they cannot run).
    """
    place = tmp_path_factory.mktemp("cluster")
    flags = [*_FLAGS, f"--data_dir={write_images(place / 'photos', count=15, size=16)}"]
    by_script, alone = _of_slurm_script(flags, place), _alone(place)
    flags.append("--distribute=multi_worker")
    cases = [("train", f"{place}/by hand", variables, flags) for variables in _by_hand()]
    cases += [("train", f"{place}/slurm", variables, by_script) for variables in _by_slurm()]
    if alone:
        flags, pod = _of_jobset()
        pod["JOB_NAME"] = "flowers-workers-0"
        cases += [("join", None, {**pod, "JOB_COMPLETION_INDEX": str(i)}, flags) for i in range(2)]
    done = subprocess.run(
        [*alone, sys.executable, "-c", _SCRIPT],
        input=json.dumps(cases),
        text=True,
        capture_output=True,
        timeout=200,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT}/benchmarks"},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return answers[:4], place, answers[4:]


def test_two_processes_of_srun_end_as_two_started_by_hand(ends):
    codes, place, _ = ends
    assert codes == [0, 0, 0, 0]
    (_, results), (_, expected) = (
        (place / f"{name}.log").read_text().split("RESULT ") for name in ("slurm", "by hand")
    )
    assert json.loads(results)["weights_sha256"] == json.loads(expected)["weights_sha256"]
    plan = (place / "slurm" / "plan.txt").read_text()
    assert "distribute: multi_worker: 2 replicas, 4 images of each batch on each" in plan


def test_pods_of_the_jobset_find_each_other(ends):
    _, _, learnt = ends
    if not learnt:
        pytest.skip("needs a network and a file of hosts of its own")
    assert learnt == [[0, 1], [0, 1]]


def test_two_workers_of_ray_end_as_two_started_by_hand(tmp_path, write_images):
    pytest.importorskip("ray.train")
    flags = [
        *(f"--data_dir={write_images(tmp_path / 'photos', count=15, size=16)}", "--image_size=32"),
        *(f"--extension={_ROOT}/examples/small_vit.py", "--batch_size=8", "--phases=only"),
        *("--epochs=2", "--unfreeze=all", "--data_audit=off"),
    ]
    program = os.path.join(_EXAMPLES, "ray_train.py")
    by_ray = subprocess.run(
        [sys.executable, program, *flags, "--workdir=ray"], cwd=tmp_path, capture_output=True
    )
    assert by_ray.returncode == 0, by_ray.stderr
    flags = [*flags, "--workdir=by hand", "--distribute=multi_worker"]
    processes = [
        subprocess.Popen(
            [sys.executable, f"{_ROOT}/train.py", *flags],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
        )
        for variables in _by_hand()
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found, expected = (
        json.loads(output.splitlines()[-1].removeprefix(b"RESULT "))
        for output in (by_ray.stdout, outputs[0])
    )
    assert found["weights_sha256"] == expected["weights_sha256"]
