"""A linear head in closed form, and the leave-one-out logits of its images.

Linear discriminant analysis with shrinkage, S = (1 - a) S_within + a tr(S_within) / d I (Ledoit &
Wolf 2004, "Honey, I shrunk the sample covariance matrix", as in scikit-learn), logits
x' S^-1 m_c - m_c' S^-1 m_c / 2 + log(n_c / N), divided by a temperature. Shrinkage a and
temperature minimize the leave-one-out log loss, so no validation images are needed. NumPy only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tl_research import calibration, metrics
from tl_research.answers import ANSWERS

Array = np.ndarray
AllGather = Callable[[dict[str, Array]], dict[str, Array]]
_ROWS = 1024  # that are multiplied at a time, in their place
SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97)


class ClosedForm(NamedTuple):
    """A linear head: logits are `features @ kernel + bias`."""

    kernel: Array  # float64 [d, K]
    bias: Array  # float64 [K]
    shrinkage: float
    temperature: float
    # float64 [N, K]: logits of each image by the head of all others, with this shrinkage (as the
    # multiple of I for all images) and temperature; -inf for the class of its only image
    left_out: Array


def solve(
    features: Array, labels: Array, num_classes: int, all_gather: AllGather = lambda own: own
) -> ClosedForm:
    """Returns the head for the images of all processes, the same in each process, solved in the
    space that they span, of width min(N, d).

    Args:
        features: float [M, d], of the images that this process holds.
        labels: int [M]; of all images every class at least once.
        num_classes: Number K of classes.
        all_gather: See `distribution.all_gather`; by default this process holds all images.
    """
    space = _Space(features, labels, num_classes, all_gather)
    labels = all_gather({"label": np.asarray(labels)})["label"]
    # one at a time: each result has N x K numbers
    found = ((*_judged(space, shrinkage, labels), shrinkage) for shrinkage in SHRINKAGES)
    _, temperature, left_out, shrinkage = min(found, key=lambda judged: judged[0])
    kernel, bias = space.head(shrinkage)
    return ClosedForm(
        kernel / temperature, bias / temperature, shrinkage, temperature, left_out / temperature
    )


def _judged(space, shrinkage, labels):
    """Returns (log loss, temperature, logits) of the leave-one-out heads, for all processes."""
    logits = space.all_gather({"logits": space.left_out_logits(shrinkage)})["logits"]
    counted = np.isfinite(logits).all(axis=1)  # not the only image of a class
    temperature, _ = calibration.fit(ANSWERS["class"], logits[counted], labels[counted])
    loss = metrics.losses(logits[counted] / temperature, labels[counted]).mean()
    return loss, temperature, logits


def total(array: Array, all_gather: AllGather) -> Array:
    """Returns the sum over processes of an array."""
    return all_gather({"array": np.asarray(array)[None]})["array"].sum(axis=0)


class _Space:
    """Images in a basis in which the scatter within classes is diagonal.

    Args:
        features, labels, num_classes, all_gather: As for `solve`.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, num_classes: int, all_gather: AllGather
    ):
        self.all_gather = all_gather
        self._labels, self._is_own = labels, np.zeros((len(labels), num_classes))
        self._is_own[np.arange(len(labels)), labels] = 1.0
        self._counts = total(self._is_own.sum(axis=0), all_gather)
        self._count = int(self._counts.sum())
        images = np.array(features, np.float64)
        self._width = images.shape[1]
        self._mean = total(images.sum(axis=0), all_gather) / self._count
        images -= self._mean
        self._basis = np.eye(self._width)
        if self._count < self._width:
            self._basis = _span(all_gather({"images": images})["images"])
            images = images @ self._basis
        self._means = total(self._is_own.T @ images, all_gather) / self._counts[:, None]
        images -= self._means[labels]
        spectrum, axes = np.linalg.eigh(total(images.T @ images, all_gather))
        self._spectrum = np.maximum(spectrum, 0.0)
        for rows in range(0, len(images), _ROWS):
            images[rows : rows + _ROWS] = images[rows : rows + _ROWS] @ axes
        self._deltas, self._means = images, self._means @ axes
        self._basis = self._basis @ axes

    def _inverse(self, shrinkage):
        """Returns the inverse of N S / (1 - a), a diagonal."""
        ridge = shrinkage / (1 - shrinkage) * self._spectrum.sum() / self._width
        return 1 / (self._spectrum + ridge)

    def head(self, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel [d, K] and bias [K]."""
        inverse, count = self._inverse(shrinkage), self._count
        kernel = self._basis @ (inverse * self._means).T * (count / (1 - shrinkage))
        norms = np.square(self._means) @ inverse * (count / (1 - shrinkage))
        return kernel, np.log(self._counts / count) - norms / 2 - self._mean @ kernel

    def left_out_logits(self, shrinkage: float) -> np.ndarray:
        """Returns the logits of each own image by the head made without it, [M, K].

        Leaving image i of class y out takes n / (n - 1) dd' from the scatter, with d = x - m_y
        (Sherman & Morrison's formula inverts the rest), and d / (n - 1) from m_y.
        """
        inverse, own = self._inverse(shrinkage), self._is_own
        products = self._means * inverse @ self._means.T  # m_j' M^-1 m_k
        to_means = self._deltas * inverse @ self._means.T  # d' M^-1 m_j
        to_self = (np.square(self._deltas) @ inverse)[:, None]  # d' M^-1 d
        from_image = to_means + products[self._labels]  # x' M^-1 m_j
        x_to_delta = to_self + (to_means * own).sum(axis=1, keepdims=True)  # x' M^-1 d
        others = self._counts[self._labels][:, None] - 1  # of its class
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.where(own, 1 / others, 0.0)  # m_j is less d times this
            ratio = (others + 1) / others
            gain = ratio / (1 - ratio * to_self)  # M_i^-1 = M^-1 + gain M^-1 d d' M^-1
            norms = np.diag(products) - 2 * moved * to_means + moved**2 * to_self
            from_image = from_image - moved * x_to_delta
            to_means = to_means - moved * to_self
            scores = from_image + gain * x_to_delta * to_means - (norms + gain * to_means**2) / 2
            count = self._count - 1
            logits = scores * (count / (1 - shrinkage)) + np.log((self._counts - own) / count)
        return np.where(own * (others == 0), -np.inf, logits)


def _span(images):
    """Returns an orthonormal basis [d, r] of the span of centered images [N, d]."""
    values, vectors = np.linalg.eigh(images @ images.T)
    there = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return images.T @ (vectors[:, there] / np.sqrt(values[there]))
