"""From a data set's name to its three sides, checked, decoded and written down."""

import collections
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tl_research.config import Config
from tl_research.data import catalog as catalog_lib
from tl_research.data import duplicates, image_check, split
from tl_research.data.catalog import Table
from tl_research.data.decoding import UnreadableKind
from tl_research.data.pipeline import Examples
from tl_research.data.walk import others_text
from tl_research.errors import DataError, UserError, suggestion
from tl_research.files import csv_text, write_atomically
from tl_research.progress_bar import progress_bar


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The images of a run."""

    classes: tuple[str, ...]  # names in the order of the labels
    train: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...]  # lines that a user should see

    @classmethod
    def from_arrays(
        cls, images: Sequence, labels: np.ndarray, classes: Sequence[str], config: Config
    ) -> "Dataset":
        """Returns what a run of `config` trains on whose `load_catalog` gives these.

        Args:
            images, labels, classes: As of `catalog.Table`.
            config: What is said of the split, the size of images and `--class_share` holds here.

        Raises:
            DataError: If they are no such table.
        """
        catalog = catalog_lib.of_table(Table(images, labels, classes))
        checked = _check(catalog, config)
        _refuse(catalog, checked, config)
        return _divided(catalog, checked, _split(catalog, checked, config), config)


def load(config: Config, directory, load_catalog: Callable | None = None) -> Dataset:
    """Returns the images that `config` names, or those that an extension's `load_catalog` gives.

    Writes `bad_images.csv`, `duplicates.csv` and `split.json` to the run directory.

    Raises:
        DataError: If images are missing, unreadable or bad, or the split written down earlier does
            not fit them.
        UnreachableError: If a download cannot be reached.
    """
    catalog = catalog_lib.of_table(load_catalog(config)) if load_catalog else _find(config)
    checked = _check(catalog, config)
    _write_lists(catalog, checked, directory)
    # the labels of a named data set its user cannot correct
    is_own = bool(load_catalog) or config.dataset == "directory"
    see = f"see {directory.file('bad_images.csv')}, "
    _refuse(catalog, checked, config, allow_contradictory=not is_own, see=see)
    if 10 * len(checked.unreadable) > len(catalog.files):
        print("warning: " + "; ".join(_unreadable_kinds(checked)), file=sys.stderr)
    found = _split(catalog, checked, config)
    _record(catalog, checked, found, config, directory.file("split.json"))
    return _divided(catalog, checked, found, config)


def _find(config):
    return catalog_lib.find_images(
        config.dataset,
        data_dir=config.data_dir,
        validation_dir=config.validation_dir,
        test_dir=config.test_dir,
        download_dir=config.download_dir,
        base_url=config.download_base_url,
    )


def _check(catalog, config):
    with progress_bar("checking images", unit="images") as progress:
        return image_check.check_images(
            catalog,
            config.image_size,
            config.split_seed,
            keep_pixels_bytes=config.cache_pixels,
            progress=progress,
        )


def _write_lists(catalog, checked, directory):
    """Writes `bad_images.csv`, all that is left out, and `duplicates.csv`."""
    unreadable = [(name, str(UnreadableKind(kind))) for name, kind in checked.unreadable]
    bad = sorted([*checked.bad, *unreadable, *checked.contradictory])
    rows = [{"path": name, "reason": reason} for name, reason in bad]
    write_atomically(directory.file("bad_images.csv"), csv_text(("path", "reason"), rows))
    equal = _duplicates(catalog, checked)
    text = csv_text(("path", "equals", "sha256"), equal)
    write_atomically(directory.file("duplicates.csv"), text)


def _duplicates(catalog, checked):
    names = [catalog.files[index].name for index in checked.good]
    return duplicates.duplicates(names, checked.pixel_sha256s)


def _refuse(catalog, checked, config, *, allow_contradictory=False, see=""):
    """Raises DataError where the images are not to be trained on as they are.

    That is where more photographs are of kinds that cannot be read than can be; or, unless they are
    to be skipped, where some are bad or stand in two classes.
    """
    total = len(catalog.files) + len(catalog.refused)
    if len(checked.unreadable) > len(checked.good):
        kinds = "; ".join(_unreadable_kinds(checked))
        raise DataError(
            f"{len(checked.unreadable)} of {total} images are of kinds that cannot be read, which "
            f"outnumber the {len(checked.good)} that can: {kinds}; expected most to be readable"
        )
    if config.on_bad_image == "skip":
        return
    if checked.bad:
        raise DataError(
            f"{len(checked.bad)} of {total} images cannot be used: {_first(checked.bad)}; expected "
            f"all of them; {see}remove them or add --on_bad_image=skip"
        )
    if checked.contradictory and not allow_contradictory:
        raise DataError(
            f"{len(checked.contradictory)} of {total} images stand in two classes: "
            f"{_first(checked.contradictory)}; expected each in one; {see}remove them from the "
            "wrong class, or add --on_bad_image=skip to leave them out of both"
        )


def _first(reasons):
    return "; ".join(f"{name} ({reason})" for name, reason in reasons[:5])


def _unreadable_kinds(checked):
    """Returns a line on each kind of photographs that cannot be read."""
    kinds = collections.Counter(kind for _, kind in checked.unreadable)
    return [
        f"{count} {kind.name} photograph{'s' * (count > 1)} cannot be read: {kind.remedy}"
        for kind, count in kinds.most_common()
    ]


def _split(catalog, checked, config):
    """Returns the `Split` of the good images: within each class, or by content alone."""
    files = [catalog.files[index] for index in checked.good]
    is_class = catalog.labels_are_classes
    return split.assign_sides(
        [file.name for file in files],
        [file.label if is_class else 0 for file in files],
        checked.fractions.tolist(),
        checked.sha256s,
        [file.side for file in files],
        catalog.classes if is_class else ("all images",),
        config.split,
    )


def _record(catalog, checked, found, config, path):
    """Writes `split.json`, or compares it with the one that is there."""
    files = [catalog.files[index] for index in checked.good]
    manifest = split.make_manifest(
        config.split_seed,
        config.split,
        catalog.classes,
        [file.name for file in files],
        [file.label for file in files],
        checked.sha256s,
        found.sides,
    )
    if os.path.exists(path):
        split.check_manifest(path, manifest)
    else:
        split.write_manifest(path, manifest)


def _divided(catalog, checked, found, config):
    """Returns the `Dataset` of the good images, divided as they were split."""
    files = [catalog.files[index] for index in checked.good]
    kind = np.int32 if catalog.labels_are_classes else np.float32
    labels, sides = np.array([file.label for file in files], kind), np.array(found.sides)
    rows = {side: np.flatnonzero(sides == side) for side in split.SIDES}
    rows["train"] = _kept(rows["train"], labels, checked.sha256s, catalog, config.class_shares)

    def examples(rows):
        return Examples(
            tuple(files[row].name for row in rows),
            tuple(files[row].path for row in rows),
            labels[rows],
            config.image_size,
            None if checked.pixels is None else tf.constant(checked.pixels[rows]),
        )

    notes = _notes(catalog, checked, found, config.image_size)
    notes += [
        f"{np.count_nonzero(labels[rows['train']] == catalog.classes.index(name))} training images "
        f"of {name} kept by --class_share"
        for name in config.class_shares
    ]
    return Dataset(catalog.classes, *(examples(rows[side]) for side in split.SIDES), tuple(notes))


def _notes(catalog, checked, found, image_size):
    """Returns a list of lines on the images that a user should see."""
    notes = [*catalog.warnings, *found.warnings]
    if equal := len(_duplicates(catalog, checked)):
        notes.append(
            f"{equal} images equal another one, see duplicates.csv; equal images share a side"
        )
    if catalog.others:
        notes.append(others_text(catalog.others))
    notes += _unreadable_kinds(checked)
    if checked.bad:
        notes.append(f"{len(checked.bad)} bad images left out, see bad_images.csv")
    if checked.contradictory:
        notes.append(
            f"{len(checked.contradictory)} images stand in two classes; left out, see "
            "bad_images.csv"
        )
    notes += [f"{count} images are {trait}" for trait, count in checked.traits.items()]
    if checked.smallest and min(checked.smallest) < image_size:
        notes.append(f"the smallest image has {checked.smallest[0]} x {checked.smallest[1]} pixels")
    return notes


def _kept(rows, labels, sha256s, catalog, shares):
    """Returns those training images, of `rows`, that `--class_share` keeps: of its class those
    whose content's hash, of 1, is below the share.

    Raises:
        UserError: If a class is not there, or none of its images is kept.
    """
    classes = catalog.classes if catalog.labels_are_classes else ()
    for name in shares:
        if name not in classes:
            raise UserError(
                f"--class_share={name}={shares[name]} names no class; expected one of "
                f"{', '.join(classes[:10])}{suggestion(name, classes)}"
            )
    if not shares:
        return rows
    fractions = np.array([int(sha256s[row][:16], 16) / 2**64 for row in rows])
    kept = rows[fractions < np.array([shares.get(name, 2.0) for name in classes])[labels[rows]]]
    for name in shares:
        label = classes.index(name)
        if label not in labels[kept]:
            raise UserError(
                f"--class_share={name}={shares[name]} leaves none of its "
                f"{np.count_nonzero(labels[rows] == label)} training images; expected some; raise "
                "the share"
            )
    return kept
