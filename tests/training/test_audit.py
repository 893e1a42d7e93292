"""The audit is exact: one changed bit is seen, and every kind of wrong movement is an error."""

import keras
import numpy as np
import pytest

from tl_research.config import Config
from tl_research.errors import AuditError
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import ParamGroup
from tl_research.training import audit

_PATHS = ("backbone/conv/kernel", "backbone/bn/gamma", "backbone/bn/moving_mean", "head/kernel")


def _variables():
    return {path: np.full((2, 3), i + 1.0, np.float32) for i, path in enumerate(_PATHS)}


def _audit(
    before, after, trainable=("head/kernel", "backbone/bn/gamma"), update=1.0, moved=(), **kwargs
):
    return audit.audit_phase(
        "finetune",
        audit.hash_variables(before),
        after,
        moved,
        {"backbone/bn/moving_mean"},
        {path: update for path in trainable},
        **kwargs,
    )


def _changed(*paths):
    variables = _variables()
    for path in paths:
        # the smallest change there is
        variables[path][1, 2] = np.nextafter(variables[path][1, 2], np.float32(9))
    return variables


def test_counts_of_a_right_phase():
    assert _audit(_variables(), _changed("head/kernel", "backbone/bn/gamma")) == {
        "trainable_changed": 2,
        "trainable_total": 2,
        "frozen_changed": 0,
        "frozen_total": 2,
        "batchnorm_stats_changed": 0,
    }


@pytest.mark.parametrize("moved", ["backbone/conv/kernel", "backbone/bn/moving_mean"])
def test_frozen_variable_that_moved_by_one_bit_is_named(moved):
    with pytest.raises(
        AuditError, match=f"audit of phase finetune failed: 1 frozen variables moved \\({moved}\\)"
    ) as error:
        _audit(_variables(), _changed("head/kernel", "backbone/bn/gamma", moved))
    assert error.value.exit_code == 4


def test_trainable_variable_that_did_not_move_is_named():
    with pytest.raises(AuditError, match=r"1 trainable variables did not \(backbone/bn/gamma\)"):
        _audit(_variables(), _changed("head/kernel"))


def test_trainable_variable_that_moved_and_is_back_where_it_was_has_moved():
    counts = _audit(_variables(), _changed("head/kernel"), moved=["backbone/bn/gamma"])
    assert counts["trainable_changed"] == counts["trainable_total"] == 2


def test_update_below_half_the_float_spacing_need_not_move_anything():
    spacing = float(np.spacing(np.float32(4)))  # of the largest weight, that of head/kernel
    counts = _audit(_variables(), _variables(), trainable=("head/kernel",), update=0.5 * spacing)
    assert counts["trainable_changed"] == 0 and counts["trainable_total"] == 1
    with pytest.raises(AuditError, match="did not"):
        _audit(_variables(), _variables(), trainable=("head/kernel",), update=0.6 * spacing)


def test_statistics_may_move_where_that_was_asked_for():
    after = _changed("head/kernel", "backbone/bn/gamma", "backbone/bn/moving_mean")
    counts = _audit(_variables(), after, statistics_may_move=True)
    assert counts["batchnorm_stats_changed"] == 1 and counts["frozen_changed"] == 0
    after["backbone/conv/kernel"] += 1
    with pytest.raises(AuditError, match="conv/kernel"):
        _audit(_variables(), after, statistics_may_move=True)


def test_hash_sees_dtype_shape_and_sign_of_zero():
    zeros = np.zeros(4, np.float32)
    different = [zeros, zeros.reshape(2, 2), zeros.view(np.int32), -zeros]
    assert len({audit.hash_variables({"x": array})["x"] for array in different}) == 4
    assert audit.hash_variables({"x": zeros}) == audit.hash_variables(
        {"x": np.zeros((4, 2), np.float32)[:, 0]}
    )


def test_weights_hash_is_over_names_and_contents_in_any_order():
    variables = _variables()
    whole = audit.weights_sha256(variables)
    assert whole == audit.weights_sha256(dict(reversed(variables.items()))) and len(whole) == 64
    assert whole != audit.weights_sha256(_changed("head/kernel"))
    renamed = dict(variables)
    renamed["head/bias"] = renamed.pop("head/kernel")
    assert whole != audit.weights_sha256(renamed)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sgd", 0.1 * 0.5 * 1.5),  # of gradients of norm 3 over 4 elements
        ("lion", 0.1 * 0.5),
        ("adam", 0.1 * 0.5 * 1.5 / (1.5 + 3.2e-6)),
        (keras.optimizers.Lamb, 0.1 * 0.5 * 0.01),
    ],
)
def test_largest_update_is_rate_times_what_the_optimizer_makes_of_the_gradient(name, expected):
    group = ParamGroup("head", ("head/bias",), (keras.Variable(np.ones(4, np.float32)),), 0.5)
    make = None if isinstance(name, str) else lambda group: name()
    optimizer = GroupedOptimizer(
        [group], Config(optimizer="sgd" if make else name), make_optimizer=make
    )
    updates = audit.largest_updates(optimizer, {"head/bias": 3.0}, 0.1)
    assert updates == {"head/bias": pytest.approx(expected, rel=1e-9)}
    assert audit.largest_updates(optimizer, {}, 0.1) == {"head/bias": 0.0}
