"""What bfloat16 brings on this machine: our steps in mixed_bfloat16 against float32, per backbone
and phase.

    python benchmarks/precision.py

Steps are without input: the same batch of random pixels again and again, epochs of the two in turn,
compiling apart. It pays on processors that multiply bfloat16 themselves (avx512_bf16 or amx_bf16
among the flags in /proc/cpuinfo).
"""

import dataclasses
import os
import statistics

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring

from tl_research import cli
from tl_research.settings import setting

_BACKBONES = (
    "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224,ResNet50@224,"
    "EfficientNetB0@224,MobileNetV3Small@224,"
    "MobileNetV3Large@224,ResNet50V2@224,VGG16@224,ConvNeXtTiny@224,"
    "DenseNet121@224,InceptionV3@224,Xception@224,"
    "NASNetMobile@224"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    backbones: str = setting(_BACKBONES, "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none, which is as fast")
    images: int = setting(64, "images of an epoch, which is what is timed")
    batch_size: int = setting(32, "images a step")
    rounds: int = setting(5, "epochs timed of each kind; at least 1")
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def measure(settings):
    """Returns a row for each backbone and phase."""
    rows = []
    for name, size in measuring.parse_backbones(settings.backbones):
        for phase in measuring.PHASES:
            epochs = {}
            for precision in ("float32", "mixed_bfloat16"):
                config = measuring.make_config(settings, name, size, precision=precision)
                classifier = measuring.make_classifier(config, phase, 5)
                source = measuring.live_source(
                    config, classifier, measuring.drawn_examples(config, settings.images)
                )
                epochs[precision] = measuring.our_epoch(
                    config, phase, classifier, source, same_batch=True
                )
            seconds = measuring.alternate(epochs, settings.rounds)
            ratio, spread = measuring.ratios(seconds["float32"], seconds["mixed_bfloat16"])
            rows.append(
                {
                    "backbone": name,
                    "image_size": size,
                    "phase": phase,
                    "ratio": ratio,
                    "ratio_range": spread,
                    **{
                        kind: settings.images / statistics.median(times)
                        for kind, times in seconds.items()
                    },
                }
            )
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            keras.backend.clear_session()
    return rows


def faster(rows):
    """Returns the backbones for which every ratio of every round is above 1, in both phases."""
    names = dict.fromkeys(row["backbone"] for row in rows)
    return [
        name
        for name in names
        if all(row["ratio_range"][0] > 1 for row in rows if row["backbone"] == name)
    ]


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = ["| backbone, phase | float32 | mixed_bfloat16 | ratio |", "|---|---|---|---|"]
    for row in rows:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['float32']:.0f} | "
            f"{row['mixed_bfloat16']:.0f} | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) |"
        )
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    rows = measure(settings)
    print(
        f"\nimages/s of our step without input, {os.cpu_count()} CPU cores, batch "
        f"{settings.batch_size}, median of {settings.rounds}\n\n{table(rows)}\n\nfaster in both "
        f"phases: {', '.join(faster(rows)) or 'none'}",
        flush=True,
    )
    measuring.write_json(settings.output_json, settings, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
