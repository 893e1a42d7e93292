import pytest

from tl_research.models import precision


@pytest.mark.parametrize("features, backbone, expected", [
    ({"avx512f", "avx512_bf16"}, "MobileNetV2", "mixed_bfloat16"),
    ({"amx_bf16"}, "MobileNetV2", "mixed_bfloat16"),
    ({"avx512f", "avx_vnni"}, "MobileNetV2", "float32"),
    (set(), "MobileNetV2", "float32"),
    ({"avx512_bf16"}, "a backbone that nobody measured", "float32"),
])
def test_auto_on_a_cpu_asks_the_processor_and_the_table(monkeypatch, features, backbone, expected):
    monkeypatch.setattr(precision, "_cpu_features", lambda: features)
    assert precision.resolve_precision("auto", backbone) == expected
    assert precision.resolve_precision("float32", backbone) == "float32"
    assert precision.resolve_precision("mixed_bfloat16", backbone) == "mixed_bfloat16"


def test_the_processor_is_read_where_linux_names_it():
    features = precision._cpu_features()
    assert not features or {"fpu", "fp"} & features  # of x86 and of Arm
