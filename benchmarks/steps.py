"""What one choice brings to our step: bfloat16 against float32, or BatchNorm folded into
convolutions against Keras' own layers, per backbone and phase.

    python benchmarks/steps.py --of=precision
    python benchmarks/steps.py --of=folding --images=160

Steps are without input: the same batch of random pixels again and again, epochs of the two in turn,
compiling apart. bfloat16 pays on processors that multiply it themselves (avx512_bf16 or amx_bf16
among the flags in /proc/cpuinfo). That folding changes no value is asserted of every backbone in
tests/models/test_classifier.py.
"""

import measuring
import program

from tl_research.settings import setting

CHOICES = {  # {name: the setting of each of the two, the slower one first}
    "precision": {
        "float32": {"precision": "float32"},
        "mixed_bfloat16": {"precision": "mixed_bfloat16"},
    },
    "folding": {"plain": {"fold_batchnorm": "off"}, "folded": {"fold_batchnorm": "on"}},
}


class Settings(measuring.Settings):
    """The flags of this benchmark."""

    of: str = setting("precision", "what is compared", choices=tuple(CHOICES))
    images: int = setting(64, "images of an epoch, which is what is timed")


def columns(settings):
    """Returns those of the table, as of `program.table`."""
    kinds = "".join(f"{kind} | {{{kind}:.0f}}\n" for kind in CHOICES[settings.of])
    return (
        f"backbone, phase | {{backbone}}@{{image_size}}, {{phase}}\n{kinds}"
        "ratio | {ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})"
    )


def measure(settings):
    """Returns a row for each backbone and phase, as of `measuring.row`."""
    kinds = CHOICES[settings.of]

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            for phase in measuring.PHASES:
                epochs = {}
                for kind, more in kinds.items():
                    config = measuring.make_config(settings, name, size, **more)
                    examples = measuring.drawn_examples(config, settings.images)
                    classifier = measuring.make_classifier(config, phase, 5)
                    source = measuring.live_source(config, classifier, examples)
                    epochs[kind] = measuring.our_epoch(
                        config, phase, classifier, source, same_batch=True
                    )
                seconds = measuring.alternate(epochs, settings.rounds)
                yield measuring.row(config, phase, seconds, settings.images, {"ratio": kinds})
                measuring.keras.backend.clear_session()

    return program.gathered(settings, columns(settings), rows())


def faster(rows):
    """Returns the backbones for which every ratio of every round is above 1, in both phases."""
    slow = {row["backbone"] for row in rows if row["ratio_range"][0] <= 1}
    return [name for name in dict.fromkeys(row["backbone"] for row in rows) if name not in slow]


def report(settings):
    rows = measure(settings)
    return (
        f"images/s of our step without input, {measuring.conditions(settings)}\n\n"
        f"{program.table(columns(settings), rows)}\n\n"
        f"faster in both phases: {', '.join(faster(rows)) or 'none'}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
