"""The classifier is its parts computed by hand, and holds BatchNorm statistics however it is run.

`TL_RESEARCH_ALL_BACKBONES=1 python -m pytest tests/models/test_classifier.py` checks every
backbone; without it, the smallest member of each family. Each is built once, most of the time here,
so one test checks its values, folding and boundaries together.
"""

import importlib
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tl_research.errors import UserError
from tl_research.models import backbones
from tl_research.models import classifier as classifier_lib
from tl_research.models.classifier import Classifier

# The smallest member of each family: image size, folded pairs (convolutions whose only reader is a
# BatchNorm), layers.
SMALLEST = {
    "MobileNetV2": (64, 52, 154),
    "MobileNetV3Small": (64, 34, 157),
    "EfficientNetB0": (64, 49, 238),
    "EfficientNetV2B0": (64, 59, 270),
    "EfficientNetLite0": (64, 49, 141),
    "ResNet50": (64, 53, 175),
    "ResNet50V2": (64, 32, 190),
    "VGG16": (64, 0, 19),
    "ConvNeXtTiny": (64, 0, 133),
    "DenseNet121": (64, 59, 427),
    "InceptionV3": (75, 94, 311),
    "Xception": (71, 40, 132),
    "NASNetMobile": (64, 188, 769),
}
NAMES = list(backbones.BACKBONES) if os.environ.get("TL_RESEARCH_ALL_BACKBONES") else list(SMALLEST)
# worked out from the architectures, and measured before this code existed (design.md, section 2.2)
CUTS_AT_30_PERCENT = {
    "MobileNetV2": {"block_11_add"},
    "EfficientNetV2B0": {"block6b_add", "block6c_project_conv"},
    # `add_11` is an operator, no layer
    "ConvNeXtTiny": {"convnext_tiny_stage_2_block_6_gelu", "add_11"},
}


def _pictures(count, size, seed=0):
    """float32 [count, size, size, 3] in 0..255, smooth and unlike each other (noise looks all the
    same to a network).
    """
    coarse = np.random.RandomState(seed).uniform(0, 255, (count, 4, 4, 3))
    return np.asarray(tf.image.resize(coarse, (size, size)), np.float32)


def _batchnorms(backbone):
    return [
        layer
        for layer in backbone._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def _randomize(classifier, num_pictures=4):
    """Gives an untrained backbone weights at which a mistake anywhere shows in the logits.

    Kernels keep the signal's size (Keras' initial depthwise kernels lose it, then every image has
    the same features), gamma and beta are drawn, and statistics are those of some pictures (random
    ones make a deep network magnify rounding). A batch of other pictures, or of fewer, has other
    statistics.
    """
    random = np.random.default_rng(0)
    for layer in classifier.backbone._flatten_layers(include_self=False):
        for variable in getattr(layer, "_trainable_variables", ()):
            shape = variable.shape
            if "kernel" in variable.name:
                depthwise = "depthwise" in variable.name or isinstance(
                    layer, keras.layers.DepthwiseConv2D
                )
                fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
                variable.assign(random.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in))
            elif variable.name == "gamma":
                variable.assign(random.uniform(0.5, 1.5, shape))
            else:  # beta, bias
                variable.assign(random.normal(0, 0.3, shape))
    layers = _batchnorms(classifier.backbone)
    momenta = [layer.momentum for layer in layers]
    classifier.unfreeze("all")  # a frozen BatchNorm never takes the statistics of a batch
    for layer in layers:
        layer.momentum = 0.0
    if layers:
        pictures = classifier.preprocessing(_pictures(num_pictures, classifier.image_size))
        classifier.graph.run(
            {classifier.graph.input: pictures},
            classifier.head_boundary,
            batchnorm_in_training=layers,
        )
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    classifier.unfreeze("0%")
    return classifier


def _mobilenet(**kwargs):
    return _randomize(Classifier("MobileNetV2", "none", 32, 3, **kwargs), num_pictures=16)


def _values(variables):
    """{path: array}, copied."""
    return {path: np.array(variable) for path, variable in variables.items()}


def _changed(before, variables):
    return {
        path
        for path, variable in variables.items()
        if not np.array_equal(before[path], np.array(variable))
    }


def _fit(model, images, labels):
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(images, labels, batch_size=4, epochs=1, verbose=0, shuffle=False)


class _Case(parameterized.TestCase, tf.test.TestCase):
    def assert_near(self, a, b, tolerance, msg=None):
        """Norm of the difference over norm of the reference `b`."""
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        self.assertEqual(a.shape, b.shape)
        self.assertLessEqual(np.linalg.norm(a - b), tolerance * np.linalg.norm(b), msg)

    def use_policy(self, policy, floatx="float32"):
        self.addCleanup(keras.config.set_floatx, keras.config.floatx())
        self.addCleanup(keras.config.set_dtype_policy, keras.config.dtype_policy())
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class FamilyTest(_Case):
    @parameterized.parameters(*NAMES)
    def test_every_way_to_run_it_equals_its_parts_by_hand(self, name):
        # Float64 shows what float32 hides, but takes minutes in the grouped convolutions of
        # ConvNeXt (which has no BatchNorm).
        exact = not name.startswith("ConvNeXt")
        if exact:
            self.use_policy("float64", "float64")
        output_tolerance, gradient_tolerance = (1e-5, 1e-6) if exact else (1e-5, 1e-4)
        spec = backbones.get_spec(name)
        size, num_folded, num_layers = SMALLEST.get(
            name, (max(64, spec.min_image_size), None, None)
        )
        classifier = _randomize(Classifier(name, "none", size, 3))
        if num_layers:
            self.assertEqual(classifier.graph.num_folded, num_folded)
            self.assertLen(classifier.backbone.layers, num_layers)
        opened = classifier.unfreeze("30%")
        self.assertLen(
            opened, len(classifier.backbone.layers) - int(len(classifier.backbone.layers) * 0.7)
        )
        variables = classifier.trainable_variables()
        values = [variable.value for variable in variables.values()]
        statistics = {
            path: classifier.variables[path] for path in classifier.batchnorm_statistics()
        }
        before = _values(statistics)
        pixels = _pictures(2, size)
        weighting = np.random.RandomState(5).normal(size=(2, 3))

        # By hand: the module's own preprocessing, Keras' backbone, the mean over height and width,
        # one product.
        prepared = (
            (pixels - 127) / 128
            if spec.family == "efficientnet_lite"
            else importlib.import_module(f"keras.applications.{spec.family}").preprocess_input(
                pixels.copy()
            )
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            features = classifier.backbone(prepared, training=False)
            by_hand = tf.reduce_mean(features, axis=(1, 2)) @ tf.cast(
                classifier.variables["head/kernel"], features.dtype
            ) + tf.cast(classifier.variables["head/bias"], features.dtype)
            loss = tf.reduce_sum(by_hand * weighting)
        by_hand_gradients = tape.gradient(loss, values)
        with_numpy = np.mean(features, axis=(1, 2)) @ np.array(
            classifier.variables["head/kernel"]
        ) + np.array(classifier.variables["head/bias"])
        self.assert_near(by_hand, with_numpy, output_tolerance)
        # it sees
        self.assertGreater(
            np.linalg.norm(with_numpy[0] - with_numpy[1]), 0.05 * np.linalg.norm(with_numpy)
        )

        # neither dropout nor augmentation was asked for
        logits = classifier.model(pixels, training=True)
        self.assertEqual(logits.dtype, tf.float32)
        self.assert_near(logits, with_numpy, output_tolerance)

        boundary = classifier.boundary()
        if name in CUTS_AT_30_PERCENT:
            self.assertEqual(set(boundary), CUTS_AT_30_PERCENT[name])
        with tf.GradientTape() as tape:
            tensors = classifier.frozen_part(boundary)(pixels)
        self.assertEmpty({id(v) for v in tape.watched_variables()} & {id(v) for v in values})
        # watches all it meets: it meets what trains and nothing else
        with tf.GradientTape() as tape:
            logits = classifier.logits(boundary, tensors)
            loss = tf.reduce_sum(logits * weighting)
        self.assertCountEqual([id(v) for v in tape.watched_variables()], [id(v) for v in values])
        self.assertEqual(logits.dtype, tf.float32)
        self.assert_near(logits, with_numpy, output_tolerance)
        for path, got, expected in zip(
            variables, tape.gradient(loss, values), by_hand_gradients, strict=True
        ):
            self.assertGreater(np.linalg.norm(expected), 1e-6, path)
            self.assert_near(got, expected, gradient_tolerance, path)

        early = classifier.graph.cheapest_boundary(boundary)
        self.assertLessEqual(
            classifier.graph.bytes_per_image(early), classifier.graph.bytes_per_image(boundary)
        )
        if early != boundary:
            deeper = classifier.frozen_part(boundary, early)(classifier.frozen_part(early)(pixels))
            for got, expected in zip(deeper, tensors, strict=True):
                self.assert_near(got, expected, output_tolerance)
        self.assertEmpty(_changed(before, statistics))


class UnfreezeTest(_Case):
    @parameterized.parameters((1, 1_862_721), (2, 1_864_002))
    def test_mobilenet_from_layer_100_up(self, num_classes, parameters):
        classifier = Classifier("MobileNetV2", "none", 160, num_classes)
        self.assertLen(classifier.backbone.layers, 154)
        name = classifier.backbone.layers[100].name
        opened = classifier.unfreeze(name)
        self.assertEqual(name, "block_11_expand_relu")
        self.assertLen(opened, 54)
        self.assertEqual(
            sum(np.prod(v.shape) for v in classifier.trainable_variables().values()), parameters
        )
        self.assertEqual(
            sum(np.prod(v.shape) for v in classifier.model.trainable_variables), parameters
        )

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.classifier = _mobilenet()

    @parameterized.parameters(
        ("0%", 154),
        ("30%", 107),
        ("10%", 138),
        ("12.5%", 134),
        ("100%", 0),
        ("all", 0),
        ("block_16", 143),
        ("top", 151),
        ("stem", 0),
        ("block_16_depthwise", 146),
        ("Conv_1_bn", 152),
    )
    def test_what_is_open(self, what, first):
        classifier = self.classifier
        opened = classifier.unfreeze(what)
        layers = classifier.backbone.layers
        self.assertEqual([layer.name for layer in opened], [layer.name for layer in layers[first:]])
        self.assertEqual(
            [layer.trainable for layer in layers], [index >= first for index in range(154)]
        )
        expected = [
            f"backbone/{layer.name}/{v.name}"
            for layer in layers[first:]
            for v in layer.trainable_variables
        ]
        self.assertEqual(
            list(classifier.trainable_variables()), expected + ["head/kernel", "head/bias"]
        )
        self.assertCountEqual(
            [id(v) for v in classifier.model.trainable_variables],
            [id(v) for v in classifier.trainable_variables().values()],
        )
        self.assertEmpty(set(classifier.trainable_variables()) & classifier.batchnorm_statistics())

    def test_statistics_are_the_mean_and_variance_of_every_batchnorm(self):
        classifier = self.classifier
        self.assertLen(classifier.batchnorm_statistics(), 104)
        self.assertEqual(
            {path.rpartition("/")[2] for path in classifier.batchnorm_statistics()},
            {"moving_mean", "moving_variance"},
        )

    def test_frozen_backbone_is_parted_behind_the_pooling(self):
        self.classifier.unfreeze("0%")
        boundary = self.classifier.boundary()
        self.assertEqual(self.classifier.graph.shape(boundary[0]), (1280,))
        self.assertLen(boundary, 1)

    def test_open_backbone_is_parted_before_its_first_layer(self):
        self.classifier.unfreeze("all")
        self.assertEqual(self.classifier.boundary(), (self.classifier.graph.input,))
        pixels = _pictures(2, 32)
        self.assertAllClose(
            self.classifier.logits(
                self.classifier.boundary(),
                self.classifier.frozen_part(self.classifier.boundary())(pixels),
            ),
            self.classifier.model(pixels),
            rtol=1e-4,
            atol=1e-4,
        )

    @parameterized.parameters(
        (
            "blok_16",
            r"--unfreeze=blok_16 is neither a layer nor a block of MobileNetV2; expected N%, all, "
            r"or a name such as stem, block_8, top; did you mean block_16\?",
        ),
        ("block_16_depthwize", r"did you mean block_16_depthwise\?"),
        ("xyz", "a name such as stem, block_8, top$"),
        ("", "neither a layer nor a block"),
        ("30", "expected N%"),
    )
    def test_name_that_is_none_gets_the_nearest(self, what, message):
        with self.assertRaisesRegex(UserError, message):
            self.classifier.unfreeze(what)

    def test_share_is_exact(self):
        """Of 154 layers; a product of floats opens one too many of 20 % and of 40 % of 175."""
        count = len(self.classifier.backbone.layers)
        for tenths in range(1001):
            opened = len(self.classifier.unfreeze(f"{tenths / 10}%"))
            self.assertEqual(opened, count - count * (1000 - tenths) // 1000)
        for layers, share, frozen in ((175, "80%", 35), (175, "8e1%", 35), (3, "33.3%", 2)):
            self.assertEqual(classifier_lib._num_frozen(share, layers), frozen)

    @parameterized.parameters("-1%", "101%", "nan%", "inf%", "some%", "%")
    def test_share_outside_0_to_100_percent_is_refused(self, what):
        with self.assertRaisesRegex(
            UserError, f"--unfreeze={what}; expected a share between 0% and 100%"
        ):
            self.classifier.unfreeze(what)

    def test_refused_name_leaves_what_was_open(self):
        self.classifier.unfreeze("block_16")
        before = list(self.classifier.trainable_variables())
        for what in ("blok", "200%"):
            with self.assertRaises(UserError):
                self.classifier.unfreeze(what)
        self.assertEqual(list(self.classifier.trainable_variables()), before)


class BatchNormTest(_Case):
    def test_fit_and_the_saved_model_change_what_is_open_and_no_statistic(self):
        classifier = _mobilenet(dropout=0.2, augmentation={"flip": 1.0, "rotation": 0.1})
        classifier.unfreeze("block_16")
        open_paths = set(classifier.trainable_variables())
        self.assertContainsSubset(
            {"backbone/block_16_project_BN/gamma", "backbone/block_16_project_BN/beta"}, open_paths
        )
        images, labels = _pictures(8, 32), np.arange(8) % 3
        before = _values(classifier.variables)
        for variant in ({}, {"training": True}):
            classifier.model(images, **variant)
        self.assertEmpty(_changed(before, classifier.variables))

        # Saved, and continued in a process that knows of us only what it imports.
        folder = self.enter_context(tempfile.TemporaryDirectory())
        file, arrays = os.path.join(folder, "model.keras"), os.path.join(folder, "arrays.npz")
        classifier.model.save(file)
        predictions = classifier.model(images)
        script = """if True:
            import sys
            import keras
            import numpy as np
            import tl_research.models
            model = keras.saving.load_model(sys.argv[1])
            images, labels = np.load(sys.argv[2]), np.arange(8) % 3
            arrays = {"predictions": model(images, training=False)}
            for i, variable in enumerate(model.weights):
                arrays[f"before/{i}"] = np.array(variable)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.1), loss)
            model.fit(images, labels, batch_size=4, epochs=1, verbose=0, shuffle=False)
            for i, variable in enumerate(model.weights):
                arrays[f"after/{i}"] = np.array(variable)
            np.savez(sys.argv[3], **arrays)
        """
        np.save(os.path.join(folder, "images.npy"), images)
        process = subprocess.Popen(
            [sys.executable, "-c", script, file, os.path.join(folder, "images.npy"), arrays],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )

        _fit(classifier.model, images, labels)  # meanwhile here
        self.assertEqual(_changed(before, classifier.variables), open_paths)

        _, errors = process.communicate()
        self.assertEqual(process.returncode, 0, errors)
        loaded = np.load(arrays)
        self.assert_near(loaded["predictions"], predictions, 1e-6)
        paths = {id(variable): path for path, variable in classifier.variables.items()}
        changed = set()
        for index, variable in enumerate(classifier.model.weights):
            path = paths[id(variable)]
            self.assertAllEqual(loaded[f"before/{index}"], before[path])
            if not np.array_equal(loaded[f"after/{index}"], before[path]):
                changed.add(path)
        self.assertEqual(changed, open_paths)

    def test_control_the_common_recipe_moves_the_statistics_in_fit(self):
        """Why `InferenceBackbone` exists: a functional model forgets the `training=False` it was
        built with (keras#20285).
        """
        classifier = _mobilenet()
        classifier.unfreeze("block_16")
        base_model = classifier.backbone
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.GlobalAveragePooling2D()(
            base_model(classifier.preprocessing(inputs), training=False)
        )
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
        before = _values(classifier.variables)
        _fit(model, _pictures(8, 32), np.arange(8) % 3)
        changed = _changed(before, classifier.variables)
        self.assertIn("backbone/block_16_project_BN/gamma", changed)
        moved = changed & classifier.batchnorm_statistics()
        if not moved:
            self.skipTest(
                f"Keras {keras.__version__} keeps the training=False that a functional model was "
                "built with: InferenceBackbone is no longer needed for it"
            )
        self.assertLen(moved, 2 * 4)  # block_16 has three BatchNorm layers, the top one

    def test_batchnorm_training_moves_open_statistics_in_training_calls_only(self):
        classifier = _mobilenet(batchnorm="training")
        classifier.unfreeze("block_16_depthwise_BN")
        images = _pictures(4, 32)
        boundary = classifier.boundary()
        self.assertEqual(
            boundary, ("block_16_depthwise",)
        )  # between a convolution and its BatchNorm
        before = _values(classifier.variables)
        tensors = classifier.frozen_part(boundary)(images)
        plain = classifier.logits(boundary, tensors)
        self.assert_near(plain, classifier.model(images), 1e-4)
        self.assertEmpty(_changed(before, classifier.variables))

        logits = tf.function(lambda t: classifier.logits(boundary, t, training=True))(tensors)
        self.assertGreater(np.linalg.norm(logits - plain), 1e-2)
        self.assertEqual(
            _changed(before, classifier.variables),
            {
                f"backbone/{layer}/moving_{kind}"
                for layer in ("block_16_depthwise_BN", "block_16_project_BN", "Conv_1_bn")
                for kind in ("mean", "variance")
            },
        )
        mean = "backbone/block_16_depthwise_BN/moving_mean"
        momentum = classifier.backbone.get_layer("block_16_depthwise_BN").momentum
        self.assertAllClose(
            classifier.variables[mean].numpy(),
            momentum * before[mean] + (1 - momentum) * np.mean(tensors[0], axis=(0, 1, 2)),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_batchnorm_inference_moves_nothing_in_training_calls(self):
        classifier = _mobilenet()
        classifier.unfreeze("block_16")
        before, boundary = _values(classifier.variables), classifier.boundary()
        tensors = classifier.frozen_part(boundary)(_pictures(4, 32))
        logits = classifier.logits(boundary, tensors, training=True)
        self.assertAllEqual(logits, classifier.logits(boundary, tensors))
        self.assertEmpty(_changed(before, classifier.variables))


class LogitsTest(_Case):
    def test_dropout_is_a_pure_function_of_seed_and_step(self):
        def masks(classifier, step, features):
            # the logits are the first three features
            classifier.variables["head/kernel"].assign(np.eye(1280, 3))
            classifier.variables["head/bias"].assign(np.zeros(3))
            return classifier.logits(
                classifier.boundary(),
                [features],
                dropout_mask=classifier.dropout_mask(tf.constant(step, tf.int64), 500),
            )

        classifier = _mobilenet(dropout=0.25, seed=7)
        features = tf.ones([500, 1280])
        first = masks(classifier, 3, features)
        self.assertAllClose(np.unique(first), [0.0, 1 / 0.75])  # what is kept is scaled
        # 1500 draws: a standard deviation of 0.011
        self.assertNear(np.mean(first == 0), 0.25, 0.05)
        tf.random.uniform([])
        self.assertAllEqual(masks(classifier, 3, features), first)
        # 1 / 0.75 in float32
        self.assertAllEqual(masks(classifier, 3, tf.cast(features, tf.bfloat16)), first)
        self.assertAllEqual(
            tf.function(
                lambda step: classifier.logits(
                    classifier.boundary(),
                    [features],
                    dropout_mask=classifier.dropout_mask(step, 500),
                )
            )(tf.constant(3, tf.int64)),
            first,
        )
        dropped = tf.nn.experimental.stateless_dropout(
            features, 0.25, seed=tf.constant([7, 3], tf.int64), rng_alg="philox"
        )
        self.assertAllEqual(first, dropped[:, :3])
        for other in (
            masks(classifier, 4, features),
            masks(_mobilenet(dropout=0.25, seed=8), 3, features),
        ):
            self.assertNear(np.mean(other == first), 0.25**2 + 0.75**2, 0.06)  # independent
        self.assertAllEqual(classifier.logits(classifier.boundary(), [features]), tf.ones([500, 3]))
        self.assertEmpty(_mobilenet().dropout_mask(tf.constant(3, tf.int64), 500))

    def test_frozen_part_is_folded_once_when_it_is_made(self):
        classifier = _mobilenet()
        pixels, boundary = _pictures(2, 32), classifier.boundary()
        frozen = classifier.frozen_part(boundary)
        before = frozen(pixels)[0]
        classifier.backbone.get_layer("Conv_1_bn").gamma.assign(np.zeros(1280))
        self.assertAllEqual(frozen(pixels)[0], before)
        self.assertNotAllClose(classifier.frozen_part(boundary)(pixels)[0], before)

    def _logits_and_gradients(self, classifier, pixels):
        """(tensors at the boundary of the top 30 %, logits, {path: gradient of a weighting of the
        logits}).
        """
        classifier.unfreeze("30%")
        variables, boundary = classifier.trainable_variables(), classifier.boundary()
        tensors = classifier.frozen_part(boundary)(pixels)
        with tf.GradientTape() as tape:
            logits = classifier.logits(boundary, tensors)
            loss = tf.reduce_sum(logits * tf.constant([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]]))
        return (
            tensors,
            logits,
            dict(zip(variables, tape.gradient(loss, [v.value for v in variables.values()]))),
        )

    def test_real_weights_folded_and_plain_agree_in_float32_and_nearly_in_bfloat16(self):
        """Trained weights do not magnify rounding, so float32 is enough to show it."""
        pixels = _pictures(2, 64)
        folded, plain = (
            Classifier("EfficientNetLite0", "imagenet", 64, 3, fold=fold) for fold in (True, False)
        )
        self.assertEqual((folded.graph.num_folded, plain.graph.num_folded), (49, 0))
        _, logits, gradients = self._logits_and_gradients(folded, pixels)
        _, plain_logits, plain_gradients = self._logits_and_gradients(plain, pixels)
        self.assert_near(logits, plain_logits, 1e-5)
        self.assert_near(plain_logits, plain.model(pixels), 1e-5)
        self.assertGreater(np.linalg.norm(logits[0] - logits[1]), 0.1 * np.linalg.norm(logits))
        for path, gradient in plain_gradients.items():
            self.assert_near(gradients[path], gradient, 1e-4, path)

        self.use_policy("mixed_bfloat16")
        mixed = Classifier("EfficientNetLite0", "imagenet", 64, 3)
        tensors, mixed_logits, mixed_gradients = self._logits_and_gradients(mixed, pixels)
        self.assertEqual({tensor.dtype for tensor in tensors}, {tf.bfloat16})
        for got in (mixed_logits, mixed.model(pixels)):
            self.assertEqual(got.dtype, tf.float32)
            self.assert_near(got, logits, 0.25)  # measured: folded 0.09, Keras itself 0.12
        for path, gradient in mixed_gradients.items():
            self.assertEqual(gradient.dtype, tf.float32)
            # measured: folded 0.42, unfolded 0.56
            self.assert_near(gradient, gradients[path], 0.7, path)

    def test_augmentation_is_in_the_model_and_off_at_inference(self):
        classifier = _mobilenet(augmentation={"brightness": 0.5})
        pixels = _pictures(2, 32)
        plain = classifier.model(pixels)
        self.assert_near(
            classifier.logits(
                classifier.boundary(), classifier.frozen_part(classifier.boundary())(pixels)
            ),
            plain,
            1e-4,
        )
        self.assertNotAllClose(classifier.model(pixels, training=True), plain, rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    tf.test.main()
