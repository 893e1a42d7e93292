"""What the audit of the images says, on features whose faults are known."""

import csv

import numpy as np
import pytest

from tl_research import data_audit


def _audited(places=None, *more, wrong=0):
    """Audits 40 images in two classes far apart, with faults planted, of which `places` are here.

    Image `wrong` has the label of the other class; 39, of validation as all from 30 on, is 38
    again.
    """
    random = np.random.default_rng(0)
    labels = np.arange(40) // 20
    features = random.normal(size=(40, 64)) + 12 * np.eye(2, 64)[labels]
    features[39] = features[38] + 1e-3
    labels[wrong] = 1 - labels[wrong]
    sides = np.array(["train"] * 30 + ["validation"] * 10)
    names = [f"{i}.jpg" for i in range(40)]
    here = features if places is None else features[places]
    return data_audit.examine(here, labels, sides, names, ("cat", "dog"), places, *more)


@pytest.fixture
def found():
    return _audited()


def test_processes_with_a_part_each_find_what_one_does_with_all(together, monkeypatch, found):
    parts = [np.arange(1, 40, 2), np.arange(0, 40, 2)]
    monkeypatch.setattr(data_audit, "_ROWS", 6)  # of each process 3 at a time
    for audit in together(2, lambda index, all_gather: _audited(parts[index], all_gather)):
        assert audit.summary["data_audit"] == found.summary["data_audit"]
        assert [
            {**row, "doubt": "", "distance": pytest.approx(float(row["distance"]), abs=2e-4)}
            for row in found.rows
        ] == [{**row, "doubt": "", "distance": float(row["distance"])} for row in audit.rows]
        doubts = [[float(row["doubt"]) for row in one.rows] for one in (audit, found)]
        np.testing.assert_allclose(*doubts, atol=2e-4)


def test_a_wrong_label_is_doubted_most(found):
    assert found.order[0] == 0
    row = found.rows[0]
    assert (row["path"], row["side"], row["label"]) == ("0.jpg", "train", "dog")
    assert row["suggested_label"] == "cat" and float(row["doubt"]) > 0.98
    doubts = [float(row["doubt"]) for row in found.rows]
    assert doubts == sorted(doubts, reverse=True) and doubts[1] < 0.5
    assert sorted(found.order) == list(range(40))
    assert found.summary["data_audit"]["suspects"] == 1


def _near_copies(found):
    return {row["path"]: row["near_copy_of"] for row in found.rows if row["near_copy_of"]}


def test_near_copies_are_named(found):
    rows = {row["path"]: row for row in found.rows}
    assert _near_copies(found) == {"38.jpg": "39.jpg", "39.jpg": "38.jpg"}
    assert float(rows["39.jpg"]["distance"]) < 1e-4 and rows["5.jpg"]["near_copy_of"] == ""
    audited = found.summary["data_audit"]
    assert (audited["near_copies_across_sides"], audited["contradictions"]) == (0, 0)


def test_pairs_across_sides_and_classes_are_counted():
    random = np.random.default_rng(0)
    features = random.normal(size=(12, 64))
    features[6], features[7] = features[0], features[1]  # 6 has another class than 0, 7 than 1
    sides = np.array(["train"] * 7 + ["validation"] * 5)  # 0 and 6 are on one side
    labels = np.arange(12) // 6
    found = data_audit.examine(features, labels, sides, list(map(str, range(12))), ("a", "b"))
    assert _near_copies(found) == {"0": "6", "6": "0", "1": "7", "7": "1"}
    assert found.summary["data_audit"]["near_copies_across_sides"] == 1
    assert found.summary["data_audit"]["contradictions"] == 2


def test_cross_validation_counts_what_was_left_out(found):
    measured = found.summary["cross_validation"]
    assert measured["n"] == 40 and measured["accuracy"] == 39 / 40  # image 0 is the one
    assert measured["standard_error"] == pytest.approx(np.sqrt(39 / 40 / 40 / 40))
    assert measured["validation_accuracy"] == 1


def test_accuracy_of_validation_images_left_out_counts_these_alone():
    measured = _audited(wrong=35).summary["cross_validation"]
    assert (measured["accuracy"], measured["validation_accuracy"]) == (39 / 40, 9 / 10)


def test_audit_without_validation_images_can_be_described():
    features = np.random.default_rng(0).normal(size=(12, 8))
    names, sides = list(map(str, range(12))), np.repeat("train", 12)
    found = data_audit.examine(features, np.arange(12) // 6, sides, names, ("a", "b"))
    assert "; of validation images nan), loss " in data_audit.describe(found, "x")[1]


def test_lines_count_and_name_doubtful_labels_and_give_the_accuracy_of_the_head(found):
    labels, head, worst = data_audit.describe(found, "report/data_audit.csv")
    assert labels == (
        "labels: 1 of 40 look doubtful (with fewer than 40 images per class, most doubtful labels "
        "are correct); pairs of look-alikes with different labels: 0; see report/data_audit.csv"
    )
    assert worst.startswith("most doubtful: 0.jpg (cat?), ")
    assert worst.endswith("; pairs of look-alikes on two sides of the split: 0")
    assert worst.count("?") == 3
    assert head.startswith(
        "closed-form head, each of 40 training and validation images left out once: accuracy "
        "0.9750 (standard error 0.0247; of validation images 1.0000), loss "
    )


def test_doubts_of_labels_are_trusted_from_40_images_per_class_on():
    assert data_audit.caveat(1, 80, 2) == data_audit.caveat(0, 79, 2) == ""
    text = " (with fewer than 40 images per class, most doubtful labels are correct)"
    assert data_audit.caveat(1, 79, 2) == data_audit.caveat(2, 119, 3) == text


def test_test_images_are_added_once_and_sorted(found, tmp_path):
    path = str(tmp_path / "data_audit.csv")
    data_audit.write(path, found.rows)
    shares = np.array([[0.999, 0.001], [0.3, 0.7]])
    for _ in range(2):
        data_audit.add_test(path, shares, np.array([1, 1]), ("x.jpg", "y.jpg"), ("cat", "dog"))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 42
    added = {row["path"]: row for row in rows if row["side"] == "test"}
    assert added["x.jpg"]["suggested_label"] == "cat" and added["x.jpg"]["doubt"] == "0.9990"
    assert added["y.jpg"]["suggested_label"] == "dog" and added["y.jpg"]["doubt"] == "0.3000"
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
