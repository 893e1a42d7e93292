"""The temperature, where its best value is known in closed form."""

import numpy as np
import pytest

from tl_research import calibration, experiment, metrics
from tl_research.answers import ANSWERS
from tl_research.config import Config
from tl_research.evaluate import EvaluateConfig, evaluate

_Z = 2 * np.log(3)  # of two classes, a probability of 0.9; halved, one of 0.75
_TWO = np.array([[_Z, 0], [_Z, 0], [0, _Z], [0, _Z]])
_LABELS = np.array([0, 0, 1, 0], np.int32)  # 3 of 4 are right


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0, 9.0])
def test_probability_becomes_the_share_that_is_right(factor):
    # logits have one size z, a share q is right: sigmoid(z / T) = q, so T = z / ln(q / (1 - q))
    temperature, reason = calibration.fit(ANSWERS["class"], factor * _TWO, _LABELS)
    assert reason is None and temperature == pytest.approx(2 * factor, rel=1e-9)


def test_several_classes():
    # 1 / (1 + 3 exp(-z / T)) is 1/2 at z / T = ln 3
    logits, labels = np.zeros((4, 4), np.float32), np.array([0, 1, 2, 1], np.int32)
    logits[np.arange(4), [0, 1, 1, 0]] = 5 * np.log(3)
    assert calibration.fit(ANSWERS["class"], logits, labels)[0] == pytest.approx(5, rel=1e-6)


def test_set_of_classes_has_one_temperature():
    logits, labels = np.array([[_Z, -_Z], [_Z, _Z]]), np.float32([[1, 0], [1, 0]])
    assert calibration.fit(ANSWERS["set"], logits, labels)[0] == pytest.approx(2, rel=1e-9)


def test_no_other_temperature_has_a_smaller_loss():
    draw, answer = np.random.RandomState(0), ANSWERS["class"]
    logits, labels = draw.normal(0, 3, (200, 5)), draw.randint(0, 5, 200)
    logits[np.arange(200), labels] += 3
    best, _ = calibration.fit(answer, logits, labels)

    def loss(temperature):
        return answer.losses(metrics.scaled(logits, temperature), labels).mean()

    assert loss(best) < min(loss(best * 1.001), loss(best / 1.001), loss(1.0))


@pytest.mark.parametrize(
    "logits, labels",
    [
        (_TWO, [0, 0, 1, 1]),  # all right: the smaller T, the better
        (_TWO[:1], [0]),
        (_TWO[:1], [1]),  # all wrong: the larger T, the better
        (_TWO, [0, 1, 0, 1]),  # half: as chance
        (np.zeros((2, 2)), [0, 1]),
        (1000 * _TWO, _LABELS),  # best is 2000
        (np.array([[np.nan, 0.0], [1.0, 0.0]]), [0, 1]),
    ],
)
def test_where_no_temperature_is_best_it_is_1_with_a_reason(logits, labels):
    temperature, reason = calibration.fit(ANSWERS["class"], logits, np.array(labels, np.int32))
    assert temperature == 1.0 and f"log loss of the {len(labels)} validation images" in reason


def test_it_is_measured_on_the_test_images():
    test = (np.array([[_Z, 0.0]] * 5), np.array([0, 0, 0, 0, 1], np.int32))  # 4 of 5 are right
    found, drawn = calibration.of_run(ANSWERS["class"], (_TWO, _LABELS), test)
    assert found == {
        "temperature": pytest.approx(2),
        "reason": None,
        "ece_before": pytest.approx(0.1),  # 0.9 is said
        "log_loss_before": pytest.approx(-np.log([0.9, 0.9, 0.9, 0.9, 0.1]).mean()),
        "ece_after": pytest.approx(0.05),  # 0.75
        "log_loss_after": pytest.approx(-np.log([0.75, 0.75, 0.75, 0.75, 0.25]).mean()),
    }
    assert drawn["n"] == 5 and drawn["before"] == [pytest.approx([5, 0.9, 0.8])]
    assert drawn["after"] == [pytest.approx([5, 0.75, 0.8])]


def test_run_without_epochs_has_temperature_1_and_numbers_have_none():
    test = (_TWO, _LABELS)
    found, _ = calibration.of_run(ANSWERS["class"], (None, _LABELS), test)
    assert (found["temperature"], found["reason"]) == (1.0, "no epoch was trained")
    assert found["ece_before"] == found["ece_after"] == pytest.approx(0.15)
    numbers = (np.zeros((2, 1)), np.zeros(2, np.float32))
    assert calibration.of_run(ANSWERS["number"], numbers, numbers) == (None, None)


def test_run_without_epochs_is_evaluated(tiny_backbone, tiny_settings, tmp_path, capsys):
    settings = tiny_settings(tmp_path, epochs=(0, 0), verbose=True)
    run, found = settings["workdir"], experiment.run(Config(**settings))["calibration"]
    said = "(expected calibration error). No temperature was fitted: no epoch was trained.\n"
    assert found["temperature"] == 1.0 and said in capsys.readouterr().out
    assert evaluate(EvaluateConfig(run=run))["temperature"] == 1.0
    assert ", temperature 1.0000 on" in capsys.readouterr().out


def test_answers_do_not_change():
    logits = np.float32([[1.0, np.nextafter(np.float32(1), np.float32(2))]])
    for temperature in calibration.BOUNDS:
        outputs = ANSWERS["class"].outputs(metrics.scaled(logits, temperature))
        assert ANSWERS["class"].decided(outputs) == [1]
