"""Every private name of Keras that the package uses, written for Keras 3.15.

Where Keras changes one, this is the module to correct.
"""

from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.config import keras_home as keras_home  # the cache folder of `get_file`
from keras.src.models import Functional as Functional
from keras.src.saving.saving_lib import NpzIOStore, _save_state
from keras.src.utils.naming import to_snake_case as to_snake_case


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers in it, those inside other layers too."""
    return model._flatten_layers()


def nodes(model: keras.Model) -> list[Any]:
    """Returns the nodes of a functional model in an order in which they can be computed."""
    depths = sorted(model._nodes_by_depth.items(), reverse=True)
    return [node for _, at_depth in depths for node in at_depth]


def output_tensors(layer: keras.Layer) -> list[keras.KerasTensor]:
    """Returns the outputs of all calls of a layer."""
    return [tensor for node in layer._inbound_nodes for tensor in node.output_tensors]


def saved_layout(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns {path of its data set in a `.weights.h5` file: variable}, as Keras saves a model."""
    store = NpzIOStore("never written", mode="w")
    _save_state(model, store, None, "", set())
    return {
        f"{group}/vars/{number}".removeprefix("__root__/"): variable
        for group, own in store.contents.items()
        for number, variable in own.items()
    }


def swap_name_counts(counts: Any = None) -> Any:
    """Sets the counts by which Keras numbers layer names; returns those it had."""
    before = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", counts)
    return before


def forget_uninitialized() -> None:
    """Drops the variables that a `keras.StatelessScope` would create at its end."""
    global_state.set_global_attribute("uninitialized_variables", [])


def adam_moments(optimizer: keras.optimizers.Adam, variable: keras.Variable) -> list[tf.Variable]:
    """Returns the first and second moment that a built Adam keeps for a variable."""
    index = optimizer._get_variable_index(variable)
    return [moments[index].value for moments in (optimizer._momentums, optimizer._velocities)]


def expect_summed_gradients(optimizer: keras.optimizers.Optimizer) -> None:
    """Stops an optimizer from summing over replicas the gradients that it is given."""
    optimizer._all_reduce_sum_gradients = lambda pairs: pairs
