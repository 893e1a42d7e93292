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

from tl_research.errors import DataError

SIDES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
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
    seen = sum(fractions[:2])
    divisions = {
        None: (SIDES, fractions),
        "development": (SIDES[:2], [share / seen for share in fractions[:2]]),
        "heldout": (SIDES[1:], (0.5, 0.5)),
    }
    scenes = {
        (side, label)
        for side, (_, shares) in divisions.items()
        for label in _scenes(side, shares, fixed_sides, labels, contents, groups)
    }
    groups = [
        content if (side, label) in scenes else group
        for side, label, content, group in zip(fixed_sides, labels, contents, groups)
    ]
    for side in (None, "development"):
        _check_groups(side, divisions[side][0], fixed_sides, labels, groups, classes)
    side_of = {}
    for side, (choices, shares) in divisions.items():
        counts = _counts(side, fixed_sides, labels, groups)
        side_of[side] = _cut_all(counts, choices, shares, seed)
    sides = [
        side_of[side][group] if side is None or side in side_of else side
        for side, group in zip(fixed_sides, groups)
    ]
    sizes = collections.Counter(groups)
    return Split(
        tuple(sides),
        tuple(group[:16] if sizes[group] > 1 else None for group in groups),
        (
            *(
                f"most images of {printable(classes[label])} are near-copies, as of a fixed "
                "camera; they are split as different images"
                for _, label in sorted(scenes, key=lambda scene: scene[1])
            ),
            *_leaks(names, groups, sides),
            *_empty_sides(labels, sides, classes),
        ),
    )


def _scenes(side, shares, sides, labels, contents, groups):
    """Returns the classes whose near-copies on `side` leave too little to be cut to `shares`."""
    found = collections.defaultdict(list)
    for s, label, content, group in zip(sides, labels, contents, groups):
        if s == side:
            found[label].append((content, group))
    scenes = []
    for label, images in found.items():
        sizes = collections.Counter(group for _, group in images)
        fits = max(sizes.values()) <= max(shares) * len(images)
        can_split = len({content for content, _ in images}) > len(sizes)
        if can_split and not (fits and len(sizes) >= len(shares)):
            scenes.append(label)
    return scenes


def _counts(side, sides, labels, groups):
    """Returns {class: {group: its images of the class}} of the files on `side`, a group in the
    first of its classes.
    """
    files = [(label, group) for s, label, group in zip(sides, labels, groups) if s == side]
    first = {}
    for label, group in files:
        first[group] = min(label, first.get(group, label))
    counts = {label: collections.Counter() for label, _ in sorted(files)}
    for label, group in files:
        if label == first[group]:
            counts[label][group] += 1
    return counts


def _check_groups(side, choices, sides, labels, groups, classes):
    """Raises DataError if a class on `side`, to be split into `choices`, has too few groups."""
    undecided = {(label, group) for s, label, group in zip(sides, labels, groups) if s == side}
    for label, count in sorted(collections.Counter(label for label, _ in undecided).items()):
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
        ranked = sorted(sizes, key=lambda group: (sizes[group] <= large, _rank(seed, group)))
        cuts = _cuts([sizes[group] for group in ranked], shares, later=label % 2 == 0)
        for side, start, end in zip(choices, cuts, cuts[1:]):
            side_of.update(dict.fromkeys(ranked[start:end], side))
    return side_of


def _rank(seed, group):
    return hashlib.sha256(f"{seed}\n{group}".encode()).digest()


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


def _leaks(names, groups, sides):
    """Yields a warning if images of one group stand on several sides, of given directories."""
    members = collections.defaultdict(list)
    for name, group, side in zip(names, groups, sides):
        members[group].append((name, side))
    leaks = [found for found in members.values() if len({side for _, side in found}) > 1]
    if leaks:
        examples = "; ".join(
            " = ".join(printable(name) for name, _ in found[:2]) for found in leaks[:3]
        )
        yield (
            f"{len(leaks)} images stand on more than one side, as they are or nearly so, since the "
            f"given directories share them ({examples}); accuracies on them are too good"
        )


def _empty_sides(labels, sides, classes):
    """Yields warnings of classes without an image on a side.

    Raises:
        DataError: If a class cannot be learned, or a side has no image at all.
    """
    there = collections.defaultdict(set)
    for label, side in zip(labels, sides):
        there[side].add(label)
    for side in SIDES:
        empty = [printable(name) for label, name in enumerate(classes) if label not in there[side]]
        if empty and (side == "train" or not there[side]):
            raise DataError(
                f"no {side} images of {', '.join(empty[:5])}; expected some; add some or remove "
                "the class"
            )
        if empty:
            yield f"no {side} images of {', '.join(empty[:5])}"


def printable(name: str) -> str:
    """Returns a file's name on one line, with escapes for what cannot be shown, or would look like
    another name.
    """
    is_plain = name.isprintable() and unicodedata.is_normalized("NFC", name)
    return name if is_plain else ascii(name)[1:-1]
