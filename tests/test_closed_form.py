"""The closed-form head against scikit-learn's numbers, and leaving out against doing it."""

import numpy as np
import pytest

from tl_research import closed_form, metrics

FEATURES = np.array(
    [[0, 0, 1], [1, 0, 0], [0, 1, 2]]
    + [[4, 1, 0], [5, 3, 1], [4, 2, 2], [6, 2, 0]]
    + [[1, 5, 3], [0, 6, 1], [2, 7, 2]],
    float,
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


def _unscaled(monkeypatch, features, labels, shrinkage):
    """Returns kernel and bias before the temperature, of one shrinkage."""
    monkeypatch.setattr(closed_form, "SHRINKAGES", (shrinkage,))
    head = closed_form.solve(features, labels, labels.max() + 1)
    return head.kernel * head.temperature, head.bias * head.temperature


def test_is_the_discriminant_analysis_of_scikit_learn(monkeypatch):
    """LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.4) of scikit-learn 1.9.1."""
    kernel, bias = _unscaled(monkeypatch, FEATURES, LABELS, 0.4)
    coefficients = [
        [0.775574896327, 0.310609943619, 1.651506387549],
        [8.550994420975, 2.029728344439, 2.016922846983],
        [-0.018961255876, 11.652485904664, 2.064405783542],
    ]
    intercepts = [-2.210756804758, -24.010976893746, -38.216355673923]
    # a number that all classes share is free: ours are of features less their mean
    np.testing.assert_allclose((kernel - kernel[:, :1]).T, coefficients - np.array(coefficients)[0])
    np.testing.assert_allclose(bias - bias[0], np.subtract(intercepts, intercepts[0]))


def test_more_dimensions_than_images(monkeypatch):
    """As above, with shrinkage=0.2, whose two classes have one row, the difference."""
    features = np.array(
        [[0, 0, 1, 2, 0, 1], [1, 0, 0, 0, 3, 1], [4, 1, 0, 2, 2, 0], [5, 3, 1, 0, 1, 3]], float
    )
    kernel, bias = _unscaled(monkeypatch, features, np.array([0, 0, 1, 1]), 0.2)
    np.testing.assert_allclose(
        kernel[:, 1] - kernel[:, 0],
        [22.975750435053, 7.78124755712, -1.480217163647]
        + [8.905641987037, -1.492386666225, -5.470985807177],
    )
    np.testing.assert_allclose(bias[1] - bias[0], -64.308844791657)


def _made_without(features, labels, shrinkage, i):
    """Returns the logits of image i by the head of the others, as the docstring defines it."""
    count, width = features.shape
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    scatter = np.square(features - means[labels]).sum()
    ridge = shrinkage / (1 - shrinkage) * scatter / width * np.eye(width)  # of all images
    others = np.arange(count) != i
    x, y = features[others], labels[others]
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    inverse = np.linalg.inv((x - means[y]).T @ (x - means[y]) + ridge)
    inverse *= (count - 1) / (1 - shrinkage)
    logits = means @ inverse @ features[i] - np.einsum("kd,de,ke->k", means, inverse, means) / 2
    return logits + np.log(np.bincount(y) / (count - 1))


@pytest.mark.parametrize("width", [5, 40])
def test_leaving_out_equals_making_the_head_without_the_image(width):
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    features = random.normal(size=(24, width)) + 2 * np.eye(3, width)[labels]
    head = closed_form.solve(features, labels, 3)
    expected = [_made_without(features, labels, head.shrinkage, i) for i in range(24)]
    expected = np.array(expected) / head.temperature
    np.testing.assert_allclose(
        head.left_out - head.left_out[:, :1], expected - expected[:, :1], atol=1e-9
    )


def test_shrinkage_and_temperature_have_the_smallest_loss(monkeypatch):
    random = np.random.default_rng(1)
    labels = np.arange(60) % 3
    features = random.normal(size=(60, 30)) + np.eye(3, 30)[labels]

    def loss(logits):
        return metrics.losses(logits, labels).mean()

    head = closed_form.solve(features, labels, 3)
    best = loss(head.left_out)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert loss(head.left_out * factor) > best
    for shrinkage in closed_form.SHRINKAGES:
        with monkeypatch.context() as only:
            only.setattr(closed_form, "SHRINKAGES", (shrinkage,))
            assert loss(closed_form.solve(features, labels, 3).left_out) >= best


def test_the_only_image_of_a_class_is_left_out_without_its_class():
    features = np.vstack([FEATURES, [[9, 9, 9]]])
    head = closed_form.solve(features, np.append(LABELS, 3), 4)
    assert head.left_out[-1, 3] == -np.inf
    assert np.isfinite(head.left_out[:-1]).all()
    assert np.isfinite(head.kernel).all() and np.isfinite(head.bias).all()


@pytest.mark.parametrize("width", [3, 40], ids=["fewer dimensions", "more dimensions"])
def test_processes_with_a_part_each_solve_what_one_does_with_all(together, width):
    random = np.random.default_rng(1)
    labels = np.arange(30) % 3
    features = random.normal(size=(30, width)) + np.eye(3, width)[labels]
    whole = closed_form.solve(features, labels, 3)
    parts = [np.arange(0, 4), np.arange(4, 19), np.arange(19, 30)]

    def one(index, all_gather):
        own = parts[index]
        return closed_form.solve(features[own], labels[own], 3, all_gather)

    for head in together(3, one):
        assert (head.shrinkage, head.left_out.shape) == (whole.shrinkage, (30, 3))
        for name in ("kernel", "bias", "temperature", "left_out"):
            np.testing.assert_allclose(
                getattr(head, name), getattr(whole, name), rtol=1e-9, atol=1e-12, err_msg=name
            )
