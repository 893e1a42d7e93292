"""Decides which of the checked images are used, and reports the others."""

import collections
from collections.abc import Collection
from typing import NamedTuple

from tl_research.config import Config
from tl_research.data.decoding import UnreadableKind
from tl_research.data.image_check import CheckedImages
from tl_research.data.split import printable
from tl_research.data.walk import others_text
from tl_research.errors import DataError, counted, to_stderr
from tl_research.files import Json, csv_text, write_atomically
from tl_research.run.directory import Directory


class Admitted(NamedTuple):
    """The images that are used, and those that are not."""

    images: CheckedImages
    contradictory: list[tuple[str, str]]  # [(name, reason)] of images in two classes, left out
    duplicates: list[Json]  # rows of `duplicates.csv`

    @property
    def notes(self) -> list[str]:
        """Lines about the images that are left out."""
        notes = self.unreadable_kinds
        if bad := len(self.images.bad):
            notes.append(f"{counted(bad, 'bad image')} left out, see bad_images.csv")
        if both := len(self.contradictory):
            notes.append(f"{counted(both, 'image')} in two classes left out, see bad_images.csv")
        return notes

    @property
    def unreadable_kinds(self) -> list[str]:
        """A line about each kind of photograph that cannot be read."""
        kinds = collections.Counter(kind for _, kind in self.images.unreadable)
        return [
            f"{counted(count, f'{kind.name} photograph')} cannot be read: {kind.remedy}"
            for kind, count in kinds.most_common()
        ]


def admit(checked: CheckedImages, also: Collection[str] = ()) -> Admitted:
    """Returns the good images, except those in two classes.

    Args:
        checked: The result of the image check.
        also: Names of images to admit although they are in two classes.
    """
    files = checked.files
    reasons = _contradictory(checked) if checked.catalog.labels_are_classes else {}
    reasons = {row: why for row, why in reasons.items() if files[row].name not in also}
    images = checked.without(reasons)
    return Admitted(
        images,
        [(files[row].name, reason) for row, reason in sorted(reasons.items())],
        _duplicates(images),
    )


def write(admitted: Admitted, directory: Directory) -> None:
    """Writes `bad_images.csv`, which lists all that is left out, and `duplicates.csv`.

    Raises:
        StorageError: If they cannot be written.
    """
    checked = admitted.images
    unreadable = [(name, str(UnreadableKind(kind))) for name, kind in checked.unreadable]
    bad = sorted([*checked.bad, *unreadable, *admitted.contradictory])
    rows = [{"path": name, "reason": reason} for name, reason in bad]
    write_atomically(directory.file("bad_images.csv"), csv_text(("path", "reason"), rows))
    text = csv_text(("path", "equals", "sha256"), admitted.duplicates)
    write_atomically(directory.file("duplicates.csv"), text)


def refuse(admitted: Admitted, config: Config, is_own: bool = True, see: str = "") -> None:
    """Raises DataError if the images cannot be trained on as they are.

    They cannot if most photographs are of kinds that cannot be read; or, unless such images are to
    be skipped, if some are bad or, among the user's own, in two classes. Warns if more than a tenth
    cannot be read, or more than a tenth of all files is not used.

    Args:
        admitted: The images.
        config: Says whether bad images are skipped.
        is_own: Whether the user can correct the labels.
        see: Text of an error that points to the list of bad images.
    """
    checked, catalog = admitted.images, admitted.images.catalog
    total, others = len(catalog.files) + len(catalog.refused), catalog.others
    kinds = "; ".join(admitted.unreadable_kinds)
    if len(checked.unreadable) > len(checked.good):
        raise DataError(
            f"{len(checked.unreadable)} of {total} images are of kinds that cannot be read, more "
            f"than the {len(checked.good)} that can: {kinds}; expected most to be readable"
        )
    if 10 * len(checked.unreadable) > total:
        to_stderr(f"warning: {kinds}")
    if 9 * others.total() > total:
        to_stderr(f"warning: {others_text(others)}")
    if config.on_bad_image == "skip":
        return
    if checked.bad:
        raise DataError(
            f"{len(checked.bad)} of {total} images cannot be used: {_first(checked.bad)}; expected "
            f"all to be usable; {see}remove them or add --on_bad_image=skip"
        )
    if admitted.contradictory and is_own:
        raise DataError(
            f"{len(admitted.contradictory)} of {total} images are in two classes: "
            f"{_first(admitted.contradictory)}; expected each in one; {see}remove them from the "
            "wrong class, or add --on_bad_image=skip to leave them out of both"
        )


def _first(reasons):
    return "; ".join(f"{printable(name)} ({printable(reason)})" for name, reason in reasons[:5])


def _contradictory(checked):
    """Returns {row: reason} for the good images whose pixels are in another class too."""
    files, classes, reasons = checked.files, checked.catalog.classes, {}
    for rows in _equal(checked).values():
        for row in rows:
            others = [files[other] for other in rows if files[other].label != files[row].label]
            if others:
                names = ", ".join(other.name for other in others)
                reasons[row] = f"is in class {classes[others[0].label]} too, as {names}"
    return reasons


def _duplicates(images):
    """Returns [{path, equals, sha256}] of the images whose pixels, which are hashed, equal those of
    an earlier image; sorted by path.
    """
    names = [file.name for file in images.files]
    pairs = [
        (names[row], names[first], sha256)
        for sha256, (first, *rest) in _equal(images).items()
        for row in rest
    ]
    return [dict(zip(("path", "equals", "sha256"), pair)) for pair in sorted(pairs)]


def _equal(images):
    """Returns {hash: rows} of images with equal pixels."""
    rows = collections.defaultdict(list)
    for row, sha256 in enumerate(images.pixel_sha256s):
        rows[sha256].append(row)
    return rows
