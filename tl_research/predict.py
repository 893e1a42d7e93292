"""Predicts the classes, or a number, of images with a finished run's model.

    python -m tl_research.predict --run=DIR IMAGE...
    python -m tl_research.predict --run=DIR FOLDER --csv=FILE

Prints a line per image: on a terminal its most probable classes, elsewhere a CSV row of path,
class, its probability, and the calibrated probabilities of all classes (or of path, set of classes
and probabilities; or of path and number, depending on what the run was trained for). If a class has
the name of one of the first columns, its column is `probability <class>`. With --jsonl each line is
a JSON object. Folders are searched recursively. Files that cannot be used are named on stderr and
skipped; if none can be used, the exit code is 2.
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
from tl_research.errors import DataError, UserError, counted, to_stderr
from tl_research.files import escaped, replacing
from tl_research.settings import setting, unrecorded_path

if TYPE_CHECKING:  # it imports this module
    from tl_research.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class PredictConfig(ToolConfig):
    """Settings of `python -m tl_research.predict`."""

    csv: str | None = unrecorded_path(
        None,
        "file for CSV rows, written when all are complete; -: stdout; a pipe or device receives "
        "rows as they come",
    )
    jsonl: str | None = unrecorded_path(None, "the same with JSON objects, one per line")
    top_k: int = setting(3, "classes shown per image on a terminal, if at least 0.5 %", low=1)

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
    """Predicts images, which are read in parallel, a few batches ahead.

    Args:
        config: The run, and how to read images.
        places: Paths of images and of folders of images, or images themselves, as
            `decoding.pixels_of` takes them; the path of number N is then `image N`, from 0.
        others: A `collections.Counter` for the files in the folders that are not images.

    Returns:
        (`TrainedRun`, iterator of (path, reason why the image cannot be used or None, outputs of
        the run's kind of answer, float64 [K], or None))

    Raises:
        RunDirectoryError: If `config.run` is not a finished run.
        DataError: If a path does not exist.
    """
    paths = list(filter(_is_path, places))
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise DataError(
            f"{len(missing)} of {len(paths)} paths do not exist ({missing[0]}); expected images "
            "and folders; correct them"
        )
    from tl_research import trained  # imports TensorFlow, which --help need not wait for

    run = trained.TrainedRun(str(config.run))
    files = image_files(places, collections.Counter() if others is None else others)
    classifier, batch_size = run.load_classifier(config.extension), config.batch_size
    return run, _predictions(run, classifier, files, run.batch_size(batch_size))


def _predictions(run, classifier, files, batch_size):
    """Yields what `predict` returns for the images of `image_files`."""
    images = ahead.in_order(_reader(run.config), files, 4 * batch_size)
    while batch := list(itertools.islice(images, batch_size)):
        good = [pixels for _, _, pixels in batch if pixels is not None]
        if good:
            logits = classifier(np.stack(good))
            outputs = iter(run.answer.outputs(metrics.scaled(logits, run.temperature)))
        for path, reason, _ in batch:
            yield path, reason, None if reason else next(outputs)


def _is_path(place):
    return isinstance(place, (str, os.PathLike))


def image_files(
    places: Iterable[Any], others: collections.Counter
) -> Iterator[tuple[str, Any, str | None]]:
    """Yields (name, path or image, reason not to open it or None) of given images and of those in
    folders.

    Args:
        places: As for `predict`.
        others: A `collections.Counter` for the files in the folders that are not images.
    """
    for number, place in enumerate(places):
        if not _is_path(place):
            yield f"image {number}", place, None
        elif not os.path.isdir(place):
            yield os.fspath(place), place, None
        else:
            for _, path, reason in images_below(place, [os.path.realpath(place)], others):
                yield path, path, reason


def _reader(trained_with):
    """Returns a function that reads an item of `image_files` in the same way as training did: to
    (name, reason why it cannot be used or None, pixels or None).
    """
    from tl_research.data.decoding import BadImage, pixels_of
    from tl_research.data.image_check import resize_image

    def _read(item):
        name, image, reason = item
        try:
            pixels = None if reason else pixels_of(image, trained_with.max_image_pixels)
        except BadImage as error:
            return name, str(error), None
        return name, reason, None if reason else resize_image(pixels, trained_with.image_size)

    return _read


def _output(path):
    """Returns the context of a text file: stdout, or one that gets its name once it is complete."""
    if path in (None, "-"):
        # let `predict ... | head` end quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        return contextlib.nullcontext(sys.stdout)
    return replacing(path)


def _columns(first, classes):
    """Returns unique names of all columns: a class may be called `path` too."""

    def _column(name):
        while name in first or (name.startswith("probability ") and name in classes):
            name = f"probability {name}"
        return name

    return [*first, *(_column(name) if name in first else name for name in classes)]


# Each returns a function that writes a line for a path and its outputs to a text file.


def _csv(file, answer, classes, top_k):
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_columns(("path", *answer.predicted), classes))

    def _write(path, outputs):
        cells = (*answer.said(outputs, classes), *outputs)
        writer.writerow([path, *(c if isinstance(c, str) else f"{c:.6g}" for c in cells)])

    return _write


def _jsonl(file, answer, classes, top_k):
    def _rounded(cell):
        return cell if isinstance(cell, str) else float(f"{cell:.6g}")

    def _write(path, outputs):
        said = zip(answer.predicted, map(_rounded, answer.said(outputs, classes)))
        every = dict(zip(classes, map(_rounded, outputs)))
        kind = "probabilities" if answer.has_probabilities else "numbers"
        file.write(json.dumps({"path": path, **dict(said), kind: every}) + "\n")

    return _write


def _text(file, answer, classes, top_k):
    width, shares = 0, answer.has_probabilities

    def _write(path, outputs):
        nonlocal width
        width, best = max(width, len(path)), np.argsort(-outputs, kind="stable")[:top_k]
        named = [
            f"{printable(classes[k])} "
            + (f"{100 * outputs[k]:.0f} %" if shares else f"{outputs[k]:.4g}")
            for k in best
            if k == best[0] or not shares or outputs[k] >= 0.005
        ]
        file.write("   ".join([f"{printable(path):<{width}}", *named]) + "\n")

    return _write


# What is written: each of (text file, kind of answer, classes, `top_k`).
FORMS = {"csv": _csv, "jsonl": _jsonl, "text": _text}


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
    form = FORMS["jsonl" if config.jsonl else "text" if is_read else "csv"]
    with _output(config.csv or config.jsonl) as file:
        write = form(file, run.answer, [*map(escaped, run.classes)], config.top_k)
        for path, reason, outputs in predictions:
            path = escaped(path)
            counts[reason is None] += 1
            if reason:
                to_stderr(f"{printable(path)}: {printable(escaped(reason))}")
            else:
                write(path, outputs)
        file.flush()
    seconds = time.perf_counter() - started
    to_stderr(
        f"{counted(counts[True], 'image')} in {seconds:.1f} s, {counts[False]} could not be used"
    )
    if others:
        to_stderr(others_text(others))
    if not counts[True]:
        raise DataError(
            f"none of {counts[False]} images can be used; expected at least one; see the reasons "
            "above"
        )


if __name__ == "__main__":
    cli.define_flags(PredictConfig)
    cli.run(main, takes=True)
