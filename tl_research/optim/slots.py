"""Names every variable of the groups' Keras optimizers, to save, restore and carry it over."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.optim.param_groups import ParamGroup

Variables = dict[str, keras.Variable]  # by name


class Held(NamedTuple):
    """What an optimizer keeps for one trained variable."""

    variable: keras.Variable
    kind: str  # of the optimizer
    slots: Variables  # for this variable
    shared: Variables  # for its whole group, such as the step count


def claimed(group: ParamGroup, kind: str, optimizer: keras.optimizers.Optimizer) -> dict[str, Held]:
    """Returns {path: what a built Keras optimizer keeps for that variable}.

    Keras has no public map from a variable to its slots. It finds them by the variable's index
    among those that the optimizer was built with, so they are in lists of that order, with None
    where a variable has no such slot. A variable in no list, such as the step count, is shared.

    Args:
        group: The group that the optimizer was built with.
        kind: Name of the optimizer.
        optimizer: The built Keras optimizer.

    Raises:
        UserError: If the optimizer keeps any other variable, which a resumed run would lack.
    """
    held = {name.strip("_"): value for name, value in vars(optimizer).items()}
    del held["variables"], held["trainable_variables"]  # found elsewhere, or not its own
    shared = {name: v for name, v in held.items() if isinstance(v, keras.Variable)}
    lists = {
        name: v for name, v in held.items() if isinstance(v, list) and len(v) == len(group.paths)
    }
    result = {}
    for path, variable, *own in zip(group.paths, group.variables, *lists.values()):
        slots = {
            _name(slot, variable, name): slot
            for name, slot in zip(lists, own)
            if isinstance(slot, keras.Variable)
        }
        result[path] = Held(variable, kind, slots, shared)
    _check_complete(group, optimizer, result.values())
    del shared["learning_rate"]  # follows from the step
    return result


def _name(slot, variable, attribute):
    """Returns a slot's name: most are called `<path of the variable with _>_<name>`."""
    prefix = variable.path.replace("/", "_") + "_"
    return slot.name.removeprefix(prefix) if slot.name.startswith(prefix) else attribute


def _check_complete(group, optimizer, held):
    kept = [v for own in held for v in (own.variable, *own.slots.values(), *own.shared.values())]
    known = set(map(id, kept))
    lost = [
        variable.name
        for variable in tf.train.TrackableView(optimizer).descendants()
        if isinstance(variable, (keras.Variable, tf.Variable)) and id(variable) not in known
    ]
    if lost:
        raise UserError(
            f"make_optimizer({group.name}): {type(optimizer).__name__} holds {len(lost)} variables "
            f"that belong to no trained variable ({', '.join(lost[:3])}), so a resumed run would "
            "lack them; expected lists with one per trained variable, or attributes; keep them so"
        )


def copy(path: str, source: Held, target: Held) -> None:
    """Gives the variables of `target` the values of `source`.

    Args:
        path: Of the trained variable, for the message.
        source: What its optimizer of the previous phase kept.
        target: What its new optimizer keeps.

    Raises:
        UserError: If the optimizers are of different kinds.
    """
    if (source.kind, source.slots.keys()) != (target.kind, target.slots.keys()):
        raise UserError(
            f"{path}: received the state of {source.kind!r} with {sorted(source.slots)}; expected "
            f"that of {target.kind!r} with {sorted(target.slots)}; give a variable one optimizer "
            "in all phases"
        )
    for old, new in ((source.slots, target.slots), (source.shared, target.shared)):
        for name, variable in new.items():
            variable.assign(old[name])
