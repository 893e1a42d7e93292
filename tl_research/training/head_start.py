"""Starts the head in closed form, `--head_init=lda`; the result is selected as the best so far."""

import keras

from tl_research import closed_form
from tl_research.errors import UserError
from tl_research.models.classifier import Classifier
from tl_research.training.events import HeadStarted, Observer
from tl_research.training.plan import Plan
from tl_research.training.state import TrainState, timed


def make(plan: Plan, state: TrainState, tell: Observer) -> None:
    """Solves the head of a new run in closed form if requested, and selects it until an epoch is
    better.

    It is fitted to the training images and evaluated on the validation images.

    Args:
        plan: What all phases share.
        state: Changed in place.
        tell: Tells observers.

    Raises:
        UserError: If the head is not one dense layer on pooled features, or its logits are not
            for classes.
    """
    if plan.config.head_init != "lda" or state.past.head_start is not None:
        return
    if plan.objective.answer.name != "class":
        raise UserError(
            f"--head_init=lda with labels for a {plan.objective.answer.name}; expected one class "
            "for each image; use --head_init=random",
            "head_init",
        )
    dense = _dense(plan.classifier)
    with timed(state, "features"):
        train, validation = (plan.cache.pooled(side) for side in ("train", "validation"))
        labels, all_gather = plan.train.labels[plan.train.members.own], plan.train.shards.all_gather
        head = closed_form.solve(train, labels, plan.classifier.num_classes, all_gather)
    dense.kernel.assign(head.kernel)
    dense.bias.assign(head.bias)
    logits = plan.validation.of_all(validation @ dense.kernel.numpy() + dense.bias.numpy())
    found = plan.validated(logits)
    if plan.config.select_by not in found:
        raise UserError(
            f"--head_init=lda with --select_by={plan.config.select_by}, which is not measured for "
            f"the start; expected one of {', '.join(found)}; use --head_init=random",
            "head_init",
        )
    solved = {"shrinkage": head.shrinkage, "temperature": head.temperature, **found}
    state.past.head_start = solved
    state.past.selected = {"phase": "start", "epoch": 0, **found}
    state.weights.selected = plan.classifier.values(plan.saved_paths)
    state.weights.logits = {"selected": logits}
    tell(HeadStarted(solved, tuple(found)))


def _dense(classifier: Classifier) -> keras.layers.Dense:
    """Returns the only trainable layer of the head, which reads pooled features [B, d]."""
    layers = [layer for layer in classifier.head.layers if layer.trainable_variables]
    shapes = [classifier.graph.shape(name) for name in classifier.head_boundary]
    dense = layers[0]
    if (
        len(layers) == len(shapes) == 1
        and type(dense) is keras.layers.Dense
        and (dense.use_bias, dense.activation) == (True, keras.activations.linear)
        and tuple(shapes[0]) == dense.kernel.shape[:1]
    ):
        return dense
    named = ", ".join(layer.name for layer in layers)
    raise UserError(
        f"--head_init=lda with a head whose layers with weights are {named}; expected one dense "
        "layer with a bias on pooled features; use --head_init=random",
        "head_init",
    )
