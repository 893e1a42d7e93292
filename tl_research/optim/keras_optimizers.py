"""Which Keras optimizer each parameter group gets: that of `--optimizer`, or one of the user's."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tl_research.errors import UserError, suggestion
from tl_research.optim.param_groups import ParamGroup


class _FusedUpdate:
    """The update of one variable by Keras' Adam in one kernel, which has the same equations,
    instead of 20 operations.
    """

    iterations: Any
    beta_1: float
    beta_2: float
    epsilon: float
    _momentums: list
    _velocities: list
    _get_variable_index: Callable[[keras.Variable], int]

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
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


def make(
    name: str, weight_decay: float, momentum: float, nesterov: bool
) -> keras.optimizers.Optimizer:
    """Returns a new optimizer of `--optimizer`.

    Its rate is never used: `GroupedOptimizer` sets it before every update. It gets no name: Keras
    would open a name scope, and group names hold characters that TensorFlow refuses there.
    """
    kinds: dict[str, tuple[Callable[..., keras.optimizers.Optimizer], dict[str, Any]]] = {
        "sgd": (keras.optimizers.SGD, {"momentum": float(momentum), "nesterov": nesterov}),
        "adam": (Adam, {}),
        "adamw": (AdamW, {"weight_decay": weight_decay}),
        "rmsprop": (keras.optimizers.RMSprop, {}),
        "lion": (keras.optimizers.Lion, {"weight_decay": weight_decay or None}),
    }
    kind, arguments = kinds[name]
    return kind(**arguments)


# What a Keras optimizer can do besides its updates: where this is done here, for all groups as one.
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
    make_optimizer: Callable[[ParamGroup], Any] | None,
    default: Callable[[], keras.optimizers.Optimizer],
    default_kind: str,
) -> Iterator[tuple[ParamGroup, str, keras.optimizers.Optimizer]]:
    """Yields each group with the kind of its optimizer and the optimizer, not built yet.

    A group whose variables have several optimizers is several groups: those of `--optimizer` keep
    its name, the others are `<name>[<class of the optimizer>]`.

    Args:
        groups: To be trained.
        make_optimizer: The user's function of a group, or None. It returns a Keras optimizer for
            the group; or {path: optimizer}, where the others get that of `--optimizer`; or None,
            which leaves all to that.
        default: Makes the optimizer of `--optimizer`.
        default_kind: Its name.

    Raises:
        UserError: If the function returns what cannot be used.
    """
    for group in groups:
        by_path = _chosen(group, make_optimizer)
        variables = dict(zip(group.paths, group.variables))
        distinct: dict[Any, list[str]] = {}  # optimizer: paths
        for path in group.paths:
            distinct.setdefault(by_path[path], []).append(path)
        names: collections.Counter[str] = collections.Counter()
        for own, paths in distinct.items():
            kind, name = type(own).__name__.strip("_") if own else default_kind, group.name
            if own and len(distinct) > 1:
                names[kind] += 1
                name += f"[{kind} {names[kind]}]" if names[kind] > 1 else f"[{kind}]"
            members = tuple(variables[path] for path in paths)
            part = ParamGroup(name, tuple(paths), members, group.lr_multiplier)
            yield part, kind, own or default()


def _chosen(group, make_optimizer):
    """Returns {path: optimizer of the user's, or None} of a group."""
    chosen = make_optimizer(group) if make_optimizer else None
    if not isinstance(chosen, Mapping):
        chosen = dict.fromkeys(group.paths, chosen)
    for path, optimizer in chosen.items():
        if path not in group.paths:
            raise UserError(
                f"make_optimizer({group.name}): {path!r} is no variable of the group; expected "
                f"one of its paths{suggestion(path, group.paths)}; correct it"
            )
        if optimizer is not None and (problem := _problem(optimizer)):
            raise UserError(f"make_optimizer({group.name}): received {problem}")
    return dict.fromkeys(group.paths) | chosen


def _problem(optimizer):
    """Returns what an optimizer is that cannot be used, what was expected, and what to do."""
    wrappers = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(optimizer, wrappers):
        return (
            f"{optimizer!r}; expected a Keras optimizer that is no wrapper; return one, "
            "{path: optimizer}, or None"
        )
    if optimizer.built:
        return (
            "an optimizer that has variables already; expected a new one; make it inside the "
            "function"
        )
    if not isinstance(optimizer.learning_rate, keras.Variable):
        return (
            "a schedule of the learning rate; expected a number, which is never used: each group's "
            "rate is set before every step; use --lr_schedule and --lr_multiplier"
        )
    for name, instead in _DONE_ELSEWHERE.items():
        if value := getattr(optimizer, name):
            return (
                f"{name}={value}; expected none, since all groups are treated as one; use {instead}"
            )
    return None
