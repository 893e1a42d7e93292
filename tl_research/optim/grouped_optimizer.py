"""One Keras optimizer per parameter group, driven as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.optim.keras_optimizers import make, with_optimizers
from tl_research.optim.param_groups import ParamGroup
from tl_research.optim.slots import OptimizerState


class GroupedOptimizer(OptimizerState):
    """Updates every group's variables at its own rate, `learning_rate` x the group's
    `lr_multiplier`.

    One Keras optimizer per group, because scaling gradients is not scaling the rate (Adam divides
    the scale out again) and because a group that joins later needs its own step count. Slots exist
    as soon as the object does, so it can be traced at once. Its set of variables never changes: a
    phase makes a new object, a new step, and calls `carry_over`.

    Keras' defaults hold. For sgd, adam and adamw (epsilon 1e-7) values agree with PyTorch's, given
    the same epsilon, to 2e-4 relative: Keras adds epsilon to sqrt(v), PyTorch to the bias-corrected
    sqrt(v). RMSprop is further off (2e-2): rate * g / sqrt(v + epsilon), not / (sqrt(v) + epsilon).
    SGD's velocity holds the rate, v = momentum * v - rate * g, so a change of rate reaches it over
    about 1 / (1 - momentum) steps; PyTorch's buffer does not hold it.

    Weight decay is decoupled, w -= rate * weight_decay * w, at the group's rate, on every variable:
    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and Lion (Chen et al. 2023, arXiv:2302.06675,
    algorithm 2).

    Args:
        groups: ParamGroups, disjoint, with unique names.
        name: `sgd`, `adam`, `adamw`, `rmsprop` or `lion`.
        weight_decay: Per unit of learning rate; adamw and lion only.
        momentum: In [0, 1]; sgd only.
        nesterov: Whether sgd looks ahead.
        clip_norm: Largest global norm of the gradients of all groups together; 0 means no clipping.
        ema_decay: d of the averages, average = d * average + (1 - d) * variable after each step
            (Polyak & Juditsky 1992; Keras' `use_ema`, where the first step of a group sets them),
            which are slots like any other; 0 means none.
        make_optimizer: The user's function of a group, see `keras_optimizers.with_optimizers`; what
            it leaves has the optimizer of `name`.

    Attributes:
        groups: As given, divided where variables of one have several optimizers.
        kinds: For each group `name`, or the class of an optimizer of the user's.

    Raises:
        UserError: If `make_optimizer` returns what cannot be used.
        ValueError: If two groups share a variable's path or a name.
    """

    def __init__(
        self,
        groups: Iterable[ParamGroup],
        name: str,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        nesterov: bool = False,
        clip_norm: float = 0.0,
        ema_decay: float = 0.0,
        make_optimizer: Callable[[ParamGroup], Any] | None = None,
    ):
        self._clip_norm, parts = clip_norm, []
        for part in with_optimizers(
            groups, make_optimizer, lambda: make(name, weight_decay, momentum, nesterov), name
        ):
            group, _, optimizer = part
            # `apply` is given sums over all replicas
            optimizer._all_reduce_sum_gradients = lambda pairs: pairs
            optimizer.use_ema, optimizer.ema_momentum = ema_decay > 0, ema_decay
            optimizer.build(list(group.variables))
            parts.append(part)
        groups, kinds, self._optimizers = zip(*parts)
        super().__init__(groups, kinds, self._optimizers)

    @property
    def variables(self) -> list[keras.Variable]:
        """All trainable keras.Variables, group after group: the order of `gradients` below."""
        return [variable for group in self.groups for variable in group.variables]

    def clipped(self, norms: tf.Tensor) -> tf.Tensor:
        """Returns the norms, float32 [variables], that gradients of these norms have after
        clipping.
        """
        return (
            norms * tf.minimum(self._clip_norm / tf.norm(norms), 1.0) if self._clip_norm else norms
        )

    def check(self, gradients: list[tf.Tensor]) -> None:
        """Raises UserError if there is not one gradient for each variable."""
        paths = [path for group in self.groups for path in group.paths]
        missing = [path for path, gradient in zip(paths, gradients) if gradient is None]
        if len(gradients) != len(paths) or missing:  # Keras would skip a missing one with a warning
            raise UserError(
                f"received {len(gradients)} gradients, None for {missing[:3]}; expected one for "
                f"each of {len(paths)} variables; freeze what the loss does not depend on"
            )

    def apply(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Clips once over all groups, then updates every group at its rate.

        Also inside a (compiled) tf.function. With clipping a gradient that is not finite makes
        every variable NaN, without it only those concerned: check it first.

        Args:
            gradients: One for each of `variables`, unscaled, of the whole batch, whatever the
                number of replicas.
            learning_rate: Scalar, base learning rate x schedule factor.
        """
        if self._clip_norm > 0:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm)
        if tf.distribute.in_cross_replica_context():
            tf.distribute.get_strategy().run(self._update, (gradients, learning_rate))
        else:
            self._update(gradients, learning_rate)

    def _update(self, gradients, learning_rate):
        rest = iter(gradients)
        for group, optimizer in zip(self.groups, self._optimizers):
            rate = tf.cast(learning_rate, tf.float32) * group.lr_multiplier
            optimizer.learning_rate.assign(rate)
            optimizer.apply([next(rest) for _ in group.paths])
