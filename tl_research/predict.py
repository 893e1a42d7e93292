"""Predicts the classes, or a number, of images with a finished run's model.

    python -m tl_research.predict --run=DIR IMAGE|DIR... [--csv=FILE]

Prints one CSV row for each image: path, class, its probability, then the probability of each class,
calibrated (or path, classes, ...; or path and the number, by what the run was trained to answer).
The column of a class that is called as one of the first is `probability <class>`.
Folders are searched for images, also deeper ones. What cannot be used is named on stderr and left
out; if nothing can be used, the exit code is 2.
"""

import collections
import contextlib
import csv
import dataclasses
import itertools
import os
import signal
import sys
import time

from tl_research import ahead, cli, metrics
from tl_research.config import ToolConfig
from tl_research.data.split import printable
from tl_research.data.walk import images_below, others_text
from tl_research.errors import DataError, UserError
from tl_research.files import escaped, replacing
from tl_research.settings import setting


@dataclasses.dataclass(frozen=True)
class PredictConfig(ToolConfig):
    """Settings of `python -m tl_research.predict`."""

    csv: str | None = setting(
        None,
        "write the rows to this file, once all are there, instead of to stdout; a pipe or device "
        "gets them as they come",
        path="as given",
        recorded=False,
    )


def predict(config, places, others=None):
    """Returns (`TrainedRun`, an iterator of (path, reason why it cannot be used or None, outputs of
    the run's kind of answer, float64 [K], or None)).

    Images are read in parallel, a few batches ahead, and are in memory no longer than that.

    Args:
        config: `PredictConfig`.
        places: Paths of images and of folders that hold some.
        others: A `collections.Counter` for the files in the folders that are no images.

    Raises:
        RunDirectoryError: If `config.run` is no finished run.
        DataError: If a path does not exist.
    """
    missing = [place for place in places if not os.path.exists(place)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(places)} paths do not exist ({missing[0]}); expected images "
            "and folders; correct them"
        )
    import numpy as np

    # imports TensorFlow, which --help need not wait for
    from tl_research import trained
    from tl_research.data import pipeline

    run = trained.TrainedRun(config.run)
    classifier, batch_size = (
        run.load_classifier(config.extension),
        run.batch_size(config.batch_size),
    )
    others = collections.Counter() if others is None else others
    images = _load(image_files(places, others), run.config, 4 * batch_size)

    def predictions():
        while batch := list(itertools.islice(images, batch_size)):
            good = [pixels for _, _, pixels in batch if pixels is not None]
            if good:  # filled up, so that most batches have one shape
                (places,), _ = pipeline.make_batches(np.arange(len(good)), batch_size)
                logits = classifier(np.stack([good[place] for place in places]))
                outputs = iter(run.answer.outputs(metrics.scaled(logits, run.temperature)))
            for path, reason, _ in batch:
                yield path, reason, None if reason else next(outputs)

    return run, predictions()


def image_files(places, others):
    """Yields (path, why it must not be opened or None) of the images that are named or in folders.

    Args:
        places: Paths of images and folders.
        others: A `collections.Counter` of the files in the folders that are no images.
    """
    for place in places:
        if not os.path.isdir(place):
            yield place, None
            continue
        for _, path, reason in images_below(place, [os.path.realpath(place)], others):
            yield path, reason


def _load(images, trained_with, count):
    """Returns an iterator of (path, why it cannot be used or None, pixels or None), in the order of
    `images`, which are as of `image_files`, as training with a `Config` read them.
    """
    from tl_research.data.decoding import BadImage, load_pixels
    from tl_research.data.image_check import resize_image

    def load(path, reason):
        if reason:
            return path, reason, None
        try:
            pixels = load_pixels(path, trained_with.max_image_pixels)
        except BadImage as error:
            return path, str(error), None
        return path, None, resize_image(pixels, trained_with.image_size)

    return ahead.in_order(lambda named: load(*named), images, count)


@contextlib.contextmanager
def _output(path):
    """Yields a text file: stdout, or one that gets its name when it is whole."""
    if path is None:
        # `predict ... | head` ends as other programs do
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        yield sys.stdout
        return
    with replacing(path, encoding="utf-8", newline="") as file:
        yield file


def _columns(first, classes):
    """Returns the names of all columns, each once: a class may be called `path` too."""

    def column(name):
        while name in first or (name.startswith("probability ") and name in classes):
            name = f"probability {name}"
        return name

    return [*first, *(column(name) if name in first else name for name in classes)]


def main(places):
    config = cli.config_from_flags(PredictConfig)
    if not places:
        raise UserError(
            "no images are named; expected paths of images or folders; add them after --run"
        )
    started, counts, others = time.perf_counter(), collections.Counter(), collections.Counter()
    run, predictions = predict(config, places, others)
    with _output(config.csv) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_columns(("path", *run.answer.predicted), run.classes))
        for path, reason, outputs in predictions:
            path = escaped(path)
            counts[reason is None] += 1
            if reason:
                print(f"{printable(path)}: {printable(escaped(reason))}", file=sys.stderr)
            else:
                cells = (*run.answer.said(outputs, run.classes), *outputs)
                cells = [cell if isinstance(cell, str) else f"{cell:.6g}" for cell in cells]
                writer.writerow([path, *cells])
        file.flush()
    seconds = time.perf_counter() - started
    print(
        f"{counts[True]} images in {seconds:.1f} s, {counts[False]} could not be used",
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
