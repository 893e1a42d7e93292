"""Images and labels from a CSV file with the columns `path` and `label`.

    CATALOG=photos.csv python train.py --flagfile=flowers.flags \
        --extension=examples/csv_catalog.py

A path is relative to the folder of the file; a label is the name of a class. The split is made as
for folders of images, within each class and by content. `python -m tl_research.evaluate` and
`.export` need the same `--extension` to find the images again.
"""

import csv
import os

import numpy as np

from tl_research.data.catalog import Table


def load_catalog(config):
    path = os.environ.get("CATALOG", "catalog.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    return Table(
        images=[os.path.join(os.path.dirname(path), row["path"]) for row in rows],
        labels=np.array([classes.index(row["label"]) for row in rows]),
        classes=classes,
    )
