"""What observers are told.

An observer is a function of one event. It is told after what it hears of was done and counted, and
never answers: nothing that it does changes the run. What it raises ends the run with every finished
step saved. Of several workers each has its own observers, so they wait for nobody.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tl_research.config import Phase
from tl_research.optim.param_groups import ParamGroup


@dataclasses.dataclass(frozen=True, eq=False)
class HeadStarted:
    """The head of a new run was solved in closed form, and measured."""

    result: dict[str, float]  # `head_start` of `results.json`
    measured: tuple[str, ...]  # names of the metrics in it


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseBegan:
    """The layers of a phase are open; its features and steps are next."""

    phase: Phase
    step: int  # global, at its beginning, also where it is resumed
    groups: tuple[ParamGroup, ...]
    num_layers: int  # of the backbone
    open_layers: tuple[str, ...]  # of these, from input to output
    first_unfrozen: str | None  # of these, the first that has something to train
    num_parameters: int  # of the whole network
    num_steps: int  # of the whole phase, if it is not stopped early


@dataclasses.dataclass(frozen=True, eq=False)
class StepsCompiled:
    """The steps of a phase were traced and compiled."""

    phase: Phase
    step: int  # global, at the beginning of the phase
    seconds: float
    xla: bool
    graph: Any  # `tf.Graph` of one step


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseLaidOut:
    """It was decided how many epochs of a phase `--time_limit` leaves room for."""

    phase: Phase  # as it was asked for
    epochs: int  # that it will have
    seconds: float  # the limit


@dataclasses.dataclass(frozen=True, eq=False)
class CallEnded:
    """A call of the compiled loop took steps."""

    phase: Phase
    step: int  # global, after the call
    epoch: int  # that it is part of, counted over all phases from 1
    epoch_step: int  # steps done in the epoch
    steps_per_epoch: int
    groups: tuple[ParamGroup, ...]
    totals: dict[str, np.ndarray]  # what the call returned, see `StepLoop.__call__`
    skipped_steps: int  # in all
    seconds: float  # that the call took, reading included
    waited: float  # of these, for images or features


@dataclasses.dataclass(frozen=True, eq=False)
class EpochEnded:
    """An epoch was trained and evaluated."""

    phase: Phase
    row: dict[str, Any]  # of `metrics.csv`
    history: tuple[dict[str, Any], ...]  # all rows, this one last
    measured: tuple[str, ...]  # names of the metrics in the row
    logits: np.ndarray  # float32 [N, K] of the validation images
    is_best: bool  # of the phase so far
    is_first: bool  # of the phase
    selected: dict[str, Any] | None  # best of the phases before
    waited: float  # share of the training time that was spent waiting for data


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseEnded:
    """A phase was audited, and its best weights restored and evaluated again."""

    phase: Phase
    step: int  # global
    groups: tuple[ParamGroup, ...]
    result: dict[str, Any]  # its entry in `results.json`
    measured: tuple[str, ...]  # names of the metrics in it
    value: float  # of its best weights, in what is selected by
    logits: np.ndarray  # float32 [N, K] of the validation images, by its best weights
    kept: dict[str, Any] | None  # best of the phases before, if that is better


Event = (
    HeadStarted | PhaseBegan | StepsCompiled | PhaseLaidOut | CallEnded | EpochEnded | PhaseEnded
)
Observer = Callable[[Event], None]
