"""From a data set's name to its three sides, checked, decoded and written down."""

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tl_research import in_place, memory
from tl_research.config import Config
from tl_research.data import admission, image_check, left_out, manifest, near_copies, split
from tl_research.data import catalog as catalog_lib
from tl_research.data.catalog import Table
from tl_research.data.pipeline import Examples
from tl_research.data.shards import Shards
from tl_research.data.walk import others_text
from tl_research.errors import DataError, UserError, counted, suggestion, to_stderr
from tl_research.progress_bar import progress_bar
from tl_research.run.directory import RunDirectory

_NAMED = 10  # of classes or images in a message


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
            DataError: If they are no such table, or hold bad images or one in two classes.
        """
        catalog, _ = _chosen(catalog_lib.of_table(Table(images, labels, classes)), config)
        admitted = admission.admit(_check(catalog, config))
        admission.refuse(admitted, config)
        return _divided(admitted, _split(admitted.images, config), config)


def load(
    config: Config,
    directory: RunDirectory,
    load_catalog: Callable | None = None,
    shards: Shards = Shards(),
) -> Dataset:
    """Returns the images that `config` names, or those that an extension's `load_catalog` gives.

    Writes `bad_images.csv`, `duplicates.csv` and `split.json` to the run directory.

    Args:
        config: The settings.
        directory: The run's.
        load_catalog: An extension's.
        shards: Those of the run; each process reads, and keeps the pixels of, its own.

    Raises:
        DataError: If images are missing, unreadable or bad, or the split written down earlier does
            not fit them.
        UnreachableError: If a download cannot be reached.
    """
    catalog, names = _chosen(_find(config, load_catalog), config)
    admitted = admission.admit(_check(catalog, config, shards))
    admission.write(admitted, directory)
    # the labels of a named data set its user cannot correct
    is_own = bool(load_catalog) or config.dataset == "directory"
    admission.refuse(admitted, config, is_own, f"see {directory.file('bad_images.csv')}, ")
    found = _split(admitted.images, config)
    _record(admitted.images, found, names, config, directory.file("split.json"))
    data = _divided(admitted, found, config)
    for side in split.SIDES:
        _check_shards(side, getattr(data, side))
    return data


def _check_shards(side, examples):
    """Raises DataError if a shard has no image of a side, which a process would wait for."""
    empty = sum(len(places) == 0 for places in examples.members.of_shard)
    if examples.shards.count > 1 and empty:
        raise DataError(
            f"{len(examples)} {side} images leave {empty} of {examples.shards.count} shards "
            "without one; expected some in each; start fewer processes, or use --shards=1"
        )


def load_recorded(
    config: Config,
    manifest_path: str,
    load_catalog: Callable | None = None,
    sides: Sequence[str] = split.SIDES,
) -> Dataset:
    """Returns the images of a finished run, on the sides that its `split.json` records, by whatever
    rule they were chosen; whatever else lies beside them now is not looked at.

    Args:
        config: The settings of the run.
        manifest_path: Of `split.json`.
        load_catalog: An extension's, if that gave the images.
        sides: Those whose images are wanted; the others are empty.

    Raises:
        DataError: If images are missing, or are others than those of the run.
        UnreachableError: If a download cannot be reached.
    """
    if "train" not in sides:
        config = dataclasses.replace(config, class_share=())
    known = manifest.read(manifest_path)
    recorded = {entry["path"]: entry for entry in known["files"] if entry["side"] in sides}
    catalog = _recorded_of(_find(config, load_catalog), recorded, known["classes"])
    admitted = admission.admit(_check(catalog, config), also=recorded)
    now = _entries(admitted.images)
    manifest.check_files(list(recorded.values()), now)
    found = split.Split(
        tuple(recorded[entry["path"]]["side"] for entry in now),
        tuple(recorded[entry["path"]].get("group") for entry in now),
        (),
    )
    return _divided(admitted, found, config)


def load_labelled(folder: str, classes: Sequence[str], config: Config) -> Examples:
    """Returns all images of a folder of class folders, labelled as a run's classes of these names.

    Args:
        folder: Of `--data_dir`.
        classes: The run's.
        config: The run's: how images are checked and resized. Bad ones are left out with a warning.

    Raises:
        DataError: If it is no such folder, or has classes that the run does not know.
    """
    catalog = catalog_lib.of_folders([(folder, None, "--data_dir")])
    known = set(map(_composed, classes))
    if unknown := [name for name in catalog.classes if _composed(name) not in known]:
        raise DataError(
            f"--data_dir={folder} has {len(unknown)} classes that the run does not know "
            f"({_listed(unknown)}); expected some of {_listed(classes)}; rename or remove them"
        )
    catalog = _relabelled(catalog, classes)
    config = dataclasses.replace(config, on_bad_image="skip", class_share=())
    admitted = admission.admit(_check(catalog, config))
    admission.refuse(admitted, config)
    if count := len(catalog.files) - len(admitted.images.good):
        bad = [*admitted.images.bad, *admitted.contradictory, *admitted.images.unreadable]
        to_stderr(f"warning: {_images_are(count)} left out: {_listed(dict(bad))}")
    sides = ("test",) * len(admitted.images.good)
    return _divided(admitted, split.Split(sides, (None,) * len(sides), ()), config).test


def _listed(names):
    more = len(names) - _NAMED
    return ", ".join(map(split.printable, list(names)[:_NAMED])) + f", {more} more" * (more > 0)


def _recorded_of(catalog, recorded, classes):
    """Returns the catalog of the recorded images alone, with the run's classes.

    Args:
        catalog: Of what is there now.
        recorded: {name: entry of `split.json`}.
        classes: The run's, of which folders may be gone, or new ones there.
    """
    files = tuple(file for file in catalog.files if file.name in recorded)
    catalog = catalog._replace(files=files, refused=())
    if catalog.labels_are_classes:
        catalog = _relabelled(catalog, classes)
    # before any file is read
    found = {file.name for file in catalog.files}
    manifest.raise_if_any({"missing": sorted(recorded.keys() - found)})
    return catalog._replace(classes=tuple(classes))


def _relabelled(catalog, classes):
    """Returns a catalog with the classes of a run, without the images of other classes."""
    places = {_composed(name): place for place, name in enumerate(classes)}
    labels = [places.get(_composed(name)) for name in catalog.classes]
    files = [file._replace(label=labels[file.label]) for file in catalog.files]
    kept = tuple(file for file in files if file.label is not None)
    return catalog._replace(classes=tuple(classes), files=kept)


def _composed(name):
    """Returns a name as any file system may write it, in one form."""
    return unicodedata.normalize("NFC", name)


def _chosen(catalog, config):
    """Returns (the catalog without what `--leave_out` names, those names)."""
    names = left_out.read_names(config.leave_out, catalog) if config.leave_out else []
    return left_out.without(catalog, names), names


def _find(config, load_catalog):
    if load_catalog:
        return catalog_lib.of_table(load_catalog(config))
    return catalog_lib.find_images(config)


def _check(catalog, config, shards=Shards()):
    needed = len(catalog.files) * config.image_size**2 * 3 * len(shards.own) // shards.count
    allowed = memory.allowed(config.cache_pixels, "--cache_pixels", needed)
    with progress_bar("checking images", unit="images") as progress:
        return image_check.check_images(
            catalog,
            config.image_size,
            keep_pixels_bytes=allowed,
            max_pixels=config.max_image_pixels,
            shards=shards,
            progress=progress,
        )


def _split(checked, config):
    """Returns the `Split` of the good images: within each class, or by content alone."""
    files, catalog = checked.files, checked.catalog
    is_class = catalog.labels_are_classes
    return split.assign_sides(
        [file.name for file in files],
        [file.label if is_class else 0 for file in files],
        checked.sha256s,
        near_copies.groups(checked.thumbnails, checked.sha256s),
        [file.side for file in files],
        catalog.classes if is_class else ("all images",),
        config.split,
        config.split_seed,
    )


def _entries(checked):
    """Returns what `split.json` has of each good image, without its side."""
    catalog = checked.catalog
    is_class = catalog.labels_are_classes
    return [
        {
            "path": file.name,
            "class": catalog.classes[file.label] if is_class else file.label,
            "sha256": sha256,
        }
        for file, sha256 in zip(checked.files, checked.sha256s)
    ]


def _record(checked, found, names, config, path):
    """Writes `split.json`, or compares it with the one that is there."""
    classes, entries = checked.catalog.classes, _entries(checked)
    now = manifest.make(config.split_seed, config.split, classes, entries, found, names)
    if os.path.exists(path):
        manifest.check(path, now)
    else:
        manifest.write(path, now)


def _divided(admitted, found, config):
    """Returns the `Dataset` of the admitted images, divided as they were split."""
    checked, catalog, files = admitted.images, admitted.images.catalog, admitted.images.files
    kind = np.int32 if catalog.labels_are_classes else np.float32
    labels = np.array([file.label for file in files], kind)
    rows = {side: np.flatnonzero(np.array(found.sides) == side) for side in split.SIDES}
    rows["train"] = _kept(rows["train"], labels, checked.sha256s, catalog, config.class_shares)
    every = Examples(
        tuple(file.name for file in files),
        tuple(file.path for file in files),
        labels,
        config.image_size,
        None if checked.pixels is None else in_place.tensor_of(checked.pixels),
        None,
        checked.sha256s,
        config.max_image_pixels,
        checked.shards,
    )
    notes = _notes(admitted, found, config.image_size)
    notes += [
        f"{np.count_nonzero(labels[rows['train']] == catalog.classes.index(name))} training images "
        f"of {name} kept by --class_share"
        for name in config.class_shares
    ]
    return Dataset(
        catalog.classes, *(_chosen_rows(every, rows[side]) for side in split.SIDES), tuple(notes)
    )


def _chosen_rows(every, rows):
    """Returns the `Examples` in some rows; the pixels stay one tensor."""
    columns = {
        name: tuple(getattr(every, name)[row] for row in rows)
        for name in ("names", "paths", "sha256s")
    }
    held, places = every.members.rows, None
    if every.pixels is not None:
        places = tf.constant(rows if held is None else held[rows], tf.int32)
    return dataclasses.replace(every, **columns, labels=every.labels[rows], rows=places)


def _images_are(count):
    return f"{counted(count, 'image')} {'is' if count == 1 else 'are'}"


def _notes(admitted, found, image_size):
    """Returns a list of lines on the images that a user should see."""
    checked, catalog = admitted.images, admitted.images.catalog
    notes = [*catalog.warnings, *found.warnings]
    if equal := len(admitted.duplicates):
        notes.append(
            f"{counted(equal, 'duplicate image')} (see duplicates.csv), on the same side of the "
            "split as the original"
        )
    if num_groups := _num_near_copies(checked.pixel_sha256s, found.groups):
        notes.append(f"{counted(num_groups, 'group')} of near-copies, each on one side")
    if catalog.others:
        notes.append(others_text(catalog.others))
    notes += admitted.notes
    notes += [f"{_images_are(count)} {trait}" for trait, count in checked.traits.items()]
    if checked.smallest and min(checked.smallest) < image_size:
        notes.append(f"the smallest image has {checked.smallest[0]} x {checked.smallest[1]} pixels")
    return notes


def _num_near_copies(pixel_sha256s, groups):
    """Returns of how many groups the images are not all equal."""
    contents = {(group, sha256) for group, sha256 in zip(groups, pixel_sha256s) if group}
    counts = collections.Counter(group for group, _ in contents)
    return sum(count > 1 for count in counts.values())


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
                f"--class_share={split.printable(name)}={shares[name]} names no class; expected "
                f"one of {', '.join(map(split.printable, classes[:10]))}{suggestion(name, classes)}"
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
