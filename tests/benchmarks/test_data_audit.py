"""The benchmark finds what it plants among pictures of noise, and names those that are alike."""

import json
import re

import data_audit
import numpy as np
import PIL.Image
import pytest


def test_planted_faults_are_found_and_counted(tiny_backbone, tmp_path, capsys):
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            # coarse noise, which encoding keeps; ant 11 is ant 0 in other bytes
            pixels = np.random.RandomState(100 * label + i % 11).randint(0, 200, (12, 12, 3))
            pixels[:, :, label] += 55
            image = PIL.Image.fromarray(pixels.astype(np.uint8))
            image = image.resize((120, 96), PIL.Image.Resampling.BICUBIC)
            image.save(tmp_path / "photos" / name / f"{i}.{'png' if i < 11 or label else 'bmp'}")
    (tmp_path / "photos" / "bee" / "11.png").unlink()
    settings = data_audit.Settings(
        dataset="directory",
        data_dir=f"{tmp_path}/photos",
        backbone="Tiny@16",
        share=0.1,
        seeds="0",
        copies=5,
        few="4",
        output_json=f"{tmp_path}/out.json",
    )
    text = data_audit.report(settings)
    assert re.findall("^group: .*", text, re.MULTILINE) == ["group: ant/0.png, ant/11.bmp"]
    assert capsys.readouterr().out.splitlines()[0] in text
    written = json.loads((tmp_path / "out.json").read_text())
    (labels,) = written["labels"]
    assert [row["each"] for row in written["few"]] == [4]
    assert labels["planted"] == 2 and labels["precision"] == 1 - len(labels["not_planted"]) / 2
    rows = re.findall(r"^\| ([^|]*) \| ([\d.]+)% \| (\d+) \|", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(data_audit.CHANGES)
    assert all((share, others) == ("100.0", "0") for _, share, others in rows[:4])


def test_labels_of_images_far_apart_are_not_doubted_however_few():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 6).astype(np.int32)
    found = random.normal(size=(12, 8)).astype(np.float32) + 100 * np.eye(2, 8)[labels]
    assert data_audit.few_row(found, labels, 4, (0, 1)) == {"each": 4, "doubtful": 0.0}
    labels[0] = 1  # always chosen: of six and six all are
    row = data_audit.few_row(found, labels, 12, (0,))
    assert row == {"each": 12, "doubtful": pytest.approx(1 / 12)}


def test_distances_are_of_centered_features():
    # around their mean of zero: copies at 0 and 90 degrees from their original
    found = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    copies = np.array([[2.0, 0.0], [-3.0, 0.0]])
    measured = data_audit.distances(found, copies, np.array([0, 1]))
    assert measured == pytest.approx({"median": 0.5, "largest": 1.0, "near": 0.5, "nearest": 0.5})
