"""Whatever a run trains in, what it says of validation images is said in float32."""

import signal

import keras
import numpy as np
import pytest

from tl_research.trained import TrainedRun
from tl_research.training.evaluation import EvalStep
from tl_research.training.events import EpochEnded, PhaseEnded
from tl_research.training.features import LiveSource, Views

MIXED = ("mixed_bfloat16", "mixed_float16")


@pytest.fixture
def compare(train, request):
    """A function that trains in a precision; returns pairs of validation logits.

    One pair for each event of a kind: the run's, and those of the float32 network with the weights
    of that moment.
    """
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))

    def compare(precision, kind=EpochEnded, **settings):
        keras.config.set_dtype_policy(precision)
        pairs, validation = [], request.getfixturevalue("make_examples")(5, seed=1)

        def watch(classifier, event):
            if isinstance(event, kind):
                copy = classifier.in_float32()
                assert (copy is classifier) == (precision == "float32")
                copy.unfreeze(event.phase.unfreeze)
                source = LiveSource(copy, validation, copy.boundary(), Views(0, 0, False))
                pairs.append((event.logits, EvalStep(copy, source, 4)()))

        trained, _ = train(watch=watch, precision=precision, **settings)
        return trained, pairs

    return compare


@pytest.mark.parametrize("precision", MIXED)
def test_validation_logits_are_those_of_the_float32_network_bit_for_bit(compare, precision):
    trained, pairs = compare(precision)
    assert trained.classifier.compute_dtype == precision.removeprefix("mixed_")
    assert len(pairs) == 4
    for received, expected in pairs:
        np.testing.assert_array_equal(received, expected)


def test_averaged_weights_are_evaluated_in_float32_too(compare):
    _, pairs = compare("mixed_bfloat16", PhaseEnded, ema_decay=0.5)
    for received, expected in pairs:
        np.testing.assert_array_equal(received, expected)


def test_cached_features_of_a_later_phase_have_the_weights_of_the_one_before(compare):
    trained, pairs = compare(
        "mixed_bfloat16",
        unfreeze=("block2", "0%"),
        feature_cache="memory",
        learning_rate=(0.1, 0.1),
    )
    cache = trained.plan.cache
    assert (cache.plan.dtype, cache.plan.validation_dtype) == ("bfloat16", "float32")
    (numbers,) = {np.prod(shape) for shape in cache.plan.shapes}
    assert cache.plan.total_bytes == numbers * (10 * 2 + 5 * 4)
    for received, expected in pairs:
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_in_float32_there_is_one_network(compare):
    trained, _ = compare("float32")
    assert trained.plan.evaluated is trained.classifier


@pytest.mark.parametrize("settings", [{}, {"head_init": "lda", "epochs": (0, 0)}])
def test_exported_model_has_the_validation_loss_that_selected_it(run, tmp_path, settings):
    results = run("run", precision="mixed_bfloat16", learning_rate=(0.1, 1e-2), **settings)
    trained_run = TrainedRun(str(tmp_path / "run"))
    validation = trained_run.load_data().validation
    images = np.asarray(validation.images(range(len(validation))), np.float32)
    logits = trained_run.load_model().predict(images, verbose=0).astype(np.float64)
    ours = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -ours[np.arange(len(images)), validation.labels].mean()
    of_phase = {phase["name"]: phase for phase in results["phases"]}
    selected = of_phase.get(results["selected_phase"], results["head_start"])
    assert selected["val_loss"] == pytest.approx(loss, rel=1e-6)


def test_run_resumed_behind_what_a_phase_before_trained_ends_as_an_unbroken_one(
    run, broken, assert_equal_runs
):
    settings = {"precision": "mixed_bfloat16", "unfreeze": ("block2", "0%"), "steps_per_call": 2}
    run("unbroken", **settings)
    broken("broken", step=12, signal=signal.SIGTERM, **settings)
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")
