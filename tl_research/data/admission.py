"""Which of the images that were checked are trained on, and what is said of the others."""

import collections
import dataclasses
import sys
from collections.abc import Collection
from typing import Any

from tl_research.config import Config
from tl_research.data.decoding import UnreadableKind
from tl_research.data.image_check import CheckedImages
from tl_research.data.split import printable
from tl_research.data.walk import others_text
from tl_research.errors import DataError
from tl_research.files import csv_text, write_atomically
from tl_research.run.directory import Directory


@dataclasses.dataclass(frozen=True, eq=False)
class Admitted:
    """The images that are left, and those that are not."""

    images: CheckedImages
    contradictory: list[tuple[str, str]]  # [(name, reason)] of those in two classes, left out
    duplicates: list[dict[str, Any]]  # rows of `duplicates.csv`

    @property
    def notes(self) -> list[str]:
        """Lines on what is left out."""
        lines = self.unreadable_kinds
        if self.images.bad:
            lines.append(f"{len(self.images.bad)} bad images left out, see bad_images.csv")
        if self.contradictory:
            lines.append(
                f"{len(self.contradictory)} images stand in two classes; left out, see "
                "bad_images.csv"
            )
        return lines

    @property
    def unreadable_kinds(self) -> list[str]:
        """A line on each kind of photographs that cannot be read."""
        kinds = collections.Counter(kind for _, kind in self.images.unreadable)
        return [
            f"{count} {kind.name} photograph{'s' * (count > 1)} cannot be read: {kind.remedy}"
            for kind, count in kinds.most_common()
        ]


def admit(checked: CheckedImages, also: Collection[str] = ()) -> Admitted:
    """Returns the good images but those that stand in two classes.

    Args:
        checked: What the check found of all images.
        also: Names of images that are wanted nevertheless.
    """
    files, reasons = checked.files, {}
    if checked.catalog.labels_are_classes:
        reasons = _contradictory(files, checked.pixel_sha256s, checked.catalog.classes)
        reasons = {row: why for row, why in reasons.items() if files[row].name not in also}
    images = checked.without(reasons)
    return Admitted(
        images,
        [(files[row].name, reason) for row, reason in sorted(reasons.items())],
        _duplicates([file.name for file in images.files], images.pixel_sha256s),
    )


def write(admitted: Admitted, directory: Directory) -> None:
    """Writes `bad_images.csv`, all that is left out, and `duplicates.csv`.

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
    """Raises DataError where the images are not to be trained on as they are.

    That is where more photographs are of kinds that cannot be read than can be; or, unless they are
    to be skipped, where some are bad or, of one's own, stand in two classes. Warns where more than
    a tenth cannot be read, or of all files is not used.

    Args:
        admitted: The images.
        config: Says what is to be done about bad ones.
        is_own: Whether their user can correct the labels.
        see: What an error says of the list of them.
    """
    checked, catalog = admitted.images, admitted.images.catalog
    total, others = len(catalog.files) + len(catalog.refused), catalog.others
    kinds = "; ".join(admitted.unreadable_kinds)
    if len(checked.unreadable) > len(checked.good):
        raise DataError(
            f"{len(checked.unreadable)} of {total} images are of kinds that cannot be read, which "
            f"outnumber the {len(checked.good)} that can: {kinds}; expected most to be readable"
        )
    if 10 * len(checked.unreadable) > total:
        print(f"warning: {kinds}", file=sys.stderr)
    if 9 * others.total() > total:
        print(f"warning: {others_text(others)}", file=sys.stderr)
    if config.on_bad_image == "skip":
        return
    if checked.bad:
        raise DataError(
            f"{len(checked.bad)} of {total} images cannot be used: {_first(checked.bad)}; expected "
            f"all of them; {see}remove them or add --on_bad_image=skip"
        )
    if admitted.contradictory and is_own:
        raise DataError(
            f"{len(admitted.contradictory)} of {total} images stand in two classes: "
            f"{_first(admitted.contradictory)}; expected each in one; {see}remove them from the "
            "wrong class, or add --on_bad_image=skip to leave them out of both"
        )


def _first(reasons):
    return "; ".join(f"{printable(name)} ({printable(reason)})" for name, reason in reasons[:5])


def _contradictory(files, pixel_sha256s, classes):
    """Returns {row: reason} of the images that stand in several classes.

    Args:
        files: `catalog.ImageFile`s whose labels are places in `classes`.
        pixel_sha256s: Of each, in the same order.
        classes: Their names.
    """
    reasons = {}
    for rows in _equal(pixel_sha256s):
        for row in rows:
            others = [files[other] for other in rows if files[other].label != files[row].label]
            if others:
                reasons[row] = f"stands in class {classes[others[0].label]} too, as " + ", ".join(
                    other.name for other in others
                )
    return reasons


def _duplicates(names, pixel_sha256s):
    """Returns [{path, equals, sha256}] of the images that equal an earlier one, by name; the hash
    is that of their pixels.
    """
    return sorted(
        (
            {"path": names[row], "equals": names[rows[0]], "sha256": pixel_sha256s[row]}
            for rows in _equal(pixel_sha256s)
            for row in rows[1:]
        ),
        key=lambda entry: entry["path"],
    )


def _equal(pixel_sha256s):
    """Returns lists of the rows whose pixels are equal."""
    rows = collections.defaultdict(list)
    for row, sha256 in enumerate(pixel_sha256s):
        rows[sha256].append(row)
    return [equal for equal in rows.values() if len(equal) > 1]
