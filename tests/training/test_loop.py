"""The loop: what a phase carries over and proves, what ends it, and what of its settings changes no
weight.
"""

import glob

import numpy as np
import pytest
import tensorflow as tf

from tl_research.errors import AuditError, NonFiniteError, OutOfMemoryError
from tl_research.run import checkpoints
from tl_research.training import audit, evaluation, phase
from tl_research.training.events import CallEnded, EpochEnded
from tl_research.training.step_loop import StepLoop


def test_group_that_goes_on_keeps_its_state_and_a_new_one_starts_from_zero(train, monkeypatch):
    saved, save = [], checkpoints.save

    def spy(directory, state, arrays):
        saved.append(
            (state["phase_index"], {name: np.array(array) for name, array in arrays.items()})
        )
        save(directory, state, arrays)

    monkeypatch.setattr(checkpoints, "save", spy)
    train([0.5, 0.4, 0.3, 0.2])
    end_of_head = [arrays for phase, arrays in saved if phase == 0][-1]
    start_of_finetune, end_of_finetune = [arrays for phase, arrays in saved if phase == 1][::2]
    slots = [name for name in end_of_head if name.startswith("optimizer/head/")]
    assert len(slots) == 5  # two moments of kernel and bias, and the step count
    for name in slots:
        np.testing.assert_array_equal(start_of_finetune[name], end_of_head[name])
    assert start_of_finetune["optimizer/head/iterations"] == 6
    assert end_of_finetune["optimizer/head/iterations"] == 12
    backbone = [name for name in start_of_finetune if name.startswith("optimizer/backbone")]
    assert len(backbone) == 5 and all((start_of_finetune[name] == 0).all() for name in backbone)
    (count,) = [name for name in backbone if name.endswith("/iterations")]
    assert end_of_finetune[count] == 6


def test_phases_report_what_they_did(train):
    trained, _ = train()
    head, finetune = trained.state.past.finished
    total = sum(int(np.prod(v.shape)) for v in trained.classifier.variables.values())
    # 10 x 3 + 3
    assert (head["trainable_parameters"], head["frozen_parameters"]) == (33, total - 33)
    assert finetune["trainable_parameters"] == 33 + 8 * 10 + 10
    assert head["traces"] == finetune["traces"] == 1
    count = len(trained.classifier.variables)
    assert head["audit"] == {
        "trainable_changed": 2,
        "trainable_total": 2,
        "frozen_changed": 0,
        "frozen_total": count - 2,
        "batchnorm_stats_changed": 0,
    }
    assert finetune["audit"]["trainable_changed"] == finetune["audit"]["trainable_total"] == 4
    for result in (head, finetune):
        assert result["images_per_second"] > 0 and result["seconds"] > 0


@pytest.mark.parametrize("path", ["backbone/block1_conv/kernel", "backbone/block2_bn/moving_mean"])
def test_frozen_variable_that_moves_in_a_phase_fails_its_audit(train, path):
    def disturb(classifier, event):
        if isinstance(event, EpochEnded):
            variable = classifier.variables[path]
            variable.assign(np.nextafter(variable.numpy(), np.float32(99)))

    with pytest.raises(AuditError, match=path):
        train(watch=disturb)


def test_audit_looks_at_the_last_step_and_not_at_the_restored_weights(train, monkeypatch):
    """The best epoch of a phase may be weights that hardly moved.

    The audit is about what the steps did.
    """
    hashes, original = [], audit.audit_phase

    def spy(phase, before, variables, *args, **kwargs):
        hashes.append(audit.weights_sha256(variables))
        return original(phase, before, variables, *args, **kwargs)

    monkeypatch.setattr(audit, "audit_phase", spy)
    _, epochs = train([0.1, 0.5, 0.6, 0.7])
    assert hashes == [audit.weights_sha256(epochs[1]), audit.weights_sha256(epochs[3])]


# What ends a run.


def test_loss_that_is_not_finite_ends_the_run_with_the_step(train):
    def spoil(classifier):
        classifier.variables["head/bias"].assign([0.0, np.inf, 0.0])

    with pytest.raises(
        NonFiniteError,
        match=(
            "non-finite .* at phase head step 1; .*the update was not applied and the last good "
            "checkpoint is step-00000000;"
        ),
    ) as error:
        train(change=spoil)
    assert error.value.exit_code == 5


def test_overflow_at_every_loss_scale_ends_the_run(train, float16):
    def poke(classifier):
        # more than float16 holds
        classifier.variables["backbone/block3_conv/bias"].assign(np.full(10, 1e6, np.float32))

    with pytest.raises(
        NonFiniteError,
        match=(
            "20 steps in a row had gradients that are not finite in float16, the last at phase "
            "head step 20, loss scale 1; .* last good checkpoint is step-00000018"
        ),
    ) as error:
        train(change=poke, epochs=(9, 1))
    assert error.value.exit_code == 5


def test_out_of_memory_names_the_batch_size_to_try(train, monkeypatch):
    def exhaust(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(StepLoop, "__call__", exhaust)
    with pytest.raises(
        OutOfMemoryError, match="out of memory in phase head at batch_size 4.*--batch_size=2"
    ) as error:
        train()
    assert error.value.exit_code == 10


def test_out_of_memory_elsewhere_names_it_too(train, monkeypatch):
    monkeypatch.setattr(evaluation.EvalStep, "__call__", lambda step: bytearray(1 << 62))
    with pytest.raises(
        OutOfMemoryError,
        match="out of memory in phase head at batch_size 1.*try a smaller --image_size",
    ):
        train(batch_size=1)


# What changes no weight.


def test_number_of_steps_in_a_call_changes_no_weight(train):
    first, _ = train()  # calls of 3 steps, which is an epoch
    second, _ = train(steps_per_call=2)
    assert audit.weights_sha256(first.classifier.variables) == audit.weights_sha256(
        second.classifier.variables
    )


def test_call_of_large_steps_is_short_and_changes_no_weight(train, monkeypatch):
    calls = []

    def watch(classifier, event):
        if isinstance(event, CallEnded):
            calls.append(event.step)

    first, _ = train(watch=watch)
    assert calls == [3, 6, 9, 12]
    calls.clear()
    monkeypatch.setattr(phase, "_MULTIPLY_ADDS_PER_CALL", 1)
    second, _ = train(watch=watch)
    assert calls == list(range(1, 13))
    assert audit.weights_sha256(first.classifier.variables) == audit.weights_sha256(
        second.classifier.variables
    )


def test_profiled_steps_run_one_at_a_time_and_change_no_weight(train):
    first, _ = train()
    second, _ = train(profile_steps="4:6")
    assert audit.weights_sha256(first.classifier.variables) == audit.weights_sha256(
        second.classifier.variables
    )
    assert glob.glob(second.directory.file("train", "plugins", "profile", "*", "*.xplane.pb"))


def test_averages_are_evaluated_and_kept_and_training_goes_on_from_the_weights(run, train):
    trained, epochs = train(
        ema_decay=0.5, epochs=(1, 0), unfreeze=("0%", "0%"), optimizer="sgd", momentum=0.0
    )
    averages = trained.state.optimizer.averages()
    assert set(averages) == {"head/kernel", "head/bias"}
    for path, average in averages.items():
        # what the run ends with
        np.testing.assert_array_equal(trained.classifier.variables[path], average)
        assert (epochs[0][path] != average).any()  # `epochs` has the weights as they were trained
    other, plain = train(epochs=(1, 0), unfreeze=("0%", "0%"), optimizer="sgd", momentum=0.0)
    np.testing.assert_array_equal(plain[0]["head/kernel"], epochs[0]["head/kernel"])


def test_images_decoded_again_every_epoch_train_the_same_weights(run):
    assert run("memory")["weights_sha256"] == run("streamed", cache_pixels=0)["weights_sha256"]


def test_cached_views_train_as_the_same_views_live(run, metrics):
    cached = run("cached", augment_views=2)
    live = run("live", augment_views=2, feature_cache="off")
    assert cached["feature_cache"] == "memory" and live["feature_cache"] == "off"
    for one, other in zip(
        metrics("cached"),
        metrics("live"),
        strict=True,
    ):
        np.testing.assert_allclose(float(one["train_loss"]), float(other["train_loss"]), rtol=1e-5)
        np.testing.assert_allclose(float(one["val_loss"]), float(other["val_loss"]), rtol=1e-4)


def test_checkpoints_are_due_by_time_too(train, monkeypatch):
    saved, save = [], checkpoints.save
    monkeypatch.setattr(
        checkpoints,
        "save",
        lambda directory, state, arrays: (
            saved.append(state["global_step"]),
            save(directory, state, arrays),
        ),
    )
    train(steps_per_call=1, epochs=(2, 0), checkpoint_every_seconds=1e-9)
    assert saved == [0, 1, 2, 3, 4, 5, 6]  # 3 is an epoch's end, and saved once
    saved.clear()
    train(steps_per_call=1, epochs=(2, 0), checkpoint_every_seconds=1e9)
    assert saved == [0, 3, 6]
