"""What a run will do: whole, for `plan.txt`, and in short, as it is printed before it is done."""

import math
from collections.abc import Sequence

import tensorflow as tf

from tl_research import machine, memory
from tl_research.config import Phase, lower_is_better
from tl_research.data.dataset import Dataset
from tl_research.data.split import printable
from tl_research.models.classifier import what_differs
from tl_research.reporting.split_text import describe_split
from tl_research.run.offline import Substitution
from tl_research.training.events import PhaseBegan
from tl_research.training.feature_cache import CachePlan
from tl_research.training.plan import Plan


def describe_cache(plan: CachePlan) -> str:
    """Returns the line that says which features are kept, and why; `plan` is a `CachePlan`."""
    what = _kept(plan.shapes, plan.dtype)
    total = plan.total_bytes / 2**30
    if plan.live is None:
        free = _free_memory()
        warning = f", more than the {free / 2**30:.1f} GiB of memory that are free"
        return (
            f"cache: {what}, {plan.views} views, {total:.2f} GiB{' on disk' * plan.on_disk}"
            f"{warning * (not plan.on_disk and plan.total_bytes > free)}"
        )
    why = {
        "off": "off (--feature_cache=off)",
        "mixing": f"since {plan.mixing} blends them anew every epoch",
        "fresh": "a fresh view every epoch",
        "would not pay": f"{plan.views} views in {plan.epochs} epochs would not pay",
        "too large": f"{plan.views} views of {what} need {total:.1f} GiB and --cache_bytes allows "
        f"{plan.allowed_bytes / 2**30:.1f}",
    }[plan.live]
    if plan.live == "off":
        return f"cache: {why}"
    kept = f"cached ({_kept(plan.shapes, plan.validation_dtype)})"
    return f"cache: training live, {why}; validation {kept if plan.validation else 'live'}"


def _kept(shapes, dtype):
    shape = " + ".join("x".join(map(str, shape)) for shape in shapes)
    size = sum(map(math.prod, shapes)) * tf.as_dtype(dtype).size
    return f"{shape} {dtype}, {size / 1024:.0f} KiB an image"


def _free_memory():
    """Returns the bytes of memory that are free, or the limit where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("MemAvailable:"))
        return min(int(line.split()[1]) * 1024, memory.limit())
    except (OSError, ValueError):
        return memory.limit()


def describe_run(
    plan: Plan, data: Dataset, precision: str, substitutions: Sequence[Substitution]
) -> list[str]:
    """Returns the lines of the whole plan.

    Args:
        plan: `tl_research.training.plan.Plan`.
        data: `Dataset`.
        precision: Name of Keras' dtype policy.
        substitutions: `Substitution`s.
    """
    config, classifier = plan.config, plan.classifier
    counts = {side: len(getattr(data, side)) for side in ("train", "validation", "test")}
    xla = "on" if plan.compiler.xla else "off"
    own = plan.parts.make_backbone and config.weights in ("imagenet", "none")
    weights = "its own" if own else config.weights
    listed = ", ".join(f"{side} {count}" for side, count in counts.items())
    return [
        f"device: {_device()}",
        *_replicas(config, data.train),
        f"data: {sum(counts.values())} images in {len(data.classes)} classes ({listed}) at "
        f"{config.image_size} px",
        *describe_split(data),
        *(f"data: {line}" for line in data.notes),
        f"model: {classifier.spec.name}, weights {weights}, {classifier.graph.num_folded} "
        f"BatchNorm layers folded; precision {precision}, XLA {xla}",
        *([describe_cache(plan.cache.plan)] if plan.cache.plan.epochs else []),
        *_unusual(plan, data.classes),
        *(what_differs(classifier) if plan.parts.make_backbone or plan.parts.make_head else ()),
        *(f"substitution: {substitution.text}" for substitution in substitutions),
        *_phases(plan),
    ]


def summarize_run(plan: Plan, data: Dataset, substitutions: Sequence[Substitution]) -> list[str]:
    """Returns the few lines of the plan that everybody needs; arguments as of `describe_run`."""
    config, spec = plan.config, plan.classifier.spec
    sides = len(data.train), len(data.validation), len(data.test)
    kind = {"imagenet": "ImageNet weights", "none": "random weights"}
    weights = kind.get(config.weights, f"the weights of {config.weights}")
    epochs = [f"{p.name} {up_to(p)}" for p in plan.phases if p.epochs]
    best = f"{'lowest' if lower_is_better(config.select_by) else 'highest'} {config.select_by}"
    return [
        f"{sum(sides)} images in {len(data.classes)} classes: {sides[0]} training, {sides[1]} "
        f"validation, {sides[2]} test",
        *data.notes,
        f"{spec.name} with {weights} at {config.image_size} px, on {_device()}",
        *(f"substitution: {substitution.text}" for substitution in substitutions),
        ", then ".join(epochs) or next(_phases(plan)),
        *([f"the epoch with the {best} is kept (* so far)"] if epochs else ()),
    ]


def _phases(plan):
    """Yields the line of each phase that trains, or one that none does."""
    config = plan.config
    optimizer = "make_optimizer" if plan.parts.make_optimizer else config.optimizer
    better = "lower" if lower_is_better(config.select_by) else "higher"
    for phase in plan.phases:
        if not phase.epochs:
            continue
        stop = f"early stop after {phase.patience} without a {better} {config.select_by}"
        yield (
            f"plan: {phase.name}: up to {phase.epochs} epochs, unfreeze {phase.unfreeze}, "
            f"{optimizer} {phase.learning_rate:g} {phase.lr_schedule}, "
            f"{stop if phase.patience else 'no early stop'}"
        )
    if not any(phase.epochs for phase in plan.phases):
        start = "the closed-form start" if config.head_init == "lda" else "the head it begins with"
        yield f"plan: nothing is trained; {start} is exported"


def _device():
    gpus = len(tf.config.list_physical_devices("GPU"))
    return f"{gpus} GPU" if gpus else f"{machine.cores()} CPU cores, no GPU"


def _replicas(config, train):
    if config.distribute != "off":
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        yield (
            f"distribute: {config.distribute}: {replicas} replica{'s' * (replicas > 1)}, "
            f"{config.batch_size // replicas} images of each batch on each"
        )
    if train.shards.count > 1:
        yield (
            f"shards: {train.shards.count}, of which this process holds {len(train.shards.own)}: "
            f"{len(train.members.own)} of {len(train)} training images"
        )


def _unusual(plan, classes):
    """Yields lines on what a run does to inputs, targets and weights that others do not."""
    config, spec = plan.config, plan.classifier.spec
    if plan.parts.parts():
        where = plan.parts.file or "Python"
        yield f"extension: {', '.join(plan.parts.parts())} from {where}"
    if unused := [name for name in plan.parts.augmentations if name not in config.augment_factors]:
        yield f"extension: {', '.join(unused)} not used; name them in --augment"
    if config.preprocessing not in ("auto", spec.preprocessing):
        yield (
            f"preprocessing: {config.preprocessing}, where {spec.name} was trained with "
            f"{spec.preprocessing}"
        )
    if (weights := getattr(plan.objective, "class_weights", None)) is not None:
        pairs = zip(map(printable, classes), weights)
        yield "class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
    if own := plan.cache.views.operations:
        listed = ", ".join(f"{operation.name} {operation.factor:g}" for operation in own)
        yield f"augmentation: {listed}, of the extension: after the others, not in model.keras"
    if mixing := plan.cache.plan.mixing:
        shares = f" in shares of Beta({config.mixup:g}, {config.mixup:g})"
        yield f"{mixing}: images and labels are blended{shares * bool(config.mixup)}"
    if config.ema_decay:
        yield (
            f"averages: of the trained weights, decay {config.ema_decay:g} a step; evaluated, "
            "selected and saved"
        )


def up_to(phase: Phase) -> str:
    """Returns how many epochs a phase may have."""
    return f"up to {phase.epochs} epoch{'s' * (phase.epochs != 1)}"


def describe_phase(event: PhaseBegan) -> str:
    """Returns the line that says what a phase trains; `event` is a `PhaseBegan`."""
    variables = [variable for group in event.groups for variable in group.variables]
    trainable = sum(math.prod(variable.shape) for variable in variables)
    base = event.phase.learning_rate
    rates = ", ".join(f"{g.name} {base * g.lr_multiplier:.3g}" for g in event.groups)
    return (
        f"phase {event.phase.name}: {len(event.open_layers)} of {event.num_layers} backbone layers "
        f"open, {trainable:,} of {event.num_parameters:,} parameters train; first unfrozen: "
        f"{event.first_unfrozen or 'none'}; rates: {rates}; up to {event.phase.epochs} epochs"
    )
