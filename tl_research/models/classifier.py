"""The classifier: pixels -> augmentation -> preprocessing -> backbone -> pooling -> dropout ->
float32 logits.

The same variables are reached in two ways. `Classifier.model` is a plain Keras model, which is what
gets saved. `Classifier.frozen_part` and `Classifier.logits` run the network parted where training
begins (`tl_research.models.graph`), which is what the loop uses.
"""

import keras
import tensorflow as tf

from tl_research.errors import UserError, suggestion
from tl_research.models import backbones
from tl_research.models.augmentation import Augmentation
from tl_research.models.graph import FeatureGraph
from tl_research.models.preprocessing import Preprocessing


@keras.saving.register_keras_serializable(package="tl_research")
class InferenceBackbone(keras.layers.Layer):
    """Runs its backbone with `training=False` whoever calls it and however.

    A functional Keras 3 model hands the `training` of its own call to every layer and overrides
    what the graph was built with, so `base_model(x, training=False)` inside a model does not hold
    BatchNorm statistics in `fit` (keras#20285). An explicit argument of a layer's own call does.
    Gradients reach the backbone all the same.
    """

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone

    def call(self, images):
        return self.backbone(images, training=False)

    def compute_output_shape(self, input_shape):
        return self.backbone.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)


class FrozenPart:
    """Pixels (or earlier features) to the tensors of a boundary, for layers that do not change
    meanwhile.

    BatchNorm is folded once, when this is made: make a new one after the layers were trained.
    """

    def __init__(self, classifier, outputs, inputs=None):
        self._classifier, self.outputs = classifier, tuple(outputs)
        self.inputs = tuple(inputs) if inputs else (classifier.graph.input,)
        self._from_pixels = inputs is None
        self._constants = classifier.graph.fold_constants(self.inputs, self.outputs)

    def __call__(self, inputs):
        """Returns a list of tensors, one for each name in `outputs`.

        Args:
            inputs: float32 images [B, H, W, 3] in 0..255, or the list of tensors that `inputs`
                names.
        """
        known = [self._classifier.preprocessing(inputs)] if self._from_pixels else inputs
        return self._classifier.graph.run(
            dict(zip(self.inputs, known)), self.outputs, constants=self._constants
        )


class Classifier:
    """A backbone with a new dense head.

    Args:
        backbone: Name of the backbone, see `tl_research.models.backbones`.
        weights: `imagenet`, `none` or a file.
        image_size: Height and width of the images, in pixels.
        num_classes: Number K of classes.
        augmentation: {operation: factor}, see `tl_research.models.augmentation`.
        dropout: Share of the pooled features dropped in training.
        seed: Decides the initial weights and the dropout masks.
        fold: Whether BatchNorm is folded into convolutions while training.
        batchnorm: `inference`, or `training` to let open BatchNorm layers use and move batch
            statistics.
        preprocessing: `auto`, or another mode of `Preprocessing` than the backbone's own.

    Raises:
        UserError: If the backbone or its weights cannot be had (see `build_backbone`).
    """

    def __init__(
        self,
        backbone,
        weights,
        image_size,
        num_classes,
        *,
        augmentation=None,
        dropout=0.0,
        seed=0,
        fold=True,
        batchnorm="inference",
        preprocessing="auto",
    ):
        self.spec = backbones.get_spec(backbone)
        self.image_size, self.num_classes, self.dropout, self.seed = (
            image_size,
            num_classes,
            dropout,
            seed,
        )
        self._fold, self._batchnorm = fold, batchnorm
        self.backbone = backbones.build_backbone(backbone, image_size, weights, seed=seed)
        mode = self.spec.preprocessing if preprocessing == "auto" else preprocessing
        self.preprocessing = Preprocessing(mode, name="preprocessing")
        self.augmentation = Augmentation(augmentation or {}, seed=seed, name="augmentation")
        self.head = keras.layers.Dense(
            num_classes,
            dtype="float32",
            name="head",
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        )
        pooling = keras.layers.GlobalAveragePooling2D(name="pooling")
        pixels = keras.Input((image_size, image_size, 3), dtype="float32", name="pixels")
        features = pooling(
            InferenceBackbone(self.backbone, name="backbone")(
                self.preprocessing(self.augmentation(pixels))
            )
        )
        logits = self.head(keras.layers.Dropout(dropout, seed=seed, name="dropout")(features))
        self.model = keras.Model(pixels, logits, name="classifier")
        self.graph = _feature_graph(self.backbone, fold)
        self.variables = {
            **backbones.named_variables(self.backbone),
            **{f"head/{variable.name}": variable for variable in self.head.weights},
        }
        self.unfreeze("0%")

    def in_float32(self):
        """Returns this classifier, if it computes in float32, or else one that does, frozen, with
        the weights of this moment.
        """
        if self.backbone.compute_dtype == "float32":
            return self
        policy = keras.config.dtype_policy()
        try:
            keras.config.set_dtype_policy("float32")
            copy = Classifier(
                self.spec.name,
                "none",
                self.image_size,
                self.num_classes,
                dropout=self.dropout,
                seed=self.seed,
                augmentation=self.augmentation.factors,
                fold=self._fold,
                batchnorm=self._batchnorm,
                preprocessing=self.preprocessing.mode,
            )
        finally:
            keras.config.set_dtype_policy(policy)
        # Keras may number names on
        for variable, value in zip(copy.variables.values(), self.variables.values(), strict=True):
            variable.assign(value)
        return copy

    @property
    def backbone_blocks(self):
        """[(block name, names of its layers)] from input to output."""
        return backbones.backbone_blocks(self.spec, self.backbone)

    def unfreeze(self, what):
        """Makes the head and the part of the backbone that `what` names trainable, and nothing
        else.

        Args:
            what: `N%` (the top N % of the layers by count; `int(len(layers) * (1 - N / 100))` stay
                frozen), the name of a layer or block (from there up), or `all`.

        Returns:
            The open layers of the backbone, from input to output.

        Raises:
            UserError: If no layer or block has that name.
        """
        layers = self.backbone.layers
        first = len(layers)
        if what == "all":
            first = 0
        elif what.endswith("%"):
            try:
                share = float(what[:-1])
            except ValueError:
                share = -1.0
            if not 0 <= share <= 100:
                raise UserError(
                    f"--unfreeze={what}; expected a share between 0% and 100%; correct it"
                )
            first = int(len(layers) * (1 - share / 100))
        else:
            layer_starts = {layer.name: index for index, layer in reversed(list(enumerate(layers)))}
            # A block's name wins over that of a layer in it: InceptionV3's mixed7 is both, the
            # layer being its end.
            starts = {
                **layer_starts,
                **{block: layer_starts[names[0]] for block, names in self.backbone_blocks},
            }
            if what not in starts:
                blocks = [block for block, _ in self.backbone_blocks]
                raise UserError(
                    f"--unfreeze={what} is neither a layer nor a block of {self.spec.name}; "
                    f"expected N%, all, or a name such as {blocks[0]}, {blocks[len(blocks) // 2]}, "
                    f"{blocks[-1]}{suggestion(what, starts)}"
                )
            first = starts[what]
        self.backbone.trainable = True
        for index, layer in enumerate(layers):
            layer.trainable = index >= first
        return layers[first:]

    def trainable_variables(self):
        """{path: variable} of what the current phase trains, from input to output."""
        trainable = {
            id(variable)
            for variable in self.backbone.trainable_variables + self.head.trainable_variables
        }
        return {
            path: variable for path, variable in self.variables.items() if id(variable) in trainable
        }

    def batchnorm_statistics(self):
        """The paths of all moving means and variances."""
        statistics = set()
        for layer in self.backbone._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                statistics.update({id(layer.moving_mean), id(layer.moving_variance)})
        return {path for path, variable in self.variables.items() if id(variable) in statistics}

    def _open_batchnorms(self):
        """The BatchNorm layers that use batch statistics: none, unless `batchnorm='training'`."""
        if self._batchnorm != "training":
            return frozenset()
        return frozenset(
            layer
            for layer in self.backbone.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        )

    def boundary(self):
        """The names of the tensors that cross from the frozen into the trainable part."""
        open_batchnorms = self._open_batchnorms()
        return self.graph.boundary(
            lambda layer: (
                bool(getattr(layer, "trainable_variables", ())) or layer in open_batchnorms
            )
        )

    def frozen_part(self, outputs, inputs=None):
        """Returns a `FrozenPart` from pixels, or from the named tensors `inputs`, to the named
        tensors `outputs`.
        """
        return FrozenPart(self, outputs, inputs)

    def dropout_mask(self, step, batch_size):
        """Returns what dropout keeps in a step, bool [batch_size, features], or None without
        dropout.

        Apart from `logits`, because XLA draws other numbers from the same seed.

        Args:
            step: int64 scalar; with the seed it decides.
            batch_size: B.
        """
        if not self.dropout:
            return None
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        shape = [batch_size, *self.graph.shape(self.graph.output)]
        return tf.random.stateless_uniform(shape, seed, alg="philox") >= self.dropout

    def logits(self, boundary, tensors, *, training=False, dropout_mask=None):
        """Returns float32 logits [B, K].

        Args:
            boundary: Names of the tensors given.
            tensors: The list of tensors at the boundary, [B, ...] each.
            training: Whether BatchNorm is in training mode, where that was asked for.
            dropout_mask: What `dropout_mask` returns; by default nothing is dropped.
        """
        open_batchnorms = self._open_batchnorms() if training else ()
        (features,) = self.graph.run(
            dict(zip(boundary, tensors)),
            (self.graph.output,),
            batchnorm_in_training=open_batchnorms,
        )
        features = tf.cast(features, tf.float32)
        if dropout_mask is not None:
            features = tf.where(dropout_mask, features * (1.0 / (1.0 - self.dropout)), 0.0)
        return self.head(features)


def folded_logits(model):
    """Returns a function from float32 images [B, S, S, 3] in 0..255 to float32 logits [B, K], for
    inference.

    It computes what the model computes, without augmentation and dropout, BatchNorm folded into
    constant convolutions.

    Args:
        model: `Classifier.model`, as it is or loaded again.
    """
    preprocessing, head = model.get_layer("preprocessing"), model.get_layer("head")
    graph = _feature_graph(model.get_layer("backbone").backbone)
    constants = graph.fold_constants((graph.input,), (graph.output,))

    def logits(images):
        (features,) = graph.run({graph.input: preprocessing(images)}, (graph.output,), constants)
        return head(tf.cast(features, tf.float32))

    return logits


def _feature_graph(backbone, fold=True):
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled_features")(backbone.outputs[0])
    return FeatureGraph(keras.Model(backbone.inputs, pooled), fold=fold)
