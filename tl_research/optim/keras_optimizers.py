"""The Keras optimizer of each parameter group: the one `--optimizer` names, or the user's own."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError, suggestion
from tl_research.models import keras_private
from tl_research.optim.param_groups import ParamGroup


class _FusedUpdate:
    """Updates a variable as Keras' Adam does, by the same equations, in one kernel instead of 20
    operations.
    """

    def update_step(
        self: Any, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        first, second = keras_private.adam_moments(self, variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=first.handle,
            v=second.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class Adam(_FusedUpdate, keras.optimizers.Adam):
    """Keras' Adam."""


class AdamW(_FusedUpdate, keras.optimizers.AdamW):
    """Keras' AdamW."""


def _make(config):
    """Returns a new Keras optimizer of the kind that `--optimizer` names.

    Its learning rate is never used: `GroupedOptimizer` sets it before every update. It gets no
    name: Keras would open a name scope, and TensorFlow rejects some characters of
    group names there.
    """
    library, decay = keras.optimizers, config.weight_decay
    makers = {
        "sgd": lambda: library.SGD(momentum=config.momentum, nesterov=config.nesterov),
        "adam": Adam,
        "adamw": lambda: AdamW(weight_decay=decay),
        "rmsprop": library.RMSprop,
        "lion": lambda: library.Lion(weight_decay=decay or None),
    }
    return makers[config.optimizer]()


# What a Keras optimizer can do besides updating variables: the flag or example that does it here,
# for all groups together.
_DONE_ELSEWHERE = {
    "clipnorm": "--clip_norm",
    "clipvalue": "--clip_norm",
    "global_clipnorm": "--clip_norm",
    "use_ema": "--ema_decay",
    "loss_scale_factor": "--precision=mixed_float16",
    "gradient_accumulation_steps": "examples/gradient_accumulation.py",
}


def with_optimizers(
    groups: Iterable[ParamGroup],
    config: Config,
    make_optimizer: Callable[[ParamGroup], Any] | None,
) -> Iterator[tuple[ParamGroup, str, keras.optimizers.Optimizer]]:
    """Yields (group, kind of its optimizer, optimizer that is not built yet).

    A group whose variables have several optimizers is divided: the variables that `--optimizer`
    updates keep the group's name, the others are in `<name>[<class of the optimizer>]`.

    Args:
        groups: The groups to train.
        config: Says what `--optimizer` is.
        make_optimizer: The user's function of a group, or None. It returns a Keras optimizer for
            the group, {path: optimizer} for some of its variables, or None; `--optimizer` updates
            the variables that are left.

    Raises:
        UserError: If the function returns something unusable.
    """
    for group in groups:
        by_path = _chosen(group, make_optimizer)
        distinct: dict[Any, list[tuple]] = {}  # optimizer: [(path, variable)]
        for path, variable in zip(group.paths, group.variables):
            distinct.setdefault(by_path.get(path), []).append((path, variable))
        names: collections.Counter[str] = collections.Counter()
        for own, members in distinct.items():
            kind, name = type(own).__name__.strip("_") if own else config.optimizer, group.name
            if own and len(distinct) > 1:
                names[kind] += 1
                name += f"[{kind} {names[kind]}]" if names[kind] > 1 else f"[{kind}]"
            paths, variables = zip(*members)
            part = ParamGroup(name, paths, variables, group.lr_multiplier)
            yield part, kind, own or _make(config)


def _chosen(group, make_optimizer):
    """Returns {path: optimizer or None}, what the user's function chose for a group."""
    chosen = make_optimizer(group) if make_optimizer else None
    if not isinstance(chosen, Mapping):
        chosen = dict.fromkeys(group.paths, chosen)
    for path, optimizer in chosen.items():
        if path not in group.paths:
            raise UserError(
                f"make_optimizer({group.name}): {path!r} is not a variable of the group; "
                f"expected one of its paths{suggestion(path, group.paths)}; correct it"
            )
        if optimizer is not None and (problem := _problem(optimizer)):
            raise UserError(f"make_optimizer({group.name}): received {problem}")
    return chosen


def _problem(optimizer):
    """Returns why an optimizer cannot be used, what was expected and how to fix it, or None."""
    wrappers = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(optimizer, wrappers):
        return (
            f"{optimizer!r}; expected a Keras optimizer that is not a wrapper; return one, "
            "{path: optimizer}, or None"
        )
    if optimizer.built:
        return "an optimizer that is already built; expected a new one; make it inside the function"
    if not isinstance(optimizer.learning_rate, keras.Variable):
        return (
            "a learning-rate schedule; expected a number, which is ignored because each group's "
            "rate is set before every step; use --lr_schedule and --lr_multiplier"
        )
    for name, instead in _DONE_ELSEWHERE.items():
        if value := getattr(optimizer, name):
            return f"{name}={value}; expected it unset: it must act on all groups; use {instead}"
    return None
