"""CutMix: a box of another training image is pasted in, and the label is shared by area.

    python train.py --flagfile=flowers.flags --extension=examples/cutmix.py \
        --augment=flip,rotation=0.1,zoom=0.1,cutmix=1.0

The share kept of an image is drawn from Beta(1, 1); the box has the rest of the area, a uniform
center, and is cut off at the border, after which the share is what is really kept (Yun et al. 2019,
arXiv:1905.04899, section 3.1). Images are blended anew every epoch, so training is live.
"""

import zlib

import numpy as np
import tensorflow as tf

from tl_research.data.mixing import Mix
from tl_research.data.pipeline import generator

STREAM = zlib.crc32(b"cutmix")


class _CutMix:
    name = "CutMix"

    def __init__(self, alpha):
        self.alpha = alpha

    def draws(self, seed, epoch, num_examples, image_size):
        random = generator(seed, STREAM, epoch)
        partners = random.permutation(num_examples).astype(np.int32)
        side = image_size * np.sqrt(1.0 - random.beta(self.alpha, self.alpha, [num_examples, 1]))
        center = random.uniform(0.0, image_size, [num_examples, 2])  # of rows and columns
        first, last = (
            np.clip(np.round(place), 0, image_size).astype(np.int32)
            for place in (center - side / 2, center + side / 2)
        )
        shares = 1.0 - np.prod(last - first, axis=1) / image_size**2
        return Mix(partners, shares.astype(np.float32), (first, last))

    def blend(self, images, partner_images, mix):
        first, last = (border[:, :, None] for border in mix.details)
        places = tf.range(images.shape[1])
        inside = (places >= first) & (places < last)  # bool [B, 2, image_size]
        box = inside[:, 0, :, None, None] & inside[:, 1, None, :, None]
        return tf.where(box, partner_images, images)


augmentations = {"cutmix": _CutMix}
