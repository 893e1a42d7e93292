"""A functional Keras model as a list of nodes that can be run from any tensors inside it to any
others.

This is how a phase runs: everything that depends on no trainable variable is the frozen part,
computed outside the gradient tape (or once, and kept); the rest is the trainable part. BatchNorm
runs in inference mode in both, whatever the caller does, and is folded into the convolution before
it where that is exact.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.models import convolutions, folding

# What a cached number costs in memory and traffic, in multiply-adds: about the ratio of a CPU's
# arithmetic to its memory bandwidth, times two since it is written once and takes room that other
# images need. Not counted in bytes: in a narrower type arithmetic is faster too.
_MULTIPLY_ADDS_PER_NUMBER = 256


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """One call of one layer (or operator) in the model."""

    operation: object
    arguments: object  # Keras' SymbolicArguments
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FeatureGraph:
    """The nodes of a functional model with one input and one output, in an order in which they can
    be computed.

    Tensors are named `<layer>` (`<layer>:i` for the i-th of several outputs), those of the head
    `head/<layer>`.

    Args:
        model: A functional `keras.Model`.
        head: Another one, which goes on from its output.
        fold: Whether convolution and BatchNorm are computed as one (`tl_research.models.folding`).

    Raises:
        UserError: If a layer is called twice.
    """

    def __init__(self, model: keras.Model, head: keras.Model | None = None, *, fold: bool = True):
        self._nodes: list[_Node] = []
        self._tensors: dict[str, keras.KerasTensor] = {}
        names = self._add(model, "", {})
        self.input, self.output = names[id(model.inputs[0])], names[id(model.outputs[0])]
        if head is not None:
            names = self._add(head, "head/", {id(head.inputs[0]): self.output})
            self.output = names[id(head.outputs[0])]
        self._producers = {name: node for node in self._nodes for name in node.outputs}
        self._folded = self._find_folded() if fold else {}

    def _add(self, model, prefix, names):
        """Adds a model's nodes; returns `names`, {id of a tensor: its name}, with theirs."""
        nodes = [
            node
            for depth in sorted(model._nodes_by_depth, reverse=True)
            for node in model._nodes_by_depth[depth]
            if not names or not node.is_input
        ]
        for node in nodes:
            for index, tensor in enumerate(node.outputs):
                name = prefix + node.operation.name
                name += f":{index}" if len(node.outputs) > 1 else ""
                self._name(tensor, name, model)
                names[id(tensor)] = name
            if not node.is_input:
                inputs, outputs = (
                    tuple(names[id(tensor)] for tensor in tensors)
                    for tensors in (node.input_tensors, node.outputs)
                )
                self._nodes.append(_Node(node.operation, node.arguments, inputs, outputs))
        return names

    def _name(self, tensor, name, model):
        if name in self._tensors:
            raise UserError(
                f"two tensors of {model.name} are named {name}; expected each layer to be "
                "called once; give the layers different names"
            )
        self._tensors[name] = tensor

    def _find_folded(self):
        """Returns {BatchNorm's output: (node of its convolution,) or (node of the padding before
        it, convolution)}.

        Only what is used nowhere else is folded, and only padding that TensorFlow's "same"
        convolution does itself.
        """
        uses = [name for node in self._nodes for name in node.inputs] + [self.output]

        def only_before(node: _Node) -> _Node | None:
            return self._producers.get(node.inputs[0]) if uses.count(node.inputs[0]) == 1 else None

        folded = {}
        for node in self._nodes:
            convolution = only_before(node)
            if convolution and folding.can_fold(convolution.operation, node.operation):
                padding = only_before(convolution)
                pads = padding and convolutions.is_same_padding(
                    padding.operation, convolution.operation
                )
                folded[node.outputs[0]] = (padding, convolution) if pads else (convolution,)
        return folded

    @property
    def num_folded(self) -> int:
        return len(self._folded)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor without its batch dimension."""
        return tuple(self._tensors[name].shape[1:])

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def boundary(self, trains: Callable[[Any], bool]) -> tuple[str, ...]:
        """Returns the names of the tensors that cross from the frozen into the trainable part.

        Args:
            trains: A function from a layer to whether it has something to train. A node is frozen
                when neither it nor any node before it trains.
        """
        frozen = {self.input}
        for node in self._nodes:
            if not trains(node.operation) and all(name in frozen for name in node.inputs):
                frozen.update(node.outputs)
        if self.output in frozen:
            return (self.output,)
        crossing = [
            name
            for node in self._nodes
            if node.outputs[0] not in frozen
            for name in node.inputs
            if name in frozen
        ]
        return tuple(dict.fromkeys(crossing))

    def cheapest_boundary(self, outputs: Collection[str]) -> tuple[str, ...]:
        """Returns the boundary at or before the tensors `outputs` at which it is cheapest to keep
        features.

        Keeping a tensor costs its bytes, keeping an earlier one costs computing the rest again in
        every epoch. The measure is `_MULTIPLY_ADDS_PER_NUMBER` numbers + multiply-adds from the
        boundary to `outputs`.
        """

        def cost_of(boundary: Collection[str]) -> int:
            return _MULTIPLY_ADDS_PER_NUMBER * sum(
                math.prod(self.shape(name)) for name in boundary
            ) + self.multiply_adds(boundary, outputs)

        nodes = self._needed((self.input,), outputs)
        best, best_cost, done = tuple(outputs), cost_of(outputs), {self.input}
        for index, (node, _) in enumerate(nodes):
            done.update(node.outputs)
            later = [
                name for after, folded in nodes[index + 1 :] for name in (*folded, after)[0].inputs
            ]
            boundary = tuple(dict.fromkeys(name for name in later + list(outputs) if name in done))
            if len(boundary) <= 2 and self.input not in boundary:
                cost = cost_of(boundary)
                if cost < best_cost:
                    best, best_cost = boundary, cost
        return best

    def bytes_per_image(self, boundary: Collection[str], dtype: str | None = None) -> int:
        """Returns the bytes of a boundary's tensors for one image, in `dtype` or their own."""
        return sum(
            math.prod(self.shape(name)) * tf.as_dtype(dtype or self.dtype(name)).size
            for name in boundary
        )

    def _needed(self, known, outputs):
        """Returns the nodes that lead from the known tensors to the outputs, as (node, nodes folded
        into it).
        """
        wanted, needed = set(outputs) - set(known), []
        for node in reversed(self._nodes):
            if not wanted.intersection(node.outputs):
                continue
            folded = self._folded.get(node.outputs[0], ())
            for index, before in enumerate(folded):
                if before.outputs[0] in known or before.outputs[0] in wanted:
                    # the boundary goes between the two: each is computed as it is
                    folded = folded[index + 1 :]
            needed.append((node, folded))
            wanted.difference_update(node.outputs)
            wanted.update(set((*folded, node)[0].inputs) - set(known))
        if wanted:
            raise ValueError(
                f"{sorted(wanted)} cannot be computed from {sorted(known)}; expected tensors of a "
                "boundary"
            )
        return needed[::-1]

    def fold_constants(
        self, known: Collection[str], outputs: Collection[str]
    ) -> dict[str, tuple[np.ndarray | tf.Tensor, tf.Tensor]]:
        """Returns {BatchNorm's output: (kernel, bias)} of all that is folded between two
        boundaries, for parts that do not change.

        On a CPU a kernel is a NumPy array, which becomes a constant of the traced graph: oneDNN
        brings a constant into its own order once, anything else in every step. A bias is a tensor:
        TensorFlow does not fuse a constant one into the convolution. On a GPU kernels are tensors
        too: XLA would compile them in, and try to compute with them while it does.
        """
        constants, on_gpu = {}, bool(tf.config.get_visible_devices("GPU"))
        for node, folded in self._needed(known, outputs):
            if folded:
                weights = folding.folded_weights(folded[-1].operation, node.operation)
                kernel, bias = (tf.cast(each, node.operation.compute_dtype) for each in weights)
                constants[node.outputs[0]] = kernel if on_gpu else kernel.numpy(), bias
        return constants

    def run(
        self,
        known: Mapping[str, tf.Tensor],
        outputs: Collection[str],
        constants: Mapping[str, tuple] | None = None,
        *,
        batchnorm_in_training: Collection[keras.Layer] = (),
        dropout_masks: Mapping[str, tf.Tensor] | None = None,
    ) -> list[tf.Tensor]:
        """Computes tensors from others.

        Args:
            known: {name: tensor [B, ...]} from which everything can be computed.
            outputs: Names of the tensors to return.
            constants: Folded weights by `fold_constants`; without them they are computed from the
                variables, so that gradients reach these.
            batchnorm_in_training: BatchNorm layers that use, and move, the statistics of the batch.
            dropout_masks: {output of a dropout layer: bool, what it keeps}; others do nothing.

        Returns:
            A list of tensors, one for each name in `outputs`.
        """
        values, constants, dropout_masks = dict(known), constants or {}, dropout_masks or {}
        for node, folded in self._needed(known, outputs):
            args, kwargs = _arguments((*folded, node)[0], values)
            training = node.operation in batchnorm_in_training
            mask = dropout_masks.get(node.outputs[0])
            if mask is not None:
                results = [_dropped(node.operation, args[0], mask)]
            elif folded and not training:
                layer = folded[-1].operation
                kernel, bias = constants.get(node.outputs[0]) or folding.folded_weights(
                    layer, node.operation
                )
                padding = "same" if len(folded) == 2 else None
                results = [convolutions.convolve(layer, args[0], kernel, bias, padding=padding)]
            else:
                for before in folded:
                    args, kwargs = (_call(before.operation, args, kwargs),), {}
                results = keras.tree.flatten(_call(node.operation, args, kwargs, training))
            values.update(zip(node.outputs, results))
        return [values[name] for name in outputs]

    def layers(
        self, known: Collection[str], outputs: Collection[str]
    ) -> Iterator[tuple[Any, list[keras.Variable], tuple[str, ...], str]]:
        """Yields (layer or operator, its kernels, names it reads, name it writes) between two
        boundaries.

        What is folded is one layer.
        """
        for node, folded in self._needed(known, outputs):
            together = (*folded, node)
            kernels = [
                weight
                for each in together
                for weight in getattr(each.operation, "weights", ())
                if "kernel" in weight.name
            ]
            yield node.operation, kernels, together[0].inputs, node.outputs[0]

    def multiply_adds(self, known: Collection[str], outputs: Collection[str]) -> int:
        """Returns the multiplications of the convolutions and dense layers between two boundaries,
        per image.
        """
        return sum(
            math.prod(self.shape(written)[:-1]) * math.prod(kernel.shape)
            for _, kernels, _, written in self.layers(known, outputs)
            for kernel in kernels
        )


def _arguments(node, values):
    """Returns (args, kwargs) of a node's operation, from {name: tensor}."""
    tensors = zip(node.arguments.keras_tensors, node.inputs)
    return node.arguments.fill_in({id(tensor): values[name] for tensor, name in tensors})


def _dropped(layer, inputs, mask):
    """Returns what dropout makes of inputs of which it keeps those in a mask."""
    inputs = tf.cast(inputs, layer.compute_dtype)
    return tf.where(mask, inputs * (1.0 / (1.0 - layer.rate)), 0.0)


def _call(operation, args, kwargs, training=False):
    """Calls a layer or operator; `training` reaches a layer that knows the argument."""
    if convolutions.is_depthwise(operation):
        return convolutions.call_depthwise(operation, *args)
    if getattr(operation, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": training}
    return operation(*args, **kwargs)
