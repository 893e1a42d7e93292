"""Pretrained backbones, augmentation, and the classifier with its frozen and trainable parts.

Importing this package registers its layers, so that `keras.saving.load_model` can read an exported
model.
"""

from tl_research.models.classifier import Classifier

__all__ = ["Classifier"]
