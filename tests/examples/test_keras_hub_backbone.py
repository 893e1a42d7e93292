"""A backbone of KerasHub; skipped where that is not installed."""

import pytest

pytest.importorskip("keras_hub")


def test_folds_its_batchnorm_and_is_resumed(assert_resumes, capsys):
    results, _ = assert_resumes(
        "keras_hub_backbone.py",
        image_size=32,
        epochs=(1, 1),
        unfreeze=("0%", "stack3_block1"),
        crashes=(8,),
        verbose=True,
    )
    # one after each of its convolutions: the first, two in each of 8 blocks, 3 of shortcuts
    assert "weights its own, 20 BatchNorm layers folded" in capsys.readouterr().out
    # the head; in the last block two convolutions, each with gamma and beta
    trained = [phase["audit"]["trainable_changed"] for phase in results["phases"]]
    assert trained == [2, 2 + 2 * 3]
