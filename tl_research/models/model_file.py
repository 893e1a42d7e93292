"""Reads an exported Keras model from a file that may come from anyone.

Nothing in it is run that is not a layer of Keras or registered, see Keras' safe mode. What it
claims is compared with what it holds before memory is taken: of its archive, its weights, its
layers and what these compute.
"""

import json
import math
import os
import zipfile

import h5py
import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import StatelessScope

from tl_research.models import weights

_PARTS = {"config.json", "metadata.json", "model.weights.h5"}
_MAX_COMPUTED = 1 << 29  # numbers in one tensor of one image: VGG's largest at 2048 px is 2^28


def load(path: str) -> keras.Model:
    """Returns the model in a `.keras` file.

    Raises:
        Exception: Of any kind, if it cannot be read or claims more than it holds: a file from
            anyone can be wrong in every way.
    """
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if {member.filename for member in members} != _PARTS or len(members) != len(_PARTS):
            raise ValueError(f"it holds other files than {', '.join(sorted(_PARTS))}")
        if sum(member.file_size for member in members) > size:
            raise ValueError("it unpacks to more than it is; expected it as Keras writes it")
        config = json.loads(archive.read("config.json"))
    with weights.opened(path) as content, h5py.File(content, "r") as file:
        held = sum(dataset.size for dataset in weights.walk(file, h5py, size).values())
    with StatelessScope():  # which makes the variables at its end
        try:
            model = keras.saving.deserialize_keras_object(config)
            _check_claims(model, held)
        except BaseException:
            global_state.set_global_attribute("uninitialized_variables", [])
            raise
    model.load_weights(path)
    return model


def _check_claims(model, held):
    """Raises ValueError if a model's variables are more than its file holds, or if it computes what
    no backbone does.
    """
    claimed = sum(math.prod(variable.shape) for variable in model.weights)
    if claimed > held:
        raise ValueError(f"its layers claim {claimed:,} numbers, its file holds {held:,}")
    for layer in model._flatten_layers():
        for node in layer._inbound_nodes:
            for tensor in node.output_tensors:
                if math.prod(length or 1 for length in tensor.shape) > _MAX_COMPUTED:
                    raise ValueError(f"its layer {layer.name} computes a tensor of {tensor.shape}")
