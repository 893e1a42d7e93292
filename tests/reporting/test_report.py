"""The report of a run: its numbers by hand, names that are hostile, Chromium's view of it, and the
same file from a run that was cut off.
"""

import dataclasses
import html.parser
import json
import os
import shutil
import subprocess
import types

import numpy as np
import PIL.Image
import pytest

from tl_research import experiment
from tl_research.answers import ANSWERS
from tl_research.config import Config
from tl_research.errors import StorageError
from tl_research.reporting import report
from tl_research.reporting.evaluation import Evaluation

_HOSTILE = ("<script>document.title='taken'<", "b|c`d*_e", "Ромашка & Söhne")
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class _Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
        self.words = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def settings(tiny_settings, tmp_path_factory):
    """Settings of a run on 20 images of each of three classes of hostile names."""
    place = tmp_path_factory.mktemp("report")
    more = {"epochs": (2, 1), "split": (0.5, 0.3, 0.2), "workdir": str(place / "my run")}
    settings = tiny_settings(place, 20, _HOSTILE, **more)
    photos = settings["data_dir"]
    os.rename(
        os.path.join(photos, _HOSTILE[0], "00.png"),
        os.path.join(photos, _HOSTILE[0], "'\"><b>.png"),
    )
    return settings


@pytest.fixture(scope="module")
def whole(with_tiny_backbone, settings):
    """(Results of a run with `settings`, its page, its card)."""
    with with_tiny_backbone():
        results = experiment.run(Config(**settings))
    return results, *_texts(settings)


def _read(settings, *names):
    with open(os.path.join(settings["workdir"], *names), encoding="utf-8") as file:
        return file.read()


def _texts(settings):
    return _read(settings, "report", "index.html"), _read(settings, "export", "README.md")


def test_page_says_what_the_run_found_and_holds_all_that_it_shows(settings, whole):
    results, text, card = whole
    page = _Page(text)
    hits, count = round(results["test"]["accuracy"] * 12), results["test"]["n"]
    low, high = (f"{100 * bound:.1f}" for bound in results["test"]["ci95"])
    share = f"{100 * hits / 12:.1f}"
    said = f"{hits} of 12 test images are classified correctly: {share} %"
    assert count == 12 and f"{said} (95 % interval {low} % to {high} %)." in page.words
    for name in _HOSTILE:
        assert f"{name}1064" in page.words.replace(" ", "").replace(name.replace(" ", ""), name)
    assert "batch_size832" in page.words.replace(" ", "") and "flags.txt repeats" in page.words
    checked = "Checked bit by bit over 2 phases: 6 of 6 trainable variables changed, 0 of "
    assert checked in page.words
    assert f"-m tl_research.evaluate '--run={settings['workdir']}' --data_dir=FOLDER" in page.words
    suspects = results["data_audit"]["suspects"]
    few = " (with fewer than 40 images per class, most doubtful labels are correct)"
    assert f"Labels that look doubtful: {suspects}{few * bool(suspects)}." in page.words
    assert "Calibration of probabilities" in page.words
    # nothing comes from elsewhere, and nothing runs
    sources = [
        value for _, has in page.tags for name, value in has.items() if name in ("src", "href")
    ]
    assert len(sources) > 3 and all(source.startswith("data:image/") for source in sources)
    assert not {"script", "link", "iframe", "object", "b."} & {tag for tag, _ in page.tags}
    assert not [name for _, has in page.tags for name in has if name.startswith("on")]
    assert "default-src 'none'" in page.tags[4][1]["content"]
    _check_card(card, results)


def _check_card(card, results):
    """The header is what hubs read, and no name is more than text."""
    _, header, body = card.split("---\n", 2)
    assert header == (
        "license: unknown  # depends on those of the images and the pretrained weights; enter "
        "yours here\n"
        "library_name: keras\n"
        "pipeline_tag: image-classification\n"
        "tags:\n- image-classification\n- transfer-learning\n- keras\n"
        'datasets:\n- "photos"\n'
        'metrics:\n- "accuracy"\n- "loss"\n'
        'model-index:\n- name: "my run"\n'
        "  results:\n"
        "  - task:\n      type: image-classification\n      name: Image Classification\n"
        '    dataset:\n      type: imagefolder\n      name: "photos"\n      split: test\n'
        "    metrics:\n"
        f'    - type: "accuracy"\n      value: {results["test"]["accuracy"]}\n'
        '      name: "Test accuracy"\n'
        f'    - type: "loss"\n      value: {results["test"]["loss"]}\n      name: "Test loss"\n'
    )
    assert (
        "\n| b&#124;c&#96;d&#42;&#95;e | 10 | 6 | 4 |\n| Ромашка &#38; Söhne | 10 | 6 | 4 |\n"
        in body
    )
    assert "\n| &#60;script&#62;document.title&#61;&#39;taken&#39;&#60; | 10 | 6 | 4 |\n" in body
    assert "<" not in body.replace("``` ", "") and "(1, 16, 16, 3)" in body


def test_cut_off_run_gives_the_same_page_and_what_cannot_be_written_is_exit_9(
    tiny_backbone, settings, whole
):
    results = os.path.join(settings["workdir"], "results.json")
    os.remove(results)
    page = os.path.join(settings["workdir"], "report", "index.html")
    os.remove(page)
    os.mkdir(page)
    with pytest.raises(StorageError, match="could not write .*index.html") as error:
        experiment.run(Config(**settings))
    assert error.value.exit_code == 9 and not os.path.exists(results)
    os.rmdir(page)
    experiment.run(Config(**settings))
    assert _texts(settings) == whole[1:]


def test_run_without_epochs_or_audit_has_no_such_parts(tiny_backbone, settings, tmp_path):
    settings = {**settings, "workdir": str(tmp_path / "run")}
    experiment.run(Config(**settings | {"epochs": (0, 0), "data_audit": "off"}))
    words = _Page(_texts(settings)[0]).words
    assert "No epoch was trained." in words and "test images are classified correctly" in words
    for part in ("Doubtful labels", "The worst mistakes", "Checked bit by bit"):
        assert part not in words


@pytest.fixture
def chromium(tmp_path):
    """A function of a page's path and arguments of Chromium to what that prints."""

    def run(page, *arguments):
        command = [_CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'chromium'}", *arguments, f"file://{page}"]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    return run


@pytest.mark.skipif(not _CHROMIUM, reason="needs Chromium")
def test_chromium_shows_it_light_dark_and_as_pdf(chromium, finished_run, tmp_path):
    page, means = os.path.join(finished_run, "report", "index.html"), []
    for more in ((), ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")):
        chromium(page, *more, "--window-size=600,900", f"--screenshot={tmp_path / 'shot.png'}")
        with PIL.Image.open(tmp_path / "shot.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape == (900, 600) and pixels.std() > 5
        means.append(np.median(pixels))
    assert means[0] > 240 and means[1] < 40
    chromium(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(not _CHROMIUM, reason="needs Chromium")
def test_chromium_runs_nothing_of_a_name(chromium, tmp_path):
    names = (
        "<script>document.title='taken'</script>",
        "<img src=x onerror=document.title='taken'>",
    )
    logits, examples = np.eye(2, dtype=np.float32), _examples(np.int32([1, 0]))
    examples.names = list(names)
    found = report.evaluation(Evaluation(ANSWERS["class"], logits, examples, names, names[0]))
    facts = {"title": names[0], "found": found, "run": names[1], "matrix": None}
    text = report.render("evaluated.html", facts)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    shown = chromium(tmp_path / "page.html", "--dump-dom")
    assert "<title>&lt;script&gt;document.title='taken'&lt;/script&gt;</title>" in shown
    assert [tag for tag, _ in _Page(shown).tags].count("img") == 2


def _examples(labels, size=4):
    images = np.zeros((len(labels), size, size, 3), np.uint8)
    return types.SimpleNamespace(
        labels=labels,
        names=[f"{i}.png" for i in range(len(labels))],
        images=lambda places: types.SimpleNamespace(numpy=lambda: images[list(places)]),
    )


def test_evaluation_counts_by_hand():
    labels = np.int32([0, 0, 0, 0, 1, 1])
    said = np.int32([0, 0, 0, 1, 1, 0])
    logits = np.float32(np.eye(2)[said] * [[1], [1], [1], [3], [1], [2]])
    found = report.evaluation(
        Evaluation(ANSWERS["class"], logits, _examples(labels), ("a", "b"), "/a folder")
    )
    text = report.render(
        "evaluated.html", {"title": "t", "found": found, "run": "r", "matrix": None}
    )
    assert "a 3 75 % 1 25 % b 1 50 % 1 50 %" in _Page(text.replace("<br>", " ")).words
    assert found["confusions"] == [(1, 0, 1), (1, 1, 0)]
    assert (found["wrong"], found["report"]["n"]) == (2, 6)
    assert [row["path"] for row in found["mistakes"]] == ["3.png", "5.png"]  # the larger loss first
    # Wilson's interval of 3 of 4
    assert found["report"]["per_class"]["a"]["recall_ci95"] == pytest.approx(
        [0.3006, 0.9544], abs=1e-4
    )
    assert "4 of 6 images are classified correctly: 66.7 % (95 % interval 30.0 % to 90.3 %)." in (
        _Page(text).words
    )
    assert "On images in /a folder" in _Page(text).words
    assert "1 of 4 a mistaken for b" in _Page(text).words


def test_hundred_classes_are_a_picture_and_the_commonest_confusions():
    labels = np.arange(200, dtype=np.int32) % 100
    logits = np.eye(100, dtype=np.float32)[np.where(labels == 7, 8, labels)]
    names = tuple(f"c{i}" for i in range(100))
    found = report.evaluation(Evaluation(ANSWERS["class"], logits, _examples(labels), names, "x"))
    assert found["confusions"] == [(2, 7, 8)]
    facts = {"title": "t", "found": found, "run": "r", "matrix": "data:image/png;base64,AAAA"}
    page = _Page(report.render("evaluated.html", facts))
    assert ("img", facts["matrix"]) in [(tag, has.get("src")) for tag, has in page.tags]
    assert [tag for tag, _ in page.tags].count("table") == 1  # of the classes


def test_numbers_have_an_error_and_sets_their_classes():
    examples = _examples(np.float32([1, 2]))
    number = report.evaluation(
        Evaluation(ANSWERS["number"], np.float32([[1], [5]]), examples, (), "x")
    )
    text = report.render(
        "evaluated.html", {"title": "t", "found": number, "run": "r", "matrix": None}
    )
    assert "On 2 images: loss 4.5, mean absolute error 1.5." in _Page(text).words
    assert "2, predicted 5" in _Page(text).words
    labels = np.float32([[1, 0], [0, 0]])
    logits = np.float32([[3, -3], [3, -3]])
    sets = report.evaluation(Evaluation(ANSWERS["set"], logits, _examples(labels), ("a", "b"), "x"))
    text = report.render(
        "evaluated.html", {"title": "t", "found": sets, "run": "r", "matrix": None}
    )
    assert (
        "nothing, predicted a" in _Page(text).words
        and sets["report"]["per_class"]["a"]["precision"] == 0.5
    )


def test_changed_settings_are_those_that_a_replay_needs():
    config = Config(epochs=(1, 2), data_dir="/photos", workdir="/elsewhere", dropout=0.2)
    assert report.changed_settings(config) == [
        ("dataset", "directory", "tf_flowers"),
        ("data_dir", "/photos", "none"),
        ("epochs", "1,2", "8,10"),
    ]


def test_calibration_is_said_or_why_there_is_none():
    found = {"temperature": 0.6234, "reason": None, "ece_before": 0.1, "ece_after": 0.0123}
    say = report.template("sentences.txt").module.calibration
    assert say(found) == (
        "On the test images, predicted probabilities differ from the accuracy by 10.0 points "
        "(expected calibration error), and by 1.2 points after the logits are divided by the "
        "temperature 0.6234, which was fitted to the validation images and is used by all tools."
    )
    assert say(found | {"reason": "why"}).endswith("No temperature was fitted: why.")


def test_substitution_is_what_tables_of_runs_show():
    spec = types.SimpleNamespace(name="EfficientNetLite0")
    plan = types.SimpleNamespace(
        config=Config(label_smoothing=0), classifier=types.SimpleNamespace(spec=spec)
    )
    parts = types.SimpleNamespace(load_catalog=None)
    ready = types.SimpleNamespace(
        plan=plan,
        place=types.SimpleNamespace(parts=parts),
        substitutions=[types.SimpleNamespace(what="dataset")],
    )
    assert report.used_settings(ready) == {
        "dataset": "drawn_flowers",
        "backbone": "EfficientNetLite0",
        "weights": "imagenet",
        "image_size": 224,
        "epochs": "8,10",
        "unfreeze": "0%,30%",
        "learning_rate": "0.001,0.0003",
        "batch_size": 32,
        "seed": 0,
        "changed": "label_smoothing=0.0",
    }
    own = dataclasses.replace(plan.config, dataset="directory", data_dir="/a/photos/")
    plan.config, ready.substitutions = own, []
    assert report.used_settings(ready)["dataset"] == "photos"
    json.dumps(report.used_settings(ready))
