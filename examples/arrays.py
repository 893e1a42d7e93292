"""Images and labels from NumPy arrays.

    ARRAYS=digits.npz python train.py --flagfile=flowers.flags --extension=examples/arrays.py

The file has `images` uint8 [N, H, W, 3] of any size, `labels` int [N] and `classes`, the names [K].
Labels that are float [N, K] or [N] are for an objective that takes them. Which images and labels
they were is recorded in split.json: a run does not go on with others.
"""

import os

import numpy as np

from tl_research.data.catalog import Table


def load_catalog(config):
    with np.load(os.environ.get("ARRAYS", "arrays.npz")) as arrays:
        return Table(arrays["images"], arrays["labels"], arrays["classes"].tolist())
