"""Every variable of the groups' Keras optimizers under a name: saved, restored, carried over."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tl_research.errors import CheckpointError, UserError
from tl_research.optim.param_groups import ParamGroup

Variables = dict[str, keras.Variable]  # by name


class Held(NamedTuple):
    """What an optimizer holds for one trained variable."""

    kind: str  # of the optimizer
    slots: Variables  # of this variable
    shared: Variables  # of all of its group, such as the step count


def claimed(group: ParamGroup, kind: str, optimizer: keras.optimizers.Optimizer) -> dict[str, Held]:
    """Returns {path: what a built Keras optimizer holds for it}.

    Keras has no public map from a variable to its slots. It finds them by the variable's place
    among those that the optimizer was built with, so they lie in lists of that order, with None
    where a variable has no such slot; a variable that is in no list, as the step count, is of all.

    Raises:
        UserError: If it holds any other variable, which a resumed run would lack.
    """
    held = {name.strip("_"): value for name, value in vars(optimizer).items()}
    del held["variables"], held["trainable_variables"]  # claimed elsewhere, or not its own
    shared = {name: v for name, v in held.items() if isinstance(v, keras.Variable)}
    lists = {
        name: v for name, v in held.items() if isinstance(v, list) and len(v) == len(group.paths)
    }
    result = {}
    for i, (path, variable) in enumerate(zip(group.paths, group.variables)):
        slots = {
            _name(of_all[i], variable, name): of_all[i]
            for name, of_all in lists.items()
            if isinstance(of_all[i], keras.Variable)
        }
        result[path] = Held(kind, slots, shared)
    _check_complete(group, optimizer, result.values())
    del shared["learning_rate"]  # follows from the step
    return result


def _name(slot, variable, attribute):
    """Returns a slot's name: most are called `<path of the variable with _>_<name>`."""
    prefix = variable.path.replace("/", "_") + "_"
    return slot.name.removeprefix(prefix) if slot.name.startswith(prefix) else attribute


def _check_complete(group, optimizer, held):
    known = [v for own in held for v in (*own.slots.values(), *own.shared.values())]
    known = set(map(id, (*known, *group.variables)))
    lost = [
        variable.name
        for variable in tf.train.TrackableView(optimizer).descendants()
        if isinstance(variable, (keras.Variable, tf.Variable)) and id(variable) not in known
    ]
    if lost:
        raise UserError(
            f"make_optimizer({group.name}): {type(optimizer).__name__} holds {len(lost)} variables "
            f"that cannot be told apart ({', '.join(lost[:3])}); expected one for each trained "
            "variable, in lists in their order, or one for all; keep them so, or a resumed run "
            "would lack them"
        )


class OptimizerState:
    """The variables of one Keras optimizer for each group.

    Args:
        groups: `ParamGroup`s.
        kinds: Of the optimizers, one for each group.
        optimizers: The built Keras optimizers.

    Attributes:
        groups, kinds: As given.

    Raises:
        ValueError: If two groups share a variable's path or a name.
    """

    def __init__(self, groups: tuple, kinds: tuple, optimizers: tuple):
        keys = [key for group in groups for key in (group.name, *group.paths)]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(
                f"Received twice {repeated}. Expected disjoint groups with unique names."
            )
        self.groups, self.kinds = groups, kinds
        self._held: dict[str, Any] = {}  # by path
        for part in zip(groups, kinds, optimizers):
            self._held |= claimed(*part)

    def averages(self) -> dict[str, np.ndarray]:
        """Returns {path: array} of all variables' averages, or {} without `ema_decay`."""
        return {
            path: np.array(held.slots["average"].numpy())
            for path, held in self._held.items()
            if "average" in held.slots
        }

    def restart_averages(self) -> None:
        """Makes the averages those of the variables' values of this moment."""
        for group in self.groups:
            for path, variable in zip(group.paths, group.variables):
                if "average" in self._held[path].slots:
                    self._held[path].slots["average"].assign(variable)

    def state(self) -> dict[str, np.ndarray]:
        """Returns a copy of all by name: `<variable path>/<slot>` and, of what its variables share,
        `<group name>/<name>`, as in `head/iterations`.
        """
        return {name: np.array(variable.numpy()) for name, variable in self._variables().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Sets all from what `state` returned, or none of them if anything does not fit.

        Raises:
            CheckpointError: If names, shapes or dtypes are not those of this optimizer.
        """
        variables = self._variables()
        expected = {name: f"{v.dtype}{list(v.shape)}" for name, v in variables.items()}
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
            raise CheckpointError(
                f"Optimizer state does not fit this run in {len(different)} places: "
                f"{'; '.join(different[:5])}{'; ...' if len(different) > 5 else ''}; resume with "
                "the flags it was saved with, or --resume=never."
            )
        for name, variable in variables.items():
            variable.assign(state[name])

    def carry_over(self, previous: "OptimizerState") -> None:
        """Copies the slots of the variables that the phase before trained, and what they shared.

        The other ones start from zero. A group that goes on is then updated as if there had been no
        change of phase.

        Raises:
            UserError: If a variable had another kind of optimizer.
            ValueError: If a group's variables have taken different numbers of steps (a variable
                that `previous` did not train: 0), which one Keras optimizer cannot express.
        """
        for group in self.groups:
            before = {path: previous._held.get(path) for path in group.paths}
            counts = {
                # not int() of it: on several replicas it is a variable on each
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
                    _copy(path, old, self._held[path])

    def _variables(self):
        """Returns dict, name -> keras.Variable, of all that is saved."""
        owners = [(path, held.slots) for path, held in self._held.items()]
        owners += [(group.name, self._held[group.paths[0]].shared) for group in self.groups]
        return {f"{owner}/{name}": v for owner, own in owners for name, v in own.items()}


def _copy(path, source, target):
    if (source.kind, source.slots.keys()) != (target.kind, target.slots.keys()):
        raise UserError(
            f"{path}: received the state of {source.kind!r} with {sorted(source.slots)}; expected "
            f"that of {target.kind!r} with {sorted(target.slots)}; give a variable the same "
            "optimizer in all phases"
        )
    for old, new in ((source.slots, target.slots), (source.shared, target.shared)):
        for name, variable in new.items():
            variable.assign(old[name])
