"""Updates worked out by hand, and PyTorch's trajectories."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research import errors
from tl_research.config import Config
from tl_research.optim import grouped_optimizer, param_groups

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "pytorch_param_groups.json").read_text()
)
NAMES = ("sgd", "adam", "adamw", "rmsprop", "lion")


def make_group(name, values, lr_multiplier=1.0):
    """Returns a ParamGroup of variables `<name>/0`, `<name>/1`, ... with these start values."""
    paths = tuple(f"{name}/{i}" for i in range(len(values)))
    return param_groups.ParamGroup(
        name, paths, tuple(keras.Variable(value) for value in values), lr_multiplier
    )


def values_of(group):
    return [variable.numpy() for variable in group.variables]


# Against Keras.


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_kernel_updates_as_keras_does(name):
    random = np.random.RandomState(0)
    values = [random.normal(size=shape).astype(np.float32) for shape in ((3, 4), (5,))]
    group = make_group("head", values)
    decay = {"weight_decay": 0.1} if name == "adamw" else {}
    ours = grouped_optimizer.GroupedOptimizer([group], Config(optimizer=name, **decay))
    theirs = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name](0.01, **decay)
    variables = [keras.Variable(value) for value in values]
    theirs.build(variables)
    for _ in range(20):
        gradients = [
            tf.constant(random.normal(size=value.shape) * 10 ** random.uniform(-6, 2), tf.float32)
            for value in values
        ]
        ours.apply(gradients, tf.constant(0.01))
        theirs.apply(gradients, variables)
    for value, expected in zip(values_of(group), variables):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    slots = {name: slot for name, slot in ours.state().items() if name.startswith("head/0/")}
    momentum, velocity = (
        next(slot for slot in theirs.variables if slot.name.endswith(name))
        for name in ("momentum", "velocity")
    )
    np.testing.assert_allclose(slots["head/0/momentum"], momentum, rtol=1e-5, atol=1e-12)
    # 1 - 0.999 in float32 is off by 1.3e-5.
    np.testing.assert_allclose(slots["head/0/velocity"], velocity, rtol=2e-5, atol=1e-12)


# Averages.


@pytest.mark.parametrize("name", NAMES)
def test_average_is_that_of_the_values_after_each_step(name):
    groups = [make_group("a", [[1.0, 2.0], [3.0]]), make_group("b", [[4.0]])]
    optimizer = grouped_optimizer.GroupedOptimizer(groups, Config(optimizer=name, ema_decay=0.75))
    plain = grouped_optimizer.GroupedOptimizer(
        [make_group("a", [[1.0, 2.0], [3.0]]), make_group("b", [[4.0]])], Config(optimizer=name)
    )
    gradients = [tf.constant([1.0, -2.0]), tf.constant([0.5]), tf.constant([-3.0])]
    expected = None
    for _ in range(3):
        optimizer.apply(gradients, tf.constant(0.1))
        plain.apply(gradients, tf.constant(0.1))
        values = [variable.numpy() for variable in optimizer.variables]
        expected = (
            values
            if expected is None
            else [0.75 * old + 0.25 * new for old, new in zip(expected, values)]
        )
        np.testing.assert_array_equal(
            np.concatenate(values),
            np.concatenate([variable.numpy() for variable in plain.variables]),
        )
    for average, value in zip(optimizer.averages().values(), expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-6, atol=1e-6)
    assert list(optimizer.averages()) == ["a/0", "a/1", "b/0"]
    assert plain.averages() == {}
    again = grouped_optimizer.GroupedOptimizer(groups, Config(optimizer=name, ema_decay=0.75))
    again.load_state(optimizer.state())
    np.testing.assert_array_equal(again.averages()["a/0"], optimizer.averages()["a/0"])
    again.restart_averages()
    np.testing.assert_array_equal(
        np.concatenate(list(again.averages().values())), np.concatenate(values)
    )


# Against PyTorch.


@pytest.mark.parametrize("case", ["sgd_momentum", "sgd_nesterov", "adam", "adamw"])
@pytest.mark.parametrize("clip", [False, True])
def test_trajectory_is_pytorchs_with_bottom_joining_half_way(case, clip):
    golden = GOLDEN["cases"][case + "_clip1" if clip else case]
    options = golden["options"]
    kwargs = {
        "weight_decay": options.get("weight_decay", 0.0),
        "momentum": options.get("momentum", 0.0),
        "nesterov": options.get("nesterov", False),
        "clip_norm": golden["clip_global_norm"] or 0.0,
    }
    rates = GOLDEN["learning_rates"]
    groups = {
        name: make_group(name, values, rates[name] / rates["head"])
        for name, values in GOLDEN["initial"].items()
    }
    expected = {entry["after_step"]: entry["values"] for entry in golden["trajectory"]}
    name = case.split("_")[0]

    def make_step(active):
        optimizer = grouped_optimizer.GroupedOptimizer(
            [groups[key] for key in active], Config(optimizer=name, **kwargs)
        )
        return optimizer, tf.function(optimizer.apply)

    active = ["top", "head"]
    optimizer, step = make_step(active)
    compared = 0
    for i, gradients in enumerate(GOLDEN["gradients"]):
        if i == GOLDEN["unfreeze_bottom_before_step"]:
            active = ["bottom", *active]
            previous = optimizer
            optimizer, step = make_step(active)
            optimizer.carry_over(previous)
        step(
            [tf.constant(value) for key in active for value in gradients[key]],
            tf.constant(rates["head"]),
        )
        for key, values in expected.get(i, {}).items():
            for value, reference in zip(values_of(groups[key]), values):
                np.testing.assert_allclose(
                    value, reference, rtol=2e-4, atol=1e-6, err_msg=f"{key} after step {i}"
                )
                compared += 1
    assert compared == 4 * 5  # after steps 0, 9, 10 and 19; five variables


# By hand.


def test_sgd_update_is_rate_times_multiplier_times_gradient():
    slow, fast = make_group("slow", [1.0], 0.5), make_group("fast", [1.0, [2.0, 3.0]], 2.0)
    optimizer = grouped_optimizer.GroupedOptimizer(
        [slow, fast], Config(optimizer="sgd", momentum=0.0)
    )
    optimizer.apply(
        [tf.constant(2.0), tf.constant(-1.0), tf.constant([1.0, 0.0])], tf.constant(0.1)
    )
    np.testing.assert_allclose(values_of(slow), [1 - 0.1 * 0.5 * 2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fast.variables[0], 1 + 0.1 * 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fast.variables[1], [2 - 0.1 * 2, 3.0], rtol=1e-6, atol=1e-6)


def test_multiplier_under_adam_scales_the_rate_not_the_gradient():
    # Adam's first step has length rate whatever the gradient's size, so a scaled gradient would
    # give 0.9 for all.
    groups = [make_group("slow", [1.0], 0.5), make_group("fast", [1.0])]
    optimizer = grouped_optimizer.GroupedOptimizer(groups, Config(optimizer="adam"))
    optimizer.apply([tf.constant(2.0), tf.constant(200.0)], tf.constant(0.1))
    np.testing.assert_allclose(
        values_of(groups[0]) + values_of(groups[1]), [0.95, 0.9], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_weight_decay_is_decoupled_and_scaled_by_the_groups_rate(name):
    group = make_group("slow", [1.0], 0.5)
    optimizer = grouped_optimizer.GroupedOptimizer(
        [group], Config(optimizer=name, weight_decay=0.2)
    )
    # rate 0.05; the first step of both has its length
    optimizer.apply([tf.constant(2.0)], tf.constant(0.1))
    np.testing.assert_allclose(values_of(group), [1 - 0.05 * 0.2 - 0.05], rtol=1e-6, atol=1e-6)


def test_lion_takes_the_sign_of_the_interpolated_momentum():
    # m1 = 0.01 * 1; then sign(0.9 * 0.01 + 0.1 * -0.05) = +1 against the gradient, sign(...
    # -0.2) = -1 with it.
    for second, expected in ((-0.05, 0.8), (-0.2, 1.0)):
        group = make_group("head", [1.0])
        optimizer = grouped_optimizer.GroupedOptimizer([group], Config(optimizer="lion"))
        optimizer.apply([tf.constant(1.0)], 0.1)
        optimizer.apply([tf.constant(second)], 0.1)
        np.testing.assert_allclose(values_of(group), [expected], rtol=1e-6, atol=1e-6)


def test_rmsprop_adds_epsilon_under_the_root():
    # Gradients so small that epsilon (1e-7) decides: PyTorch's sqrt(v) + epsilon would step ten
    # times as far.
    group = make_group("head", [1.0], 0.5)
    optimizer = grouped_optimizer.GroupedOptimizer([group], Config(optimizer="rmsprop"))
    weight, v = 1.0, 0.0
    for gradient in (1e-4, -3e-4, 2e-4):
        optimizer.apply([tf.constant(gradient)], tf.constant(0.1))
        v = 0.9 * v + 0.1 * gradient**2
        weight -= 0.1 * 0.5 * gradient / np.sqrt(v + 1e-7)
        np.testing.assert_allclose(values_of(group), [weight], rtol=1e-6, atol=0)


def test_clipping_uses_one_norm_over_all_groups():
    groups = [make_group("backbone", [0.0]), make_group("head", [0.0])]
    optimizer = grouped_optimizer.GroupedOptimizer(
        groups, Config(optimizer="sgd", momentum=0.0, clip_norm=1.0)
    )
    # norm 5: scaled by 1/5; per group both would become 1
    gradients = [tf.constant(3.0), tf.constant(-4.0)]
    optimizer.apply(gradients, tf.constant(1.0))
    np.testing.assert_allclose(
        values_of(groups[0]) + values_of(groups[1]), [-0.6, 0.8], rtol=1e-6, atol=1e-6
    )
    # norm 0.5: left as it is
    optimizer.apply([tf.constant(0.3), tf.constant(0.4)], tf.constant(1.0))
    np.testing.assert_allclose(
        values_of(groups[0]) + values_of(groups[1]), [-0.9, 0.4], rtol=1e-6, atol=1e-6
    )


def test_no_clipping_by_default():
    group = make_group("head", [0.0])
    grouped_optimizer.GroupedOptimizer([group], Config(optimizer="sgd", momentum=0.0)).apply(
        [tf.constant(30.0)], 1.0
    )
    np.testing.assert_allclose(values_of(group), [-30.0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, jit_compile", [*((name, False) for name in NAMES), ("adam", True)])
def test_one_trace_serves_every_rate_and_equals_eager(name, jit_compile):
    traced, eager = (
        [make_group("backbone", [[1.0, 2.0]], 0.1), make_group("head", [3.0])] for _ in range(2)
    )
    optimizers = [
        grouped_optimizer.GroupedOptimizer(groups, Config(optimizer=name, clip_norm=1.0))
        for groups in (traced, eager)
    ]
    traces = []

    @tf.function(jit_compile=jit_compile)
    def step(gradients, rate):
        traces.append(1)
        optimizers[0].apply(gradients, rate)

    for rate in (0.1, 0.2, 0.05):
        gradients = [tf.constant([3.0, -1.0]) * rate, tf.constant(2.0)]
        step(gradients, tf.constant(rate))
        optimizers[1].apply(gradients, tf.constant(rate))
    assert len(traces) == 1
    for group, reference in zip(traced, eager):
        np.testing.assert_allclose(values_of(group), values_of(reference), rtol=1e-6, atol=1e-6)
        assert optimizers[0].state()[f"{group.name}/iterations"] == 3


def test_gradients_must_match_variables():
    optimizer = grouped_optimizer.GroupedOptimizer(
        [make_group("head", [0.0, 1.0])], Config(optimizer="sgd")
    )
    with pytest.raises(errors.UserError, match="received 1 gradients.*2 variables"):
        optimizer.check([tf.constant(1.0)])
    with pytest.raises(errors.UserError, match="None for .*'head/1'.*freeze"):
        optimizer.check([tf.constant(1.0), None])
    optimizer.check([tf.constant(1.0), tf.constant(2.0)])


def test_variables_are_in_the_order_of_groups():
    groups = [make_group("backbone", [1.0, 2.0]), make_group("head", [3.0])]
    variables = grouped_optimizer.GroupedOptimizer(groups, Config(optimizer="adam")).variables
    np.testing.assert_allclose(
        [variable.numpy() for variable in variables], [1.0, 2.0, 3.0], rtol=1e-6, atol=1e-6
    )


# What is refused.


def test_groups_that_overlap():
    group = make_group("head", [0.0])
    with pytest.raises(ValueError, match=r"twice \['head', 'head/0'\]"):
        grouped_optimizer.GroupedOptimizer(
            [group, make_group("head", [0.0])], Config(optimizer="sgd")
        )
    other = param_groups.ParamGroup("other", group.paths, group.variables, 1.0)
    with pytest.raises(ValueError, match=r"twice \['head/0'\]"):
        grouped_optimizer.GroupedOptimizer([group, other], Config(optimizer="sgd"))


# What is saved.


def test_state_is_named_by_path_slot_and_group():
    optimizer = grouped_optimizer.GroupedOptimizer(
        [make_group("head", [1.0])], Config(optimizer="adam")
    )
    optimizer.apply([tf.constant(2.0)], 0.1)
    state = optimizer.state()
    assert {name: float(value) for name, value in state.items()} == pytest.approx(
        {"head/0/momentum": 0.2, "head/0/velocity": 0.004, "head/iterations": 1}, abs=1e-6
    )
    optimizer.apply([tf.constant(2.0)], 0.1)
    np.testing.assert_allclose(state["head/0/momentum"], 0.2, rtol=1e-6, atol=1e-6)  # a copy


@pytest.mark.parametrize("name", NAMES)
def test_restored_run_equals_an_unbroken_one(name):
    gradients = [
        [tf.constant([0.3, -2.0]), tf.constant([1.0, 0.1])],
        [tf.constant([-0.5, 1.0]), tf.constant([2.0, -0.2])],
    ]

    def make(values, reverse=False):
        group = make_group("head", values)
        if reverse:  # what decides is the path, not the position
            group = param_groups.ParamGroup("head", group.paths[::-1], group.variables[::-1], 1.0)
        return group, grouped_optimizer.GroupedOptimizer([group], Config(optimizer=name))

    group, optimizer = make([[1.0, 2.0], [3.0, 4.0]])
    optimizer.apply(gradients[0], 0.1)
    restored_group, restored = make(values_of(group), reverse=True)
    restored.load_state(optimizer.state())
    optimizer.apply(gradients[1], 0.1)
    restored.apply(gradients[1][::-1], 0.1)
    np.testing.assert_array_equal(values_of(group), values_of(restored_group)[::-1])
    assert optimizer.state().keys() == restored.state().keys()
    for key, value in optimizer.state().items():
        np.testing.assert_array_equal(value, restored.state()[key])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head/0/momentum": None}, r"head/0/momentum \(received nothing, expected float32\[2\]\)"),
        (
            {"head/9/momentum": np.zeros(2, "float32")},
            r"head/9/momentum \(received float32\[2\], expected nothing\)",
        ),
        (
            {"head/0/momentum": np.zeros(3, "float32")},
            r"received float32\[3\], expected float32\[2\]",
        ),
        ({"head/0/momentum": np.zeros(2)}, r"received float64\[2\], expected float32\[2\]"),
    ],
)
def test_state_that_does_not_fit_is_refused_whole(change, message):
    optimizer = grouped_optimizer.GroupedOptimizer(
        [make_group("head", [[1.0, 2.0]])], Config(optimizer="adam")
    )
    state = {key: value for key, value in (optimizer.state() | change).items() if value is not None}
    state["head/iterations"] = np.int64(7)
    with pytest.raises(errors.CheckpointError, match=message):
        optimizer.load_state(state)
    assert optimizer.state()["head/iterations"] == 0


# From phase to phase.


def _phase(variables, joined, previous=None, name="adam"):
    blocks = {path: (0, "block") for path in variables}
    groups = param_groups.make_param_groups(
        variables, blocks, list(variables), Config(), joined=joined
    )
    optimizer = grouped_optimizer.GroupedOptimizer(groups, Config(optimizer=name))
    if previous is not None:
        optimizer.carry_over(previous)
    return optimizer


def test_a_group_that_joins_later_has_its_own_step_count_and_the_first_step_of_adam():
    # Constant gradients: bias-corrected Adam moves by the rate in every step; with another step
    # count it does not.
    variables = {
        path: keras.Variable(1.0)
        for path in ("backbone/b/kernel", "head/kernel", "backbone/a/kernel")
    }
    joined = {"backbone/b/kernel": "one", "head/kernel": "one"}
    first = _phase({path: variables[path] for path in joined}, joined)
    for _ in range(3):
        first.apply([tf.constant(2.0)] * 2, 0.1)
    second = _phase(variables, joined | {"backbone/a/kernel": "two"}, first)
    assert {
        key: int(value) for key, value in second.state().items() if key.endswith("iterations")
    } == {"backbone/iterations": 3, "backbone@two/iterations": 0, "head/iterations": 3}
    np.testing.assert_allclose(
        second.state()["head/kernel/momentum"], 2 * (1 - 0.9**3), rtol=1e-6, atol=1e-6
    )
    second.apply([tf.constant(2.0)] * 3, 0.1)
    np.testing.assert_allclose(
        [variable.numpy() for variable in variables.values()], [0.6, 0.6, 0.9], rtol=1e-4, atol=1e-6
    )
    assert first.state()["head/iterations"] == 3


def test_different_step_counts_in_one_group_are_refused():
    variables = {path: keras.Variable(1.0) for path in ("backbone/b/kernel", "backbone/a/kernel")}
    first = _phase({"backbone/b/kernel": variables["backbone/b/kernel"]}, None)
    first.apply([tf.constant(2.0)], 0.1)
    with pytest.raises(ValueError, match=r"'backbone' have taken \[0, 1\] steps.*joined"):
        _phase(variables, None, first)


def test_another_kind_of_optimizer_is_refused():
    variables = {"head/kernel": keras.Variable(1.0)}
    with pytest.raises(
        errors.UserError, match="head/kernel: received the state of 'adam'.*expected that of 'sgd'"
    ):
        _phase(variables, None, _phase(variables, None), name="sgd")
