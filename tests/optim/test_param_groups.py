"""Which variable is in which group, at which multiplier, and what is refused."""

import keras
import pytest
import tensorflow as tf

from tl_research import errors
from tl_research.config import Config
from tl_research.optim import param_groups

# A backbone of three blocks, from input to output; `stem` is frozen below.
BLOCKS = {
    "backbone/stem_conv/kernel": (0, "stem"),
    "backbone/block1_conv/kernel": (1, "block1"),
    "backbone/block1_bn/gamma": (1, "block1"),
    "backbone/block2_conv/kernel": (2, "block2"),
}
ALL_PATHS = (*BLOCKS, "head/kernel", "head/bias")
# head first: the order of the groups is not the dict's
TRAINABLE = ("head/kernel", "head/bias", *ALL_PATHS[1:4])


def make(paths=TRAINABLE, joined=None, **settings):
    variables = {path: keras.Variable(0.0) for path in paths}
    config = Config(**settings)
    return param_groups.make_param_groups(variables, BLOCKS, ALL_PATHS, config, joined), variables


def summary(groups):
    return {group.name: (group.lr_multiplier, group.paths) for group in groups}


# What is made.


def test_backbone_and_head_by_default():
    groups, variables = make()
    assert summary(groups) == {"backbone": (1.0, ALL_PATHS[1:4]), "head": (1.0, ALL_PATHS[4:])}
    assert [group.name for group in groups] == ["backbone", "head"]
    for group in groups:
        for path, variable in zip(group.paths, group.variables):
            assert variable is variables[path]


def test_head_alone_is_one_group():
    assert [group.name for group in make(ALL_PATHS[4:])[0]] == ["head"]


def test_layer_decay_counts_blocks_from_the_output():
    groups, _ = make(layer_decay=0.5)
    assert [(group.name, group.lr_multiplier) for group in groups] == [
        ("backbone/block1", 0.25),
        ("backbone/block2", 0.5),
        ("head", 1.0),
    ]
    # the stem unfrozen: the other ones keep their rates
    groups, _ = make(ALL_PATHS, layer_decay=0.5)
    assert [group.lr_multiplier for group in groups] == [0.125, 0.25, 0.5, 1.0]
    # block2 is frozen yet counts
    groups, _ = make(("backbone/block1_bn/gamma", "head/bias"), layer_decay=0.5)
    assert [group.lr_multiplier for group in groups] == [0.25, 1.0]


def test_multiplier_is_the_product_and_a_pattern_makes_its_own_group():
    groups, _ = make(
        backbone_lr_multiplier=0.1,
        layer_decay=0.5,
        lr_multiplier=["_conv=3", "head/b(?=ias)=10"],
    )
    assert {group.name: group.lr_multiplier for group in groups} == pytest.approx(
        {
            "backbone/block1": 0.1 * 0.25,
            "backbone/block1[_conv]": 0.1 * 0.25 * 3,
            "backbone/block2[_conv]": 0.1 * 0.5 * 3,
            "head": 1.0,
            "head[head/b(?=ias)]": 10.0,  # split at the last `=`
        }
    )
    assert [group.name for group in groups][-2:] == ["head", "head[head/b(?=ias)]"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"layer_decay": 0.5},
        {"lr_multiplier": ["kernel=2", "bias|gamma=3"]},
        {"layer_decay": 0.9, "lr_multiplier": ["block=2"]},
    ],
)
def test_groups_are_disjoint_complete_and_uniquely_named(kwargs):
    groups, _ = make(**kwargs)
    assert sorted([path for group in groups for path in group.paths]) == sorted(TRAINABLE)
    assert len({group.name for group in groups}) == len(groups)


def test_a_pattern_may_concern_frozen_variables_only():
    groups, _ = make(lr_multiplier=["stem=0.5"])
    assert [group.name for group in groups] == ["backbone", "head"]


def test_variables_that_joined_later_stand_apart():
    joined = {
        "head/kernel": "head",
        "head/bias": "head",
        "backbone/block2_conv/kernel": "finetune",
        "backbone/block1_conv/kernel": "deeper",
        "backbone/block1_bn/gamma": "deeper",
    }
    groups, _ = make(joined=joined, backbone_lr_multiplier=0.1)
    assert summary(groups) == {
        "backbone": (0.1, ("backbone/block2_conv/kernel",)),
        "backbone@deeper": (
            0.1,
            ("backbone/block1_conv/kernel", "backbone/block1_bn/gamma"),
        ),
        "head": (1.0, ("head/kernel", "head/bias")),
    }


def test_names_come_back_unchanged_as_tensorboard_tags(tmp_path):
    joined = dict.fromkeys(TRAINABLE, "deeper") | {TRAINABLE[2]: "finetune"}
    groups, _ = make(layer_decay=0.5, lr_multiplier=[r"block\d_(conv|bn)/.*=2"], joined=joined)
    assert r"backbone/block1[block\d_(conv|bn)/.*]@finetune" in [group.name for group in groups]
    directory = str(tmp_path)
    with tf.summary.create_file_writer(directory).as_default():
        for group in groups:
            tf.summary.scalar(f"learning_rate/{group.name}", group.lr_multiplier, step=1)
    (file,) = tf.io.gfile.glob(f"{directory}/*")
    tags = [
        value.tag
        for record in tf.data.TFRecordDataset(file)
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    assert tags == [f"learning_rate/{group.name}" for group in groups]


# What is refused.


@pytest.mark.parametrize(
    "lr_multiplier, message",
    [
        (["blok2=0.5"], "'blok2' matches no variable; expected .*; did you mean block2[?]"),
        (["head/kernal=2"], "did you mean head/kernel[?]"),
        (["zzz=2"], "matches no variable.*use backbone/ for the whole backbone"),
        (["head=2", "kernel=3"], "'head/kernel' is matched by 'head' and by 'kernel'.*narrower"),
        (["stem=2", "conv=3"], "'backbone/stem_conv/kernel' is matched"),  # frozen, yet checked
        (["head=2", "head=2"], "is matched by"),
        (["he(ad=2"], r"'he\(ad'; expected a regular expression \(.*\); put a backslash"),
        (["head"], "no pattern; expected REGEX=VALUE"),
        (["=2"], "no pattern; expected REGEX=VALUE"),
        (["head=fast"], "'fast'; expected REGEX=VALUE with a finite number > 0"),
        (["head=0"], "multiplier of 0; .*; use --unfreeze to freeze instead"),
        (["head=-1"], "finite number > 0"),
        (["head=nan"], "finite number > 0"),
        (["head=inf"], "finite number > 0"),
    ],
)
def test_lr_multiplier(lr_multiplier, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        make(lr_multiplier=lr_multiplier)
    assert str(caught.value).startswith(f"--lr_multiplier={lr_multiplier[-1]}: ")
    assert "\n" not in str(caught.value)


def test_path_outside_backbone_and_head():
    with pytest.raises(ValueError, match="'neck/kernel'. Expected backbone/"):
        make(["neck/kernel"])


def test_backbone_variable_without_a_block():
    with pytest.raises(ValueError, match="'backbone/lost/kernel' is in no block"):
        make(["backbone/lost/kernel"], layer_decay=0.5)


def test_variable_without_a_joining_phase():
    with pytest.raises(ValueError, match="'head/bias' has no joining phase"):
        make(joined={"head/kernel": "head"})
