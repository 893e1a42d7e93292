"""The plan of a run: which features it keeps, what it says, and what it refuses before its first
step.
"""

import re
import types

import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.reporting.plan_text import describe_cache, describe_run
from tl_research.training import audit
from tl_research.training.feature_cache import FeatureCache
from tl_research.training.features import make_views
from tl_research.training.step_loop import StepLoop


def test_plan_of_the_cache_comes_from_sizes(train):
    trained, _ = train(epochs=(0, 0))
    shared = trained.plan

    def plan(**settings):
        config = Config(
            **{"dataset": "drawn_flowers", "image_size": 16, "epochs": (2, 2), **settings}
        )
        boundary = ("block2_relu",)  # before block3, the cheapest
        run = types.SimpleNamespace(
            config=config,
            classifier=trained.classifier,
            evaluated=trained.classifier,
            train=shared.train,
            validation=shared.validation,
        )
        cache = FeatureCache(run, boundary, "nowhere", make_views(config, {}))
        return describe_cache(cache.plan), cache.plan.place, cache.plan

    text, used, _ = plan(augment_views=0)
    assert used == "off" and "since every epoch has a new view; validation cached" in text
    text, used, sizes = plan(augment_views=2)
    assert used == "memory" and "2 views" in text
    # 4 x 4 x 8 numbers of 4 bytes; 2 views of 10 images, and 5 for validation
    assert sizes.shapes == ((4, 4, 8),) and sizes.image_bytes == 512
    assert sizes.total_bytes == 25 * 512
    assert plan(augment_views=2, cache_bytes=1000)[1] == "off"
    assert plan(augment_views=2, feature_cache="off")[:2] == (
        "cache: off (--feature_cache=off)",
        "off",
    )
    # each view would be used once, unless the images as they are, the first, are read anyway
    assert plan(augment_views=4, data_audit="off")[1] == "off"
    assert plan(augment_views=4)[1] == "memory"
    assert plan(augment_views=4, data_audit="off", head_init="lda")[1] == "memory"
    assert plan(augment="none")[1] == "memory"
    # asked for, though it does not pay
    assert plan(augment_views=4, feature_cache="memory")[1] == "memory"
    with pytest.raises(
        UserError,
        match="--feature_cache=memory: 2 views of .* need 0.0 GiB and --cache_bytes allows 0.0",
    ):
        plan(augment_views=2, feature_cache="memory", cache_bytes=1000)
    text, used, _ = plan(augment_views=2, feature_cache="disk", cache_bytes=1000)
    assert used == "disk" and text.endswith("GiB on disk")
    text, _, halved = plan(augment_views=2, cache_dtype="float16")
    assert "float16" in text and halved.image_bytes == 256


def test_more_features_than_memory_is_free_are_said(train):
    trained, _ = train(epochs=(0, 0), feature_cache="memory")
    fits = trained.plan.cache.plan
    assert "free" not in describe_cache(fits)
    said = describe_cache(fits._replace(total_bytes=2**60))
    (free,) = re.findall(r", more than the ([\d.]+) GiB of free memory$", said)
    assert 2**-10 < float(free) < 2**20


def _said(trained):
    """Returns the lines of a plan."""
    data = types.SimpleNamespace(
        classes=("a", "b", "c"),
        train=trained.plan.train,
        validation=trained.plan.validation,
        test=trained.plan.validation,
        notes=(),
    )
    return describe_run(trained.plan, data, "float32", [])


def test_mixup_trains_live_and_says_why(train):
    trained, _ = train(
        mixup=0.2, feature_cache="auto", augment_views=1, augment="flip", epochs=(1, 1)
    )
    assert "MixUp: images and labels are blended, with weights from Beta(0.2, 0.2)" in _said(
        trained
    )
    plan = trained.plan.cache.plan
    assert (
        "training live, since MixUp blends them anew every epoch" in describe_cache(plan)
        and plan.place == "off"
    )


def test_manifold_mixup_trains_on_cached_features_and_says_so(train):
    cached, after = train(manifold_mixup=0.3, feature_cache="memory", epochs=(1, 1))
    live, live_after = train(manifold_mixup=0.3, feature_cache="off", epochs=(1, 1))
    _, plain_after = train(feature_cache="memory", epochs=(1, 1))
    assert cached.plan.cache.plan.place == "memory" and live.plan.cache.plan.place == "off"
    assert "MixUp: features and labels are blended, with weights from Beta(0.3, 0.3)" in _said(
        cached
    )
    for path, value in after[-1].items():
        np.testing.assert_allclose(value, live_after[-1][path], rtol=1e-4, atol=1e-6)
    assert np.abs(after[-1]["head/kernel"] - plain_after[-1]["head/kernel"]).max() > 1e-4


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"mixup": 0.2, "manifold_mixup": 0.2},
            "MixUp and --manifold_mixup with --feature_cache=off; expected one that blends images",
        ),
        (
            {"manifold_mixup": 0.2, "feature_cache": "disk"},
            "--manifold_mixup=0.2 with --feature_cache=disk; expected features in memory",
        ),
    ],
)
def test_blends_that_cannot_be_are_refused(train, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(epochs=(1, 1), **settings)


def test_operation_that_cannot_be_repeated_is_named_before_the_run(train, monkeypatch):
    def refuse(*args):
        raise tf.errors.UnimplementedError(None, None, "Determinism is not yet supported for X")

    trained, _ = train(deterministic=True, epochs=(1, 1))
    before = audit.weights_sha256(trained.classifier.variables)
    trained.plan.check()  # its trial steps change nothing
    assert (
        audit.weights_sha256(trained.classifier.variables) == before
        and trained.state.position.global_step == 6
    )
    monkeypatch.setattr(StepLoop, "__call__", refuse)
    with pytest.raises(
        UserError,
        match="--deterministic in phase head: Determinism is not yet supported for X; expected",
    ) as error:
        trained.plan.check()
    assert error.value.exit_code == 1


def test_float16_does_not_let_skipped_steps_move_statistics(run):
    with pytest.raises(UserError, match="--batchnorm=training in mixed_float16"):
        run("half", precision="mixed_float16", batchnorm="training")
