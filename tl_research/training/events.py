"""The events that observers are told.

An observer is a function of one event. It is called after the event was counted, and returns
nothing: it cannot change the run. An exception in it ends the run with every finished step saved.
Each of several workers has its own observers, so they wait for no other worker.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tl_research.config import Phase
from tl_research.files import Json
from tl_research.optim.param_groups import ParamGroup


class HeadStarted(NamedTuple):
    """The head of a new run was solved in closed form and measured."""

    result: dict[str, float]  # `head_start` of `results.json`
    measured: tuple[str, ...]  # names of the metrics in it


class PhaseBegan(NamedTuple):
    """The layers of a phase are unfrozen; its features and steps come next."""

    phase: Phase
    step: int  # global step at which the phase began, even if it is resumed
    groups: tuple[ParamGroup, ...]
    num_layers: int  # of the backbone
    open_layers: tuple[str, ...]  # unfrozen layers of the backbone, from input to output
    first_unfrozen: str | None  # the first of them with variables to train
    num_parameters: int  # of the whole network


class StepsCompiled(NamedTuple):
    """The steps of a phase were traced and compiled."""

    phase: Phase
    step: int  # global step at which the phase began
    seconds: float
    xla: bool
    graph: Any  # `tf.Graph` of one step


class PhaseLaidOut(NamedTuple):
    """The number of epochs of a phase that fit into `--time_limit` was decided."""

    phase: Phase  # as requested
    epochs: int  # that it will have
    seconds: float  # the time limit


class CallEnded(NamedTuple):
    """A call of the compiled loop took steps."""

    phase: Phase
    step: int  # global, after the call
    epoch: int  # current epoch, counted over all phases from 1
    epoch_step: int  # steps done in the epoch
    steps_per_epoch: int
    groups: tuple[ParamGroup, ...]
    totals: dict[str, np.ndarray]  # what the call returned, see `StepLoop.__call__`
    skipped_steps: int  # in the whole run


class EpochEnded(NamedTuple):
    """An epoch was trained and evaluated."""

    phase: Phase
    row: Json  # of `metrics.csv`
    history: tuple[Json, ...]  # all rows, this one last
    measured: tuple[str, ...]  # names of the metrics in the row
    logits: np.ndarray  # float32 [N, K], validation logits
    is_best: bool  # of the phase so far
    is_first: bool  # of the phase
    selected: Json | None  # the best of earlier phases
    waited: float  # share of the training time spent waiting for data


class PhaseEnded(NamedTuple):
    """A phase was audited, and its best weights were restored and evaluated again."""

    phase: Phase
    step: int  # global
    result: Json  # its entry in `results.json`
    measured: tuple[str, ...]  # names of the metrics in it
    value: float  # of the selection metric, with its best weights
    logits: np.ndarray  # float32 [N, K], validation logits of its best weights
    kept: Json | None  # the best of earlier phases, if that is better


Event = (
    HeadStarted | PhaseBegan | StepsCompiled | PhaseLaidOut | CallEnded | EpochEnded | PhaseEnded
)
Observer = Callable[[Event], None]
