"""Which processes train together under `--distribute=multi_worker`, and which of them this one is:
from `TF_CONFIG`, or from what Slurm or an indexed job of Kubernetes sets (`--cluster`).

TensorFlow's own `SlurmClusterResolver` puts node n10 before n9, so that processes get the addresses
of others, and fails on machines without GPUs. Imports no TensorFlow.
"""

import dataclasses
import itertools
import json
import os
import re
import zlib

from tl_research.errors import UserError

_FIRST_PORT = 20000  # systems give out those from 32768
_NUMBER = r"\d{1,6}"
_RANGE = rf"{_NUMBER}(?:-{_NUMBER})?"
_NODE = rf"(?:[\w.-]|\[{_RANGE}(?:,{_RANGE})*\])+"
_SHARE = rf"{_NUMBER}(?:\(x{_NUMBER}\))?"
_EXAMPLE = (
    'set it to {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
)
_BY_SRUN = "start all processes by one srun, as examples/cluster/slurm.sh does"
_IN_ENV = "set it in the containers' env, as the JobSet of examples/cluster does"
# The variable that shows a source to be there, and what says how many processes there are.
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together, the one that writes the run directory first.

    Attributes:
        tasks: Of each (its name, HOST:PORT).
        index: The place of this process among them.
    """

    tasks: tuple[tuple[str, str], ...]
    index: int


def described(source: str) -> Cluster:
    """Returns the cluster that environment variables describe.

    Args:
        source: tf_config, slurm or kubernetes; auto: the first of them whose variables are set.

    Raises:
        UserError: If they describe none, or several that differ.
    """
    if source != "auto":
        return _READERS[source][0]()
    present = [name for name, (_, names) in _READERS.items() if os.environ.get(names[0])]
    chosen, *others = present or ["tf_config"]
    cluster = _READERS[chosen][0]()
    for other in others:
        _check_agreement(cluster, chosen, other)
    return cluster


def _check_agreement(cluster, chosen, other):
    """Raises an error if another source has another number or index of processes.

    Within a job of one process, which is nobody's cluster, somebody may start others by hand.
    """
    index, *counts = _READERS[other][1]
    count = _first_set(counts)
    expected = {index: str(cluster.index), count: str(len(cluster.tasks))}
    given = {name: os.environ[name] for name in expected if os.environ.get(name)}
    if given.get(count) != "1" and any(given[name] != expected[name] for name in given):
        raise UserError(
            f"{_READERS[chosen][1][0]} makes this process {cluster.index} of {len(cluster.tasks)}, "
            f"{' and '.join(f'{name}={value}' for name, value in given.items())} do not; expected "
            f"one cluster; correct them, or give --cluster={chosen} or --cluster={other}"
        )


def _of_tf_config():
    text = os.environ.get("TF_CONFIG")
    try:
        value = json.loads(text or "")
        jobs, job, index = value["cluster"], value["task"]["type"], int(value["task"]["index"])
        tasks = {f"{name} {i}": at for name in sorted(jobs) for i, at in enumerate(jobs[name])}
        usable = set(jobs) <= {"chief", "worker"} and f"{job} {index}" in tasks
        ports = [0 < int(address.rpartition(":")[2]) < 1 << 16 for address in tasks.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not (usable and all(ports)):
        raise UserError(
            f"--distribute=multi_worker with TF_CONFIG={text!r}; expected this process's task "
            f"in a cluster of workers; {_EXAMPLE}, or start it by srun or as an indexed job of "
            "Kubernetes"
        )
    if "chief 1" in tasks or len(set(tasks.values())) < len(tasks):
        raise UserError(
            f"TF_CONFIG={text!r} has two chiefs, or one address twice; expected one chief at most, "
            f"and an address for each process; {_EXAMPLE}"
        )
    return Cluster(tuple(tasks.items()), list(tasks).index(f"{job} {index}"))


def _of_slurm():
    index = int(_variable(_SLURM[:1], _NUMBER, "the number of this process", _BY_SRUN))
    count = int(_variable(_SLURM[1:], _NUMBER, "the number of all processes", _BY_SRUN))
    listed = _variable(
        ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"),
        rf"{_NODE}(?:,{_NODE})*",
        "nodes such as n[1-3,7],m2",
        _BY_SRUN,
    )
    shares = _variable(
        ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
        rf"{_SHARE}(?:,{_SHARE})*",
        "the number of processes on each node, such as 2(x3),1",
        _BY_SRUN,
    )
    nodes, counts = _nodes(listed), _counts(shares)
    if len(counts) == 1:
        counts *= len(nodes)
    hosts = [node for node, processes in zip(nodes, counts) for _ in range(processes)]
    if len(nodes) != len(counts) or len(hosts) != count or index >= count:
        raise UserError(
            f"SLURM_PROCID={index} of {count} processes, {shares} of them on {len(nodes)} nodes, "
            f"{listed}; expected numbers that fit each other; {_BY_SRUN}"
        )
    local = os.environ.get("SLURM_LOCALID")
    if local not in (None, str(hosts[:index].count(hosts[index]))):
        raise UserError(
            f"SLURM_PROCID={index} with SLURM_LOCALID={local}, {shares} processes on {listed}; "
            "expected one node to be filled after the other; add --distribution=block to srun"
        )
    # jobs that share a node, and steps of one job, need other ports
    step = ".".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _workers(hosts, index, _FIRST_PORT + 16 * (zlib.crc32(step.encode()) % 512))


def _nodes(listed):
    """Returns the names in a list of nodes: n[08-10,12]-ib,m is n08-ib, n09-ib, ..., m."""
    names = []
    for node in re.findall(_NODE, listed):
        pieces = re.split(r"\[(.*?)\]", node)  # text, ranges, text, ...
        choices = [_numbers(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
        names += map("".join, itertools.product(*choices))
    return names


def _numbers(ranges):
    """Returns the numbers in ranges, as wide as the first of each is written."""
    ends = [(each.split("-")[0], each.split("-")[-1]) for each in ranges.split(",")]
    return [
        str(number).zfill(len(first))
        for first, last in ends
        for number in range(int(first), int(last) + 1)
    ]


def _counts(shares):
    """Returns how many processes each node has: 2(x3),1 is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", shares)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _of_kubernetes():
    index, count = (
        int(_variable((name,), _NUMBER, what, _IN_ENV))
        for name, what in zip(_KUBERNETES, ("the pod's index", "the job's number of pods"))
    )
    job = _variable(("JOB_NAME",), r"[\w.-]+", "the name of the job", _IN_ENV)
    service = _variable(("JOB_SERVICE",), r"[\w.-]+", "that of its headless service", _IN_ENV)
    if index >= count:
        raise UserError(
            f"JOB_COMPLETION_INDEX={index} with JOB_COMPLETIONS={count}; expected an index below "
            "the number of pods; set it to the job's completions"
        )
    return _workers([f"{job}-{i}.{service}" for i in range(count)], index, _FIRST_PORT)


def _workers(hosts, index, first_port):
    """Returns a cluster of workers, each with a port of its own, since some may share a host."""
    return Cluster(
        tuple((f"worker {i}", f"{host}:{first_port + i}") for i, host in enumerate(hosts)), index
    )


def _variable(names, pattern, what, fix):
    """Returns the text of the first of some variables that is set; it has to match a pattern."""
    name = _first_set(names)
    text = os.environ.get(name, "")
    if not re.fullmatch(pattern, text):
        received = f"{name}={text!r}" if text else f"{name} is not set"
        raise UserError(f"{received}; expected {what}; {fix}")
    return text


def _first_set(names):
    """Returns the name of the first variable that is set, or else the first."""
    return next(filter(os.environ.get, names), names[0])


_READERS = {
    "tf_config": (_of_tf_config, ("TF_CONFIG",)),
    "slurm": (_of_slurm, _SLURM),
    "kubernetes": (_of_kubernetes, _KUBERNETES),
}
