"""Distillation: a small network also learns what a trained one makes of each image (Hinton et al.
2015, arXiv:1503.02531, section 2).

    TEACHER=runs/big/export/model.keras python train.py --flagfile=flowers.flags \
        --backbone=EfficientNetLite0 --extension=examples/distillation.py

The teacher is a Keras model from pixels in 0..255, of the student's size, to the logits of the same
classes: what a run of train.py exports. The loss is (1 - SHARE) times the cross-entropy with the
labels plus SHARE T^2 times that with the teacher's probabilities, both networks' logits divided by
the temperature T. Where the student's features are cached, the teacher looks at each view of each
image once, before training; where images are live, it looks at them in the step.
"""

import hashlib
import os

import keras
import numpy as np
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.training.objective import CrossEntropy

TEACHER = os.environ.get("TEACHER", "runs/teacher/export/model.keras")
TEMPERATURE, SHARE = 2.0, 0.5


class _Distillation(CrossEntropy):
    def begin(self, plan):
        try:
            with open(TEACHER, "rb") as file:  # a resumed run must have the same teacher
                self.identity = (f"teacher of SHA-256 {hashlib.sha256(file.read()).hexdigest()}",)
            teacher = keras.saving.load_model(TEACHER, compile=False)
            self._teach = tf.function(lambda images: teacher(images, training=False))
            size, num_classes = plan.config.image_size, plan.classifier.num_classes
            shapes = teacher.input_shape, teacher.output_shape
            if shapes != ((None, size, size, 3), (None, num_classes)):
                raise ValueError(f"it goes from {shapes[0]} to {shapes[1]}")
        except (OSError, ValueError) as error:
            raise UserError(
                f"TEACHER={TEACHER} cannot teach this run ({str(error).splitlines()[0]}); expected "
                "a .keras file for its image size and classes; set TEACHER"
            ) from error
        self._kept, self._num_examples = None, len(plan.train)
        if plan.cache.plan.live is None:
            self._kept = tf.constant(np.concatenate(list(self._logits_of_views(plan))))

    def _logits_of_views(self, plan):
        """Yields the teacher's logits of each batch; row `view * N + i` is those of example i."""
        source = plan.cache.live_source("train", plan.classifier.boundary())
        places = np.array_split(np.arange(len(plan.train)), plan.steps_per_epoch)
        for view in range(plan.cache.plan.views):
            draws = source.of_view(view)
            for row in places:
                images = source.read(row, draws, plan.train.images(row))
                yield self._teach(images).numpy()

    def losses(self, logits, batch):
        if self._kept is None:
            taught = self._teach(batch.inputs)
        else:
            taught = tf.gather(self._kept, batch.view * self._num_examples + batch.indices)
        soft = tf.nn.softmax_cross_entropy_with_logits(
            tf.nn.softmax(taught / TEMPERATURE), logits / TEMPERATURE
        )
        return (1 - SHARE) * super().losses(logits, batch) + SHARE * TEMPERATURE**2 * soft


def make_objective(config, train):
    return _Distillation.from_config(config, train)
