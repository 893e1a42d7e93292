"""Optimizers of the user's: all of Keras' are updated, resumed and carried over to the bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups

_BY_NAME = keras.optimizers
_MAKE = {
    "SGD": _BY_NAME.SGD,
    "SGD momentum": lambda: _BY_NAME.SGD(momentum=0.9),
    "SGD nesterov": lambda: _BY_NAME.SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": _BY_NAME.Adam,
    "Adam amsgrad": lambda: _BY_NAME.Adam(amsgrad=True, epsilon=1e-3),
    "AdamW": _BY_NAME.AdamW,
    "Nadam": _BY_NAME.Nadam,
    "Adamax": _BY_NAME.Adamax,
    "Adagrad": _BY_NAME.Adagrad,
    "Adadelta": _BY_NAME.Adadelta,
    "RMSprop": _BY_NAME.RMSprop,
    "RMSprop momentum": lambda: _BY_NAME.RMSprop(momentum=0.5),
    "RMSprop centered": lambda: _BY_NAME.RMSprop(momentum=0.5, centered=True),
    "Ftrl": _BY_NAME.Ftrl,
    "Lion": _BY_NAME.Lion,
    "Lamb": _BY_NAME.Lamb,
    "Muon": _BY_NAME.Muon,
    "Adafactor": _BY_NAME.Adafactor,
    "ScheduleFreeAdamW": _BY_NAME.ScheduleFreeAdamW,
}
_SHAPES = {
    "head/kernel": (3, 4),
    "head/bias": (4,),
    "backbone/a/kernel": (2, 2, 3, 4),
    "backbone/a/bias": (4,),
}
_HEAD = ("head/kernel", "head/bias")
_RATE = 0.01


def _weights(paths):
    draw = np.random.RandomState(0)
    values = {path: draw.normal(size=shape) for path, shape in _SHAPES.items()}
    return {path: keras.Variable(values[path].astype(np.float32)) for path in paths}


def _optimizer(weights, make, **kwargs):
    """Returns the optimizer of all `weights`; what is not the head's joined in a later phase."""
    joined = {path: "head" if path in _HEAD else "finetune" for path in weights}
    blocks = {path: (0, "a") for path in _SHAPES}
    groups = make_param_groups(
        weights, blocks, list(_SHAPES), Config(backbone_lr_multiplier=0.5), joined=joined
    )
    return GroupedOptimizer(groups, Config(optimizer="adam", **kwargs), make_optimizer=make)


def _train(optimizer, first, last):
    """Takes the steps from `first` up to `last`; the gradients of each are functions of it."""
    for step in range(first, last):
        gradients = []
        for path in [path for group in optimizer.groups for path in group.paths]:
            draw = np.random.RandomState(100 * step + list(_SHAPES).index(path))
            gradients.append(tf.constant(draw.normal(size=_SHAPES[path]), tf.float32))
        optimizer.apply(gradients, tf.constant(_RATE))


def _resumed(optimizer, weights, make):
    """Returns what another process has after it loaded the state: (optimizer, weights)."""
    values = {path: variable.numpy() for path, variable in weights.items()}
    again = {path: keras.Variable(value) for path, value in values.items()}
    restored = _optimizer(again, make)
    restored.load_state(optimizer.state())
    return restored, again


def _assert_equal(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_every_optimizer_of_keras_is_tried_here():
    names = {
        name
        for name, value in vars(_BY_NAME).items()
        if isinstance(value, type) and issubclass(value, _BY_NAME.Optimizer)
    }
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}  # refused below
    assert names - wrappers == {name.split()[0] for name in _MAKE}


@pytest.mark.parametrize("name", _MAKE)
def test_run_that_is_resumed_in_each_phase_equals_the_unbroken_one(name):
    def make(group):
        return _MAKE[name]()

    ends = []
    for is_broken in (False, True):
        weights = _weights(_HEAD)
        optimizer = _optimizer(weights, make)
        _train(optimizer, 0, 2)
        if is_broken:
            optimizer, weights = _resumed(optimizer, weights, make)
        _train(optimizer, 2, 3)
        before, weights = optimizer, {**weights, **_weights(_SHAPES.keys() - set(_HEAD))}
        optimizer = _optimizer(weights, make)
        optimizer.carry_over(before)
        _train(optimizer, 3, 5)
        if is_broken:
            optimizer, weights = _resumed(optimizer, weights, make)
        _train(optimizer, 5, 6)
        values = {path: variable.numpy() for path, variable in weights.items()}
        ends.append({**optimizer.state(), **values})
    _assert_equal(*ends)
    assert (ends[0]["head/iterations"], ends[0]["backbone/iterations"]) == (6, 3)
    weights = _weights(_HEAD)
    straight = _optimizer(weights, make)  # the group that went on, without a change of phase
    _train(straight, 0, 6)
    values = {path: variable.numpy() for path, variable in weights.items()}
    alone = {**straight.state(), **values}
    _assert_equal(alone, {key: value for key, value in ends[0].items() if key in alone})


@pytest.mark.parametrize("name", _MAKE)
def test_state_has_every_variable_and_updates_are_kerass_own_at_the_groups_rate(name):
    weights, plain = _weights(_SHAPES), _weights(_SHAPES)
    optimizer = _optimizer(weights, lambda group: _MAKE[name]())
    assert [(group.name, group.lr_multiplier) for group in optimizer.groups] == [
        ("backbone", 0.5),
        ("head", 1.0),
    ]
    _train(optimizer, 0, 3)
    count = 0
    for group in optimizer.groups:
        theirs, variables = _MAKE[name](), [plain[path] for path in group.paths]
        theirs.learning_rate = _RATE * group.lr_multiplier
        theirs.build(variables)
        for step in range(3):
            gradients = []
            for path in group.paths:
                draw = np.random.RandomState(100 * step + list(_SHAPES).index(path))
                gradients.append(tf.constant(draw.normal(size=_SHAPES[path]), tf.float32))
            theirs.apply(gradients)
        count += len(theirs.variables) - 1  # all but the rate
    assert len(optimizer.state()) == count
    for path, variable in plain.items():
        np.testing.assert_array_equal(weights[path], variable, err_msg=path)


def test_what_all_variables_share_is_saved_under_the_groups_name():
    optimizer = _optimizer(_weights(_HEAD), lambda group: keras.optimizers.Nadam())
    _train(optimizer, 0, 2)
    # The product of beta_1 (1 - 0.96^t / 2) over the steps, Dozat 2016.
    expected = 0.9**2 * (1 - 0.96 / 2) * (1 - 0.96**2 / 2)
    np.testing.assert_allclose(optimizer.state()["head/u_product"], expected, rtol=1e-6)


# Several optimizers in one group.


def _muon_for_matrices(group):
    muon = keras.optimizers.Muon()
    pairs = zip(group.paths, group.variables)
    return {path: muon for path, variable in pairs if len(variable.shape) == 2}


def test_group_is_divided_by_its_variables_optimizers():
    optimizer = _optimizer(_weights(_SHAPES), _muon_for_matrices)
    found = {
        group.name: (kind, group.paths, group.lr_multiplier)
        for group, kind in zip(optimizer.groups, optimizer.kinds)
    }
    assert found == {
        "backbone": ("adam", ("backbone/a/kernel", "backbone/a/bias"), 0.5),
        "head[Muon]": ("Muon", ("head/kernel",), 1.0),
        "head": ("adam", ("head/bias",), 1.0),
    }
    assert [tuple(variable.shape) for variable in optimizer.variables] == [
        (2, 2, 3, 4),
        (4,),
        (3, 4),
        (4,),
    ]
    names = {name for name in optimizer.state() if name.startswith("head")}
    assert names == {
        "head/kernel/momentum",
        "head/bias/momentum",
        "head/bias/velocity",
        "head[Muon]/iterations",
        "head/iterations",
    }


def test_two_of_one_class_in_a_group_have_two_names():
    def make(group):
        decayed, free = keras.optimizers.AdamW(), keras.optimizers.AdamW(weight_decay=0.0)
        return {"head/kernel": decayed, "head/bias": free}

    optimizer = _optimizer(_weights(_HEAD), make)
    assert [group.name for group in optimizer.groups] == ["head[AdamW]", "head[AdamW 2]"]
    bias = optimizer.variables[1].numpy()
    optimizer.apply([tf.zeros((3, 4)), tf.zeros(4)], tf.constant(0.1))
    np.testing.assert_array_equal(optimizer.variables[1], bias)
    expected = _weights(_HEAD)["head/kernel"].numpy() * (1 - 0.1 * 0.004)
    np.testing.assert_allclose(optimizer.variables[0], expected, rtol=1e-6)


def test_clipping_and_averages_are_over_all_optimizers_as_one():
    weights = _weights(_HEAD)
    before = {path: variable.numpy() for path, variable in weights.items()}

    def make(group):
        return {"head/kernel": keras.optimizers.SGD(), "head/bias": keras.optimizers.SGD()}

    optimizer = _optimizer(weights, make, clip_norm=1.0, ema_decay=0.5)
    # norm 4: 12 times 1^2 and 4 times 1^2
    optimizer.apply([tf.ones((3, 4)), tf.ones(4)], tf.constant(0.1))
    for path, value in before.items():
        np.testing.assert_allclose(weights[path], value - 0.1 / 4, rtol=1e-6)
        np.testing.assert_array_equal(optimizer.averages()[path], weights[path])


# What is refused.


class _Dict(keras.optimizers.SGD):
    """Keeps its slots where nobody can tell whose they are."""

    def build(self, variables):
        super().build(variables)
        self.slots = {"first": self.add_variable_from_reference(variables[0], "extra")}


class _Raw(keras.optimizers.SGD):
    def build(self, variables):
        super().build(variables)
        self.counts = [tf.Variable(0.0, name="count"), tf.Variable(0.0), tf.Variable(0.0)]


_SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 10)
_REFUSED = {
    "not an optimizer": (lambda group: "muon", r"received 'muon'; expected a Keras optimizer"),
    "a list": (lambda group: [keras.optimizers.SGD()], "expected a Keras optimizer"),
    "loss scale": (
        lambda group: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        "expected a Keras optimizer that is not a wrapper",
    ),
    "several": (
        lambda group: keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(keras.optimizers.SGD())
        ),
        "expected a Keras optimizer that is not a wrapper; return one, {path: optimizer}, or None",
    ),
    "schedule": (lambda group: keras.optimizers.SGD(_SCHEDULE), "use --lr_schedule"),
    "callable rate": (lambda group: keras.optimizers.SGD(lambda: 0.1), "use --lr_schedule"),
    "clipnorm": (lambda group: keras.optimizers.SGD(clipnorm=1.0), "clipnorm=1.0; .*--clip_norm"),
    "clipvalue": (lambda group: keras.optimizers.SGD(clipvalue=1.0), "use --clip_norm"),
    "global_clipnorm": (lambda group: keras.optimizers.SGD(global_clipnorm=1.0), "--clip_norm"),
    "use_ema": (lambda group: keras.optimizers.SGD(use_ema=True), "use --ema_decay"),
    "loss_scale_factor": (lambda group: keras.optimizers.SGD(loss_scale_factor=2.0), "--precision"),
    "accumulation": (
        lambda group: keras.optimizers.SGD(gradient_accumulation_steps=2),
        "gradient_accumulation_steps=2; .*use examples/gradient_accumulation.py",
    ),
    "unknown path": (
        lambda group: {"head/kernl": keras.optimizers.SGD()},
        "'head/kernl' is not a variable of the group; .*did you mean head/kernel",
    ),
    "slots in a dict": (lambda group: _Dict(), r"_Dict holds 1 variables .*\(head_kernel_extra\)"),
    "slots of TensorFlow": (lambda group: _Raw(), r"_Raw holds 3 variables .*\(count:0, "),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_cannot_be_used_is_one_line(case):
    make, message = _REFUSED[case]
    weights = {
        path: keras.Variable(np.ones(4, np.float32), name=path.replace("/", "_")) for path in _HEAD
    }
    with pytest.raises(UserError, match=message) as error:
        _optimizer(weights, make)
    assert str(error.value).startswith("make_optimizer(head): ")
    assert "\n" not in str(error.value)


def test_one_optimizer_for_two_groups_is_refused():
    optimizer = keras.optimizers.SGD()
    with pytest.raises(UserError, match=r"make_optimizer\(head\): .*make it inside the function"):
        _optimizer(_weights(_SHAPES), lambda group: optimizer)


def test_variable_keeps_its_optimizer_in_all_phases():
    before = _optimizer(_weights(_HEAD), lambda group: keras.optimizers.SGD())
    for after in (keras.optimizers.Lion, lambda: keras.optimizers.SGD(momentum=0.9)):
        optimizer = _optimizer(_weights(_HEAD), lambda group, after=after: after())
        with pytest.raises(UserError, match="head/kernel: received the state of 'SGD' with"):
            optimizer.carry_over(before)
