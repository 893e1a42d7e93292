"""An audit of the images of a run: doubtful labels, and images that look alike.

It uses pooled features of the unaugmented images by the pretrained backbone, and NumPy only. No
image is moved or removed. Test images are added only after they were read.
"""

import csv
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tl_research import closed_form, metrics
from tl_research.data.split import printable
from tl_research.files import Json, csv_text, write_atomically

Array = np.ndarray
FILE = "report/data_audit.csv"  # in a run directory
COLUMNS = ("path", "side", "label", "suggested_label", "doubt", "near_copy_of", "distance")
# A label is doubtful if a head made without the image gives another class this probability.
# python benchmarks/data_audit.py --dataset=tf_flowers --data_dir=PHOTOS
_SUSPECT = 0.9
# Distance, 1 - cosine, of features that look alike. Of the flower photographs 24 pairs are this
# near, all of one scene; those encoded again at 90 % of their size are within 0.08, those cropped
# by 5 % within 0.23. python benchmarks/data_audit.py --dataset=tf_flowers --data_dir=PHOTOS
NEAR = 0.1
# With fewer images per class, many correct labels look doubtful: of 20 flower photographs per class
# 14 %, of 40 1.4 %. python benchmarks/data_audit.py --dataset=tf_flowers --data_dir=PHOTOS
_FEW = 40
_NAMED = 3  # images in a line
_ROWS = 1024  # rows of the matrix of distances in memory at a time
# float64 copies of the features and of the logits that `examine` holds at a time
COPIES, COPIES_OF_LOGITS = 2, 12


class DataAudit(NamedTuple):
    """The result of auditing training and validation images."""

    rows: list[Json]  # of `data_audit.csv`, largest doubt first
    order: Array  # int [N], the index of each row's image
    summary: Json  # `cross_validation` and `data_audit` of `results.json`


def examine(
    features: Array,
    labels: Array,
    sides: Array,
    names: Sequence[str],
    classes: Sequence[str],
    places: Array | None = None,
    all_gather: closed_form.AllGather = lambda own: own,
) -> DataAudit:
    """Audits the labels of training and validation images.

    Args:
        features: float32 [M, d], of the images that this process holds.
        labels: int [N], of all images.
        sides: str [N], sides of the split.
        names: N names as in `split.json`.
        classes: K names.
        places: int [M], of this process's images among all; None: it holds all.
        all_gather: See `distribution.all_gather`.
    """
    places = np.arange(len(labels)) if places is None else places
    head = closed_form.solve(features, labels[places], len(classes), all_gather)
    in_order = np.argsort(all_gather({"place": places})["place"])
    head = head._replace(left_out=head.left_out[in_order])
    shares, suggested = metrics.softmax(head.left_out), head.left_out.argmax(axis=1)
    own = shares[np.arange(len(labels)), labels]
    *found, pairs = _neighbors(features, places, all_gather)
    nearest, distances = (column[in_order] for column in found)
    order = np.argsort(own, kind="stable")
    rows = [
        {
            "path": names[i],
            "side": sides[i],
            "label": classes[labels[i]],
            "suggested_label": classes[suggested[i]],
            "doubt": f"{1 - own[i]:.4f}",
            "near_copy_of": names[nearest[i]] if distances[i] <= NEAR else "",
            "distance": f"{distances[i]:.4f}",
        }
        for i in order
    ]
    return DataAudit(
        rows=rows,
        order=order,
        summary={
            "cross_validation": _cross_validation(head, labels, sides == "validation"),
            "data_audit": {
                "suspects": int(((shares.max(axis=1) >= _SUSPECT) & (suggested != labels)).sum()),
                "near_copies_across_sides": sum(sides[i] != sides[j] for i, j in pairs),
                "contradictions": sum(bool(labels[i] != labels[j]) for i, j in pairs),
            },
        },
    )


def _cross_validation(head, labels, is_validation):
    """Returns the leave-one-out metrics; the only image of a class is not counted."""
    counted = np.isfinite(head.left_out).all(axis=1)
    loss, accuracy = metrics.loss_and_accuracy(head.left_out[counted], labels[counted])
    of_validation = (head.left_out.argmax(axis=1) == labels)[counted & is_validation]
    count = int(counted.sum())
    return {
        "accuracy": accuracy,
        "validation_accuracy": float(of_validation.mean()) if of_validation.size else np.nan,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / count)),
        "loss": loss,
        "n": count,
        "method": f"leave-one-out, closed-form head (LDA, shrinkage {head.shrinkage:g})",
    }


def _neighbors(features, places, all_gather):
    """Returns the nearest other image of each, its distance, both [N] as they are gathered, and all
    near pairs.
    """
    counts = all_gather({"count": np.array([len(features)])})["count"]
    mean = closed_form.total(np.sum(features, axis=0, dtype=np.float64), all_gather) / counts.sum()
    units = features - mean.astype(np.float32)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    largest, nearest = np.full(len(units), -2.0, np.float32), np.zeros(len(units), np.int64)
    pairs = []
    size = _ROWS // len(counts)
    for first in range(0, counts.max(), size):  # some rows of each process, against all held here
        block = all_gather({"unit": units[first:][:size], "place": places[first:][:size]})
        in_order = np.argsort(block["place"])
        others = block["place"][in_order]
        cosines = units @ block["unit"][in_order].T
        cosines[places[:, None] == others] = -2.0  # itself
        found = np.argwhere(cosines >= 1 - NEAR)
        pairs.append(np.stack([places[found[:, 0]], others[found[:, 1]]], axis=1))
        column, best = cosines.argmax(axis=1), cosines.max(axis=1)
        is_nearer = (best > largest) | ((best == largest) & (others[column] < nearest))
        largest[is_nearer], nearest[is_nearer] = best[is_nearer], others[column][is_nearer]
    found = all_gather({"nearest": nearest, "largest": largest})
    twice = all_gather({"pair": np.concatenate(pairs)})["pair"].tolist()
    distances = np.maximum(1 - found["largest"], 0.0)
    return found["nearest"], distances, sorted((i, j) for i, j in twice if i < j)


def describe(audit: DataAudit, path: str) -> list[str]:
    """Returns a line on the labels and one on the closed-form head, for everybody, and one with
    details.

    Args:
        audit: The result of `examine`.
        path: Where its rows are.
    """
    measured, found = audit.summary["cross_validation"], audit.summary["data_audit"]
    worst = ", ".join(
        f"{printable(row['path'])} ({printable(row['suggested_label'])}?)"
        for row in audit.rows[:_NAMED]
    )
    doubtful = caveat(found["suspects"], len(audit.rows), len({row["label"] for row in audit.rows}))
    return [
        f"labels: {found['suspects']} of {len(audit.rows)} look doubtful{doubtful}; pairs of "
        f"look-alikes with different labels: {found['contradictions']}; see {path}",
        f"closed-form head, each of {measured['n']:,} training and validation images left out "
        f"once: accuracy {measured['accuracy']:.4f} (standard error "
        f"{measured['standard_error']:.4f}; of validation images "
        f"{measured['validation_accuracy']:.4f}), loss {measured['loss']:.4f}",
        f"most doubtful: {worst}; pairs of look-alikes on two sides of the split: "
        f"{found['near_copies_across_sides']}",
    ]


def caveat(num_suspects: int, num_images: int, num_classes: int) -> str:
    """Returns how far doubts can be trusted, as text in parentheses, if there are few images."""
    if not num_suspects or num_images >= _FEW * num_classes:
        return ""
    return f" (with fewer than {_FEW} images per class, most doubtful labels are correct)"


def write(path: str, rows: Sequence[Json]) -> None:
    """Writes `data_audit.csv`; raises StorageError."""
    write_atomically(path, csv_text(COLUMNS, rows))


def add_test(
    path: str, shares: Array, labels: Array, names: Sequence[str], classes: Sequence[str]
) -> None:
    """Adds the test images, judged by the trained model, to the file.

    Args:
        path: Path of `data_audit.csv`.
        shares: float [N, K], the model's probabilities.
        labels: int [N].
        names: N names as in `split.json`.
        classes: K names.

    Raises:
        StorageError: If it cannot be written.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["side"] != "test"]
    rows += [
        {
            "path": name,
            "side": "test",
            "label": classes[label],
            "suggested_label": classes[share.argmax()],
            "doubt": f"{1 - share[label]:.4f}",
        }
        for name, label, share in zip(names, labels, shares)
    ]
    write(path, sorted(rows, key=lambda row: -float(row["doubt"])))
