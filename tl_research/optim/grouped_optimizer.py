"""One Keras optimizer per parameter group, driven as one optimizer."""

import keras
import numpy as np
import tensorflow as tf

from tl_research import errors


class _FusedUpdate:
    """The update of one variable by Keras' Adam in one kernel, which has the same equations,
    instead of 20 operations.
    """

    def update_step(self, gradient, variable, learning_rate):
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


# The rates given here are never used: `apply` sets them before every update. No names: Keras would
# open a name scope, and group names hold characters that TensorFlow refuses there.
_MAKE = {
    "sgd": lambda weight_decay, momentum, nesterov: keras.optimizers.SGD(
        momentum=float(momentum), nesterov=nesterov
    ),
    "adam": lambda weight_decay, momentum, nesterov: Adam(),
    "adamw": lambda weight_decay, momentum, nesterov: AdamW(weight_decay=weight_decay),
    "rmsprop": lambda weight_decay, momentum, nesterov: keras.optimizers.RMSprop(),
    "lion": lambda weight_decay, momentum, nesterov: keras.optimizers.Lion(
        weight_decay=weight_decay or None
    ),
}
_DECOUPLED = ("adamw", "lion")


class GroupedOptimizer:
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

    Raises:
        errors.UserError: If `name` is unknown, or `weight_decay` is given with an optimizer that
            does not decouple it.
        ValueError: If two groups share a variable's path or a name.
    """

    def __init__(
        self,
        groups,
        name,
        *,
        weight_decay=0.0,
        momentum=0.9,
        nesterov=False,
        clip_norm=0.0,
        ema_decay=0.0,
    ):
        if name not in _MAKE:
            raise errors.UserError(
                f"--optimizer={name}: no such optimizer; expected one of {', '.join(_MAKE)}; "
                "choose one of these."
            )
        if weight_decay and name not in _DECOUPLED:
            raise errors.UserError(
                f"--weight_decay={weight_decay}: received with --optimizer={name}; expected an "
                f"optimizer that decouples it ({', '.join(_DECOUPLED)}); use adamw, or "
                "--weight_decay=0."
            )
        self.groups = tuple(groups)
        self.name = name
        for kind, names in (
            ("name", [group.name for group in self.groups]),
            ("path", [path for group in self.groups for path in group.paths]),
        ):
            if len(set(names)) < len(names):
                repeated = sorted({entry for entry in names if names.count(entry) > 1})
                raise ValueError(
                    f"Received twice the {kind} {repeated}. Expected disjoint groups with unique "
                    "names."
                )
        self._clip_norm = clip_norm
        self._optimizers = []
        self._slots = {}  # path -> {slot name: keras.Variable}
        for group in self.groups:
            optimizer = _MAKE[name](weight_decay, momentum, nesterov)
            # `apply` is given sums over all replicas
            optimizer._all_reduce_sum_gradients = lambda pairs: pairs
            optimizer.use_ema, optimizer.ema_momentum = ema_decay > 0, ema_decay
            optimizer.build(list(group.variables))
            self._optimizers.append(optimizer)
            self._slots.update(_slots_by_path(group, optimizer))

    @property
    def variables(self):
        """All trainable keras.Variables, group after group: the order of `gradients` below."""
        return [variable for group in self.groups for variable in group.variables]

    def averages(self):
        """Returns {path: NumPy array} of all variables' averages, or {} without `ema_decay`."""
        return {
            path: np.array(slots["average"].numpy())
            for path, slots in self._slots.items()
            if "average" in slots
        }

    def restart_averages(self):
        """Makes the averages those of the variables' values of this moment."""
        for group in self.groups:
            for path, variable in zip(group.paths, group.variables):
                if "average" in self._slots[path]:
                    self._slots[path]["average"].assign(variable)

    def learning_rates(self, learning_rate):
        """Returns dict, group name -> its rate, for a base rate (a number or a scalar tensor)."""
        return {group.name: learning_rate * group.lr_multiplier for group in self.groups}

    def gradient_norms(self, gradients):
        """Returns dict, group name -> float32 tensor [], the norm of its gradients.

        Call it before clipping.
        """
        return {
            group.name: tf.cast(tf.linalg.global_norm(part), tf.float32)
            for group, part in zip(self.groups, self._split(gradients))
        }

    def clipped(self, norms):
        """Returns the norms, float32 [variables], that gradients of these norms have after
        clipping.
        """
        return (
            norms * tf.minimum(self._clip_norm / tf.norm(norms), 1.0) if self._clip_norm else norms
        )

    def apply(self, gradients, learning_rate):
        """Clips once over all groups, then updates every group at its rate.

        Also inside a (compiled) tf.function.

        Args:
            gradients: Tensors in the order of `variables`, unscaled, of the whole batch, whatever
                the number of replicas.
            learning_rate: Scalar, base learning rate x schedule factor.

        Returns:
            dict with `gradient_norm`, float32 tensor [], over all groups, before clipping. With
            clipping a norm that is not finite makes every variable NaN, without it only those
            concerned: check it first.

        Raises:
            ValueError: If there is not one gradient for each variable.
        """
        self._split(gradients)  # checks them
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm > 0:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        if tf.distribute.in_cross_replica_context():
            tf.distribute.get_strategy().run(self._update, (gradients, learning_rate))
        else:
            self._update(gradients, learning_rate)
        return {"gradient_norm": tf.cast(norm, tf.float32)}

    def _update(self, gradients, learning_rate):
        rates = self.learning_rates(tf.cast(learning_rate, tf.float32))
        for group, optimizer, part in zip(self.groups, self._optimizers, self._split(gradients)):
            optimizer.learning_rate.assign(rates[group.name])
            optimizer.apply(part)

    def state(self):
        """Returns a copy of all slots and step counts, by name: dict, name -> NumPy array.

        Names are `<variable path>/<slot>` and `<group name>/iterations`. Rates follow from the
        step.
        """
        return {
            name: np.array(variable.numpy()) for name, variable in self._state_variables().items()
        }

    def load_state(self, state):
        """Sets all slots and step counts from what `state` returned.

        Sets none of them if anything does not fit.

        Raises:
            errors.CheckpointError: If names, shapes or dtypes are not those of this optimizer.
        """
        variables = self._state_variables()
        expected = {
            name: f"{variable.dtype}{list(variable.shape)}" for name, variable in variables.items()
        }
        received = {
            name: f"{np.asarray(value).dtype}{list(np.shape(value))}"
            for name, value in state.items()
        }
        different = [
            f"{name} (received {received.get(name, 'nothing')}, expected "
            f"{expected.get(name, 'nothing')})"
            for name in sorted(expected.keys() | received.keys())
            if received.get(name) != expected.get(name)
        ]
        if different:
            raise errors.CheckpointError(
                f"Optimizer state does not fit this run in {len(different)} places: "
                f"{'; '.join(different[:5])}{'; ...' if len(different) > 5 else ''}; resume with "
                "the flags it was saved with, or --resume=never."
            )
        for name, variable in variables.items():
            variable.assign(state[name])

    def carry_over(self, previous):
        """Copies slots and step counts of the variables that `previous` trained.

        The other ones start from zero.

        A group that goes on is then updated as if there had been no change of phase.

        Args:
            previous: GroupedOptimizer of the phase before.

        Raises:
            ValueError: If the optimizers are of different kinds, or a group's variables have taken
                different numbers of steps (a variable that `previous` did not train: 0), which one
                Keras optimizer cannot express.
        """
        if previous.name != self.name:
            raise ValueError(
                f"Received the state of {previous.name!r}. Expected that of {self.name!r}: start "
                "afresh."
            )
        trained = {
            path: int(optimizer.iterations.numpy())
            for group, optimizer in zip(previous.groups, previous._optimizers)
            for path in group.paths
        }
        steps = []
        for group in self.groups:
            counts = {trained.get(path, 0) for path in group.paths}
            if len(counts) > 1:
                raise ValueError(
                    f"The variables of group {group.name!r} have taken {sorted(counts)} steps. "
                    "Expected one count: give `make_param_groups` the phases in which they joined."
                )
            steps.append(max(counts))
        for optimizer, count in zip(self._optimizers, steps):
            optimizer.iterations.assign(count)
        for path in self._slots.keys() & previous._slots.keys():
            for name, slot in self._slots[path].items():
                slot.assign(previous._slots[path][name])

    def _split(self, gradients):
        """Returns one list of gradients per group."""
        paths = [path for group in self.groups for path in group.paths]
        missing = [path for path, gradient in zip(paths, gradients) if gradient is None]
        if len(gradients) != len(paths) or missing:  # Keras would skip a missing one with a warning
            raise ValueError(
                f"Received {len(gradients)} gradients, None for {missing}. Expected one for each "
                f"of {len(paths)} variables: freeze what the loss does not depend on."
            )
        rest = iter(gradients)
        return [[next(rest) for _ in group.paths] for group in self.groups]

    def _state_variables(self):
        """Returns dict, name -> keras.Variable, of all that is saved."""
        variables = {
            f"{path}/{name}": slot
            for path, slots in self._slots.items()
            for name, slot in slots.items()
        }
        for group, optimizer in zip(self.groups, self._optimizers):
            variables[f"{group.name}/iterations"] = optimizer.iterations
        return variables


def _slots_by_path(group, optimizer):
    """Returns dict, path -> {slot name: keras.Variable} of a built Keras optimizer.

    Keras has no public map from a variable to its slots. It creates them variable by variable and
    names each `<variable path with _>_<slot>`; the order tells equal names apart, and the name
    proves the order.
    """
    # stand before the other slots
    averages = optimizer._model_variables_moving_average if optimizer.use_ema else []
    apart = {
        id(variable) for variable in (optimizer.iterations, optimizer.learning_rate, *averages)
    }
    slots = [slot for slot in optimizer.variables if id(slot) not in apart]
    per_variable = len(slots) // len(group.paths)
    result = {}
    for i, (path, variable) in enumerate(zip(group.paths, group.variables)):
        prefix = variable.path.replace("/", "_") + "_"
        own = slots[i * per_variable : (i + 1) * per_variable] + averages[i : i + 1]
        if not all(slot.name.startswith(prefix) for slot in own):
            raise RuntimeError(
                f"Keras names the slots of {path!r} {[slot.name for slot in own]}. Expected "
                f"{prefix}*."
            )
        result[path] = {slot.name.removeprefix(prefix): slot for slot in own}
    return result
