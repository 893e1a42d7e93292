"""What replaces images and weights that cannot be reached, as it is recorded."""

import dataclasses

import pytest

from tl_research.run.offline import Substitution


@pytest.mark.parametrize(
    "sentence, substitution",
    [
        (
            "data set tf_flowers could not be reached; used drawn_flowers instead",
            Substitution("dataset", "tf_flowers", "drawn_flowers"),
        ),
        (
            "imagenet weights of EfficientNetV2B0 could not be reached; used EfficientNetLite0 "
            "with its packaged ImageNet weights instead",
            Substitution("weights", "imagenet weights of EfficientNetV2B0", "EfficientNetLite0"),
        ),
    ],
)
def test_sentences_of_older_runs_are_read_as_records(sentence, substitution):
    assert Substitution.from_json(sentence) == substitution
    assert Substitution.from_json(dataclasses.asdict(substitution)) == substitution
    assert substitution.text == sentence
