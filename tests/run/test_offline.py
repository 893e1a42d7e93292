"""What replaces images and weights that cannot be reached, as it is recorded."""

import dataclasses

import pytest

from tl_research.config import Config
from tl_research.run.offline import Replacements, Substitution


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


def test_resumed_run_says_again_what_it_replaced_and_replaces_nothing_else(capsys):
    wanted = Config(dataset="tf_flowers", if_offline="embedded")
    drawn = dataclasses.replace(wanted, dataset="drawn_flowers")
    images = Substitution("dataset", "tf_flowers", "drawn_flowers")
    resumed = Replacements(wanted, [dataclasses.asdict(images)])
    assert resumed.attempt(lambda config: config, wanted, images, drawn) is drawn
    assert capsys.readouterr().err == f"note: {images.text}\n"
    weights = Substitution("weights", "imagenet weights of ResNet50", "EfficientNetLite0")
    assert resumed.attempt(lambda config: config, wanted, weights, drawn) is wanted
    assert capsys.readouterr().err == ""
