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
_ENDS = [_STEPS, 2 * _STEPS, 3 * _STEPS]  # of the epochs
_PHASE_ENDS = _ENDS[1:]


@pytest.fixture(scope="module")
def run(with_tiny_backbone, tiny_settings, tmp_path_factory):
    """(directory of TensorBoard, results) of a run `one` with two phases of 2 and 1 epochs, steps 6
    to 8 profiled.
    """
    place = tmp_path_factory.mktemp("tensorboard")
    settings = tiny_settings(
        place,
        epochs=(2, 1),
        learning_rate=(1e-2, 1e-3),
        cache_pixels=0,
        profile_steps="6:8",
        workdir=str(place / "runs" / "one"),
    )
    with with_tiny_backbone():
        return place / "runs", experiment.run(Config(**settings))


@pytest.fixture(scope="module")
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


@pytest.fixture
def series(ask):
    """A function of a plugin, a side and a tag to its records."""
    return lambda plugin, side, tag, **query: ask(
        f"plugin/{plugin}", run=f"one/{side}", tag=tag, **query
    )


def test_scalars_are_at_the_ends_of_epochs(ask, series):
    tags = {side: set(found) for side, found in ask("plugin/scalars/tags").items()}
    assert tags["one/validation"] >= {"loss", "accuracy"} <= tags["one/train"]
    kinds = ("learning_rate", "gradient_norm", "update_ratio")
    assert tags["one/train"] >= {
        *(f"{kind}/{group}" for kind in kinds for group in ("head", "backbone")),
        *("images_per_second", "waiting_for_data"),
    }
    for side in ("train", "validation"):
        assert [step for _, step, _ in series("scalars/scalars", side, "accuracy")] == _ENDS
    for tag in ("waiting_for_data", "update_ratio/head"):  # the pixels are decoded again
        records = series("scalars/scalars", "train", tag)
        assert records and all(0 < value < 1 for _, _, value in records)


@pytest.mark.parametrize(
    "side, tag, steps",
    [
        ("train", "first_batch", [0]),
        ("validation", "confusion_matrix", _ENDS),
        ("validation", "worst_mistakes", _PHASE_ENDS),
    ],
)
def test_images_are_png(ask, series, side, tag, steps):
    assert set(ask("plugin/images/tags")["one/validation"]) == {
        "confusion_matrix",
        "worst_mistakes",
    }
    records = series("images/images", side, tag, sample=0)
    assert [record["step"] for record in records] == steps
    query = dict(urllib.parse.parse_qsl(records[0]["query"]))
    content = ask("plugin/images/individualImage", as_json=False, **query)
    with PIL.Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 48
        assert np.asarray(picture).std() > 1


def test_texts_say_what_trains_and_what_was_found(ask, series):
    assert set(ask("plugin/text/tags")["one/train"]) == {
        *("plan", "groups", "audit", "data_audit", "input_statistics", "test", "calibration")
    }
    groups, audits = series("text/text", "train", "groups"), series("text/text", "train", "audit")
    assert [record["step"] for record in groups] == [0, 2 * _STEPS]
    assert "<td>backbone</td>" in groups[1]["text"].replace(' align="left"', "")
    assert [record["step"] for record in audits] == _PHASE_ENDS
    (statistics,) = series("text/text", "train", "input_statistics")
    assert "expects -0.992188 to 1" in statistics["text"]
    numbers = series("text/text", "validation", "confusion_matrix_numbers")[0]["text"]
    assert all(name in numbers for name in ("ant", "bee", "cat"))


def test_graphs_are_one_step_of_each_phase(ask):
    graphs = ask("plugin/graphs/info")["one/train"]["tags"]
    assert set(graphs) == {"step/head", "step/finetune"}
    for tag in graphs:
        query = {"run": "one/train", "tag": tag, "conceptual": "false"}
        graph = ask("plugin/graphs/graph", as_json=False, **query)
        assert b"SoftmaxCrossEntropyWithLogits" in graph


def test_hparams_have_columns_for_settings_and_final_numbers(ask):
    found = ask("plugin/hparams/experiment", post={"experimentName": ""})
    assert {info["name"] for info in found["hparamInfos"]} == {
        *("dataset", "backbone", "weights", "image_size", "epochs", "unfreeze"),
        *("learning_rate", "batch_size", "seed", "changed"),
    }
    assert {info["displayName"] for info in found["metricInfos"]} == {
        f"{side} {name}" for side in ("test", "validation") for name in ("accuracy", "loss")
    }


def test_hparams_have_a_row_of_the_run_with_its_final_numbers(run, ask):
    _, results = run
    columns = [{"hparam": name} for name in ("epochs", "batch_size")]
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]
    post = {"startIndex": 0, "sliceSize": 9, "colParams": columns, "allowedStatuses": statuses}
    (group,) = ask("plugin/hparams/session_groups", post=post)["sessionGroups"]
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
    (selected,) = [p for p in results["phases"] if p["name"] == results["selected_phase"]]
    found = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert found == {
        f"zz_hparams/{name}": pytest.approx(value, rel=1e-6)
        for name, value in (
            ("validation_accuracy", selected["val_accuracy"]),
            ("validation_loss", selected["val_loss"]),
            ("test_accuracy", results["test"]["accuracy"]),
            ("test_loss", results["test"]["loss"]),
        )
    }


def test_profile_has_a_marker_for_each_step(run):
    (profile,) = glob.glob(f"{run[0]}/one/train/plugins/profile/*/*.xplane.pb")
    with open(profile, "rb") as file:
        content = file.read()
    assert b"train" in content and b"step_num" in content and len(content) > 1000


def test_figures_are_in_the_report(run):
    assert sorted(os.listdir(run[0] / "one" / "report")) == [
        "calibration.png",
        "confusion.png",
        "curves.png",
        "data_audit.csv",
        "data_audit.png",
        "index.html",
        "worst_mistakes.png",
    ]
