"""From a data set's name to its three sides, checked, decoded and written down."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from tl_research.data import catalog as catalog_lib
from tl_research.data import image_check, split
from tl_research.data.pipeline import Examples
from tl_research.errors import DataError, UserError, suggestion
from tl_research.files import csv_text, write_atomically
from tl_research.reporting.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The images of a run."""

    classes: tuple[str, ...]  # names in the order of the labels
    train: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...]  # lines that a user should see


def load(config, directory):
    """Returns the `Dataset` that `config` names.

    Writes `bad_images.csv` and `split.json` to the run directory.

    Raises:
        DataError: If images are missing, unreadable or bad, or the split written down earlier does
            not fit them.
        UnreachableError: If a download cannot be reached.
    """
    catalog = catalog_lib.find_images(
        config.dataset,
        data_dir=config.data_dir,
        validation_dir=config.validation_dir,
        test_dir=config.test_dir,
        download_dir=config.download_dir,
        base_url=config.download_base_url,
    )
    with progress_bar("checking images", unit="images") as progress:
        checked = image_check.check_images(
            catalog,
            config.image_size,
            config.split_seed,
            keep_pixels_bytes=config.cache_pixels,
            progress=progress,
        )
    write_atomically(
        directory.file("bad_images.csv"),
        csv_text(
            ("path", "reason"), [{"path": name, "reason": reason} for name, reason in checked.bad]
        ),
    )
    if checked.bad and config.on_bad_image == "error":
        named = "; ".join(f"{name} ({reason})" for name, reason in checked.bad[:5])
        raise DataError(
            f"{len(checked.bad)} of {len(catalog.files) + len(catalog.refused)} images cannot be "
            f"used: {named}; expected all of them; see {directory.file('bad_images.csv')}, remove "
            "them or add --on_bad_image=skip"
        )
    files = [catalog.files[index] for index in checked.good]
    names = tuple(file.name for file in files)
    labels = np.array([file.label for file in files], np.int32)
    sides = split.assign_sides(
        names,
        labels.tolist(),
        checked.fractions.tolist(),
        checked.sha256s,
        [file.side for file in files],
        catalog.classes,
        config.split,
    )
    manifest = split.make_manifest(
        config.split_seed,
        config.split,
        catalog.classes,
        names,
        labels,
        checked.sha256s,
        sides.sides,
    )
    path = directory.file("split.json")
    if os.path.exists(path):
        split.check_manifest(path, manifest)
    else:
        split.write_manifest(path, manifest)
    notes = [*catalog.warnings, *sides.warnings]
    if sides.num_duplicates:
        notes.append(f"{sides.num_duplicates} images equal another one; equal images share a side")
    if catalog.ignored:
        notes.append(f"{catalog.ignored} files ignored that are no images by their names")
    if checked.bad:
        notes.append(f"{len(checked.bad)} bad images left out, see bad_images.csv")
    notes += [f"{count} images are {trait}" for trait, count in checked.traits.items()]
    if checked.smallest and min(checked.smallest) < config.image_size:
        notes.append(f"the smallest image has {checked.smallest[0]} x {checked.smallest[1]} pixels")
    examples = {}
    for side in split.SIDES:
        rows = np.flatnonzero(np.array(sides.sides) == side)
        if side == "train":
            rows = rows[
                _kept(
                    labels[rows],
                    [checked.sha256s[row] for row in rows],
                    catalog.classes,
                    config.class_shares,
                )
            ]
            notes += [
                f"{np.count_nonzero(labels[rows] == catalog.classes.index(name))} training images "
                f"of {name} kept by --class_share"
                for name in config.class_shares
            ]
        pixels = None if checked.pixels is None else tf.constant(checked.pixels[rows])
        examples[side] = Examples(
            tuple(names[row] for row in rows),
            tuple(files[row].path for row in rows),
            labels[rows],
            config.image_size,
            pixels,
        )
    return Dataset(
        catalog.classes, examples["train"], examples["validation"], examples["test"], tuple(notes)
    )


def _kept(labels, sha256s, classes, shares):
    """Returns the places of the images that `--class_share` keeps: those whose content's hash, of
    1, is below their class's share.

    Raises:
        UserError: If a class is not there, or none of its images is kept.
    """
    for name in shares:
        if name not in classes:
            raise UserError(
                f"--class_share={name}={shares[name]} names no class; expected one of "
                f"{', '.join(classes[:10])}{suggestion(name, classes)}"
            )
    fractions = np.array([int(sha256[:16], 16) / 2**64 for sha256 in sha256s])
    kept = fractions < np.array([shares.get(name, 2.0) for name in classes])[labels]
    for name in shares:
        if not kept[labels == classes.index(name)].any():
            raise UserError(
                f"--class_share={name}={shares[name]} leaves none of its "
                f"{np.count_nonzero(labels == classes.index(name))} training images; expected "
                "some; raise the share"
            )
    return np.flatnonzero(kept)
