"""Which side of the split a file stands on.

The rule: equal images and near-copies are a group, which shares a side. Within each class the
groups are ranked by the SHA-256 of (split seed, newline, smallest content hash of the group) and
cut where the numbers of images are nearest to the shares, with at least one group on each side. So
an image more moves at most one group across each cut of its own class, unless it joins groups. A
group in several classes is ranked in the first of them. Groups with more images than the smallest
side is to have are ranked before the others, for training. Where near-copies make one group of a
class that is larger than its largest side, or leave fewer groups than sides, as those of a fixed
camera do, only equal images are groups.

The images of a held-out directory are cut in the same way into halves, for validation and test;
where the test images are given and those for validation are not, the others by their shares.
"""

import collections
import dataclasses
import hashlib
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from tl_research.errors import DataError

SIDES = ("train", "validation", "test")


class Split(NamedTuple):
    """A side for each file, the group that it shares it with, and what a user should know."""

    sides: tuple[str, ...]
    groups: tuple[str | None, ...]  # None for a file that shares it with no other
    warnings: tuple[str, ...]


def content_sha256(content: bytes) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


def assign_sides(
    names: Sequence[str],
    labels: Sequence[int],
    contents: Sequence[str],
    groups: Sequence[str],
    fixed_sides: Sequence[str | None],
    classes: Sequence[str],
    fractions: Sequence[float],
    seed: int,
) -> Split:
    """Returns the `Split` of the files.

    Args:
        names, labels, contents, groups: One entry per file: name, place in `classes`, content hash,
            and the smallest one of its group.
        fixed_sides: One entry per file: a side, 'heldout' (validation or test), 'development'
            (training or validation), or None (the split decides).
        classes: Names of the classes.
        fractions: Train, validation and test, in sum 1.
        seed: Another one draws another split.

    Raises:
        DataError: If a class cannot have an image on every side.
    """
    files = list(map(_File, names, labels, contents, groups, fixed_sides))
    scenes = _decide(files, classes, fractions, seed)
    warnings = [
        f"most images of {printable(classes[label])} are near-copies, as of a fixed camera; they "
        "are split as different images"
        for label in sorted(scenes)
    ]
    sizes = collections.Counter(file.group for file in files)
    return Split(
        tuple(file.side for file in files),
        tuple(file.group[:16] if sizes[file.group] > 1 else None for file in files),
        (*warnings, *_leaks(files), *_empty_sides(files, classes)),
    )


@dataclasses.dataclass(slots=True)
class _File:
    """What of a file decides its side."""

    name: str
    label: int
    content: str
    group: str
    side: Any  # at first the fixed one


def _decide(files, classes, fractions, seed):
    """Gives each file its side; returns the classes whose near-copies are split."""
    seen = sum(fractions[:2])
    divisions = (
        (None, SIDES, fractions),
        ("development", SIDES[:2], [share / seen for share in fractions[:2]]),
        ("heldout", SIDES[1:], (0.5, 0.5)),
    )
    scenes = []
    for fixed, choices, shares in divisions:
        undecided = [file for file in files if file.side == fixed]
        scenes += _scenes(undecided, shares)
        if fixed != "heldout":
            _check_groups(undecided, choices, classes)
        side_of = _cut_all(_counts(undecided), choices, shares, seed)
        for file in undecided:
            file.side = side_of[file.group]
    return scenes


def _scenes(files, shares):
    """Returns the classes whose near-copies leave too little to be cut to `shares`; only their
    equal images are groups from now on.
    """
    of_class = collections.defaultdict(list)
    for file in files:
        of_class[file.label].append(file)
    scenes = []
    for label, images in of_class.items():
        sizes = collections.Counter(image.group for image in images)
        fits = max(sizes.values()) <= max(shares) * len(images) and len(sizes) >= len(shares)
        if not fits and len({image.content for image in images}) > len(sizes):
            scenes.append(label)
            for image in images:
                image.group = image.content
    return scenes


def _counts(files):
    """Returns {class: {group: its images of the class}}, a group in the first of its classes."""
    files = sorted(files, key=lambda file: file.label)
    first = {file.group: file.label for file in reversed(files)}
    counts = {file.label: collections.Counter() for file in files}
    for file in files:
        if file.label == first[file.group]:
            counts[file.label][file.group] += 1
    return counts


def _check_groups(files, choices, classes):
    """Raises DataError if a class, to be split into `choices`, has too few groups."""
    groups = {(file.label, file.group) for file in files}
    for label, count in sorted(collections.Counter(label for label, _ in groups).items()):
        if count < len(choices):
            raise DataError(
                f"class {classes[label]!r} has {count} different images; expected {len(choices)} "
                f"or more, one for each of {', '.join(choices[:-1])} and {choices[-1]}; add images "
                "or remove the class"
            )


def _cut_all(counts, choices, shares, seed):
    """Returns {group: its side} of all classes."""
    side_of = {}
    for label, sizes in counts.items():
        large = max(1.0, min(shares) * sum(sizes.values()))
        ranks = {group: content_sha256(f"{seed}\n{group}".encode()) for group in sizes}
        ranked = sorted(sizes, key=lambda group: (sizes[group] <= large, ranks[group]))
        cuts = _cuts([sizes[group] for group in ranked], shares, later=label % 2 == 0)
        for side, start, end in zip(choices, cuts, cuts[1:]):
            side_of.update(dict.fromkeys(ranked[start:end], side))
    return side_of


def _cuts(sizes, shares, later):
    """Returns where ranked groups are cut: [0, ..., number of groups].

    Args:
        sizes: Images of each group.
        shares: Of the images, in sum 1.
        later: Which of two cuts is taken that are equally near to the shares. Classes take turns,
            so that many small ones do not lack the same side.
    """
    ends = [0, *itertools.accumulate(sizes)]
    least = int(len(sizes) >= len(shares))  # groups on each side
    cuts = [0]
    for left, share in zip(range(len(shares) - 1, 0, -1), itertools.accumulate(shares)):
        allowed = range(cuts[-1] + least, len(sizes) - left * least + 1)
        # rounded, as 0.7 + 0.1 is not 0.8
        distances = {k: round(abs(ends[k] - share * ends[-1]), 6) for k in allowed}
        least_distance = min(distances.values())
        nearest = [k for k in allowed if distances[k] == least_distance]
        cuts.append(nearest[-1 if later else 0])
    return [*cuts, len(sizes)]


def _leaks(files):
    """Yields a warning if images of one group stand on several sides, of given directories."""
    members = collections.defaultdict(list)
    for file in files:
        members[file.group].append(file)
    leaks = [found for found in members.values() if len({file.side for file in found}) > 1]
    if leaks:
        examples = "; ".join(
            " = ".join(printable(file.name) for file in found[:2]) for found in leaks[:3]
        )
        yield (
            f"{len(leaks)} images stand on more than one side, as they are or nearly so, since the "
            f"given directories share them ({examples}); accuracies on them are too good"
        )


def _empty_sides(files, classes):
    """Yields warnings of classes without an image on a side.

    Raises:
        DataError: If a class cannot be learned, or a side has no image at all.
    """
    there = {(file.side, file.label) for file in files}
    for side in SIDES:
        empty = [name for label, name in enumerate(classes) if (side, label) not in there]
        what = f"no {side} images of {', '.join(map(printable, empty[:5]))}"
        if empty and (side == "train" or len(empty) == len(classes)):
            raise DataError(f"{what}; expected some; add some or remove the class")
        if empty:
            yield what


def printable(name: str) -> str:
    """Returns a file's name on one line, with escapes for what cannot be shown, or would look like
    another name.
    """
    is_plain = name.isprintable() and unicodedata.is_normalized("NFC", name)
    return name if is_plain else ascii(name)[1:-1]
