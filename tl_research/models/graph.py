"""A functional Keras model as a list of nodes, run from any of its tensors to any others.

This is how a phase runs: everything that does not depend on a trainable variable is the frozen
part, computed outside the gradient tape (or once, and cached); the rest is the trainable part.
BatchNorm runs in inference mode in both, whatever the caller does, and is folded into the
convolution before it if that is exact.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.models import convolutions, folding, keras_private

# The cost of a cached number in memory and traffic, in multiply-adds: about the ratio of a CPU's
# arithmetic to its memory bandwidth, doubled because it is also written once and takes space from
# other images. It is not per byte: arithmetic in a narrower dtype is faster too. `python
# benchmarks/throughput.py` measures what it leads to.
_MULTIPLY_ADDS_PER_NUMBER = 256


class _Node(NamedTuple):
    """One call of one layer (or operator) in the model."""

    operation: object
    arguments: object  # Keras' SymbolicArguments
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FeatureGraph:
    """The nodes of a functional model with one input and one output, in computable order.

    Tensors are named `<layer>` (`<layer>:i` for the i-th of several outputs), those of the head
    `head/<layer>`.

    Args:
        model: A functional `keras.Model`.
        head: Another functional model, applied to its output.
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
        self._chains = self._find_chains() if fold else {}

    def _add(self, model, prefix, names):
        """Adds a model's nodes; returns `names`, {id of a tensor: its name}, extended by theirs."""
        has_input = bool(names)
        for node in keras_private.nodes(model):
            if node.is_input and has_input:
                continue
            name = prefix + node.operation.name
            count = len(node.outputs)
            outputs = tuple(f"{name}:{i}" for i in range(count)) if count > 1 else (name,)
            if twice := self._tensors.keys() & outputs:
                raise UserError(
                    f"two tensors of {model.name} are named {min(twice)}; expected each layer to "
                    "be called once; give the layers different names"
                )
            self._tensors |= zip(outputs, node.outputs)
            names |= zip(map(id, node.outputs), outputs)
            if not node.is_input:
                inputs = tuple(names[id(tensor)] for tensor in node.input_tensors)
                self._nodes.append(_Node(node.operation, node.arguments, inputs, outputs))
        return names

    def _find_chains(self):
        """Returns {BatchNorm's output: chain of nodes computed as one}, which is (convolution,
        BatchNorm) or (padding, convolution, BatchNorm).

        A chain has no tensor that is used elsewhere, and only padding that TensorFlow's "same"
        convolution would add.
        """
        uses = [name for node in self._nodes for name in node.inputs] + [self.output]

        def only_before(node: _Node) -> _Node | None:
            return self._producers.get(node.inputs[0]) if uses.count(node.inputs[0]) == 1 else None

        chains = {}
        for node in self._nodes:
            convolution = only_before(node)
            if convolution and folding.can_fold(convolution.operation, node.operation):
                padding = only_before(convolution)
                pads = padding and convolutions.is_same_padding(
                    padding.operation, convolution.operation
                )
                chain = (convolution, node)
                chains[node.outputs[0]] = (padding, *chain) if pads else chain
        return chains

    @property
    def num_folded(self) -> int:
        return len(self._chains)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without its batch dimension."""
        return tuple(self._tensors[name].shape[1:])

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def boundary(self, trains: Callable[[Any], bool]) -> tuple[str, ...]:
        """Returns the names of the tensors between the frozen and the trainable part.

        Args:
            trains: A function from a layer to whether it trains. A node is frozen if neither it nor
                any node before it trains.
        """
        frozen = {self.input}
        read: dict[str, None] = {}  # by trainable nodes, in order
        for node in self._nodes:
            if not trains(node.operation) and frozen.issuperset(node.inputs):
                frozen.update(node.outputs)
            else:
                read |= dict.fromkeys(node.inputs)
        if self.output in frozen:
            return (self.output,)
        return tuple(name for name in read if name in frozen)

    def cheapest_boundary(self, outputs: Collection[str]) -> tuple[str, ...]:
        """Returns the boundary at or before the tensors `outputs` at which features are cheapest to
        cache.

        A cached tensor costs its size; an earlier one also costs computing the rest in every epoch.
        The cost is `_MULTIPLY_ADDS_PER_NUMBER` * numbers + multiply-adds from the boundary to
        `outputs`.
        """

        def cost_of(boundary: Collection[str]) -> int:
            return _MULTIPLY_ADDS_PER_NUMBER * sum(
                math.prod(self.shape(name)) for name in boundary
            ) + self.multiply_adds(boundary, outputs)

        chains = self._needed((self.input,), outputs)
        boundaries, done = [tuple(outputs)], {self.input}
        for index, chain in enumerate(chains):
            done.update(chain[-1].outputs)
            later = [name for after in chains[index + 1 :] for name in after[0].inputs]
            boundary = dict.fromkeys(name for name in (*later, *outputs) if name in done)
            if len(boundary) <= 2 and self.input not in boundary:
                boundaries.append(tuple(boundary))
        return min(boundaries, key=cost_of)

    def bytes_per_image(self, boundary: Collection[str], dtype: str | None = None) -> int:
        """Returns the bytes of a boundary's tensors for one image, in `dtype` or their own."""
        return sum(
            math.prod(self.shape(name)) * tf.as_dtype(dtype or self.dtype(name)).size
            for name in boundary
        )

    def _needed(self, known, outputs):
        """Returns the chains of nodes from the known tensors to the outputs, in order."""
        wanted, needed = set(outputs) - set(known), []
        for node in reversed(self._nodes):
            if not wanted.intersection(node.outputs):
                continue
            chain = self._chains.get(node.outputs[0], (node,))
            while any(each.outputs[0] in {*known, *wanted} for each in chain[:-1]):
                chain = chain[1:]  # a boundary inside the chain: the nodes after it are not folded
            needed.append(chain)
            wanted.difference_update(node.outputs)
            wanted.update(set(chain[0].inputs) - set(known))
        if wanted:
            raise ValueError(
                f"{sorted(wanted)} cannot be computed from {sorted(known)}; expected tensors of a "
                "boundary"
            )
        return needed[::-1]

    def fold_constants(
        self, known: Collection[str], outputs: Collection[str]
    ) -> dict[str, tuple[np.ndarray | tf.Tensor, tf.Tensor]]:
        """Returns {BatchNorm's output: (kernel, bias)} of everything folded between two boundaries,
        for frozen parts.

        On a CPU a kernel is a NumPy array, which becomes a constant of the traced graph: oneDNN
        reorders a constant once, anything else in every step. A bias is a tensor: TensorFlow does
        not fuse a constant bias into the convolution. On a GPU kernels are tensors too: XLA would
        embed constants and try to fold them while it compiles.
        """
        constants, on_gpu = {}, bool(tf.config.get_visible_devices("GPU"))
        for *before, node in self._needed(known, outputs):
            if before:
                weights = folding.folded_weights(before[-1].operation, node.operation)
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
            constants: Folded weights from `fold_constants`; None: computed from the variables, so
                that gradients reach the variables.
            batchnorm_in_training: BatchNorm layers that use batch statistics and update the moving
                ones.
            dropout_masks: {output of a dropout layer: bool, what it keeps}; other dropout layers do
                nothing.

        Returns:
            A list of tensors, one for each name in `outputs`.
        """
        values, constants, dropout_masks = dict(known), constants or {}, dropout_masks or {}
        for chain in self._needed(known, outputs):
            *before, node = chain
            args, kwargs = _arguments(chain[0], values)
            training = node.operation in batchnorm_in_training
            mask = dropout_masks.get(node.outputs[0])
            if mask is not None:
                results = [_dropped(node.operation, args[0], mask)]
            elif before and not training:
                results = [_folded(chain, args[0], constants.get(node.outputs[0]))]
            else:
                for each in chain:
                    args, kwargs = (_call(each.operation, args, kwargs, training),), {}
                results = keras.tree.flatten(args)
            values.update(zip(node.outputs, results))
        return [values[name] for name in outputs]

    def layers(
        self, known: Collection[str], outputs: Collection[str]
    ) -> Iterator[tuple[Any, list[keras.Variable], tuple[str, ...], str]]:
        """Yields (layer or operator, its kernels, names of its inputs, name of its output) between
        two boundaries; a folded chain counts as one layer.
        """
        for chain in self._needed(known, outputs):
            kernels = [
                weight
                for each in chain
                for weight in getattr(each.operation, "weights", ())
                if "kernel" in weight.name
            ]
            yield chain[-1].operation, kernels, chain[0].inputs, chain[-1].outputs[0]

    def multiply_adds(self, known: Collection[str], outputs: Collection[str]) -> int:
        """Returns the multiply-adds per image of the convolutions and dense layers between two
        boundaries.
        """
        return sum(
            math.prod(self.shape(written)[:-1]) * math.prod(kernel.shape)
            for _, kernels, _, written in self.layers(known, outputs)
            for kernel in kernels
        )


def _arguments(node, values):
    """Returns (args, kwargs) for a node's operation, from {name: tensor}."""
    tensors = zip(node.arguments.keras_tensors, node.inputs)
    return node.arguments.fill_in({id(tensor): values[name] for tensor, name in tensors})


def _dropped(layer, inputs, mask):
    """Returns the output of a dropout layer that keeps the inputs selected by a mask."""
    inputs = tf.cast(inputs, layer.compute_dtype)
    return tf.where(mask, inputs * (1.0 / (1.0 - layer.rate)), 0.0)


def _folded(chain, inputs, weights):
    """Returns the output of a chain from its inputs, with (kernel, bias) of its convolution if they
    are known.
    """
    *padding, convolution, batchnorm = (node.operation for node in chain)
    kernel, bias = weights or folding.folded_weights(convolution, batchnorm)
    return convolutions.convolve(convolution, inputs, kernel, bias, "same" if padding else None)


def _call(operation, args, kwargs, training):
    """Calls a layer or operator, with `training` if it takes that argument."""
    if convolutions.is_depthwise(operation):
        return convolutions.call_depthwise(operation, *args)
    if "training" in inspect.signature(operation.call).parameters:
        kwargs = {**kwargs, "training": training}
    return operation(*args, **kwargs)
