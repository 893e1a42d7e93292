"""Prepares a phase for training: unfrozen layers, optimizer, sources and compiled steps."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tl_research.config import Phase
from tl_research.models.classifier import num_parameters
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.training import audit
from tl_research.training.batch import first_arguments
from tl_research.training.evaluation import EvalStep
from tl_research.training.events import Observer, PhaseBegan, StepsCompiled
from tl_research.training.features import Source
from tl_research.training.plan import Plan
from tl_research.training.state import TrainState, timed
from tl_research.training.steps import TrainStep

# A live step takes a tenth of a second or more (`python benchmarks/throughput.py`): calls are
# cheap, and signals are answered soon.
_LIVE_STEPS_PER_CALL = 4
_CACHED_STEPS_PER_CALL = 16
# Limit for one call on a CPU, where more takes seconds (`python benchmarks/limits.py`); a signal
# waits for the end of the call.
_MULTIPLY_ADDS_PER_CALL = 1e11


class PhaseSetup(NamedTuple):
    """Everything that a phase trains with."""

    plan: Plan
    phase: Phase
    optimizer: GroupedOptimizer
    is_resumed: bool
    seconds: Callable[[], float]  # wall time of the phase so far, including earlier processes
    source: Source  # of the training images
    step: TrainStep
    evaluate: EvalStep
    steps_per_call: int
    num_steps: Any  # length of its schedule; a `tf.Variable` under --time_limit


def prepare(plan: Plan, index: int, state: TrainState, tell: Observer) -> PhaseSetup:
    """Returns a phase that is ready to train from the best weights so far, or to be resumed.

    Args:
        plan: What all phases share.
        index: Index of the phase.
        state: Changed in place: it gets the optimizer, and the progress of a new phase.
        tell: Tells observers.
    """
    start, phase, classifier = time.perf_counter(), plan.phase(index, state), plan.classifier
    opened, optimizer, is_resumed = _begin(plan, index, state)
    num_steps = plan.steps_per_epoch * phase.epochs
    began = PhaseBegan(
        phase=phase,
        step=state.position.global_step - state.position.phase_step,
        groups=optimizer.groups,
        num_layers=len(classifier.backbone.layers),
        open_layers=tuple(layer.name for layer in opened),
        first_unfrozen=next((layer.name for layer in opened if layer.trainable_variables), None),
        num_parameters=num_parameters(classifier.variables.values()),
    )
    tell(began)
    plan.update_evaluated()  # the frozen part that is made next keeps these weights
    with timed(state, "features"):
        boundary = classifier.boundary()
        source, validation = (plan.cache.source(side, boundary) for side in ("train", "validation"))
        validation.of_view(0)
        steps_per_call = _steps_per_call(plan, source)
        first = first_arguments(plan, source, state.position.epoch, steps_per_call)
    if plan.config.time_limit:  # the number is set once the steps are compiled
        num_steps = tf.Variable(num_steps, dtype=tf.int64)
    rate_at = schedules.make_schedule(phase, num_steps)
    before = state.progress.seconds
    compiling = time.perf_counter()
    with timed(state, "compile"):
        step, evaluate = _compiled(plan, optimizer, source, validation, rate_at, first)
    seconds = time.perf_counter() - compiling
    state.progress.compile_seconds += seconds
    tell(StepsCompiled(phase, began.step, seconds, plan.compiler.xla, step.graph))
    return PhaseSetup(
        plan=plan,
        phase=phase,
        optimizer=optimizer,
        is_resumed=is_resumed,
        seconds=lambda: before + time.perf_counter() - start,
        source=source,
        step=step,
        evaluate=evaluate,
        steps_per_call=steps_per_call,
        num_steps=num_steps,
    )


def _begin(plan, index, state):
    """Unfreezes a phase's layers and gives the state its optimizer.

    Returns:
        (layers, optimizer, whether the phase is resumed)
    """
    phase, classifier = plan.phases[index], plan.classifier
    opened = classifier.unfreeze(phase.unfreeze)
    state.past.joined = plan.joined(phase, state.past.joined)
    previous, optimizer = state.optimizer, plan.make_optimizer(state.past.joined)
    state.optimizer = optimizer
    if state.slots is not None:
        optimizer.load_state(state.slots)
        state.slots = None
        return opened, optimizer, True
    if state.weights.selected:
        classifier.assign(state.weights.selected, plan.saved_paths)
    state.begin_phase(index, audit.hash_variables(classifier.variables))
    if previous:
        optimizer.carry_over(previous)
    optimizer.restart_averages()  # from the weights that the previous phase selected
    return opened, optimizer, False


def _compiled(plan, optimizer, source, validation, rate_at, first):
    """Returns the compiled steps of training and evaluation."""
    make, compiler = plan.step_maker(optimizer, source, rate_at), plan.compiler
    step, xla = compiler.prepared(make, *first), compiler.xla
    evaluate = compiler.prepared(
        lambda xla: EvalStep(plan.evaluated, validation, plan.config.batch_size, xla)
    )
    if xla != compiler.xla:  # a resumed run would compile neither with XLA
        step = compiler.prepared(make, *first)
    return step, evaluate


def _steps_per_call(plan, source):
    """Returns the maximum number of steps in one call."""
    default = _CACHED_STEPS_PER_CALL if source.cached else _LIVE_STEPS_PER_CALL
    if source.cached and source.boundary == plan.classifier.head_boundary:
        default = plan.steps_per_epoch  # only the head trains: an epoch takes less than a second
    if not tf.config.get_visible_devices("GPU"):
        soon = _MULTIPLY_ADDS_PER_CALL / _multiply_adds_per_step(plan, source)
        default = max(1, min(default, int(soon)))
    per_call = min(plan.config.steps_per_call or default, plan.steps_per_epoch)
    return min(per_call, default) if source.streamed else per_call  # all of a call are in memory


def _multiply_adds_per_step(plan, source):
    """Returns the multiply-adds of a step: the forward pass, and twice the trainable part for the
    gradients of weights and inputs.
    """
    graph = plan.classifier.graph
    forward = graph.multiply_adds(source.stored, (graph.output,))
    trained = graph.multiply_adds(source.boundary, (graph.output,))
    return max(1, plan.config.batch_size * (forward + 2 * trained))
