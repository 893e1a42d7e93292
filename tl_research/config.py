"""Every setting of a run, declared once: type, default, help, bounds, and whether it may change at
a resume.

`train.py` and the tools derive their flags from these fields (`tl_research.cli`); Python callers
construct `Config` directly and get the same checks. Imports neither tensorflow nor absl, so that
`--help` answers at once.
"""

import dataclasses
import math
import os
import re

from tl_research.errors import UserError, suggestion

DATASETS = ("tf_flowers", "cats_vs_dogs", "drawn_flowers", "directory")
PREPROCESSINGS = ("auto", "raw", "tf", "caffe", "torch", "lite")
# Factors mean what they mean in the Keras layer of the same name; flip is horizontal and takes
# none.
AUGMENTATIONS = ("flip", "rotation", "zoom", "translation", "brightness", "contrast")


def setting(
    default,
    help,
    *,
    choices=None,
    low=None,
    high=None,
    above=None,
    may_change=False,
    repeated=False,
):
    """Returns a dataclass field that carries all that is to know about one setting.

    Args:
        default: The value, or a tuple for a list setting.
        help: One line; gives the unit and what 0 or None means.
        choices: The closed set of values, if it is one.
        low, high: Inclusive bounds of a number, or of each number of a list.
        above: Exclusive lower bound.
        may_change: Whether a resumed run may be given another value.
        repeated: Whether the flag is given once per value instead of as a comma-separated list.
    """
    return dataclasses.field(
        default=default,
        metadata=dict(
            help=help,
            choices=choices,
            low=low,
            high=high,
            above=above,
            may_change=may_change,
            repeated=repeated,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """One entry of `--phases`: which part of the backbone trains, how fast and for how long."""

    name: str
    epochs: int
    unfreeze: str
    learning_rate: float
    patience: int
    warmup_steps: int
    lr_schedule: str = "constant"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. Lists with one entry serve every phase.

    Raises:
        UserError: If a value is of the wrong type, out of bounds, or contradicts another.
    """

    # Data
    dataset: str = setting(
        "tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS
    )
    data_dir: str | None = setting(
        None,
        "a directory with one folder per class; with a named data set, a local copy used instead "
        "of downloading",
        may_change=True,
    )
    validation_dir: str | None = setting(
        None,
        "validation images of a data set that brings its own; halved into validation and test "
        "without --test_dir",
        may_change=True,
    )
    test_dir: str | None = setting(
        None, "test images of a data set that brings its own", may_change=True
    )
    download_dir: str = setting(
        "~/.cache/tl_research", "where downloaded and drawn images are kept", may_change=True
    )
    download_base_url: str | None = setting(
        None,
        "a mirror: the data archives are fetched from here instead of their own hosts",
        may_change=True,
    )
    if_offline: str = setting(
        "stop",
        "embedded: what cannot be reached is replaced by drawn_flowers and EfficientNetLite0's "
        "packaged weights",
        choices=("stop", "embedded"),
    )
    on_bad_image: str = setting(
        "error",
        "skip: train without the files that cannot be decoded; either way they stand in "
        "bad_images.csv",
        choices=("error", "skip"),
    )
    split: tuple[float, ...] = setting(
        (0.8, 0.1, 0.1),
        "fractions of the images for training, validation and test",
        above=0,
        high=1,
    )
    split_seed: int = setting(0, "another value draws another split", low=0)
    image_size: int = setting(
        224, "height and width in pixels that images are resized to", low=16, high=2048
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
    )
    augment_views: int = setting(
        4,
        "augmented versions of each image, used in turn, one an epoch; 0 draws a fresh one every "
        "epoch",
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

    # Model
    backbone: str = setting("EfficientNetV2B0", "a name from tl_research/models/backbones.py")
    weights: str = setting(
        "imagenet", "imagenet, none (random), or a Keras weights file without top"
    )
    dropout: float = setting(
        0.2, "share of the pooled features dropped before the dense layer", low=0, high=0.95
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

    # Fine-tuning
    phases: tuple[str, ...] = setting(("head", "finetune"), "names of the phases, in order")
    epochs: tuple[int, ...] = setting((8, 10), "epochs of each phase; 0 skips it", low=0)
    unfreeze: tuple[str, ...] = setting(
        ("0%", "30%"),
        "what of the backbone trains in each phase: the top N% of its layers, "
        "a layer or block name (from there up), or all",
    )
    learning_rate: tuple[float, ...] = setting(
        (1e-3, 1e-5), "base learning rate of each phase", above=0
    )
    patience: tuple[int, ...] = setting(
        (0, 3), "epochs without a lower val_loss before a phase stops; 0 never stops early", low=0
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

    # Optimization
    optimizer: str = setting(
        "adam",
        "Keras optimizer, one per parameter group",
        choices=("sgd", "adam", "adamw", "rmsprop", "lion"),
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
        0.0, "probability spread over all classes in the training loss", low=0, high=0.9
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
        ("constant",),
        "of each phase, after warm-up; cosine falls to 0 at its end",
        choices=("constant", "cosine"),
    )
    warmup_steps: tuple[int, ...] = setting(
        (0,), "steps of linear warm-up at the start of each phase", low=0
    )

    # Loop
    batch_size: int = setting(32, "images a step", low=1)
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
    )
    seeds_split: str = setting(
        "separate",
        "separate: each of --seeds is its split's seed too; same: all have --split_seed",
        choices=("separate", "same"),
        may_change=True,
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

    # Precision
    precision: str = setting(
        "auto",
        "auto: float32 on CPU, mixed_bfloat16 on a GPU from compute capability 8.0, mixed_float16 "
        "on others",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
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

    # Devices
    distribute: str = setting(
        "off",
        "share each batch: mirrored: among the GPUs of this machine; multi_worker: among the "
        "processes of TF_CONFIG",
        choices=("off", "mirrored", "multi_worker"),
        may_change=True,
    )

    # Output
    workdir: str | None = setting(
        None, "the run directory; without it runs/<UTC time>-<dataset>-<backbone>", may_change=True
    )
    profile_steps: str | None = setting(
        None,
        "A:B: profile the global steps from A up to B, which then run one at a time, for "
        "TensorBoard",
        may_change=True,
    )
    resume: str = setting(
        "auto",
        "auto: go on with an unfinished run in --workdir; never: set the old run aside and start "
        "anew",
        choices=("auto", "never"),
        may_change=True,
    )

    def __post_init__(self):
        _check_fields(self)
        if self.dataset == "directory" and not self.data_dir:
            raise UserError(
                "--dataset=directory without --data_dir; expected a directory with one folder per "
                "class; add --data_dir=DIR"
            )
        if self.test_dir and not self.validation_dir:
            raise UserError(
                f"--test_dir={self.test_dir} without --validation_dir; expected both or neither; "
                "add --validation_dir=DIR"
            )
        if self.validation_dir and not self.data_dir:
            raise UserError(
                f"--validation_dir={self.validation_dir} without --data_dir; expected the training "
                "images too; add --data_dir=DIR"
            )
        if len(self.split) != 3 or abs(sum(self.split) - 1) > 1e-9:
            raise UserError(
                f"--split={flag_text(self.split)}; expected three fractions that sum to 1; "
                "write for example --split=0.8,0.1,0.1"
            )
        if self.weight_decay and self.optimizer not in ("adamw", "lion"):
            raise UserError(
                f"--weight_decay={self.weight_decay} with --optimizer={self.optimizer}; expected "
                "an optimizer that decouples it; use --optimizer=adamw"
            )
        if self.nesterov and self.optimizer != "sgd":
            raise UserError(
                f"--nesterov with --optimizer={self.optimizer}; expected --optimizer=sgd; drop one "
                "of them"
            )
        if self.distribute != "off" and self.batchnorm == "training":
            raise UserError(
                f"--distribute={self.distribute} with --batchnorm=training, whose statistics would "
                "be of a part of the batch; expected one replica; use --distribute=off"
            )
        for name in self.phases:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise UserError(
                    f"--phases names a phase {name!r}; expected letters, digits, _ and -; rename it"
                )
        if len(set(self.phases)) != len(self.phases):
            raise UserError(
                f"--phases={flag_text(self.phases)} repeats a name; expected each once; rename one"
            )
        for name, value in self.augmentation.items():
            if not (math.isfinite(value) and 0 < value <= 1):
                raise UserError(
                    f"--augment has {name}={value}; expected a factor in (0, 1]; for example "
                    f"{name}=0.1"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(
                f"--seeds={flag_text(self.seeds)} repeats a seed; expected each once; remove one"
            )
        if self.seeds and self.distribute == "multi_worker":
            raise UserError(
                f"--seeds={flag_text(self.seeds)} with --distribute=multi_worker; expected one run "
                "of all workers; give --seed, and start them once for each"
            )
        if self.mixup and self.feature_cache in ("memory", "disk"):
            raise UserError(
                f"--mixup={self.mixup} with --feature_cache={self.feature_cache}; expected images "
                "that are blended anew every epoch; use --feature_cache=auto or off"
            )
        self.class_shares  # noqa: B018 (checks them)
        if self.profile_steps:
            first, colon, end = self.profile_steps.partition(":")
            if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
                raise UserError(
                    f"--profile_steps={self.profile_steps}; expected A:B with A < B; for example "
                    "20:30"
                )
        self.phase_plan  # noqa: B018 (checks the lists against each other)

    @property
    def phase_plan(self):
        """The phases, one `Phase` each, in order."""
        columns = {}
        for name in (
            "epochs",
            "unfreeze",
            "learning_rate",
            "patience",
            "warmup_steps",
            "lr_schedule",
        ):
            values = getattr(self, name)
            if len(values) not in (1, len(self.phases)):
                raise UserError(
                    f"--{name}={flag_text(values)} has {len(values)} entries; expected 1 or "
                    f"{len(self.phases)}, one for each of --phases={flag_text(self.phases)}; add "
                    "or remove entries"
                )
            columns[name] = values * len(self.phases) if len(values) == 1 else values
        return tuple(Phase(name, *row) for name, row in zip(self.phases, zip(*columns.values())))

    @property
    def augmentation(self):
        """`--augment` as a dict of factors; flip has factor 1."""
        if self.augment == ("none",):
            return {}
        factors = {}
        for part in self.augment:
            name, _, value = part.partition("=")
            if name not in AUGMENTATIONS or name in factors:
                raise UserError(
                    f"--augment has {part!r}; expected each of {', '.join(AUGMENTATIONS)} at most "
                    f"once, or none{suggestion(name, AUGMENTATIONS)}"
                )
            if (name == "flip") == bool(value):
                raise UserError(
                    f"--augment has {part!r}; expected flip without and the others with a factor; "
                    "write for example flip,rotation=0.1"
                )
            factors[name] = 1.0 if name == "flip" else _number(float, value, "--augment")
        return factors

    @property
    def class_shares(self):
        """`--class_share` as a dict, class name -> share of its training images."""
        shares = {}
        for part in self.class_share:
            name, _, value = part.rpartition("=")
            if not name or name in shares:
                raise UserError(
                    f"--class_share={part}; expected CLASS=SHARE, each class once; for example "
                    "roses=0.1"
                )
            shares[name] = _number(float, value, f"--class_share={name}")
            if not 0 < shares[name] <= 1:
                raise UserError(
                    f"--class_share={part}; expected a share in (0, 1]; for example {name}=0.1"
                )
        return shares

    @property
    def feature_cache_wanted(self):
        """Whether training may reuse features of a fixed set of views."""
        return (
            self.feature_cache != "off"
            and (self.augment_views > 0 or not self.augmentation)
            and not self.mixup
        )

    @property
    def compared_settings(self):
        """{name: number, bool or text} of the settings that decide a run's numbers, for a table of
        runs.
        """
        return {
            field.name: flag_text(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and not field.metadata["may_change"]
        }

    @property
    def profiled_steps(self):
        """(A, B) of `--profile_steps=A:B`, or (0, 0)."""
        return tuple(map(int, self.profile_steps.split(":"))) if self.profile_steps else (0, 0)

    @classmethod
    def from_flags(cls, text):
        """Returns the settings that `to_flags` wrote."""
        fields, values = {field.name: field for field in dataclasses.fields(cls)}, {}
        for line in text.splitlines():
            name, _, value = line.removeprefix("--").partition("=")
            if name not in fields:
                raise UserError(f"{line!r} is no setting of this version; expected --name=value")
            if fields[name].metadata["repeated"]:
                values[name] = (*values.get(name, ()), value)
            else:
                values[name] = value == "true" if item_type(fields[name]) is bool else value
        return cls(**values)

    def to_flags(self):
        """The settings as flagfile lines, without the run's own place.

        Replaying them repeats the run.
        """
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("workdir", "resume", "seeds", "seeds_split") or value is None:
                continue
            if field.metadata["repeated"]:
                lines += [f"--{field.name}={item}" for item in value]
            else:
                lines.append(f"--{field.name}={flag_text(value)}")
        return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class ToolConfig:
    """Settings of a program that works on a finished run.

    Raises:
        UserError: If a value is of the wrong type or out of bounds, or there is no run.
    """

    run: str | None = setting(None, "the directory of a finished run")

    def __post_init__(self):
        _check_fields(self)
        if not self.run:
            raise UserError(
                "--run is missing; expected the directory of a finished run; add --run=DIR"
            )


def _check_fields(config):
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, _checked(field, getattr(config, field.name)))


def has_comment_or_quotes(value):
    """Returns whether a value, in a flag file, looks like one with a comment behind it or quotes
    around it.
    """
    return " #" in value or (value[:1] in ("'", '"') and value[:1] == value[-1:])


def flag_text(value):
    """Returns a value as it stands behind `--name=`."""
    if isinstance(value, tuple):
        return ",".join(flag_text(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _number(kind, value, flag):
    try:
        number = (
            int(value, 0) if kind is int and str(value).lower().startswith("0x") else kind(value)
        )
    except (TypeError, ValueError):
        number = math.nan
    if (
        isinstance(value, bool)
        or not math.isfinite(number)
        or (isinstance(value, float) and number != value)
    ):
        raise UserError(
            f"{flag}={value}; expected {'a whole' if kind is int else 'a finite'} number; correct "
            "it"
        )
    return number


def item_type(field):
    """The type of one value of a field: int, float, bool or str, also for lists of it and for
    `str | None`.
    """
    arguments = getattr(field.type, "__args__", (field.type,))
    return arguments[0]


def is_list(field):
    return getattr(field.type, "__origin__", None) is tuple


def _checked(field, value):
    """Returns the value of a field in its own type, or raises UserError."""
    kind, rules, flag = item_type(field), field.metadata, f"--{field.name}"
    if value is None:
        if field.default is not None:
            raise UserError(
                f"{flag} has no value; expected one; leave the flag out for "
                f"{flag_text(field.default)}"
            )
        return None
    if is_list(field):
        if isinstance(value, str):
            value = value.split(",") if value or field.default else ()
        elif not isinstance(value, (tuple, list)):
            value = (value,)
        checked = tuple(_checked_item(kind, rules, flag, item) for item in value)
        if not checked and field.name == "augment":
            return ("none",)  # an empty flag could not be read back
        if not checked and field.default:
            raise UserError(
                f"{flag} is empty; expected at least one entry; leave it out for "
                f"{flag_text(field.default)}"
            )
        return checked
    return _checked_item(kind, rules, flag, value)


def _checked_item(kind, rules, flag, value):
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{flag}={value}; expected true or false; correct it")
        return value
    if kind is str:
        if (
            not isinstance(value, (str, os.PathLike))
            or not str(value).strip()
            or set(str(value)) & set("\0\r\n")
        ):
            raise UserError(
                f"{flag}={value!r}; expected a line of text; leave the flag out for its default"
            )
        value = str(value).strip()
        if rules["choices"] and value not in rules["choices"]:
            raise UserError(
                f"{flag}={value}; expected one of {', '.join(rules['choices'])}"
                f"{suggestion(value, rules['choices'])}"
            )
        if flag.endswith("_dir") or flag in ("--workdir", "--weights", "--run", "--csv"):
            if "$" in value:
                raise UserError(
                    f"{flag}={value}; expected a path without $, which is not expanded here; write "
                    "it out"
                )
            value = os.path.expanduser(value)
            if flag.endswith("_dir") or (flag == "--weights" and value not in ("imagenet", "none")):
                value = os.path.abspath(value)  # so that flags.txt repeats the run from any place
        unfit = not value.isprintable() or has_comment_or_quotes(value)
        if unfit and flag not in ("--workdir", "--run", "--csv"):  # which no flags.txt has
            raise UserError(
                f"{flag}={value!r}; expected what a flag file can hold, text without invisible "
                "characters, quotes around it and ' #'; rename what is called so"
            )
        return value
    value = _number(kind, value, flag)
    low, high, above = rules["low"], rules["high"], rules["above"]
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        bounds = [
            f"at least {low}" if low is not None else f"above {above}" if above is not None else "",
            f"at most {high}" if high is not None else "",
        ]
        fix = (
            "use --unfreeze to freeze"
            if value == 0 == rules["above"] and flag != "--split"
            else "correct it"
        )
        raise UserError(f"{flag}={value}; expected {' and '.join(b for b in bounds if b)}; {fix}")
    return value
