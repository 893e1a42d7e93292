"""What of the frozen part's features a run keeps, decided from sizes alone, and the source that
each phase reads.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tl_research.data import pipeline
from tl_research.errors import UserError
from tl_research.progress_bar import progress_bar
from tl_research.training import features
from tl_research.training.features import LiveSource, Source, Views

if TYPE_CHECKING:  # it imports this module
    from tl_research.training.plan import Plan


class CachePlan(NamedTuple):
    """Which features are kept."""

    shapes: tuple[tuple[int, ...], ...]  # of the tensors kept, for one image
    dtype: str  # of the training images' features
    validation_dtype: str  # of those of the validation images
    image_bytes: int  # for one view of one training image
    views: int  # of each training image that the run uses
    epochs: int  # that it trains at most
    total_bytes: int  # for all views, and the validation images, that a process holds at most
    allowed_bytes: int  # by --cache_bytes
    on_disk: bool
    validation: bool  # whether those of the validation images are kept
    mixing: str | None  # name of what blends the training images
    # Why those of the training images are not: `off`, `mixing`, `fresh` views, views that `would
    # not pay`, or `too large`; None where they are.
    live: str | None

    @property
    def place(self) -> str:
        """Where training features are kept, `memory` or `disk`, or else `off`."""
        return "off" if self.live else "disk" if self.on_disk else "memory"


class FeatureCache:
    """Gives each phase its sources; what they need of the frozen part is computed at first use.

    Features of training images are computed by the classifier that is trained, those of validation
    images by the one in float32.

    Args:
        plan: What all phases share.
        boundary: Before everything that any phase opens: what lies before it never changes.
        directory: For features on disk.
        views: `Views` of the training images.

    Attributes:
        plan: `CachePlan`.
        views: As given.
        seconds: {side: what the last computed view of its images took, or 0}.

    Raises:
        UserError: If what --feature_cache=memory asks for does not fit.
    """

    def __init__(self, plan: "Plan", boundary: Sequence[str], directory: str, views: Views):
        config = self._config = plan.config
        self._boundary, self.views = boundary, views
        plain = features.Views(config.seed, 0, False)
        self._sides = {
            "train": (plan.classifier, plan.train, views),
            "validation": (plan.evaluated, plan.validation, plain),
            "plain": (plan.classifier, plan.train, plain),
        }
        self._storage = features.Storage(
            directory if config.feature_cache == "disk" else None,
            None if config.cache_dtype == "auto" else config.cache_dtype,
        )
        self.plan = self._decide(plan.classifier.graph, plan.evaluated.graph)
        self._cached = {"train": not self.plan.live, "validation": self.plan.validation}
        self._kept: dict[str, features.CachedSource] = {}
        self._pooled: dict[str, np.ndarray] = {}
        self.seconds = dict.fromkeys(self._sides, 0.0)

    def _decide(self, *graphs):
        config, boundary, on_disk = self._config, self._boundary, self._storage.on_disk
        dtype, validation_dtype = (
            graph.dtype(boundary[0]) if config.cache_dtype == "auto" else config.cache_dtype
            for graph in graphs
        )
        epochs = sum(phase.epochs for phase in config.phase_plan)
        views = self.views.used(epochs)
        held = {side: of.members.most_held for side, (_, of, _) in self._sides.items()}
        image_bytes = graphs[0].bytes_per_image(boundary, dtype)
        validation_bytes = graphs[1].bytes_per_image(boundary, validation_dtype)
        validation_bytes *= held["validation"]
        plan = CachePlan(
            shapes=tuple(map(graphs[1].shape, boundary)),
            dtype=dtype,
            validation_dtype=validation_dtype,
            image_bytes=image_bytes,
            views=views,
            epochs=epochs,
            total_bytes=validation_bytes + held["train"] * views * image_bytes,
            allowed_bytes=config.cache_bytes,
            on_disk=on_disk,
            validation=config.feature_cache != "off"
            and (on_disk or validation_bytes <= config.cache_bytes),
            mixing=self.views.mixing and self.views.mixing.name,
            live=None,
        )
        return plan._replace(live=self._why_live(plan))

    def _why_live(self, plan):
        """Returns why no training features are kept, as in `CachePlan`, or None."""
        asked, augmented = self._config.feature_cache, self.views.augmented
        # These read the images as they are, the first view, in any case.
        read_anyway = self._config.data_audit == "on" or self._config.head_init == "lda"
        reasons = {
            "off": asked == "off",
            "mixing": bool(plan.mixing),
            "fresh": augmented and not self._config.augment_views,
            "would not pay": asked == "auto"
            and augmented
            and plan.views - read_anyway >= plan.epochs,
            "too large": not plan.on_disk and plan.total_bytes > plan.allowed_bytes,
        }
        why = next((reason for reason, holds in reasons.items() if holds), None)
        if why == "too large" and asked == "memory":
            raise UserError(
                f"--feature_cache=memory: {plan.views} views of {plan.image_bytes / 1024:.0f} KiB "
                f"an image need {plan.total_bytes / 2**30:.1f} GiB and --cache_bytes allows "
                f"{plan.allowed_bytes / 2**30:.1f}; expected room for all; raise --cache_bytes, "
                "use fewer --augment_views or --feature_cache=disk"
            )
        return why

    def live_source(self, side: str, boundary: Sequence[str]) -> LiveSource:
        """Returns the source of a side's tensors at a boundary that computes them in the step."""
        classifier, examples, views = self._sides[side]
        return features.LiveSource(classifier, examples, boundary, views)

    def source(self, side: str, boundary: Sequence[str]) -> Source:
        """Returns the source of the tensors of a side, `train` or `validation`, at a boundary.

        A view is computed when it is first used, which raises StorageError if the disk is full.
        """
        if not self._cached[side]:
            return self.live_source(side, boundary)
        if side not in self._kept:
            self._kept[side] = features.compute_features(
                self.live_source(side, self._boundary),
                self._config.batch_size,
                lambda view: self._bar(side, view),
                self._storage,
            )
        classifier, batch_size = self._sides[side][0], self._config.batch_size
        return features.derive_features(
            classifier, self._kept[side], boundary, batch_size, self._storage
        )

    @contextlib.contextmanager
    def _bar(self, side, view):
        start = time.perf_counter()
        with progress_bar(f"features of {side}, view {view + 1}") as progress:
            yield progress
        self.seconds[side] = time.perf_counter() - start

    def are_new(self, epochs: Sequence[int]) -> list[bool]:
        """Returns, for each of some epochs in a row, whether a view is computed before it."""
        views = [self.views.of_epoch(epoch) for epoch in epochs]
        source = self._kept.get("train")
        return [
            source is not None and not source.has(view) and view not in views[:number]
            for number, view in enumerate(views)
        ]

    def pooled(self, side: str) -> np.ndarray:
        """Returns float32 [M, d], what the head is given of each image that this process holds as
        it is, not augmented, averaged over places or tokens; computed at first use.

        Those of training images are computed in the precision of training, which is faster.

        Args:
            side: `train` or `validation`.
        """
        if side in self._pooled:
            return self._pooled[side]
        boundary, batch_size = self._sides[side][0].head_boundary, self._config.batch_size
        if self._cached[side]:
            source: Any = self.source(side, boundary)
        else:  # of training images that are cached, view 0 is plain
            which = "plain" if side == "train" else side
            live = self.live_source(which, boundary)
            source = features.compute_features(
                live, batch_size, lambda view: progress_bar(f"features of {which} images")
            )
        compute = tf.function(lambda tensors: _pooled(source.compute(tensors)), autograph=False)
        own = source.examples.members.own
        batches, _ = pipeline.make_batches(own, batch_size)
        pooled = [compute(source.rows(rows, view=0)).numpy() for rows in batches]
        self._pooled[side] = np.concatenate(pooled)[: len(own)]
        return self._pooled[side]


def _pooled(tensors):
    """Returns float32 [B, d] of a list of tensors [B, ..., c], averaged and side by side."""
    means = [tf.reduce_mean(tf.cast(t, tf.float32), range(1, len(t.shape) - 1)) for t in tensors]
    return tf.concat(means, axis=1)
