"""One Keras optimizer per parameter group, driven as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import CheckpointError, UserError
from tl_research.models import keras_private
from tl_research.optim.keras_optimizers import with_optimizers
from tl_research.optim.param_groups import ParamGroup
from tl_research.optim.slots import Held, claimed, copy


class GroupedOptimizer:
    """Updates each group's variables at its own rate, `learning_rate` x the group's
    `lr_multiplier`.

    There is one Keras optimizer per group, because scaling gradients is not scaling the rate (Adam
    divides the scale out again) and because a group that joins later needs its own step count.
    Slots exist as soon as the object does, so a step can be traced at once. The set of variables
    never changes: each phase makes a new object and a new step, and calls `carry_over`.

    Keras' defaults apply. For sgd, adam and adamw (epsilon 1e-7) the values agree with PyTorch's at
    the same epsilon to 2e-4 relative: Keras adds epsilon to sqrt(v), PyTorch to the bias-corrected
    sqrt(v). RMSprop differs more (2e-2): rate * g / sqrt(v + epsilon), not / (sqrt(v) + epsilon).
    SGD's velocity includes the rate, v = momentum * v - rate * g, so a change of rate takes effect
    over about 1 / (1 - momentum) steps; PyTorch's buffer does not include it. `pytest
    tests/optim/test_grouped_optimizer.py` reproduces these comparisons.

    Weight decay is decoupled, w -= rate * weight_decay * w, at the group's rate, on every variable:
    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and Lion (Chen et al. 2023, arXiv:2302.06675,
    algorithm 2).

    Args:
        groups: Disjoint `ParamGroup`s with unique names.
        config: Its `optimizer` and what belongs to it; `clip_norm`, the maximum global norm of the
            gradients of all groups together; and `ema_decay`, the decay d of the weight averages,
            average = d * average + (1 - d) * variable after each step (Polyak & Juditsky 1992;
            Keras' `use_ema`, where a group's first step sets them), which are slots like any other.
        make_optimizer: The user's function of a group, see `keras_optimizers.with_optimizers`.

    Attributes:
        groups: As given, except that a group with several optimizers is divided.
        kinds: For each group `config.optimizer`, or the class name of the user's optimizer.

    Raises:
        UserError: If `make_optimizer` returns something unusable.
        ValueError: If two groups share a variable's path or a name.
    """

    def __init__(
        self,
        groups: Iterable[ParamGroup],
        config: Config,
        make_optimizer: Callable[[ParamGroup], Any] | None = None,
    ):
        self._clip_norm, parts = config.clip_norm, []
        self._held: dict[str, Held] = {}  # by path
        for group, kind, optimizer in with_optimizers(groups, config, make_optimizer):
            keras_private.expect_summed_gradients(optimizer)  # `apply` is given sums
            optimizer.use_ema, optimizer.ema_momentum = config.ema_decay > 0, config.ema_decay
            optimizer.build(list(group.variables))
            self._held |= claimed(group, kind, optimizer)
            parts.append((group, kind, optimizer))
        self.groups, self.kinds, self._optimizers = zip(*parts)
        keys = [key for group in self.groups for key in (group.name, *group.paths)]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(
                f"Received twice {repeated}. Expected disjoint groups with unique names."
            )

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables, group by group: the order of `gradients` below."""
        return [variable for group in self.groups for variable in group.variables]

    def clipped(self, norms: tf.Tensor) -> tf.Tensor:
        """Returns float32 [variables], the gradient norms after clipping, from those before."""
        if not self._clip_norm:
            return norms
        return norms * tf.minimum(self._clip_norm / tf.norm(norms), 1.0)

    def check(self, gradients: list[tf.Tensor]) -> None:
        """Raises UserError unless there is one gradient for each variable."""
        paths = [path for group in self.groups for path in group.paths]
        missing = [path for path, gradient in zip(paths, gradients) if gradient is None]
        if len(gradients) != len(paths) or missing:  # Keras would only warn
            raise UserError(
                f"received {len(gradients)} gradients, None for {missing[:3]}; expected one for "
                f"each of {len(paths)} variables; freeze what the loss does not depend on"
            )

    def apply(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Clips once over all groups, then updates each group at its rate.

        Works inside a (compiled) tf.function too. Check that gradients are finite first: one that
        is not makes its variable NaN, with clipping every variable.

        Args:
            gradients: One for each of `variables`, unscaled, for the whole batch, whatever the
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

    def averages(self) -> dict[str, np.ndarray]:
        """Returns {path: array} of all variables' averages, or {} without `ema_decay`."""
        return {
            path: np.array(held.slots["average"].numpy())
            for path, held in self._held.items()
            if "average" in held.slots
        }

    def restart_averages(self) -> None:
        """Sets the averages to the variables' current values."""
        for held in self._held.values():
            if "average" in held.slots:
                held.slots["average"].assign(held.variable)

    def state(self) -> dict[str, np.ndarray]:
        """Returns {name: array}, copies of all variables. A slot is named `<variable path>/<slot>`,
        what a group shares `<group name>/<name>`, such as `head/iterations`.
        """
        return {name: np.array(variable.numpy()) for name, variable in self._variables().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Sets all variables to what `state` returned, or none if anything does not fit.

        Raises:
            CheckpointError: If names, shapes or dtypes are not those of this optimizer.
        """
        variables = self._variables()
        expected, received = (
            {name: f"{value.dtype}{list(value.shape)}" for name, value in of.items()}
            for of in (variables, state)
        )
        if different := sorted(dict(expected.items() ^ received.items())):
            places = [
                f"{name} (received {received.get(name, 'nothing')}, expected "
                f"{expected.get(name, 'nothing')})"
                for name in different[:5]
            ]
            raise CheckpointError(
                f"Optimizer state does not fit this run in {len(different)} places: "
                f"{'; '.join(places)}{'; ...' if len(different) > 5 else ''}; resume with "
                "the flags it was saved with, or --resume=never."
            )
        for name, variable in variables.items():
            variable.assign(state[name])

    def carry_over(self, previous: "GroupedOptimizer") -> None:
        """Copies the slots of variables that the previous phase trained, and what they shared.

        Other slots start from zero. A group that continues is then updated as if the phase had not
        changed.

        Raises:
            UserError: If a variable had another kind of optimizer.
            ValueError: If a group's variables have taken different numbers of steps (a variable
                that `previous` did not train: 0), which one Keras optimizer cannot express.
        """
        for group in self.groups:
            before = {path: previous._held.get(path) for path in group.paths}
            counts = {
                # `int(variable)` fails where each replica has its own copy
                int(old.shared["iterations"].numpy()) if old else 0
                for old in before.values()
            }
            if len(counts) > 1:
                raise ValueError(
                    f"The variables of group {group.name!r} have taken {sorted(counts)} steps. "
                    "Expected one count: give `make_param_groups` the phases in which they joined."
                )
            for path, old in before.items():
                if old:
                    copy(path, old, self._held[path])

    def _variables(self):
        """Returns {name: keras.Variable} of everything that is saved."""
        owners = [(path, held.slots) for path, held in self._held.items()]
        owners += [(group.name, self._held[group.paths[0]].shared) for group in self.groups]
        return {f"{owner}/{name}": v for owner, own in owners for name, v in own.items()}
