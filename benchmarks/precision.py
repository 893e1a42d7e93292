"""What bfloat16 brings on this machine: our steps in mixed_bfloat16 against float32, per backbone
and phase.

    python benchmarks/precision.py

Steps are without input: the same batch of random pixels again and again, epochs of the two in turn,
compiling apart. It pays on processors that multiply bfloat16 themselves (avx512_bf16 or amx_bf16
among the flags in /proc/cpuinfo).
"""

import functools

import measuring
import program

from tl_research.settings import setting

_KINDS = ("float32", "mixed_bfloat16")
_BACKBONES = (
    f"{program.BACKBONES},EfficientNetB0@224,MobileNetV3Small@224,MobileNetV3Large@224,"
    "ResNet50V2@224,VGG16@224,ConvNeXtTiny@224,DenseNet121@224,InceptionV3@224,Xception@224,"
    "NASNetMobile@224"
)
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
float32 | {float32:.0f}
mixed_bfloat16 | {mixed_bfloat16:.0f}
ratio | {ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})
"""
table = functools.partial(program.table, _COLUMNS)


class Settings(measuring.Settings):
    """The flags of this benchmark."""

    backbones: str = setting(_BACKBONES, "NAME@SIZE, a list")
    images: int = setting(64, "images of an epoch, which is what is timed")


def measure(settings):
    """Returns a row for each backbone and phase."""

    def epochs(make, phase):
        return {
            kind: measuring.step_epoch(make(precision=kind), phase, settings.images)
            for kind in _KINDS
        }

    return measuring.compare(settings, _COLUMNS, epochs, {"ratio": _KINDS})


def faster(rows):
    """Returns the backbones for which every ratio of every round is above 1, in both phases."""
    slow = {row["backbone"] for row in rows if row["ratio_range"][0] <= 1}
    return [name for name in dict.fromkeys(row["backbone"] for row in rows) if name not in slow]


def report(settings):
    rows = measure(settings)
    return (
        f"images/s of our step without input, {measuring.conditions(settings)}\n\n{table(rows)}\n\n"
        f"faster in both phases: {', '.join(faster(rows)) or 'none'}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
