"""Reads an exported Keras model from an untrusted file.

Only Keras' own and registered layers are run, as in Keras' safe mode. Before memory is allocated,
what the file claims about its archive, weights, layers and their outputs is compared with what it
contains.
"""

import json
import math
import os
import zipfile

import h5py
import keras

from tl_research.models import keras_private, weights
from tl_research.models.classifier import num_parameters

_PARTS = {"config.json", "metadata.json", "model.weights.h5"}
_MAX_COMPUTED = 1 << 29  # elements in one tensor of one image: VGG's largest at 2048 px is 2^28


def load(path: str) -> keras.Model:
    """Returns the model in a `.keras` file.

    Raises:
        Exception: Of any kind, if it cannot be read or claims more than it contains: an untrusted
            file can be wrong in every way.
    """
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if {member.filename for member in members} != _PARTS or len(members) != len(_PARTS):
            raise ValueError(f"it contains other files than {', '.join(sorted(_PARTS))}")
        if sum(member.file_size for member in members) > size:
            raise ValueError("it unpacks to more than its size; expected it as Keras writes it")
        config = json.loads(archive.read("config.json"))
    with weights.opened(path) as content, h5py.File(content, "r") as file:
        held = sum(dataset.size for dataset in weights.walk(file, size).values())
    with keras.StatelessScope():  # which creates the variables at its end
        try:
            model = keras.saving.deserialize_keras_object(config)
            _check_claims(model, held)
        except BaseException:
            keras_private.forget_uninitialized()
            raise
    model.load_weights(path)
    return model


def _check_claims(model, held):
    """Raises ValueError if a model's variables are larger than its file, or if a tensor in it is
    larger than in any backbone.
    """
    claimed = num_parameters(model.weights)
    if claimed > held:
        raise ValueError(f"its layers claim {claimed:,} numbers, its file holds {held:,}")
    for layer in keras_private.all_layers(model):
        for tensor in keras_private.output_tensors(layer):
            if math.prod(length or 1 for length in tensor.shape) > _MAX_COMPUTED:
                raise ValueError(f"its layer {layer.name} computes a tensor of {tensor.shape}")
