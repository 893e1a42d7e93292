"""Images and labels of a TensorFlow Datasets data set (`pip install tl_research[tfds]`).

    TFDS=stanford_dogs python train.py --flagfile=flowers.flags \
        --extension=examples/tfds_catalog.py

All its splits are put together and split anew, as for folders of images. The images are kept in
memory as they are, next to those that are resized. TFDS itself downloads what is missing, to
TFDS_DATA_DIR.
"""

import os

import numpy as np
import tensorflow_datasets as tfds

from tl_research.data.catalog import Table


def load_catalog(config):
    name = os.environ.get("TFDS", "tf_flowers")
    data, info = tfds.load(name, split="all", as_supervised=True, with_info=True)
    images, labels = zip(*tfds.as_numpy(data))
    return Table(images, np.array(labels), info.features["label"].names)
