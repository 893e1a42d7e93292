"""The plan of a run as text: whole, for `plan.txt`, and in short, as printed before training."""

import math
from collections.abc import Sequence

import tensorflow as tf

from tl_research import machine, memory
from tl_research.config import Phase, lower_is_better
from tl_research.data.dataset import Dataset
from tl_research.data.split import SIDES, printable
from tl_research.errors import counted
from tl_research.models.classifier import num_parameters, what_differs
from tl_research.reporting.split_text import describe_split
from tl_research.run.offline import Substitution
from tl_research.training.events import PhaseBegan
from tl_research.training.feature_cache import CachePlan
from tl_research.training.plan import Plan


def describe_cache(plan: CachePlan) -> str:
    """Returns the line on which features are cached, and why."""
    what = _kept(plan.shapes, plan.dtype)
    total = plan.total_bytes / 2**30
    if plan.live is None:
        line = f"cache: {what}, {plan.views} views, {total:.2f} GiB{' on disk' * plan.on_disk}"
        if not plan.on_disk and plan.total_bytes > (free := memory.free()):
            line += f", more than the {free / 2**30:.1f} GiB of free memory"
        return line
    why = {
        "off": "off (--feature_cache=off)",
        "mixing": f"since {plan.mixing} blends them anew every epoch",
        "fresh": "since every epoch has a new view",
        "would not pay": f"since {plan.views} views in {counted(plan.epochs, 'epoch')} would not "
        "pay",
        "too large": f"since {plan.views} views of {what} need {total:.1f} GiB and --cache_bytes "
        f"allows {plan.allowed_bytes / 2**30:.1f}",
    }[plan.live]
    if plan.live == "off":
        return f"cache: {why}"
    kept = f"cached ({_kept(plan.shapes, plan.validation_dtype)})"
    return f"cache: training live, {why}; validation {kept if plan.validation else 'live'}"


def _kept(shapes, dtype):
    shape = " + ".join("x".join(map(str, shape)) for shape in shapes)
    size = sum(map(math.prod, shapes)) * tf.as_dtype(dtype).size
    return f"{shape} {dtype}, {size / 1024:.0f} KiB per image"


def describe_run(
    plan: Plan, data: Dataset, precision: str, substitutions: Sequence[Substitution]
) -> list[str]:
    """Returns the lines of the whole plan.

    Args:
        plan: The plan.
        data: Its images.
        precision: Name of Keras' dtype policy.
        substitutions: Replacements of what could not be reached.
    """
    config, classifier = plan.config, plan.classifier
    counts = {side: len(getattr(data, side)) for side in SIDES}
    listed = ", ".join(f"{side} {count}" for side, count in counts.items())
    return [
        f"device: {_device()}",
        *_replicas(config, data.train),
        f"data: {sum(counts.values())} images in {len(data.classes)} classes ({listed}) at "
        f"{config.image_size} px",
        *describe_split(data),
        *(f"data: {line}" for line in data.notes),
        *_model(plan, precision),
        *_unusual(plan, data.classes),
        *(what_differs(classifier) if plan.parts.make_backbone or plan.parts.make_head else ()),
        *(f"substitution: {substitution.text}" for substitution in substitutions),
        *_phases(plan),
    ]


def _model(plan, precision):
    """Yields the lines on the network and its cached features."""
    weights, xla = plan.config.weights, "on" if plan.compiler.xla else "off"
    if plan.parts.make_backbone and weights in ("imagenet", "none"):
        weights = "its own"
    yield (
        f"model: {plan.classifier.spec.name}, weights {weights}, "
        f"{plan.classifier.graph.num_folded} BatchNorm layers folded; precision {precision}, "
        f"XLA {xla}"
    )
    if plan.cache.plan.epochs:
        yield describe_cache(plan.cache.plan)


def summarize_run(plan: Plan, data: Dataset) -> list[str]:
    """Returns the plan in a few lines."""
    config, spec = plan.config, plan.classifier.spec
    sides = [len(getattr(data, side)) for side in SIDES]
    kind = {"imagenet": "ImageNet weights", "none": "random weights"}
    weights = kind.get(config.weights, f"the weights of {config.weights}")
    phases = [f"{p.name} ({up_to(p)})" for p in plan.phases if p.epochs]
    best = f"{'lowest' if lower_is_better(config.select_by) else 'highest'} {config.select_by}"
    return [
        f"{sum(sides)} images in {len(data.classes)} classes: {sides[0]} training, {sides[1]} "
        f"validation, {sides[2]} test",
        *data.notes,
        f"{spec.name} with {weights} at {config.image_size} px, on {_device()}",
        f"phases: {', then '.join(phases)}" if phases else next(_phases(plan)),
        *([f"keeping the epoch with the {best} (* marks the best so far)"] if phases else ()),
    ]


def _phases(plan):
    """Yields a line for each phase that trains, or one that says that none does."""
    config = plan.config
    optimizer = "make_optimizer" if plan.parts.make_optimizer else config.optimizer
    better = "lower" if lower_is_better(config.select_by) else "higher"
    trained = [phase for phase in plan.phases if phase.epochs]
    for phase in trained:
        patience = counted(phase.patience, "epoch")
        stop = f"early stop after {patience} without a {better} {config.select_by}"
        yield (
            f"plan: {phase.name}: {up_to(phase)}, unfreeze {phase.unfreeze}, "
            f"{optimizer} {phase.learning_rate:g} {phase.lr_schedule}, "
            f"{stop if phase.patience else 'no early stop'}"
        )
    if not trained:
        start = "the closed-form head" if config.head_init == "lda" else "the initial head"
        yield f"plan: nothing is trained; {start} is exported"


def _device():
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        return counted(gpus, "GPU")
    return f"{counted(machine.cores(), 'CPU core')}, no GPU"


def _replicas(config, train):
    if config.distribute != "off":
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        yield (
            f"distribute: {config.distribute}: {counted(replicas, 'replica')}, "
            f"{config.batch_size // replicas} images of each batch on each"
        )
    if train.shards.count > 1:
        yield (
            f"shards: {train.shards.count}, of which this process holds {len(train.shards.own)}: "
            f"{len(train.members.own)} of {len(train)} training images"
        )


def _unusual(plan, classes):
    """Yields lines on uncommon treatment of inputs, targets and weights."""
    config, spec = plan.config, plan.classifier.spec
    yield from _of_extension(plan)
    if config.preprocessing not in ("auto", spec.preprocessing):
        yield (
            f"preprocessing: {config.preprocessing}, but {spec.name} was trained with "
            f"{spec.preprocessing}"
        )
    if (weights := getattr(plan.objective, "class_weights", None)) is not None:
        pairs = zip(map(printable, classes), weights)
        yield "class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
    if mixing := plan.cache.views.mixing or plan.feature_mixing:
        what = "features" if plan.feature_mixing else "images"
        alpha = config.mixup or config.manifold_mixup  # an extension's mixing has neither
        shares = f", with weights from Beta({alpha:g}, {alpha:g})" * bool(alpha)
        yield f"{mixing.name}: {what} and labels are blended{shares}"
    if config.ema_decay:
        yield (
            f"averages: moving averages of the trained weights, with a decay of "
            f"{config.ema_decay:g} per step, are evaluated, selected and saved"
        )


def _of_extension(plan):
    """Yields lines on the parts of an extension."""
    parts, factors = plan.parts.parts(), plan.config.augment_factors
    if parts:
        yield f"extension: {', '.join(parts)} from {plan.parts.file or 'Python'}"
    if unused := [name for name in plan.parts.augmentations if name not in factors]:
        yield f"extension: {', '.join(unused)} not used; add them to --augment"
    if own := plan.cache.views.operations:
        listed = ", ".join(f"{operation.name} {operation.factor:g}" for operation in own)
        yield f"augmentation: {listed} of the extension, after the others and not in model.keras"


def up_to(phase: Phase) -> str:
    """Returns the largest number of epochs of a phase, as text."""
    return f"up to {counted(phase.epochs, 'epoch')}"


def describe_phase(event: PhaseBegan) -> str:
    """Returns the line on what a phase trains."""
    trainable = num_parameters(v for group in event.groups for v in group.variables)
    base = event.phase.learning_rate
    rates = ", ".join(f"{g.name} {base * g.lr_multiplier:.3g}" for g in event.groups)
    return (
        f"phase {event.phase.name}: {len(event.open_layers)} of {event.num_layers} backbone layers "
        f"unfrozen, {trainable:,} of {event.num_parameters:,} parameters trained; first unfrozen: "
        f"{event.first_unfrozen or 'none'}; learning rates: {rates}; {up_to(event.phase)}"
    )
