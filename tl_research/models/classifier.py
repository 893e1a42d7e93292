"""The classifier: pixels -> augmentation -> preprocessing -> backbone -> head -> float32 logits.

There are two ways to run the same variables. `Classifier.model` is a plain Keras model, which is
saved. `Classifier.frozen_part` and `Classifier.logits` run the network in two parts, split at the
boundary of training (`tl_research.models.graph`); the loop uses them.
"""

import decimal
import fractions
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import CheckpointError, UserError, suggestion
from tl_research.extension import Extension
from tl_research.models import backbones, heads, keras_private
from tl_research.models.augmentation import Augmentation
from tl_research.models.graph import FeatureGraph
from tl_research.models.preprocessing import Preprocessing


@keras.saving.register_keras_serializable(package="tl_research")
class InferenceBackbone(keras.layers.Layer):
    """Runs its backbone with `training=False`, whoever calls it and however.

    A functional Keras 3 model passes the `training` of its own call to every layer and overrides
    what the graph was built with, so `base_model(x, training=False)` inside a model does not freeze
    BatchNorm statistics in `fit` (keras#20285). An explicit argument inside a layer's own `call`
    does. Gradients still reach the backbone.
    """

    def __init__(self, backbone: keras.Model, **kwargs: Any):
        super().__init__(**kwargs)
        self.backbone = backbone

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return self.backbone(images, training=False)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.backbone.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InferenceBackbone":
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)


class Classifier:
    """A backbone with a new head.

    Args:
        config: The settings of its group Model, and `augment`, `image_size` and `seed`.
        num_classes: Number K of classes.
        parts: The user's extension, of which `make_backbone` and `make_head` are used.
        weights: Used instead of `config.weights`, if given.

    Attributes:
        image_size, num_classes: Height and width of the images, in pixels; K.
        seed: Seed of the initial weights and the dropout masks.
        compute_dtype: The dtype that the backbone computes in.
        head_boundary: Names of the tensors at the boundary if only the head trains.
        variables: {path: variable} of all weights, `backbone/<layer>/<variable>` and
            `head/<layer>/<variable>`, or `head/<variable>` for a layer called head.

    Raises:
        UserError: If the backbone, its weights or the head cannot be loaded or used (see
            `backbones.build` and `heads.build_head`).
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        parts: Extension = Extension(),
        weights: str | None = None,
    ):
        self._config, self._parts, self.num_classes = config, parts, num_classes
        self.image_size = config.image_size
        self.seed = seed = config.seed
        own = parts.make_backbone
        self.spec, self.backbone = backbones.build(
            functools.partial(own, config) if own else config.backbone,
            self.image_size,
            weights or config.weights,
            seed,
        )
        self.compute_dtype = backbones.compute_dtype(self.backbone)
        mode = self.spec.preprocessing if config.preprocessing == "auto" else config.preprocessing
        self.preprocessing = Preprocessing(mode, dtype=self.compute_dtype, name="preprocessing")
        self.augmentation = Augmentation(config.augmentation, seed=seed, name="augmentation")
        default_head = functools.partial(heads.make_head, dropout=config.dropout, seed=seed)
        self.head = heads.build_head(
            parts.make_head or default_head, self.backbone.outputs[0], num_classes, seed
        )
        pixels = keras.Input((self.image_size, self.image_size, 3), dtype="float32", name="pixels")
        held = InferenceBackbone(self.backbone, dtype=self.compute_dtype, name="backbone")
        logits = self.head(held(self.preprocessing(self.augmentation(pixels))))
        self.model = keras.Model(pixels, logits, name="classifier")
        fold = config.fold_batchnorm == "on"
        self.graph = FeatureGraph(self.backbone, self.head, fold=fold)
        self._dropouts = {
            written: layer
            for layer, _, _, written in self.graph.layers((self.graph.input,), (self.graph.output,))
            if written.startswith("head/") and heads.drops_out(layer)
        }
        self.variables = _all_variables(self.backbone, self.head)
        self.unfreeze("0%")
        self.head_boundary = self.boundary()

    def in_float32(self) -> "Classifier":
        """Returns this classifier if it computes in float32, else a frozen float32 copy with its
        current weights.
        """
        if self.compute_dtype == "float32":
            return self
        with backbones.dtype_policy("float32"):
            copy = Classifier(self._config, self.num_classes, self._parts, weights="none")
        # by position: Keras may have numbered the names anew
        for variable, value in zip(copy.variables.values(), self.variables.values(), strict=True):
            variable.assign(value)
        return copy

    @property
    def backbone_blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Returns [(block name, names of its layers)] from input to output."""
        return backbones.backbone_blocks(self.spec, self.backbone)

    def unfreeze(self, what: str) -> list[keras.Layer]:
        """Makes the head and the part of the backbone named by `what` trainable, and nothing else.

        Args:
            what: `N%` (the top N % of the layers by count, see `num_frozen`), the name of a layer
                or block (from there to the output), or `all`.

        Returns:
            The unfrozen layers of the backbone, from input to output.

        Raises:
            UserError: If no layer or block has that name.
        """
        layers = self.backbone.layers
        if what == "all":
            first = 0
        elif what.endswith("%"):
            first = num_frozen(what, len(layers))
        else:
            starts = {layer.name: index for index, layer in enumerate(layers)}
            # A block's name wins over a layer's: the last layer of InceptionV3's block mixed7 has
            # the same name.
            blocks = dict(self.backbone_blocks)
            starts |= {block: starts[names[0]] for block, names in blocks.items()}
            if what not in starts:
                known = list(blocks)
                raise UserError(
                    f"--unfreeze={what} is neither a layer nor a block of {self.spec.name}; "
                    f"expected N%, all, or a name such as {known[0]}, {known[len(known) // 2]}, "
                    f"{known[-1]}{suggestion(what, starts)}"
                )
            first = starts[what]
        self.backbone.trainable = True
        for index, layer in enumerate(layers):
            layer.trainable = index >= first
        return layers[first:]

    def trainable_variables(self) -> dict[str, keras.Variable]:
        """Returns {path: variable} of what the current phase trains, from input to output."""
        ids = set(map(id, self.backbone.trainable_variables + self.head.trainable_variables))
        return {path: each for path, each in self.variables.items() if id(each) in ids}

    def values(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns {path: array} of these variables."""
        return {path: self.variables[path].numpy() for path in paths}

    def assign(self, arrays: Mapping[str, np.ndarray], paths: Iterable[str] | None = None) -> None:
        """Assigns arrays to variables.

        Args:
            arrays: {path: array}.
            paths: Paths of the variables to assign; None: all in `arrays`.

        Raises:
            CheckpointError: If an array is missing or has another shape.
        """
        paths = list(arrays if paths is None else paths)
        different = [
            path
            for path in paths
            if path not in arrays or arrays[path].shape != tuple(self.variables[path].shape)
        ]
        if different:
            raise CheckpointError(
                f"the checkpoint does not fit the network at {', '.join(different[:5])}; expected "
                "its own run; use --resume=never"
            )
        for path in paths:
            self.variables[path].assign(arrays[path])

    def variable_blocks(self) -> dict[str, tuple[int, str]]:
        """Returns {path: (index of its block from the input, name of the block)} for the backbone's
        variables.
        """
        of_layer = {
            layer: (index, block)
            for index, (block, layers) in enumerate(self.backbone_blocks)
            for layer in layers
        }
        backbone = (path for path in self.variables if path.startswith("backbone/"))
        return {path: of_layer[path.split("/")[1]] for path in backbone}

    def batchnorm_statistics(self) -> set[str]:
        """Returns the paths of all moving means and variances."""
        names = ("/moving_mean", "/moving_variance")  # of BatchNorm layers, nested ones too
        return {path for path in self.variables if path.endswith(names)}

    def _open_batchnorms(self):
        """Returns the layers that use batch statistics: none unless `--batchnorm=training`."""
        layers = self.backbone.layers if self._config.batchnorm == "training" else ()
        kind = keras.layers.BatchNormalization
        return {layer for layer in layers if isinstance(layer, kind) and layer.trainable}

    def boundary(self) -> tuple[str, ...]:
        """Returns the names of the tensors between the frozen and the trainable part."""
        open_batchnorms = self._open_batchnorms()
        return self.graph.boundary(
            lambda layer: (
                bool(getattr(layer, "trainable_variables", ()))
                or layer in open_batchnorms
                or layer in self._dropouts.values()
            )
        )

    def frozen_part(
        self, outputs: Iterable[str], inputs: Iterable[str] | None = None
    ) -> Callable[[Any], list[tf.Tensor]]:
        """Returns a function to the list of tensors of a boundary, through frozen layers.

        It takes float32 images [B, H, W, 3] in 0..255, or the list of tensors named in `inputs`.
        BatchNorm is folded once, now: ask again after the layers were trained.

        Args:
            outputs: Names of the tensors to compute.
            inputs: Names of the tensors to start from; None: pixels.
        """
        known, outputs = tuple(inputs or (self.graph.input,)), tuple(outputs)
        constants = self.graph.fold_constants(known, outputs)

        def computed(tensors: Any) -> list[tf.Tensor]:
            if inputs is None:
                tensors = [self.preprocessing(tensors)]
            return self.graph.run(dict(zip(known, tensors)), outputs, constants)

        return computed

    def dropout_mask(self, step: tf.Tensor, batch_size: int) -> dict[str, tf.Tensor]:
        """Returns {tensor: bool [batch_size, ...]}, what each dropout layer of the head keeps in a
        step.

        It is separate from `logits` because XLA draws other numbers from the same seed.

        Args:
            step: int64 scalar; the mask depends on it and the seed.
            batch_size: B.
        """
        masks = {}
        for index, (name, layer) in enumerate(self._dropouts.items()):
            seed = tf.constant(self.seed + (index << 32), tf.int64)  # one stream per layer
            shape = [batch_size, *self.graph.shape(name)]
            draws = tf.random.stateless_uniform(
                shape, tf.stack([seed, tf.cast(step, tf.int64)]), alg="philox"
            )
            masks[name] = draws >= layer.rate
        return masks

    def logits(
        self,
        boundary: Iterable[str],
        tensors: Iterable[tf.Tensor],
        *,
        training: bool = False,
        dropout_mask: Mapping[str, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Returns float32 logits [B, K].

        Args:
            boundary: Names of the tensors.
            tensors: The tensors at the boundary, [B, ...] each.
            training: Whether BatchNorm runs in training mode with `--batchnorm=training`.
            dropout_mask: What `dropout_mask` returns; None: nothing is dropped.
        """
        open_batchnorms = self._open_batchnorms() if training else ()
        (logits,) = self.graph.run(
            dict(zip(boundary, tensors)),
            (self.graph.output,),
            batchnorm_in_training=open_batchnorms,
            dropout_masks=dropout_mask,
        )
        return logits


def num_frozen(what: str, count: int) -> int:
    """Returns how many of `count` layers stay frozen if the share `what`, N%, is unfrozen: the
    exact product rounded down, which a product of floats would not always give.

    Raises:
        UserError: If `what` is not a share.
    """
    try:
        share = decimal.Decimal(what[:-1])
        if share.is_finite() and 0 <= share <= 100:
            return math.floor(count * (100 - fractions.Fraction(share)) / 100)
    except decimal.InvalidOperation:
        pass
    raise UserError(f"--unfreeze={what}; expected a share between 0% and 100%; correct it")


def num_parameters(variables: Iterable[keras.Variable]) -> int:
    """Returns the number of elements of variables."""
    return sum(math.prod(variable.shape) for variable in variables)


def what_differs(classifier: Classifier) -> Iterator[str]:
    """Yields lines about the backbone or head that its author may not expect."""
    whole = keras_private.all_layers(classifier.backbone)
    nested = [layer for layer in whole if layer not in classifier.backbone.layers]
    count = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in nested)
    if count:
        yield f"backbone: {count} BatchNorm layers inside other layers are not folded"
    if keras.config.dtype_policy().compute_dtype != classifier.compute_dtype:
        yield f"backbone: computes in {classifier.compute_dtype}, the dtype of its layers"
    if idle := heads.idle_layers(classifier.head):
        yield f"head: does nothing in training: {', '.join(idle)}"
    names = set(re.findall(r'"registered_name": "([^"]+>[^"]+)"', classifier.model.to_json()))
    if foreign := sorted(name for name in names if not name.startswith("tl_research>")):
        yield f"export: to load it, import what defines {', '.join(foreign)}"


def folded_logits(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns an inference function from float32 images [B, S, S, 3] in 0..255 to float32 logits
    [B, K].

    It computes the same as the model, with BatchNorm folded into constant convolutions.

    Args:
        model: `Classifier.model`, or a model loaded from its file.
    """
    preprocessing, backbone = model.get_layer("preprocessing"), model.get_layer("backbone")
    head = keras.Model(backbone.output, model.output)  # several layers in older files
    graph = FeatureGraph(backbone.backbone)
    constants = graph.fold_constants((graph.input,), (graph.output,))

    def logits(images: tf.Tensor) -> tf.Tensor:
        (features,) = graph.run({graph.input: preprocessing(images)}, (graph.output,), constants)
        return head(features, training=False)

    return logits


def _all_variables(backbone, head):
    """Returns {path: variable} of a classifier, with every weight once.

    Raises:
        UserError: If weights share a path, or layers share a weight.
    """
    of_head = {
        path.replace("head/head/", "head/", 1): variable
        for path, variable in backbones.named_variables(head, "head").items()
    }
    named = {**backbones.named_variables(backbone), **of_head}
    weights = {id(variable) for variable in backbone.weights + head.weights}
    if len(named) != len(weights) or {id(variable) for variable in named.values()} != weights:
        raise UserError(
            f"the classifier has {len(weights)} weights under {len(named)} paths; expected every "
            "weight in one layer, under one path; share none and give each layer its own name"
        )
    return named
