"""Which precision a run computes in."""

import keras
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.run import environment

_ZEN5 = "processor\t: 0\nflags\t\t: fpu sse4_2 avx512f avx512_bf16 avx512_vnni\nbugs\t\t: none\n"
_SAPPHIRE_RAPIDS = "flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\nvmx flags\t: vnmi\n"
_SKYLAKE = "flags\t\t: fpu avx512f avx512_vnni amx_bf16_not\nvmx flags\t: amx_bf16\n"
_ARM = "Features\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    "backbone, cpuinfo, pays",
    [
        ("EfficientNetLite0", _ZEN5, True),
        ("MobileNetV2", _SAPPHIRE_RAPIDS, True),
        ("EfficientNetV2B0", "flags : amx_bf16", True),
        ("ResNet50", _SKYLAKE, False),
        ("ResNet50", _ARM, False),
        ("ResNet50", "", False),
        ("EfficientNetLite2", _ZEN5, True),
        ("VGG16", _ZEN5, False),  # not measured
    ],
)
def test_bfloat16_pays_where_the_processor_multiplies_it_and_the_benchmark_says_so(
    backbone, cpuinfo, pays
):
    assert environment.pays_in_bfloat16(backbone, cpuinfo) == pays


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="auto of a GPU is another")
@pytest.mark.parametrize(
    "cpuinfo, settings, recorded, own_backbone, expected",
    [
        (_ZEN5, {}, {}, False, "mixed_bfloat16"),
        (_SKYLAKE, {}, {}, False, "float32"),
        (_ZEN5, {"precision": "float32"}, {}, False, "float32"),
        (_ZEN5, {"xla": "on"}, {}, False, "float32"),
        (_ZEN5, {}, {}, True, "float32"),
        # resumed on another processor than the run began on
        (_ZEN5, {}, {"precision": "float32"}, False, "float32"),
        (_SKYLAKE, {}, {"precision": "mixed_bfloat16"}, False, "mixed_bfloat16"),
    ],
)
def test_what_auto_is_on_a_cpu(
    monkeypatch, request, cpuinfo, settings, recorded, own_backbone, expected
):
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setattr(environment.machine, "read", lambda path: cpuinfo)
    config = Config(dataset="drawn_flowers", backbone="EfficientNetLite0", **settings)
    precision, _ = environment.resolve_device(config, recorded, own_backbone)
    assert precision == keras.config.dtype_policy().name == expected
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert environment.resolve_device(config, {})[0] == settings.get("precision", "float32")
