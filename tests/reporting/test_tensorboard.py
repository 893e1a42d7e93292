"""A real TensorBoard server on a real run: each plugin that we write for has what we wrote."""

import glob
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import PIL.Image
import pytest

from tl_research import experiment
from tl_research.config import Config

_STEPS = 5  # of 39 training images in batches of 8


@pytest.fixture
def run(tiny_backbone, write_images, tmp_path):
    """(directory of TensorBoard, results) of a run `one` with two phases of 2 and 1 epochs, steps 6
    to 8 profiled.
    """
    photos = write_images(tmp_path / "photos", count=15, size=16)
    results = experiment.run(
        Config(
            dataset="directory",
            data_dir=photos,
            image_size=16,
            backbone="Tiny",
            weights="none",
            epochs=(2, 1),
            unfreeze=("0%", "block3"),
            learning_rate=(1e-2, 1e-3),
            batch_size=8,
            cache_pixels=0,
            profile_steps="6:8",
            workdir=str(tmp_path / "runs" / "one"),
        )
    )
    return tmp_path / "runs", results


@pytest.fixture
def ask(run):
    """A function from a path of the server's HTTP API, and what to post, to the answer's bytes, or
    to JSON.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={run[0]}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path, post=None, as_json=True, **query):
        url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
        data = None if post is None else json.dumps(post).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with opener.open(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if as_json else content

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    if "one/validation" in ask("plugin/scalars/tags"):
                        break
                except (urllib.error.URLError, ConnectionError):
                    pass
                assert server.poll() is None and time.monotonic() < end, server.stderr.read()
                time.sleep(0.3)
            yield ask
        finally:
            server.terminate()


def test_each_plugin_has_its_data(run, ask):
    directory, results = run
    ends, first_of_epochs = [_STEPS, 2 * _STEPS, 3 * _STEPS], [0, 2 * _STEPS]

    def series(plugin, run, tag, **query):
        return ask(f"plugin/{plugin}", run=run, tag=tag, **query)

    # Scalars.
    tags = {run: set(found) for run, found in ask("plugin/scalars/tags").items()}
    assert tags["one/validation"] >= {"loss", "accuracy"} <= tags["one/train"]
    kinds = ("learning_rate", "gradient_norm", "update_ratio")
    assert tags["one/train"] >= {
        *(f"{kind}/{group}" for kind in kinds for group in ("head", "backbone")),
        "images_per_second",
        "waiting_for_data",
    }
    for side in ("train", "validation"):
        assert [step for _, step, _ in series("scalars/scalars", f"one/{side}", "accuracy")] == ends
    waiting = [value for _, _, value in series("scalars/scalars", "one/train", "waiting_for_data")]
    assert all(0 < value < 1 for value in waiting)  # the pixels are decoded again
    assert all(
        0 < value < 1 for _, _, value in series("scalars/scalars", "one/train", "update_ratio/head")
    )

    # Images, as PNG.
    assert set(ask("plugin/images/tags")["one/validation"]) == {
        "confusion_matrix",
        "worst_mistakes",
    }
    for side, tag, steps in (
        ("train", "first_batch", [0]),
        ("validation", "confusion_matrix", ends),
        ("validation", "worst_mistakes", ends[1:]),
    ):
        records = series("images/images", f"one/{side}", tag, sample=0)
        assert [record["step"] for record in records] == steps
        with PIL.Image.open(
            io.BytesIO(
                ask(
                    "plugin/images/individualImage",
                    as_json=False,
                    **dict(urllib.parse.parse_qsl(records[0]["query"])),
                )
            )
        ) as picture:
            assert (
                picture.format == "PNG"
                and min(picture.size) >= 48
                and np.asarray(picture).std() > 1
            )

    # Text.
    assert set(ask("plugin/text/tags")["one/train"]) == {
        "plan",
        "groups",
        "audit",
        "data_audit",
        "input_statistics",
        "test",
        "calibration",
    }
    assert [
        record["step"] for record in series("text/text", "one/train", "groups")
    ] == first_of_epochs
    assert "<td>backbone</td>" in series("text/text", "one/train", "groups")[1]["text"].replace(
        ' align="left"', ""
    )
    assert [record["step"] for record in series("text/text", "one/train", "audit")] == ends[1:]
    assert (
        "expects -0.992188 to 1" in series("text/text", "one/train", "input_statistics")[0]["text"]
    )
    assert all(
        name in series("text/text", "one/validation", "confusion_matrix_numbers")[0]["text"]
        for name in ("ant", "bee", "cat")
    )

    # Graphs: one step of each phase.
    graphs = ask("plugin/graphs/info")["one/train"]["tags"]
    assert set(graphs) == {"step/head", "step/finetune"}
    for tag in graphs:
        assert b"SoftmaxCrossEntropyWithLogits" in ask(
            "plugin/graphs/graph", as_json=False, run="one/train", tag=tag, conceptual="false"
        )

    # HParams: this run's row, with its final numbers.
    experiment_info = ask("plugin/hparams/experiment", post={"experimentName": ""})
    assert {info["name"] for info in experiment_info["hparamInfos"]} == {
        *("dataset", "backbone", "weights", "image_size", "epochs", "unfreeze"),
        *("learning_rate", "batch_size", "seed", "changed"),
    }
    assert {info["displayName"] for info in experiment_info["metricInfos"]} == {
        f"{side} {name}" for side in ("test", "validation") for name in ("accuracy", "loss")
    }
    columns = [{"hparam": name} for name in ("epochs", "batch_size")]
    (group,) = ask(
        "plugin/hparams/session_groups",
        post={
            "startIndex": 0,
            "sliceSize": 9,
            "colParams": columns,
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
        },
    )["sessionGroups"]
    assert re.fullmatch("one [0-9a-f]{4}", group["name"])
    assert group["hparams"] == {
        "dataset": "photos",
        "backbone": "Tiny",
        "weights": "none",
        "image_size": 16,
        "epochs": "2,1",
        "unfreeze": "0%,block3",
        "learning_rate": "0.01,0.001",
        "batch_size": 8,
        "seed": 0,
        "changed": "nothing else",
    }
    found = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert set(found) == {
        f"zz_hparams/{side}_{name}"
        for side in ("validation", "test")
        for name in ("accuracy", "loss")
    }
    np.testing.assert_allclose(
        found["zz_hparams/test_accuracy"], results["test"]["accuracy"], rtol=1e-6
    )
    selected = next(
        phase for phase in results["phases"] if phase["name"] == results["selected_phase"]
    )
    np.testing.assert_allclose(found["zz_hparams/validation_loss"], selected["val_loss"], rtol=1e-6)

    # The profile, with a marker for each step.
    (profile,) = glob.glob(f"{directory}/one/train/plugins/profile/*/*.xplane.pb")
    with open(profile, "rb") as file:
        content = file.read()
    assert b"train" in content and b"step_num" in content and os.path.getsize(profile) > 1000

    # Figures.
    assert sorted(os.listdir(directory / "one" / "report")) == [
        "calibration.png",
        "confusion.png",
        "curves.png",
        "data_audit.csv",
        "data_audit.png",
        "index.html",
        "worst_mistakes.png",
    ]
