"""Several labels for an image: each class is there or not, whatever the others are.

    LABELS=labels.csv python train.py --extension=examples/multi_label.py

labels.csv has a row for each image: its path, from the file's own folder, and the names of its
classes with ; between them, as in `beach/12.jpg,sea;people`. Labels that are float32 [N, K] of 0
and 1 make the objective `BinaryCrossEntropy`: sigmoids in training and in the exports, the accuracy
of whole sets and macro F1 in metrics.csv and results.json, classes with probabilities of 0.5 or
more in predictions.
"""

import csv
import os

import numpy as np

from tl_research.data.catalog import Table

LABELS = os.environ.get("LABELS", "labels.csv")


def load_catalog(config):
    with open(LABELS, encoding="utf-8", newline="") as file:
        rows = [(path, set(names.split(";")) - {""}) for path, names in csv.reader(file)]
    classes = sorted(set().union(*(names for _, names in rows)))
    labels = np.array([[name in names for name in classes] for _, names in rows], np.float32)
    folder = os.path.dirname(os.path.abspath(LABELS))
    return Table([os.path.join(folder, path) for path, _ in rows], labels, classes)
