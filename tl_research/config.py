"""Every setting of a run, declared once: type, default, help, bounds, and whether it may change at
a resume.

`train.py` and the tools derive their flags from these fields (`tl_research.cli`); Python callers
construct `Config` directly and get the same checks. Imports neither tensorflow nor absl, so that
`--help` answers at once.
"""

import dataclasses
import glob
import math
import os
import re
from typing import Any

from tl_research.errors import UserError, suggestion
from tl_research.settings import (
    check_fields,
    flag_text,
    item_type,
    number,
    setting,
)

FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")  # the folders of tf_flowers
# Holds the name of the newest run beside it. No link: TensorBoard would show that run twice.
LATEST = os.path.join("runs", "latest")
DATASETS = ("tf_flowers", "cats_vs_dogs", "drawn_flowers", "directory")
PREPROCESSINGS = ("auto", "raw", "tf", "caffe", "torch", "lite")
# Factors mean what they mean in the Keras layer of the same name; flip is horizontal and takes
# none.
AUGMENTATIONS = ("flip", "rotation", "zoom", "translation", "brightness", "contrast")
# Earlier versions wrote them; the tools on finished runs, which do not train, do without.
_FORMER_SETTINGS = ("warmup_steps",)


def lower_is_better(name: str) -> bool:
    """Returns whether a metric is to be small: it is if its name ends in `loss` or `error`."""
    return name.endswith(("loss", "error"))


@dataclasses.dataclass(frozen=True)
class Phase:
    """One entry of `--phases`: which part of the backbone trains, how fast and for how long."""

    name: str
    epochs: int
    unfreeze: str
    learning_rate: float
    patience: int
    warmup: float
    lr_schedule: str = "constant"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run.

    A list has an entry for each phase, or one that serves all. Of a default list the first of
    several phases, or one named head, has the first entry, every other phase the last.

    Raises:
        UserError: If a value is of the wrong type, out of bounds, or contradicts another.
    """

    # what --help shows first
    FIRST = tuple(
        [
            *("data_dir", "backbone", "weights", "image_size", "epochs", "unfreeze"),
            *("learning_rate", "batch_size", "workdir", "seed"),
        ]
    )

    dataset: str | None = setting(
        None,
        "where images come from; None: directory with a --data_dir, unless that is a copy of "
        "tf_flowers; without one tf_flowers",
        choices=DATASETS,
        group="Data",
    )
    data_dir: str | None = setting(
        None,
        "a directory with one folder per class; with a named data set, a local copy used instead "
        "of downloading",
        may_change=True,
        path="absolute",
    )
    validation_dir: str | None = setting(
        None,
        "validation images of a data set that brings its own; halved into validation and test "
        "without --test_dir",
        may_change=True,
        path="absolute",
    )
    test_dir: str | None = setting(
        None,
        "test images of a data set that brings its own; without --validation_dir the others are "
        "split into training and validation",
        may_change=True,
        path="absolute",
    )
    download_dir: str = setting(
        "~/.cache/tl_research",
        "where downloaded and drawn images are kept",
        may_change=True,
        path="absolute",
    )
    download_base_url: str | None = setting(
        None,
        "a mirror: the data archives are fetched from here instead of their own hosts",
        may_change=True,
        address=True,
    )
    if_offline: str = setting(
        "stop",
        "embedded: what cannot be reached is replaced by drawn_flowers and EfficientNetLite0's "
        "packaged weights",
        choices=("stop", "embedded"),
    )
    data_audit: str = setting(
        "on",
        "before training, ask a closed-form head which labels are in doubt and which images look "
        "alike: report/data_audit.csv",
        choices=("on", "off"),
        may_change=True,
    )
    on_bad_image: str = setting(
        "error",
        "skip: train without the files that cannot be decoded or that stand in two classes; either "
        "way they are listed in bad_images.csv",
        choices=("error", "skip"),
    )
    leave_out: str | None = setting(
        None,
        "a CSV file with a path column, names as in split.json: the run is without these images",
        path="absolute",
    )
    split: tuple[float, ...] = setting(
        (0.8, 0.1, 0.1),
        "fractions of each class's images for training, validation and test",
        above=0,
        high=1,
    )
    split_seed: int = setting(0, "another value draws another split", low=0)
    image_size: int = setting(
        224, "height and width in pixels that images are resized to", low=16, high=2048
    )
    max_image_pixels: int = setting(
        0,
        "pixels that an image may have, and JPEGs with more are decoded at a reduced scale; 0: "
        "89,478,485, of files that do not claim far more than they hold",
        low=0,
    )
    cache_pixels: int = setting(
        4 << 30,
        "bytes of memory for decoded images; a larger data set is decoded again every epoch",
        low=0,
        may_change=True,
    )
    augment: tuple[str, ...] = setting(
        ("flip", "rotation=0.1", "zoom=0.1"),
        f"random changes of the training images, any of {', '.join(AUGMENTATIONS)} with their "
        "factors, or none",
        words=("none",),
    )
    augment_views: int = setting(
        4,
        "versions of each image, used in turn, one an epoch: it as it is, then augmented ones; 0 "
        "draws a fresh augmented one every epoch",
        low=0,
    )
    mixup: float = setting(
        0.0,
        "MixUp: each training image is blended with another, shares drawn from Beta(this, this); "
        "live only; 0 does not",
        low=0,
    )
    class_share: tuple[str, ...] = setting(
        (),
        "CLASS=SHARE: train with this share of the class's training images only; may be repeated",
        repeated=True,
    )
    feature_cache: str = setting(
        "auto",
        "where what the frozen part computes is kept; auto: in memory if it fits and pays",
        choices=("auto", "memory", "disk", "off"),
    )
    cache_bytes: int = setting(4 << 30, "bytes of memory for cached features", low=0)
    cache_dtype: str = setting(
        "auto",
        "type of cached features; auto: as they are computed",
        choices=("auto", "float16", "bfloat16"),
    )

    backbone: str = setting(
        "EfficientNetV2B0", "the pretrained network; list prints a table of them", group="Model"
    )
    weights: str = setting(
        "imagenet",
        "imagenet, none (random), a Keras weights or model file, or the directory of a finished "
        "run: of the same classes with its head, to train on",
        path="absolute",
        words=("imagenet", "none"),
    )
    dropout: float = setting(
        0.2, "share of the pooled features dropped before the dense layer", low=0, high=0.95
    )
    head_init: str = setting(
        "random",
        "lda: the head starts as the shrinkage linear discriminant analysis of the training images",
        choices=("random", "lda"),
    )
    preprocessing: str = setting(
        "auto",
        "auto: what the backbone was trained on; another one to show what that does",
        choices=PREPROCESSINGS,
    )
    batchnorm: str = setting(
        "inference",
        "training: let BatchNorm use and move batch statistics, to show what that does",
        choices=("inference", "training"),
    )
    fold_batchnorm: str = setting(
        "on",
        "compute convolution and BatchNorm as one convolution; off for comparison",
        choices=("on", "off"),
    )

    phases: tuple[str, ...] = setting(
        ("head", "finetune"),
        "names of the phases, in order; each has an entry in the lists that follow. Of a list left "
        "at its default the first of several phases, or one named head, has the first entry, every "
        "other phase the last",
        group="Fine-tuning",
    )
    epochs: tuple[int, ...] = setting((8, 10), "epochs of each phase; 0 skips it", low=0)
    unfreeze: tuple[str, ...] = setting(
        ("0%", "30%"),
        "what of the backbone trains in each phase: the top N% of its layers, "
        "a layer or block name (from there up), or all",
    )
    learning_rate: tuple[float, ...] = setting(
        (1e-3, 3e-4), "base learning rate of each phase", above=0
    )
    select_by: str = setting(
        "val_loss",
        "what decides the best epoch and phase: val_loss, val_accuracy, or a column of an "
        "extension; of a name that ends in loss or error the lowest",
    )
    patience: tuple[int, ...] = setting(
        (0, 3),
        "epochs without a better --select_by before a phase stops; 0 never stops early",
        low=0,
    )
    backbone_lr_multiplier: float = setting(
        1.0, "times the learning rate, for the backbone", above=0
    )
    layer_decay: float = setting(
        1.0,
        "times the learning rate once for the last block, twice for the one before, ...",
        above=0,
        high=1,
    )
    lr_multiplier: tuple[str, ...] = setting(
        (),
        "REGEX=VALUE: times the learning rate, for variables whose backbone/<layer>/<variable> or "
        "head/<variable> it matches; may be repeated",
        repeated=True,
    )

    optimizer: str = setting(
        "adam",
        "Keras optimizer, one per parameter group",
        choices=("sgd", "adam", "adamw", "rmsprop", "lion"),
        group="Optimization",
    )
    momentum: float = setting(0.9, "of sgd", low=0, high=0.9999)
    nesterov: bool = setting(False, "Nesterov momentum in sgd")
    weight_decay: float = setting(
        0.0, "decoupled, scaled by the group's learning rate; for adamw and lion", low=0
    )
    clip_norm: float = setting(
        0.0, "largest global norm of all gradients together; 0 does not clip", low=0
    )
    label_smoothing: float = setting(
        0.1,
        "probability spread over all classes in the training loss, where that is the "
        "cross-entropy of classes",
        low=0,
        high=0.9,
    )
    class_weights: str = setting(
        "none",
        "balanced: in the training loss an image weighs N / (K n) where its class has n of all N "
        "in K classes",
        choices=("none", "balanced"),
    )
    ema_decay: float = setting(
        0.0,
        "evaluate, select and keep an exponential moving average of the trained weights, times "
        "this each step; 0 does not",
        low=0,
        high=0.99999,
    )
    lr_schedule: tuple[str, ...] = setting(
        ("constant", "cosine"),
        "of each phase, after warm-up; cosine falls to 0 at its end",
        choices=("constant", "cosine"),
    )
    warmup: tuple[float, ...] = setting(
        (0.0, 0.3),
        "share of the steps of each phase in which the rate rises linearly to its full value: in "
        "whole steps, at most all but two",
        low=0,
        high=0.99,
    )

    batch_size: int = setting(32, "images a step", low=1, group="Loop")
    steps_per_call: int = setting(
        0,
        "training steps in one call of the compiled loop; 0 chooses by the cost of a step",
        low=0,
        may_change=True,
    )
    seed: int = setting(
        0, "decides weights, order, augmentation and dropout", low=0, high=2**31 - 1
    )
    seeds: tuple[int, ...] = setting(
        (),
        "train once for each, in --workdir/seed<S>, instead of once with --seed; prints mean, "
        "range and interval",
        low=0,
        high=2**31 - 1,
        may_change=True,
        recorded=False,
    )
    seeds_split: str = setting(
        "separate",
        "separate: each of --seeds is its split's seed too; same: all have --split_seed",
        choices=("separate", "same"),
        may_change=True,
        recorded=False,
    )
    time_limit: float = setting(
        0.0,
        "seconds from the start of the program to the results: each phase is shortened to the "
        "epochs that fit, and where features are cached the first epoch has the images as they "
        "are; 0 does not",
        low=0,
    )
    checkpoint_every_steps: int = setting(
        0, "besides the epoch ends; 0 only there", low=0, may_change=True
    )
    checkpoint_every_seconds: float = setting(
        300.0,
        "besides the epoch ends, after the call of the compiled loop in which they are over; 0 "
        "only there",
        low=0,
        may_change=True,
    )
    min_test_accuracy: float = setting(
        0.0, "exit 3 when the test accuracy is below", low=0, high=1, may_change=True
    )

    precision: str = setting(
        "auto",
        "of training; validation, test and export are float32; auto: mixed_bfloat16 on a GPU from "
        "compute capability 8.0, mixed_float16 on others; on a CPU mixed_bfloat16 where the "
        "processor multiplies it and the backbone is known to gain, else float32",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
        group="Precision",
    )
    xla: str = setting(
        "auto",
        "compile the steps with XLA; auto: on a GPU only, on CPU it is slower",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = setting(
        False,
        "every run gives the same bits on a GPU too, if more slowly; a CPU needs no flag for that",
    )

    distribute: str = setting(
        "off",
        "share each batch: mirrored: among the GPUs of this machine; multi_worker: among the "
        "processes of TF_CONFIG",
        choices=("off", "mirrored", "multi_worker"),
        may_change=True,
        group="Devices",
    )
    shards: int = setting(
        0,
        "parts that images belong to by their content, each with equally many rows of a batch; of "
        "multi_worker each process reads and keeps its share of them; 0: as many as there are "
        "processes when the run begins",
        low=0,
    )
    worker_timeout: float = setting(
        0.0,
        "seconds that multi_worker waits for all processes of TF_CONFIG; 0 waits for ever",
        low=0,
        may_change=True,
    )

    workdir: str | None = setting(
        None,
        "the run directory; alone it goes on with the run in it, as that was begun; without it "
        "runs/<UTC time>-<folder of the images>-<backbone>",
        may_change=True,
        path="as given",
        recorded=False,
        group="Output",
    )
    name: str | None = setting(
        None,
        "of a new directory in runs/, where no --workdir is given",
        may_change=True,
        recorded=False,
    )
    extension: str | None = setting(
        None,
        "a Python file of yours whose parts replace the package's, see docs/extending.md; on the "
        "command line only",
        may_change=True,
        path="as given",
        recorded=False,
        in_files=False,
    )
    profile_steps: str | None = setting(
        None,
        "A:B: profile the global steps from A up to B, which then run one at a time, for "
        "TensorBoard",
        may_change=True,
    )
    json: bool = setting(
        False,
        "print the results as a RESULT line on a terminal too",
        may_change=True,
        recorded=False,
    )
    verbose: bool = setting(
        False,
        "print the whole plan and what the audits counted",
        may_change=True,
        recorded=False,
    )
    resume: str = setting(
        "auto",
        "auto: go on with an unfinished run in --workdir; never: set the old run aside and start "
        "anew",
        choices=("auto", "never"),
        may_change=True,
        recorded=False,
    )

    def __post_init__(self):
        check_fields(self)
        if self.dataset is None:
            own = self.data_dir and not _holds_flowers(self.data_dir)
            object.__setattr__(self, "dataset", "directory" if own else "tf_flowers")
        for flag, is_wrong, text in _RULES:
            if is_wrong(self):
                shown = {name: flag_text(value) for name, value in vars(self).items()}
                raise UserError(f"--{flag}{text.format(**shown)}", flag)
        for name, value in self.augment_factors.items():
            if not 0 < value <= (1 if name in AUGMENTATIONS else math.inf):
                raise UserError(
                    f"--augment has {name}={value}; expected a factor in (0, 1]; for example "
                    f"{name}=0.1",
                    "augment",
                )
        self.class_shares  # noqa: B018 (checks them)
        self.phase_plan  # noqa: B018 (checks the lists against each other)

    @property
    def phase_plan(self) -> tuple[Phase, ...]:
        """The phases, one `Phase` each, in order."""
        for name in self.phases:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise UserError(
                    f"--phases names a phase {name!r}; expected letters, digits, _ and -; rename "
                    "it",
                    "phases",
                )
        lists = ("epochs", "unfreeze", "learning_rate", "patience", "warmup", "lr_schedule")
        columns = map(self._of_each_phase, lists)
        return tuple(Phase(name, *row) for name, row in zip(self.phases, zip(*columns)))

    def _of_each_phase(self, name):
        """Returns the values of a list setting, one for each phase."""
        values, count = getattr(self, name), len(self.phases)
        if len(values) == count:
            return values
        if len(values) == 1:
            return values * count
        if values == getattr(Config, name):
            first = values[:1] if count > 1 or self.phases == ("head",) else ()
            return first + values[-1:] * (count - len(first))
        raise UserError(
            f"--{name}={flag_text(values)} has {len(values)} entries; expected 1 or {count}, one "
            f"for each of --phases={flag_text(self.phases)}; add or remove entries",
            name,
        )

    @property
    def augmentation(self) -> dict[str, float]:
        """{operation: factor} of those of `--augment` that are built in."""
        return {
            name: self.augment_factors[name]
            for name in self.augment_factors
            if name in AUGMENTATIONS
        }

    @property
    def augment_factors(self) -> dict[str, float]:
        """`--augment` as a dict of factors; flip has factor 1.

        With an extension, which is not known here, any name may be one of its operations.
        """
        if self.augment == ("none",):
            return {}
        factors = {}
        for part in self.augment:
            name, _, value = part.partition("=")
            if not (name in AUGMENTATIONS or self.extension) or name in factors:
                raise UserError(
                    f"--augment has {part!r}; expected each of {', '.join(AUGMENTATIONS)} at most "
                    "once, or none; others need their --extension"
                    f"{suggestion(name, AUGMENTATIONS)}",
                    "augment",
                )
            if (name == "flip") == bool(value):
                raise UserError(
                    f"--augment has {part!r}; expected flip without and the others with a factor; "
                    "write for example flip,rotation=0.1",
                    "augment",
                )
            factors[name] = 1.0 if name == "flip" else number(float, value, f"--augment={name}")
        return factors

    @property
    def class_shares(self) -> dict[str, float]:
        """`--class_share` as a dict, class name -> share of its training images."""
        shares = {}
        for part in self.class_share:
            name, _, value = part.rpartition("=")
            if not name or name in shares:
                raise UserError(
                    f"--class_share={part}; expected CLASS=SHARE, each class once; for example "
                    "roses=0.1",
                    "class_share",
                )
            shares[name] = number(float, value, f"--class_share={name}")
            if not 0 < shares[name] <= 1:
                raise UserError(
                    f"--class_share={part}; expected a share in (0, 1]; for example {name}=0.1",
                    "class_share",
                )
        return shares

    @property
    def profiled_steps(self) -> tuple[int, int]:
        """(A, B) of `--profile_steps=A:B`, or (0, 0)."""
        first, end = map(int, (self.profile_steps or "0:0").split(":"))
        return first, end

    @classmethod
    def from_flags(cls, text: str) -> "Config":
        """Returns the settings that `to_flags` wrote, in this version or an earlier one."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                if line.startswith("# extension "):
                    values["extension"] = "<not loaded>"
                continue
            name, _, value = line.removeprefix("--").partition("=")
            if name in _FORMER_SETTINGS:
                continue
            if name not in fields or not fields[name].metadata["recorded"]:
                raise UserError(f"{line!r} is no setting of this version; expected --name=value")
            if fields[name].metadata["repeated"]:
                values[name] = (*values.get(name, ()), value)
            else:
                values[name] = value == "true" if item_type(fields[name]) is bool else value
        return cls(**values)

    def to_flags(self) -> str:
        """The settings as flagfile lines, without the run's own place.

        Replaying them repeats the run.
        """
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not field.metadata["recorded"] or value is None:
                continue
            if field.metadata["repeated"]:
                lines += [f"--{field.name}={item}" for item in value]
            else:
                lines.append(f"--{field.name}={flag_text(value)}")
        return "\n".join(lines) + "\n"


def _holds_flowers(folder):
    """Returns whether a folder is a copy of tf_flowers, by the folders in it."""
    return sorted(glob.glob("*/", root_dir=folder)) == [f"{name}/" for name in FLOWERS]


def _is_no_part(what):
    """Returns whether an entry of --unfreeze has a form that nothing in any backbone has."""
    try:
        return not 0 <= float(what.removesuffix("%")) <= 100 or not what.endswith("%")
    except ValueError:
        return not re.fullmatch(r"[\w./ -]+", what)


def _is_no_range(text):
    first, colon, end = text.partition(":")
    return not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end))


# What settings rule out: the flag to name, whether a `Config` has it wrong, and what is said behind
# the flag's name, with the values of all.
_RULES = (
    (
        "dataset",
        lambda c: c.dataset == "directory" and not c.data_dir,
        "=directory without --data_dir; expected a directory with one folder per class; add "
        "--data_dir=DIR",
    ),
    (
        "test_dir",
        lambda c: c.test_dir and not c.data_dir,
        "={test_dir} without --data_dir; expected the training images too; add --data_dir=DIR",
    ),
    (
        "validation_dir",
        lambda c: c.validation_dir and not c.data_dir,
        "={validation_dir} without --data_dir; expected the training images too; add "
        "--data_dir=DIR",
    ),
    (
        "split",
        lambda c: len(c.split) != 3 or abs(sum(c.split) - 1) > 1e-9,
        "={split}; expected three fractions that sum to 1; write for example --split=0.8,0.1,0.1",
    ),
    (
        "unfreeze",
        lambda c: any(map(_is_no_part, c.unfreeze)),
        "={unfreeze}; expected for each phase N% with N from 0 to 100, all, or the name of a layer "
        "or block; for example --unfreeze=0%,30%",
    ),
    (
        "name",
        lambda c: c.name and not re.fullmatch(r"(?!latest$)[\w+-][\w.+ -]*", c.name),
        "={name}; expected letters, digits, spaces and . _ + -, and another than latest; write for "
        "example --name=roses",
    ),
    (
        "weight_decay",
        lambda c: c.weight_decay and c.optimizer not in ("adamw", "lion"),
        "={weight_decay} with --optimizer={optimizer}; expected an optimizer that decouples it; "
        "use --optimizer=adamw",
    ),
    (
        "nesterov",
        lambda c: c.nesterov and c.optimizer != "sgd",
        " with --optimizer={optimizer}; expected --optimizer=sgd; drop one of them",
    ),
    (
        "distribute",
        lambda c: c.distribute != "off" and c.batchnorm == "training",
        "={distribute} with --batchnorm=training, whose statistics would be of a part of the "
        "batch; expected one replica; use --distribute=off",
    ),
    (
        "phases",
        lambda c: len(set(c.phases)) != len(c.phases),
        "={phases} repeats a name; expected each once; rename one",
    ),
    (
        "seeds",
        lambda c: len(set(c.seeds)) != len(c.seeds),
        "={seeds} repeats a seed; expected each once; remove one",
    ),
    (
        "seeds",
        lambda c: c.seeds and c.distribute == "multi_worker",
        "={seeds} with --distribute=multi_worker; expected one run of all workers; give --seed, "
        "and start them once for each",
    ),
    (
        "mixup",
        lambda c: c.mixup and c.feature_cache in ("memory", "disk"),
        "={mixup} with --feature_cache={feature_cache}; expected images that are blended anew "
        "every epoch; use --feature_cache=auto or off",
    ),
    (
        "profile_steps",
        lambda c: c.profile_steps and _is_no_range(c.profile_steps),
        "={profile_steps}; expected A:B with A < B; for example 20:30",
    ),
)


def run_called(name: str) -> str:
    """Returns the directory that `--run` names: `latest` is what `runs/latest` says.

    Raises:
        UserError: If there is no such file.
    """
    if name != "latest" or os.path.lexists(name):
        return name
    if os.path.isdir(LATEST):  # somebody's --workdir
        return LATEST
    try:
        with open(LATEST, encoding="utf-8") as file:
            return os.path.join(os.path.dirname(LATEST), file.readline().strip())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--run=latest, and {LATEST} cannot be read ({getattr(error, 'strerror', error)}); "
            "expected a place where a run was made; go there, or name the run's directory"
        ) from error


@dataclasses.dataclass(frozen=True)
class ToolConfig:
    """Settings of a program that works on a finished run.

    Raises:
        UserError: If a value is of the wrong type or out of bounds, or there is no run.
    """

    run: str | None = setting(
        None,
        "the directory of a finished run; latest: the newest in runs/",
        path="as given",
        recorded=False,
    )
    extension: str | None = setting(
        None,
        "the run's Python file, where its load_catalog gave the images that are read again",
        path="as given",
        in_files=False,
    )
    batch_size: int | None = setting(
        None, "images at a time; None: as the run was trained with, at most 32", low=1
    )

    def __post_init__(self):
        check_fields(self)
        if not self.run:
            raise UserError(
                "--run is missing; expected the directory of a finished run; add --run=DIR, or "
                "--run=latest for the newest in runs/"
            )
        run = self.run
        several = tuple(map(run_called, run)) if isinstance(run, tuple) else run_called(run)
        object.__setattr__(self, "run", several)


@dataclasses.dataclass(frozen=True)
class ReaderConfig(ToolConfig):
    """Settings of such a program that reads the run's images and writes files."""

    data_dir: str | None = setting(
        None,
        "where the run's images are now; None: where they were",
        path="as given",
        recorded=False,
    )
    output_dir: str | None = setting(
        None, "what is written goes there; None: into the run", path="as given", recorded=False
    )
