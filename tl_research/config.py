"""Every setting of a run, declared once: type, default, help, bounds, and whether a resumed run
may change it.

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
    unrecorded_path,
)

FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")  # the folders of tf_flowers
# A file with the name of the newest run in runs/. Not a link: TensorBoard would show the run twice.
LATEST = "runs/latest"
DATASETS = ("tf_flowers", "cats_vs_dogs", "drawn_flowers", "directory")
PREPROCESSINGS = ("auto", "raw", "tf", "caffe", "torch", "lite")
# Factors are those of the Keras layers of the same name; flip is horizontal and has none.
AUGMENTATIONS = ("flip", "rotation", "zoom", "translation", "brightness", "contrast")
# Written by earlier versions; the tools on finished runs do not need them.
_FORMER_SETTINGS = ("warmup_steps",)


def lower_is_better(name: str) -> bool:
    """Returns whether smaller values of a metric are better: its name ends in `loss` or `error`."""
    return name.endswith(("loss", "error"))


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training phase: the trainable part of the backbone, learning rate and epochs."""

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

    A list setting has one entry per phase, or one for all. Of a default list, the first of several
    phases, or a single phase named head, takes the first entry and the other phases the last.

    Raises:
        UserError: If a value has the wrong type, is out of bounds, or contradicts another.
    """

    # shown first by --help
    FIRST = (
        "data_dir",
        "backbone",
        "weights",
        "image_size",
        "epochs",
        "unfreeze",
        "learning_rate",
        "batch_size",
        "workdir",
        "seed",
    )

    dataset: str | None = setting(
        None,
        "source of the images; None: directory if --data_dir is given and is not a copy of "
        "tf_flowers, else tf_flowers",
        choices=DATASETS,
        group="Data",
    )
    data_dir: str | None = setting(
        None,
        "directory with one folder per class; with a named data set, a local copy to use instead "
        "of downloading",
        may_change=True,
        path=True,
    )
    validation_dir: str | None = setting(
        None,
        "validation images of a data set that provides its own; split in half for validation and "
        "test unless --test_dir is given",
        may_change=True,
        path=True,
    )
    test_dir: str | None = setting(
        None,
        "test images of a data set that provides its own; without --validation_dir the other "
        "images are split into training and validation",
        may_change=True,
        path=True,
    )
    download_dir: str = setting(
        "~/.cache/tl_research",
        "directory for downloaded and drawn images",
        may_change=True,
        path=True,
    )
    download_base_url: str | None = setting(
        None,
        "mirror to download the data archives from instead of their own hosts",
        may_change=True,
        address=True,
    )
    if_offline: str = setting(
        "stop",
        "embedded: replace what cannot be reached with drawn_flowers and the packaged weights of "
        "EfficientNetLite0",
        choices=("stop", "embedded"),
    )
    data_audit: str = setting(
        "on",
        "before training, use a closed-form head to find doubtful labels and near-duplicate "
        "images, listed in report/data_audit.csv",
        choices=("on", "off"),
        may_change=True,
    )
    on_bad_image: str = setting(
        "error",
        "skip: train without files that cannot be decoded or that appear in two classes; either "
        "way they are listed in bad_images.csv",
        choices=("error", "skip"),
    )
    leave_out: str | None = setting(
        None,
        "CSV file whose path column lists images to exclude, named as in split.json",
        path=True,
    )
    split: tuple[float, ...] = setting(
        (0.8, 0.1, 0.1),
        "fractions of each class used for training, validation and test",
        above=0,
        high=1,
    )
    split_seed: int = setting(0, "seed of the split")
    image_size: int = setting(
        224, "height and width in pixels to which images are resized", low=16, high=2048
    )
    max_image_pixels: int = setting(
        0,
        "largest number of pixels of an image; larger JPEG files are decoded at a reduced scale; "
        "0: 89,478,485, but fewer for a file that claims far more than it holds",
    )
    cache_pixels: int = setting(
        4 << 30,
        "bytes of memory for decoded images; a larger data set is decoded again every epoch",
        may_change=True,
    )
    augment: tuple[str, ...] = setting(
        ("flip", "rotation=0.1", "zoom=0.1"),
        f"random augmentation of training images, any of {', '.join(AUGMENTATIONS)} with their "
        "factors, or none",
        words=("none",),
    )
    augment_views: int = setting(
        4,
        "number of versions of each image, the original and then augmented ones, used in turn, "
        "one per epoch; 0: a new augmented version every epoch",
    )
    mixup: float = setting(
        0.0,
        "MixUp: blend each training image with another, with weights from Beta(mixup, mixup); "
        "features are not cached; 0: off",
    )
    manifold_mixup: float = setting(
        0.0,
        "manifold MixUp: blend what the frozen part computes of each training image with that of "
        "another, with weights from Beta(manifold_mixup, manifold_mixup); features can be cached; "
        "0: off",
    )
    class_share: tuple[str, ...] = setting(
        (),
        "CLASS=SHARE: use only this share of the training images of a class; may be repeated",
        repeated=True,
    )
    feature_cache: str = setting(
        "auto",
        "where to keep features of the frozen part; auto: in memory if they fit and it pays",
        choices=("auto", "memory", "disk", "off"),
    )
    cache_bytes: int = setting(4 << 30, "bytes of memory for cached features")
    cache_dtype: str = setting(
        "auto",
        "data type of cached features; auto: as computed",
        choices=("auto", "float16", "bfloat16"),
    )

    backbone: str = setting(
        "EfficientNetV2B0", "pretrained network; list prints all of them", group="Model"
    )
    weights: str = setting(
        "imagenet",
        "imagenet, none (random), a Keras weights or model file, or the directory of a finished "
        "run, whose head is used too if the classes are the same",
        path=True,
        words=("imagenet", "none"),
    )
    dropout: float = setting(
        0.2, "share of the pooled features dropped before the dense layer", high=0.95
    )
    head_init: str = setting(
        "random",
        "lda: initialize the head by shrinkage linear discriminant analysis of the training images",
        choices=("random", "lda"),
    )
    preprocessing: str = setting(
        "auto",
        "auto: as the backbone was trained; the others show the effect of a wrong one",
        choices=PREPROCESSINGS,
    )
    batchnorm: str = setting(
        "inference",
        "training: BatchNorm uses and updates batch statistics, to show the effect",
        choices=("inference", "training"),
    )
    fold_batchnorm: str = setting(
        "on",
        "compute convolution and BatchNorm as a single convolution; off is for comparison",
        choices=("on", "off"),
    )

    phases: tuple[str, ...] = setting(
        ("head", "finetune"),
        "names of the phases, in order; the lists below have one entry per phase, or one for all. "
        "Of a default list, the first of several phases, or a single phase named head, takes the "
        "first entry and the other phases the last",
        group="Fine-tuning",
    )
    epochs: tuple[int, ...] = setting((8, 10), "epochs of each phase; 0 skips the phase")
    unfreeze: tuple[str, ...] = setting(
        ("0%", "30%"),
        "trainable part of the backbone in each phase: the top N% of its layers, "
        "a layer or block name (from there up), or all",
    )
    learning_rate: tuple[float, ...] = setting(
        (1e-3, 3e-4), "base learning rate of each phase", above=0
    )
    select_by: str = setting(
        "val_loss",
        "metric that selects the best epoch and phase: val_loss, val_accuracy or a column of an "
        "extension; lower is better if the name ends in loss or error; of equal values, the one "
        "with the lower val_loss",
    )
    patience: tuple[int, ...] = setting(
        (0, 3), "epochs without an improvement of --select_by before a phase stops; 0: no limit"
    )
    backbone_lr_multiplier: float = setting(
        1.0, "learning rate multiplier of the backbone", above=0
    )
    layer_decay: float = setting(
        1.0,
        "learning rate multiplier applied once to the last block, twice to the one before, ...",
        above=0,
        high=1,
    )
    lr_multiplier: tuple[str, ...] = setting(
        (),
        "REGEX=VALUE: learning rate multiplier of variables whose backbone/<layer>/<variable> or "
        "head/<variable> matches; may be repeated",
        repeated=True,
    )

    optimizer: str = setting(
        "adam",
        "Keras optimizer, one per parameter group",
        choices=("sgd", "adam", "adamw", "rmsprop", "lion"),
        group="Optimization",
    )
    momentum: float = setting(0.9, "momentum of sgd", high=0.9999)
    nesterov: bool = setting(False, "Nesterov momentum in sgd")
    weight_decay: float = setting(
        0.0, "decoupled weight decay of adamw and lion, scaled by the group's learning rate"
    )
    clip_norm: float = setting(0.0, "largest global norm of all gradients together; 0: no clipping")
    label_smoothing: float = setting(
        0.1,
        "probability spread over all classes in the training loss, if that is the cross-entropy "
        "of classes",
        high=0.9,
    )
    class_weights: str = setting(
        "none",
        "balanced: weight each image by N / (K n) in the training loss, for n of N images in one "
        "of K classes",
        choices=("none", "balanced"),
    )
    ema_decay: float = setting(
        0.0,
        "decay per step of an exponential moving average of the trained weights, which is then "
        "evaluated, selected and saved; 0: off",
        high=0.99999,
    )
    lr_schedule: tuple[str, ...] = setting(
        ("constant", "cosine"),
        "learning rate schedule of each phase after warm-up; cosine decays to 0",
        choices=("constant", "cosine"),
    )
    warmup: tuple[float, ...] = setting(
        (0.0, 0.3),
        "share of the steps of each phase in which the learning rate rises linearly to its full "
        "value; rounded to whole steps, at most all but two",
        high=0.99,
    )

    batch_size: int = setting(32, "images per step", low=1, group="Loop")
    steps_per_call: int = setting(
        0,
        "training steps per call of the compiled loop; 0: chosen by the cost of a step",
        may_change=True,
    )
    seed: int = setting(0, "seed of weights, data order, augmentation and dropout", high=2**31 - 1)
    seeds: tuple[int, ...] = setting(
        (),
        "train once per seed, in --workdir/seed<S>, instead of once with --seed; prints mean, "
        "range and confidence interval",
        high=2**31 - 1,
        recorded=False,
    )
    seeds_split: str = setting(
        "separate",
        "separate: each of --seeds is its split seed too; same: all use --split_seed",
        choices=("separate", "same"),
        recorded=False,
    )
    time_limit: float = setting(
        0.0,
        "seconds from program start to results: each phase is shortened to the epochs that fit, "
        "and with cached features the first epoch uses unaugmented images; 0: no limit",
    )
    checkpoint_every_steps: int = setting(
        0,
        "steps between checkpoints besides those at epoch ends; 0: epoch ends only",
        may_change=True,
    )
    checkpoint_every_seconds: float = setting(
        300.0,
        "seconds between checkpoints besides those at epoch ends, rounded up to whole calls of the "
        "compiled loop; 0: epoch ends only",
        may_change=True,
    )
    min_test_accuracy: float = setting(
        0.0, "exit with code 3 if the test accuracy is lower", high=1, may_change=True
    )

    precision: str = setting(
        "auto",
        "precision of training; validation, test and export use float32; auto: mixed_bfloat16 on "
        "a GPU of compute capability 8.0 or higher, mixed_float16 on others; on a CPU "
        "mixed_bfloat16 if the processor multiplies bfloat16 and the backbone is known to gain, "
        "else float32",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
        group="Precision",
    )
    xla: str = setting(
        "auto",
        "compile the steps with XLA; auto: on a GPU only, since it is slower on a CPU",
        choices=("auto", "on", "off"),
    )
    deterministic: bool = setting(
        False,
        "bitwise repeatable on a GPU too, but slower; on a CPU every run is",
    )

    distribute: str = setting(
        "off",
        "mirrored: share each batch among the GPUs of this machine; multi_worker: among the "
        "processes of a cluster",
        choices=("off", "mirrored", "multi_worker"),
        may_change=True,
        group="Devices",
    )
    shards: int = setting(
        0,
        "number of parts into which images are divided by content, each with equally many rows of "
        "a batch; with multi_worker each process reads and keeps its share of the parts; 0: the "
        "number of processes when the run begins",
    )
    cluster: str = setting(
        "auto",
        "environment variables that describe the processes of multi_worker: TF_CONFIG, or those of "
        "Slurm's srun or of an indexed Kubernetes job; auto: the first of these that are set",
        choices=("auto", "tf_config", "slurm", "kubernetes"),
        recorded=False,
    )
    worker_timeout: float = setting(
        0.0,
        "seconds that multi_worker waits for all processes to start; 0: no limit",
        may_change=True,
    )

    workdir: str | None = unrecorded_path(
        None,
        "run directory; given alone, resumes its run with the same settings; default: runs/<UTC "
        "time>-<image folder>-<backbone>",
        group="Output",
    )
    name: str | None = setting(
        None, "name of a new directory in runs/, if --workdir is not given", recorded=False
    )
    extension: str | None = unrecorded_path(
        None,
        "Python file whose parts replace the package's, see docs/extending.md; on the command "
        "line only",
        in_files=False,
    )
    profile_steps: str | None = setting(
        None,
        "A:B: profile global steps A to B - 1 for TensorBoard; they run one at a time",
        may_change=True,
    )
    json: bool = setting(
        False, "print the results as a RESULT line on a terminal too", recorded=False
    )
    verbose: bool = setting(
        False, "print the whole plan and the counts of the audits", recorded=False
    )
    resume: str = setting(
        "auto",
        "auto: resume an unfinished run in --workdir; never: rename the old run and start over",
        choices=("auto", "never"),
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
        # properties that raise if their settings are wrong
        for name in ("augment_factors", "class_shares", "phase_plan", "profiled_steps"):
            getattr(self, name)

    @property
    def phase_plan(self) -> tuple[Phase, ...]:
        """The phases, one `Phase` each, in order."""
        lists = ("epochs", "unfreeze", "learning_rate", "patience", "warmup", "lr_schedule")
        columns = map(self._of_each_phase, lists)
        return tuple(Phase(name, *row) for name, row in zip(self.phases, zip(*columns)))

    def _of_each_phase(self, name):
        """Returns the values of a list setting, one per phase."""
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
        """{operation: factor} of the built-in operations in `--augment`."""
        return {name: of for name, of in self.augment_factors.items() if name in AUGMENTATIONS}

    @property
    def augment_factors(self) -> dict[str, float]:
        """{operation: factor} of `--augment`; the factor of flip is 1.

        With an extension, any name may be one of its operations.
        """
        factors: dict[str, float] = {}
        for part in () if self.augment == ("none",) else self.augment:
            name, _, value = part.partition("=")
            is_built_in = name in AUGMENTATIONS
            if not (is_built_in or self.extension) or name in factors:
                raise UserError(
                    f"--augment has {part!r}; expected each of {', '.join(AUGMENTATIONS)} at most "
                    "once, or none; others need their --extension"
                    f"{suggestion(name, AUGMENTATIONS)}",
                    "augment",
                )
            if (name == "flip") == bool(value):
                raise UserError(
                    f"--augment has {part!r}; expected flip without and the others with a factor; "
                    "for example flip,rotation=0.1",
                    "augment",
                )
            most = 1 if is_built_in else math.inf
            factors[name] = _factor("augment", name, value or "1", most)
        return factors

    @property
    def class_shares(self) -> dict[str, float]:
        """{class: share of its training images} of `--class_share`."""
        shares: dict[str, float] = {}
        for part in self.class_share:
            name, _, value = part.rpartition("=")
            if not name or name in shares:
                raise UserError(
                    f"--class_share={part}; expected CLASS=SHARE, each class once; for example "
                    "roses=0.1",
                    "class_share",
                )
            shares[name] = _factor("class_share", name, value, 1)
        return shares

    @property
    def profiled_steps(self) -> range:
        """The global steps of `--profile_steps=A:B`."""
        found = re.fullmatch(r"(\d+):(\d+)", self.profile_steps or "0:0")
        steps = range(*map(int, found.groups())) if found else range(0)
        if self.profile_steps and not steps:
            raise UserError(
                f"--profile_steps={self.profile_steps}; expected A:B with A < B; for example 20:30",
                "profile_steps",
            )
        return steps

    @classmethod
    def from_flags(cls, text: str) -> "Config":
        """Returns the settings from the output of `to_flags`, of this version or an earlier one."""
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
        """Returns the recorded settings as lines of a flag file, which repeats the run."""
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


def _factor(flag, name, value, most):
    """Returns the number in --flag=name=value, which is above 0 and at most `most`."""
    factor = number(float, value, f"--{flag}={name}")
    if not 0 < factor <= most:
        raise UserError(
            f"--{flag}={name}={value}; expected a number in (0, 1]; for example {name}=0.1", flag
        )
    return factor


def _holds_flowers(folder):
    """Returns whether a folder is a copy of tf_flowers, judged by its subfolders."""
    return sorted(glob.glob("*/", root_dir=folder)) == [f"{name}/" for name in FLOWERS]


def _is_no_part(what):
    """Returns whether an entry of --unfreeze cannot name a part of any backbone."""
    try:
        return not 0 <= float(what.removesuffix("%")) <= 100 or not what.endswith("%")
    except ValueError:
        return not re.fullmatch(r"[\w./ -]+", what)


# Combinations that are not allowed: the flag to name, a function of the `Config` that is true if it
# is wrong, and the text after the flag's name, formatted with all settings.
_RULES = (
    (
        "dataset",
        lambda c: c.dataset == "directory" and not c.data_dir,
        "=directory without --data_dir; expected a directory with one folder per class; add "
        "--data_dir=DIR",
    ),
    *(
        (
            name,
            lambda c, name=name: getattr(c, name) and not c.data_dir,
            f"={{{name}}} without --data_dir; expected the training images too; add --data_dir=DIR",
        )
        for name in ("test_dir", "validation_dir")
    ),
    (
        "split",
        lambda c: len(c.split) != 3 or abs(sum(c.split) - 1) > 1e-9,
        "={split}; expected three fractions that sum to 1; for example --split=0.8,0.1,0.1",
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
        "={name}; expected letters, digits, spaces and . _ + -, and not latest; for example "
        "--name=roses",
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
        "={distribute} with --batchnorm=training, whose statistics would cover only part of the "
        "batch; expected one replica; use --distribute=off",
    ),
    (
        "cluster",
        lambda c: c.cluster != "auto" and c.distribute != "multi_worker",
        "={cluster} with --distribute={distribute}; expected processes that train together; add "
        "--distribute=multi_worker",
    ),
    (
        "phases",
        lambda c: len(set(c.phases)) != len(c.phases),
        "={phases} repeats a name; expected each once; rename one",
    ),
    (
        "phases",
        lambda c: not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in c.phases),
        "={phases}; expected names of letters, digits, _ and -; rename the phases",
    ),
    (
        "seeds",
        lambda c: len(set(c.seeds)) != len(c.seeds),
        "={seeds} repeats a seed; expected each once; remove one",
    ),
    (
        "seeds",
        lambda c: c.seeds and c.distribute == "multi_worker",
        "={seeds} with --distribute=multi_worker; expected one run at a time; give --seed, and "
        "start the workers once per seed",
    ),
    (
        "mixup",
        lambda c: c.mixup and c.feature_cache in ("memory", "disk"),
        "={mixup} with --feature_cache={feature_cache}; expected no cache, since blends change "
        "every epoch; use --feature_cache=auto or off",
    ),
    (
        "manifold_mixup",
        lambda c: c.manifold_mixup and c.feature_cache == "disk",
        "={manifold_mixup} with --feature_cache=disk; expected features in memory, where those of "
        "another image are looked up; use --feature_cache=auto, memory or off",
    ),
)


def run_called(name: str) -> str:
    """Returns the directory that `--run` names; for `latest`, the one named in `runs/latest`.

    Raises:
        UserError: If there is no such file.
    """
    if name != "latest" or os.path.lexists(name):
        return name
    if os.path.isdir(LATEST):  # somebody's --workdir
        return LATEST
    try:
        with open(LATEST, encoding="utf-8") as file:
            return f"runs/{file.readline().strip()}"
    except (OSError, ValueError) as error:
        raise UserError(
            f"--run=latest, and {LATEST} cannot be read ({getattr(error, 'strerror', error)}); "
            "expected the directory in which a run was made; go there, or give the run's directory"
        ) from error


@dataclasses.dataclass(frozen=True)
class ToolConfig:
    """Settings of a program that works on a finished run.

    Raises:
        UserError: If a value has the wrong type or is out of bounds, or no run is given.
    """

    run: str | None = unrecorded_path(
        None, "directory of a finished run; latest: the newest in runs/"
    )
    extension: str | None = unrecorded_path(
        None,
        "the run's Python file, if its load_catalog provides the images that are read again",
        in_files=False,
    )
    batch_size: int | None = setting(
        None, "images per batch; None: as in training, at most 32", low=1
    )

    def __post_init__(self):
        check_fields(self)
        run: Any = self.run
        if not run:
            raise UserError(
                "--run is missing; expected the directory of a finished run; add --run=DIR, or "
                "--run=latest for the newest in runs/"
            )
        named = tuple(map(run_called, run)) if isinstance(run, tuple) else run_called(run)
        object.__setattr__(self, "run", named)


@dataclasses.dataclass(frozen=True)
class ReaderConfig(ToolConfig):
    """Settings of a program that reads the images of a finished run and writes files."""

    data_dir: str | None = unrecorded_path(
        None, "where the run's images are now; None: where they were in training"
    )
    output_dir: str | None = unrecorded_path(None, "directory to write to; None: the run's")
