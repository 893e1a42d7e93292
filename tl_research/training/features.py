"""Where a step gets the tensors at its boundary from: computed from pixels in the step, or looked
up in a cache.

What the frozen part computes for one augmented view of one image never changes, so it can be
computed once. The cache holds the tensors at the earliest boundary of all phases; a phase that
boundaries later derives its own from them.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tl_research import distribution, in_place
from tl_research.config import AUGMENTATIONS, Config
from tl_research.data import pipeline
from tl_research.data.mixing import Mix, Mixing, MixUp
from tl_research.data.pipeline import Examples
from tl_research.errors import UserError, suggestion
from tl_research.files import storage_errors, temporary_name
from tl_research.models.augmentation import COLUMNS, Operation, apply_operations
from tl_research.models.classifier import Classifier
from tl_research.training.compiler import needs_autograph

# A context, for a view, in which a function is called with (batches done, batches in all).
Bar = Callable[[int], contextlib.AbstractContextManager[Callable[[int, int], None]]]
_LARGEST_FLOAT16 = 65504.0


class Views(NamedTuple):
    """Which version of the images an epoch uses; 0 views: a fresh augmented one every epoch.

    Of views to use in turn the first, view 0, is the images as they are, which the closed-form
    head and the data audit need too.
    """

    seed: int
    num_views: int
    augmented: bool
    operations: tuple[Operation, ...] = ()  # an extension's, which follow the built-in ones
    mixing: Mixing | None = None  # what blends the images in the end

    @property
    def parts(self) -> list[Any]:
        """The functions of the operations, and the mixing if there is one."""
        functions = [operation.function for operation in self.operations]
        return [*functions, self.mixing] if self.mixing else functions

    def of_epoch(self, epoch: int) -> int:
        """Returns the view of a global epoch, counted from 1."""
        if not self.augmented:
            return 0
        return (epoch - 1) % self.num_views if self.num_views else epoch - 1

    def used(self, num_epochs: int) -> int:
        """Returns how many different views that many epochs use."""
        return len({self.of_epoch(epoch + 1) for epoch in range(num_epochs)})

    def draws(self, view: int, num_examples: int) -> np.ndarray:
        """Returns float32 [num_examples, columns], or [0, columns] if nothing is augmented.

        Those of the built-in operations stand first, then those of each other one. All are NaN of
        a view that is the images as they are: a step is traced once for all views.
        """
        if not self.augmented:
            return np.zeros((0, len(COLUMNS)), np.float32)
        streams = [(len(COLUMNS), None), *((own.columns, own.name) for own in self.operations)]
        if self.num_views and view == 0:
            columns = sum(columns for columns, _ in streams)
            return np.full((num_examples, columns), np.nan, np.float32)
        tables = [
            pipeline.augmentation_draws(self.seed, view, num_examples, *stream)
            for stream in streams
        ]
        return np.concatenate(tables, axis=1)


def make_views(config: Config, own: Mapping[str, Any]) -> Views:
    """Returns what `--augment` and `--mixup` make of the training images.

    Args:
        config: The settings.
        own: An extension's `augmentations`.

    Raises:
        UserError: If a name is nowhere, or what it names is neither operation nor mixing.
    """
    parts = _parts(config, own)
    operations = tuple(part for part in parts if isinstance(part, Operation))
    mixings = [part for part in parts if not isinstance(part, Operation)]
    names = [mixing.name for mixing in mixings] + ["--manifold_mixup"] * bool(config.manifold_mixup)
    if mixings and (len(names) > 1 or config.feature_cache in ("memory", "disk")):
        raise UserError(
            f"{' and '.join(names)} with --feature_cache="
            f"{config.feature_cache}; expected one that blends images anew every epoch; leave the "
            "others out, and use --feature_cache=auto or off",
            "augment",
        )
    augmented = bool(config.augmentation or operations)
    return Views(config.seed, config.augment_views, augmented, operations, *mixings)


def _parts(config, own):
    """Returns the `Operation`s and mixings that `--augment` names of `own`, in its order, and that
    of `--mixup`.
    """
    if clash := sorted(set(own) & set(AUGMENTATIONS)):
        raise UserError(f"augmentations has {clash[0]}, which is built in; rename yours")
    parts, size = [MixUp(config.mixup)] if config.mixup else [], config.image_size
    for name, factor in config.augment_factors.items():
        if name in own:
            is_mixing = callable(own[name])
            part = own[name](factor) if is_mixing else _tried(name, own[name], factor, size)
            parts.append(part)
        elif name not in AUGMENTATIONS:
            known = (*AUGMENTATIONS, *own)
            raise UserError(
                f"--augment has {name!r}; expected any of {', '.join(known)}"
                f"{suggestion(name, known)}",
                "augment",
            )
    return parts


def _tried(name, part, factor, image_size):
    """Returns an extension's `Operation`; raises UserError if it is none that takes images."""
    try:
        operation = Operation(name, *part, factor)
        images, draws = tf.zeros([2, image_size, image_size, 3]), tf.zeros([2, operation.columns])
        tf.function(lambda: apply_operations([operation], images, draws))()
    except Exception as error:  # whatever that code does
        raise UserError(
            f"augmentations: {name} fails ({' '.join(str(error).split())[-200:]}); expected "
            "(columns, function) with function(images, draws, factor) that returns float32 images "
            "[B, H, W, 3], or a mixing; correct it",
            "augment",
        ) from error
    return operation


class LiveSource:
    """Computes the tensors at a boundary from pixels, in the step.

    Args:
        classifier: A `Classifier`.
        examples: `Examples`, with their pixels in memory or not.
        boundary: Names of the tensors.
        views: `Views`.
    """

    cached = False

    def __init__(
        self, classifier: Classifier, examples: Examples, boundary: Sequence[str], views: Views
    ):
        self.examples, self.boundary, self.views = examples, tuple(boundary), views
        self.stored = (classifier.graph.input,)
        self.dtypes = [tf.as_dtype(classifier.graph.dtype(name)) for name in self.boundary]
        self._augmentation = classifier.augmentation
        self._frozen_part = classifier.frozen_part(boundary)

    @property
    def streamed(self) -> bool:
        """Whether the caller has to bring what `stream` yields for each batch."""
        return self.examples.pixels is None

    def of_view(self, view: int) -> np.ndarray:
        """Returns what `lookup` and `read` need of a view: its `Views.draws`."""
        return self.views.draws(view, len(self.examples))

    def stream(self, indices: np.ndarray, view: int) -> Iterator[tf.Tensor]:
        """Yields what `read` needs as `streamed` for each row of `indices` [S, B]."""
        return self.examples.stream(indices)

    def lookup(self, indices: tf.Tensor, of_view: Any) -> tf.Tensor:
        """Returns what `stream` would yield for one row, where it is in memory."""
        return self.examples.lookup(indices)

    def read(
        self, indices: tf.Tensor, of_view: Any, rows: tf.Tensor, mix: Mix | None = None
    ) -> tf.Tensor:
        """Returns augmented images, float32 [B, H, W, 3]: what XLA need not compile.

        Args:
            indices: int32 [B], places of the examples.
            of_view: What the method of that name returned: draws.
            rows: uint8 [B, H, W, 3], the pixels, streamed or looked up.
            mix: `mixing.Mix` of these examples, or None.
        """
        images = self._augmented(rows, indices, of_view)
        if mix is not None and self.views.mixing is not None:
            others = self._augmented(self.lookup(mix.partners, of_view), mix.partners, of_view)
            images = self.views.mixing.blend(images, others, mix)
        return images

    def compute(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Returns the list of tensors at the boundary, [B, ...] each, for what `read` returned."""
        return self._frozen_part(images)

    def _augmented(self, images, indices, draws):
        if draws.shape[0] == 0:
            return tf.cast(images, tf.float32)

        def augmented() -> tf.Tensor:
            own = tf.gather(draws, indices)
            changed = self._augmentation.apply_draws(images, own[:, : len(COLUMNS)])
            return apply_operations(self.views.operations, changed, own[:, len(COLUMNS) :])

        if not self.views.num_views:
            return augmented()
        is_plain = tf.math.is_nan(draws[0, 0])
        return tf.cond(is_plain, lambda: tf.cast(images, tf.float32), augmented)


class CachedSource:
    """Looks features up, and computes the tensors at a later boundary from them in the step where
    that is cheaper.

    Args:
        source: Whose examples, and views of them, these are of.
        stored: Names of the tensors kept.
        fill: Returns those of a view, a list of [M, ...], one for each name and each with a row for
            each example that this process holds: tensors or, on disk, `np.memmap`. It is called
            when a view is first used.
        dtypes: Types that the tensors are computed with, where they are kept in others.
        streamed: Whether they are on disk.
        boundary: Names of the tensors to compute from them; by default `stored`.
        then: Computes these, see `Classifier.frozen_part`; None where they are the same.
    """

    cached = True

    def __init__(
        self,
        source: "Source",
        stored: Sequence[str],
        fill: Callable[[int], list[Any]],
        dtypes: Sequence[tf.DType],
        *,
        streamed: bool = False,
        boundary: Sequence[str] = (),
        then: Callable | None = None,
    ):
        self.examples: Examples = source.examples
        self.views: Views = source.views
        self.dtypes = dtypes
        self.stored, self.boundary = tuple(stored), tuple(boundary or stored)
        self.streamed, self._fill, self._then = streamed, fill, then
        self._rows = self.examples.members.rows
        self._kept: dict[int, list[Any]] = {}

    def kept(self, view: int) -> list[Any]:
        """Returns the list of tensors [M, ...] of a view; they are computed at first use."""
        if view not in self._kept:
            self._kept[view] = self._fill(view)
        return self._kept[view]

    def has(self, view: int) -> bool:
        """Returns whether a view was computed."""
        return view in self._kept

    def of_view(self, view: int) -> list[Any]:
        """As `LiveSource.of_view`: the features, or nothing where they are streamed."""
        return [] if self.streamed else self.kept(view)

    def stream(self, indices: Iterable[np.ndarray], view: int) -> Iterator[list[tf.Tensor]]:
        """As `LiveSource.stream`."""
        for row in indices:
            here = row if self._rows is None else self._rows[row]
            yield [tf.constant(tensor[here]) for tensor in self.kept(view)]

    def lookup(self, indices: tf.Tensor, of_view: list[Any]) -> list[tf.Tensor]:
        """As `LiveSource.lookup`."""
        here = indices if self._rows is None else tf.gather(self._rows, indices)
        return [tf.gather(tensor, here) for tensor in of_view]

    def rows(self, rows: np.ndarray, view: int) -> list[tf.Tensor]:
        """Returns a view's tensors of these examples, in the types they are computed with."""
        if self.streamed:
            return self._cast(next(self.stream([rows], view)))
        return self._cast(self.lookup(rows, self.kept(view)))

    def read(
        self, indices: tf.Tensor, of_view: Any, rows: list[Any], mix: Mix | None = None
    ) -> list[tf.Tensor]:
        """As `LiveSource.read`, but returns the list of kept tensors; nothing is mixed."""
        return self._cast(rows)

    def compute(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """As `LiveSource.compute`."""
        return self._then(tensors) if self._then else tensors

    def _cast(self, tensors):
        return [tf.cast(tensor, dtype) for tensor, dtype in zip(tensors, self.dtypes)]


Source = LiveSource | CachedSource


class Storage:
    """Where features are kept.

    Args:
        directory: For memory-mapped files, or None to keep the features in memory.
        dtype: `float16` or `bfloat16` to keep them so, whatever they are computed with; None keeps
            that.

    Attributes:
        on_disk: Whether they are in files.
    """

    def __init__(self, directory: str | None = None, dtype: str | None = None):
        self.on_disk = directory is not None
        self._directory, self._dtype = directory, dtype and tf.as_dtype(dtype).as_numpy_dtype

    def collect(self, parts: Iterable[list[np.ndarray]], num_rows: int) -> list[Any]:
        """Returns the parts of each tensor put together.

        Args:
            parts: Yields lists of arrays [n, ...], num_rows rows in all; what is more is left out.
            num_rows: See `parts`.

        Raises:
            StorageError: If the disk is full.
            UserError: If a feature is too large for float16.
        """
        kept: list[Any] = []
        first = 0
        for arrays in parts:
            kept = kept or [
                self._allocate((num_rows, *array.shape[1:]), self._dtype or array.dtype)
                for array in arrays
            ]
            for whole, array in zip(kept, arrays):
                if (
                    self._dtype == np.float16
                    and (largest := float(np.abs(array).max())) > _LARGEST_FLOAT16
                ):
                    raise UserError(
                        f"--cache_dtype=float16 with features up to {largest:.3g}; expected at "
                        f"most {_LARGEST_FLOAT16:.0f}; use bfloat16 or auto"
                    )
                whole[first : first + len(array)] = array[: num_rows - first]
            first += len(arrays[0])
        return kept if self._directory else list(map(in_place.tensor_of, kept))

    def _allocate(self, shape, dtype):
        if not self._directory:
            return in_place.zeros(shape, dtype)
        path = temporary_name(f"{self._directory}/features")
        with storage_errors(path), open(path, "xb+") as file:
            # it lives as long as it is mapped: nothing is left behind, however the process ends
            os.remove(path)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, "w+", shape=shape)


def compute_features(
    source: LiveSource,
    batch_size: int,
    bar: Bar = lambda view: contextlib.nullcontext(lambda done, total: None),
    storage: Storage = Storage(),
) -> CachedSource:
    """Returns a `CachedSource` of what a live source computes.

    A view is computed when it is first used, in fixed order and padded batches: again, it gives
    equal bits.

    Args:
        source: A `LiveSource`.
        batch_size: Images at a time.
        bar: Returns a context, for a view, in which a function is called with (batches done,
            batches in all).
        storage: `Storage`. Where the disk is full, the use of a view raises StorageError.
    """
    fetch = tf.function(
        functools.partial(on_local_replicas, source, source.compute),
        autograph=needs_autograph(*source.views.parts),
    )
    own = source.examples.members.own
    indices, _ = pipeline.make_batches(own, batch_size)

    def parts(view: int, progress: Callable[[int, int], None]) -> Iterator[list[np.ndarray]]:
        draws = tf.constant(source.of_view(view))
        stream = source.stream(indices, view) if source.streamed else [None] * len(indices)
        for number, (row, streamed) in enumerate(zip(indices, stream)):
            tensors = fetch(tf.constant(row), draws, streamed)
            # Cut short here: TensorFlow would copy every batch to do so.
            yield [tensor.numpy()[: len(own) - number * batch_size] for tensor in tensors]
            progress(number + 1, len(indices))

    def fill(view: int) -> list[Any]:
        with bar(view) as progress:
            return storage.collect(parts(view, progress), len(own))

    return CachedSource(source, source.boundary, fill, source.dtypes, streamed=storage.on_disk)


def on_local_replicas(
    source: Source, compute: Callable[[Any], Any], indices: tf.Tensor, of_view: Any, streamed: Any
) -> Any:
    """Returns what a function computes from a batch that the replicas of this process share.

    Args:
        source: Where its tensors come from.
        compute: A function of what `source.read` returns for the rows of a replica.
        indices: int32 [B], places of the examples.
        of_view: What the source's method of that name returned.
        streamed: What `source.stream` yields for these, or None if it looks them up.
    """
    rows = source.lookup(indices, of_view) if streamed is None else streamed

    def of_replica() -> Any:
        own, own_rows = distribution.local_rows([indices, rows])
        return compute(source.read(own, of_view, own_rows))

    return distribution.on_replicas(of_replica, lambda parts: tf.concat(parts, axis=0))


def derive_features(
    classifier: Classifier,
    source: CachedSource,
    boundary: Sequence[str],
    batch_size: int,
    storage: Storage = Storage(),
) -> CachedSource:
    """Returns a `CachedSource` for a later boundary: features at the cheapest place before it,
    computed from the earlier ones of a view when that is first used.
    """
    stored, fill, dtypes = classifier.graph.cheapest_boundary(boundary), source.kept, source.dtypes
    if stored != source.stored:
        frozen_part = tf.function(
            classifier.frozen_part(stored, inputs=source.stored),
            reduce_retracing=True,
            autograph=False,
        )
        own = source.examples.members.own
        rows, _ = pipeline.make_batches(own, batch_size)

        def fill(view: int) -> list[Any]:
            parts = (
                [tensor.numpy() for tensor in frozen_part(source.rows(row, view))] for row in rows
            )
            return storage.collect(parts, len(own))

        dtypes = [classifier.graph.dtype(name) for name in stored]
    then = classifier.frozen_part(boundary, inputs=stored) if tuple(boundary) != stored else None
    return CachedSource(
        source, stored, fill, dtypes, streamed=storage.on_disk, boundary=boundary, then=then
    )
