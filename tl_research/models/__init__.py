"""Pretrained backbones, augmentation, the classifier, and its split into a frozen and a trainable
part.

Importing this package registers its layers, so that `keras.saving.load_model` can read an exported
model.
"""

from tl_research.models.classifier import Classifier

__all__ = ["Classifier"]
