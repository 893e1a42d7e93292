"""Several replicas train as one does: in one process, in two of which one is killed, in four of
which one is stopped, and when a run changes from one number to another.

The processes are forks of one that has imported TensorFlow and computed nothing: devices and
clusters can be chosen only then.
"""

import contextlib
import csv
import json
import os
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tl_research import distribution
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.run import checkpoints

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SCRIPT = r"""
import json, os, shutil, signal, sys
import distribution, fault_forks, program  # of benchmarks
from tl_research.errors import UnreachableError
from tl_research.models import backbones
from tl_research.training import progress

place, photos = sys.argv[1:]
flags = [
    "--dataset=directory", f"--data_dir={photos}", "--backbone=Tiny", "--weights=none",
    "--image_size=16", "--batch_size=8", "--phases=only", "--patience=0", "--epochs=2",
    "--unfreeze=block3", "--learning_rate=1e-2", "--dropout=0.5", "--augment_views=0",
    "--clip_norm=0.5", "--ema_decay=0.9", "--mixup=0.4", "--checkpoint_every_steps=3",
    "--if_offline=embedded", "--shards=4", "--data_audit=off",
]

def unreachable(name, *args):
    if name == "Tiny":
        raise UnreachableError("no network")

def process(name, *more, replicas=1, tf_config=None, end=None, offline=False):
    # One of train.py; `end`: (the signal, the step after which it comes); `offline`: its weights
    # are not reached.
    def prepare():
        if replicas > 1:
            distribution.split_cpu(replicas)
        if tf_config:
            os.environ["TF_CONFIG"] = tf_config
        if offline:
            backbones.reach_weights = unreachable
        add = progress.add

        def ended(state, *args):
            add(state, *args)
            if end and state.position.global_step >= end[1]:
                os.kill(os.getpid(), end[0])
        progress.add = ended
    return lambda: fault_forks.train(f"{place}/{name}", [*flags, *more], prepare)

# jobs: (name, processes)

def alone(name, *more, **options):
    return name, [process(name, *more, **options)]

def mirrored(name, *more):
    return alone(name, "--distribute=mirrored", *more, replicas=2)

def workers(name, *more, count=2, **last):
    *others, of_last = program.tf_configs(count)
    more = ("--distribute=multi_worker", *more)
    return name, [
        *(process(name, *more, tf_config=one) for one in others),
        process(name, *more, tf_config=of_last, **last),
    ]

# in the last call of an epoch of 21 steps, at whose end nothing is saved before it was evaluated
kill, term = (signal.SIGKILL, 19), (signal.SIGTERM, 19)
half = ["--precision=mixed_float16", "--optimizer=sgd"]
blend = [
    "--mixup=0", "--manifold_mixup=0.4", "--augment_views=2", "--feature_cache=memory",
    "--phases=head,finetune", "--epochs=1,1", "--unfreeze=0%,block3",
]
audit, codes = "--data_audit=on", {}
for jobs in [
    [mirrored("mirrored", audit), alone("one", end=kill)],
    [workers("workers", audit)],
    [workers("killed", end=kill)],
    [workers("stopped", "--shards=0", count=4, end=term)],
    [workers("killed")],
    [workers("stopped", "--shards=0"), mirrored("one")],
    [alone("half", *half), mirrored("half two", *half)],
    [workers("apart", offline=True)],
    [workers("blended", *blend), alone("blended one", *blend)],
]:
    processes = [each for _, of_job in jobs for each in of_job]
    found = iter(fault_forks.in_parallel(processes, len(processes)))
    for name, of_job in jobs:
        codes.setdefault(name, []).append([next(found) for _ in of_job])
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def runs(run_script, tmp_path_factory, write_images):
    """({name of a run: [exit codes of its processes] each time it was started}, the directory that
    holds the run directories).
    """
    place = tmp_path_factory.mktemp("distribution")
    photos = write_images(place / "photos", count=60, size=16)
    return json.loads(run_script(_SCRIPT, place, photos).splitlines()[-1]), place


def _end(run):
    """Returns ({name: array} of the last checkpoint, the validation losses of all epochs,
    results.json).
    """
    _, arrays = checkpoints.load_newest(str(run / "checkpoints"), 1 << 30)
    with open(run / "metrics.csv") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    return arrays, losses, json.loads((run / "results.json").read_text())


def test_two_workers_end_as_two_devices_of_one_do_and_the_chief_alone_writes(runs):
    codes, place = runs
    assert [codes["mirrored"], codes["workers"]] == [[[0]], [[0, 0]]]
    assert (
        _end(place / "workers")[2]["weights_sha256"]
        == _end(place / "mirrored")[2]["weights_sha256"]
    )
    log = (place / "workers.log").read_text()
    assert log.count("RESULT ") == log.count("\n  2/2  only ") == 1
    shared = "distribute: multi_worker: 2 replicas, 4 images of each batch on each\n" + (
        "shards: 4, of which this process holds 2: 79 of 144 training images\n"
    )
    assert shared in (place / "workers" / "plan.txt").read_text()
    assert {len(list((place / name / "train").iterdir())) for name in ("workers", "mirrored")} == {
        1
    }


def test_killed_worker_ends_the_other_in_one_line_and_the_job_is_resumed_to_the_same_weights(runs):
    codes, place = runs
    assert codes["killed"] == [[143, -9], [0, 0]]
    log = (place / "killed.log").read_text()
    assert (
        log.count("error: another worker ended or cannot be reached (") == 1
        and "resumed phase only, epoch 1, step 18" in log
    )
    assert "the run began with" not in log
    arrays, losses, results = _end(place / "killed")
    expected, unbroken, ends = _end(place / "workers")
    assert (
        arrays.keys() == expected.keys()
        and losses == unbroken
        and results["weights_sha256"] == ends["weights_sha256"]
    )
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_signal_to_one_of_four_workers_stops_all_after_the_same_step(runs):
    codes, place = runs
    assert codes["stopped"][0] == [143] * 4
    assert (place / "stopped.log").read_text().count(
        "stopped by SIGTERM, signal 15 after step 21; nothing is lost. To continue:\n"
        f"  {sys.executable} {_ROOT}/train.py --workdir={place}/stopped\n"
    ) == 4
    # as many as there were processes, also in one that goes on
    assert json.loads((place / "stopped" / "run.json").read_text())["shards"] == 4
    for name in ("split.json", "bad_images.csv", "duplicates.csv"):
        assert (place / "stopped" / name).read_bytes() == (place / "one" / name).read_bytes()


@pytest.mark.parametrize(
    "name, step, codes",
    [("stopped", 21, [[143] * 4, [0, 0]]), ("one", 18, [[-9], [0]])],
    ids=["four to two", "one to two"],
)
def test_run_goes_on_with_another_number_of_replicas(runs, name, step, codes):
    of_runs, place = runs
    assert of_runs[name] == codes
    assert f"resumed phase only, epoch 1, step {step}\n" in (place / f"{name}.log").read_text()
    arrays, losses, _ = _end(place / name)
    expected, unbroken, _ = _end(place / "workers")
    np.testing.assert_allclose(losses, unbroken, rtol=1e-6)
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_allclose(arrays[key], array, rtol=1e-4, atol=1e-6, err_msg=key)


def test_features_are_blended_alike_by_one_process_and_two(runs):
    codes, place = runs
    assert codes["blended"] == [[0, 0]], (place / "blended.log").read_text()
    assert codes["blended one"] == [[0]], (place / "blended one.log").read_text()
    two, one = (_end(place / name) for name in ("blended", "blended one"))
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
    for name, array in one[0].items():
        np.testing.assert_allclose(two[0][name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    assert one[2]["feature_cache"] == "memory"


def test_two_phases_of_two_workers_carry_the_optimizer_over(runs):
    _, place = runs
    arrays = _end(place / "blended")[0]
    counts = {name: int(a) for name, a in arrays.items() if name.endswith("/iterations")}
    steps = int((place / "blended" / "metrics.csv").read_text().splitlines()[-1].split(",")[2])
    assert sorted(counts.values()) == [steps // 2, steps], counts


def test_loss_scale_of_float16_is_one_for_all_replicas(runs):
    codes, place = runs
    assert codes["half"] == codes["half two"] == [[0]]
    one, two = _end(place / "half")[1], _end(place / "half two")[1]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert len(set(one)) == 2


# What is refused.


def test_workers_that_reach_different_weights_end_instead_of_waiting_for_each_other(runs):
    codes, place = runs
    assert codes["apart"] == [[1, 1]]
    log = (place / "apart.log").read_text()
    for backbone in ("Tiny", "EfficientNetLite0"):
        assert (
            "error: the workers differ in the weights that they reach; this one has 'none of "
            f"{backbone}'; expected the same" in log
        )


@pytest.mark.parametrize(
    "value",
    [
        None,
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_multi_worker_needs_its_task_in_a_cluster_of_workers(monkeypatch, value):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if value:
        monkeypatch.setenv("TF_CONFIG", value)
    with (
        pytest.raises(
            UserError,
            match="--distribute=multi_worker with TF_CONFIG=.*; expected this process's task",
        ),
        distribution.replicas(
            Config(dataset="drawn_flowers", distribute="multi_worker", workdir="x")
        ),
    ):
        pass


def test_multi_worker_needs_a_common_directory(monkeypatch):
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'
    )
    with (
        pytest.raises(UserError, match="without --workdir"),
        distribution.replicas(Config(dataset="drawn_flowers", distribute="multi_worker")),
    ):
        pass


@pytest.fixture
def made(monkeypatch, request):
    """The strategies, which do nothing, that a process with four devices makes."""
    made = []
    devices = [types.SimpleNamespace(name=f"/{request.node.name}:{i}") for i in range(4)]

    def make(names):
        assert list(names) == [device.name for device in devices]
        made.append(
            types.SimpleNamespace(num_replicas_in_sync=len(names), scope=contextlib.nullcontext)
        )
        return made[-1]

    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", make)
    return made


def test_batch_is_a_multiple_of_the_replicas(made):
    with (
        pytest.raises(
            UserError,
            match="--batch_size=30 on 4 replicas; expected a multiple of their number; "
            ".*--batch_size=28",
        ),
        distribution.replicas(
            Config(dataset="drawn_flowers", distribute="mirrored", batch_size=30)
        ),
    ):
        pass


def test_one_device_is_one_replica_and_needs_no_strategy():
    with distribution.replicas(Config(dataset="drawn_flowers", distribute="mirrored")):
        assert not tf.distribute.has_strategy()


def test_a_process_has_one_strategy(made):
    for seed in (0, 1):
        with distribution.replicas(
            Config(dataset="drawn_flowers", distribute="mirrored", seed=seed)
        ):
            pass
    assert len(made) == 1


def test_batchnorm_in_training_mode_is_not_distributed():
    with pytest.raises(UserError, match="--distribute=mirrored with --batchnorm=training"):
        Config(dataset="drawn_flowers", distribute="mirrored", batchnorm="training")


def test_workers_that_differ_are_told_so(monkeypatch):
    numbers = []
    monkeypatch.setattr(
        distribution, "of_all_workers", lambda number: numbers.append(number) or numbers[-2:]
    )
    distribution.check_equal("flags", "--seed=1")
    with pytest.raises(UserError, match="the workers differ in flags; this one has '--seed=2'"):
        distribution.check_equal("flags", "--seed=2")
