"""Predicts the classes, or a number, of images with a finished run's model.

    python -m tl_research.predict --run=DIR IMAGE...
    python -m tl_research.predict --run=DIR FOLDER --csv=FILE

Prints a line for each image: on a terminal its most probable classes, elsewhere a CSV row of path,
class, its probability, then the probability of each class, calibrated (or path, classes, ...; or
path and the number, by what the run was trained to answer). The column of a class that is called as
one of the first is `probability <class>`. With --jsonl a line is such an object of JSON.
Folders are searched for images, also deeper ones. What cannot be used is named on stderr and left
out; if nothing can be used, the exit code is 2.
"""

import collections
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research import ahead, cli, metrics
from tl_research.config import ToolConfig
from tl_research.data.split import printable
from tl_research.data.walk import images_below, others_text
from tl_research.errors import DataError, UserError
from tl_research.files import escaped, replacing
from tl_research.settings import setting

if TYPE_CHECKING:  # it imports this module
    from tl_research.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class PredictConfig(ToolConfig):
    """Settings of `python -m tl_research.predict`."""

    csv: str | None = setting(
        None,
        "write CSV rows to this file, once all are there; - is stdout; a pipe or device gets them "
        "as they come",
        path="as given",
        recorded=False,
    )
    jsonl: str | None = setting(
        None, "the same, but objects of JSON, one a line", path="as given", recorded=False
    )
    top_k: int = setting(3, "classes of an image on a terminal, of at least 0.5 %", low=1)

    def __post_init__(self):
        super().__post_init__()
        if self.csv and self.jsonl:
            raise UserError(
                f"--csv={self.csv} and --jsonl={self.jsonl}; expected one of them; leave one out",
                "jsonl",
            )


def predict(
    config: PredictConfig, places: Sequence[Any], others: collections.Counter | None = None
) -> tuple["TrainedRun", Iterator[tuple[str, str | None, np.ndarray | None]]]:
    """Returns (`TrainedRun`, an iterator of (path, reason why it cannot be used or None, outputs of
    the run's kind of answer, float64 [K], or None)).

    Images are read in parallel, a few batches ahead, and are in memory no longer than that.

    Args:
        config: `PredictConfig`.
        places: Paths of images and of folders that hold some; also images themselves, as
            `decoding.pixels_of` takes them, whose path is then `image N`, their place from 0.
        others: A `collections.Counter` for the files in the folders that are no images.

    Raises:
        RunDirectoryError: If `config.run` is no finished run.
        DataError: If a path does not exist.
    """
    _check_there(list(filter(_is_path, places)))
    from tl_research import trained  # imports TensorFlow, which --help need not wait for

    run = trained.TrainedRun(str(config.run))
    classifier, batch_size = (
        run.load_classifier(config.extension),
        run.batch_size(config.batch_size),
    )
    others = collections.Counter() if others is None else others
    images = _load(image_files(places, others), run.config, 4 * batch_size)

    def predictions() -> Iterator[tuple[str, str | None, np.ndarray | None]]:
        while batch := list(itertools.islice(images, batch_size)):
            good = [pixels for _, _, pixels in batch if pixels is not None]
            if good:
                logits = classifier(np.stack(good))
                outputs = iter(run.answer.outputs(metrics.scaled(logits, run.temperature)))
            for path, reason, _ in batch:
                yield path, reason, None if reason else next(outputs)

    return run, predictions()


def _check_there(paths):
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} paths do not exist ({missing[0]}); expected images "
            "and folders; correct them"
        )


def _is_path(place):
    return isinstance(place, (str, os.PathLike))


def image_files(
    places: Iterable[Any], others: collections.Counter
) -> Iterator[tuple[str, Any, str | None]]:
    """Yields (name, path or image, why it must not be opened or None) of the images that are given
    or in folders.

    Args:
        places: As of `predict`.
        others: A `collections.Counter` of the files in the folders that are no images.
    """
    for number, place in enumerate(places):
        if not _is_path(place):
            yield f"image {number}", place, None
        elif not os.path.isdir(place):
            yield os.fspath(place), place, None
        else:
            for _, path, reason in images_below(place, [os.path.realpath(place)], others):
                yield path, path, reason


def _load(images, trained_with, count):
    """Returns an iterator of (name, why it cannot be used or None, pixels or None), in the order of
    `images`, which are as of `image_files`, as training with a `Config` read them.
    """
    from tl_research.data.decoding import BadImage, pixels_of
    from tl_research.data.image_check import resize_image

    def load(
        name: str, image: Any, reason: str | None
    ) -> tuple[str, str | None, np.ndarray | None]:
        if reason:
            return name, reason, None
        try:
            pixels = pixels_of(image, trained_with.max_image_pixels)
        except BadImage as error:
            return name, str(error), None
        return name, None, resize_image(pixels, trained_with.image_size)

    return ahead.in_order(lambda named: load(*named), images, count)


@contextlib.contextmanager
def _output(path):
    """Yields a text file: stdout, or one that gets its name when it is whole."""
    if path in (None, "-"):
        # `predict ... | head` ends as other programs do
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        yield sys.stdout
        return
    with replacing(path, encoding="utf-8", newline="") as file:
        yield file


def _columns(first, classes):
    """Returns the names of all columns, each once: a class may be called `path` too."""

    def column(name: str) -> str:
        while name in first or (name.startswith("probability ") and name in classes):
            name = f"probability {name}"
        return name

    return [*first, *(column(name) if name in first else name for name in classes)]


# Each returns a function that writes the line of a path and its outputs to a text file.


def _csv(file, answer, classes, top_k):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_columns(("path", *answer.predicted), classes))

    def write(path: str, outputs: np.ndarray) -> None:
        cells = (*answer.said(outputs, classes), *outputs)
        writer.writerow([path, *(c if isinstance(c, str) else f"{c:.6g}" for c in cells)])

    return write


def _jsonl(file, answer, classes, top_k):
    def rounded(cell: Any) -> Any:
        return cell if isinstance(cell, str) else float(f"{cell:.6g}")

    def write(path: str, outputs: np.ndarray) -> None:
        said = zip(answer.predicted, map(rounded, answer.said(outputs, classes)))
        every = dict(zip(classes, map(rounded, outputs)))
        kind = "probabilities" if answer.has_probabilities else "numbers"
        file.write(json.dumps({"path": path, **dict(said), kind: every}) + "\n")

    return write


def _text(file, answer, classes, top_k):
    width, shares = 0, answer.has_probabilities

    def write(path: str, outputs: np.ndarray) -> None:
        nonlocal width
        width, best = max(width, len(path)), np.argsort(-outputs, kind="stable")[:top_k]
        named = [
            f"{printable(classes[k])} "
            + (f"{100 * outputs[k]:.0f} %" if shares else f"{outputs[k]:.4g}")
            for k in best
            if k == best[0] or not shares or outputs[k] >= 0.005
        ]
        file.write("   ".join([f"{printable(path):<{width}}", *named]) + "\n")

    return write


def main(places: list[str]) -> None:
    config = cli.config_from_flags(PredictConfig)
    if not places:
        raise UserError(
            "no images are named; expected paths of images or folders; add them after --run"
        )
    started, counts = time.perf_counter(), collections.Counter[bool]()
    others = collections.Counter[str]()
    run, predictions = predict(config, places, others)
    is_read = sys.stdout.isatty() and not config.csv
    form = _jsonl if config.jsonl else _text if is_read else _csv
    with _output(config.csv or config.jsonl) as file:
        write = form(file, run.answer, [*map(escaped, run.classes)], config.top_k)
        for path, reason, outputs in predictions:
            path = escaped(path)
            counts[reason is None] += 1
            if reason:
                print(f"{printable(path)}: {printable(escaped(reason))}", file=sys.stderr)
            else:
                write(path, outputs)
        file.flush()
    seconds = time.perf_counter() - started
    print(
        f"{counts[True]} image{'s' * (counts[True] != 1)} in {seconds:.1f} s, {counts[False]} "
        "could not be used",
        file=sys.stderr,
    )
    if others:
        print(others_text(others), file=sys.stderr)
    if not counts[True]:
        raise DataError(
            f"none of {counts[False]} images can be used; expected at least one; see the reasons "
            "above"
        )


if __name__ == "__main__":
    cli.define_flags(PredictConfig)
    cli.run(main, takes=True)
