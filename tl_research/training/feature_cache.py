"""What of the frozen part's features a run keeps, decided from sizes alone, and the source that
each phase reads.
"""

import math

from tl_research.errors import UserError
from tl_research.reporting.progress import progress_bar
from tl_research.training import features


class FeatureCache:
    """Gives each phase its sources.

    What they need of the frozen part is computed at the first call.

    Args:
        config: `tl_research.config.Config`.
        classifier: A `Classifier`.
        train, validation: `Examples`.
        boundary: Before everything that any phase opens: what lies before it never changes.
        directory: For features on disk.

    Attributes:
        plan: A line that says what is kept, and why.
        views: `Views` of the training images.

    Raises:
        UserError: If what --feature_cache=memory asks for does not fit.
    """

    def __init__(self, config, classifier, train, validation, boundary, directory):
        self._config, self._classifier, self._boundary = config, classifier, boundary
        self._dtype = None if config.cache_dtype == "auto" else config.cache_dtype
        self._storage = features.Storage(
            directory if config.feature_cache == "disk" else None, self._dtype
        )
        self.views = features.Views(config.seed, config.augment_views, bool(config.augmentation))
        self._examples = {"train": train, "validation": validation}
        self._views = {"train": self.views, "validation": features.Views(config.seed, 0, False)}
        self._num_views = {"train": 0, "validation": 0}  # that are kept
        self._kept = {}
        self.plan = self._decide()

    def _decide(self):
        """Sets how many views of each side are kept; returns a line that says it and why."""
        config, graph = self._config, self._classifier.graph
        epochs = sum(phase.epochs for phase in config.phase_plan)
        on_disk = config.feature_cache == "disk"
        size = graph.bytes_per_image(self._boundary, self._dtype)
        shape = " + ".join("x".join(map(str, graph.shape(name))) for name in self._boundary)
        what = (
            f"{shape} {self._dtype or graph.dtype(self._boundary[0])}, "
            f"{size / 1024:.0f} KiB an image"
        )
        used = self.views.used(epochs)
        validation_bytes = len(self._examples["validation"]) * size
        total_bytes = validation_bytes + len(self._examples["train"]) * used * size
        if config.feature_cache == "off":
            return "cache: off (--feature_cache=off)"
        self._num_views["validation"] = int(on_disk or validation_bytes <= config.cache_bytes)
        validation = f"validation {f'cached ({what})' if self._num_views['validation'] else 'live'}"
        if not config.feature_cache_wanted:
            why = (
                "since MixUp blends them anew every epoch"
                if config.mixup
                else "a fresh view every epoch"
            )
            return f"cache: training live, {why}; {validation}"
        if config.feature_cache == "auto" and self.views.augmented and used >= epochs:
            return (
                f"cache: training live, {used} views in {epochs} epochs would not pay; {validation}"
            )
        needs = (
            f"{used} views of {what} need {total_bytes / 2**30:.1f} GiB and --cache_bytes allows "
            f"{config.cache_bytes / 2**30:.1f}"
        )
        if total_bytes > config.cache_bytes and not on_disk:
            if config.feature_cache == "memory":
                raise UserError(
                    f"--feature_cache=memory: {needs}; expected room for all; raise --cache_bytes, "
                    "use fewer --augment_views or --feature_cache=disk"
                )
            return f"cache: training live, {needs}; {validation}"
        self._num_views["train"] = used
        free = _free_memory()
        warning = (
            f", more than the {free / 2**30:.1f} GiB of memory that are free"
            if not on_disk and total_bytes > free
            else ""
        )
        return (
            f"cache: {what}, {used} views, {total_bytes / 2**30:.2f} "
            f"GiB{' on disk' if on_disk else ''}{warning}"
        )

    @property
    def in_use(self):
        """Where training features are kept, `memory` or `disk`, or else `off`."""
        return (
            "off"
            if not self._num_views["train"]
            else "disk"
            if self._config.feature_cache == "disk"
            else "memory"
        )

    def live_source(self, side, boundary):
        """Returns the source of the tensors of a side at a boundary that computes everything in the
        step.
        """
        return features.LiveSource(
            self._classifier, self._examples[side], boundary, self._views[side]
        )

    def source(self, side, boundary):
        """Returns the source of the tensors of a side, `train` or `validation`, at a boundary.

        Raises:
            StorageError: If the disk is full.
        """
        if not self._num_views[side]:
            return self.live_source(side, boundary)
        if side not in self._kept:
            with progress_bar(f"features of {side}") as progress:
                self._kept[side] = features.compute_features(
                    self.live_source(side, self._boundary),
                    self._num_views[side],
                    self._config.batch_size,
                    progress,
                    self._storage,
                )
        return features.derive_features(
            self._classifier, self._kept[side], boundary, self._config.batch_size, self._storage
        )


def _free_memory():
    """Returns the bytes of memory that are free, or infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            (line,) = (line for line in file if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return math.inf
