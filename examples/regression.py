"""A number for an image instead of a class.

    LABELS=ages.csv python train.py --extension=examples/regression.py

ages.csv has a row for each image: its path, from the file's own folder, and its number. Labels that
are float32 [N] make the objective `SquaredError`: a head of one output, the mean absolute error in
metrics.csv and results.json, selection by the squared one (--select_by=val_mean_absolute_error
selects by the other). A head that begins near 0 learns numbers of size 1 fastest, so SCALE is what
they are divided by; losses and predictions are in that unit.
"""

import csv
import os

import numpy as np

from tl_research.data.catalog import Table

LABELS = os.environ.get("LABELS", "labels.csv")
SCALE = 1.0


def load_catalog(config):
    with open(LABELS, encoding="utf-8", newline="") as file:
        paths, numbers = zip(*csv.reader(file))
    folder = os.path.dirname(os.path.abspath(LABELS))
    paths = [os.path.join(folder, path) for path in paths]
    return Table(paths, np.array(numbers, np.float32) / SCALE, ["number"])
