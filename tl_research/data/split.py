"""Which side of the split a file stands on, and `split.json`, which records it.

The rule: a file's fraction is the first 8 bytes of SHA-256(split seed, newline, content) over 2^64,
and it falls into train, validation or test by the cumulative split. So equal contents share a side,
and one file more moves no other.

The one exception: where a class would leave a side empty, the content of that class whose fraction
is nearest to the side's interval goes there (of two equally near the smaller SHA-256), with all its
copies, of whatever class, unless that empties another side of a class. Classes take their turn in
order, and their sides in the order train, validation, test.

The images of a held-out directory are halved class by class: of its contents in the order of their
fractions the first half is for validation, the rest for test.
"""

import collections
import dataclasses
import hashlib
import json

from tl_research.errors import DataError
from tl_research.files import write_atomically

SIDES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """A side for each file, how many files equal an earlier one, and what a user should know."""

    sides: tuple[str, ...]
    num_duplicates: int
    warnings: tuple[str, ...]


def content_sha256(content):
    """Returns the hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


def split_fraction(seed, content):
    """Returns the number in [0, 1] that decides the side of a file with these bytes."""
    return (
        int.from_bytes(hashlib.sha256(f"{seed}\n".encode() + content).digest()[:8], "big") / 2**64
    )


def assign_sides(names, labels, file_fractions, sha256s, fixed_sides, classes, fractions):
    """Returns the `Split` of the files.

    Args:
        names, labels, file_fractions, sha256s: One entry per file: name, place in `classes`,
            `split_fraction`, and `content_sha256`.
        fixed_sides: One entry per file: a side, 'heldout' (validation or test), or None (the split
            decides).
        classes: Names of the classes.
        fractions: Train, validation and test, in sum 1.

    Raises:
        DataError: If a class cannot have an image on every side.
    """
    sides = list(fixed_sides)
    # rounding must not leave a gap at 1
    lows = (0.0, fractions[0], fractions[0] + fractions[1], float("inf"))
    _decide(sides, dict(zip(SIDES, zip(lows, lows[1:]))), labels, file_fractions, sha256s, classes)
    _halve(sides, labels, file_fractions, sha256s)

    places = collections.defaultdict(list)
    for i, sha256 in enumerate(sha256s):
        places[sha256].append(i)
    leaks = [found for found in places.values() if len({sides[i] for i in found}) > 1]
    warnings = []
    if leaks:
        examples = "; ".join(
            " = ".join(_printable(names[i]) for i in found[:2]) for found in leaks[:3]
        )
        warnings.append(
            f"{len(leaks)} images stand on more than one side, since the given directories share "
            f"them ({examples}); accuracies on them are too good"
        )
    for side in SIDES:
        there = {label for label, s in zip(labels, sides) if s == side}
        empty = [_printable(name) for label, name in enumerate(classes) if label not in there]
        # a class that cannot be learned, or nothing to measure with
        if empty and (side == "train" or not there):
            raise DataError(
                f"no {side} images of {', '.join(empty[:5])}; expected some; add some or remove "
                "the class"
            )
        if empty:
            warnings.append(f"no {side} images of {', '.join(empty[:5])}")
    return Split(tuple(sides), len(sha256s) - len(places), tuple(warnings))


def _decide(sides, intervals, labels, file_fractions, sha256s, classes):
    """Replaces None in `sides` by the keys of `intervals`."""
    contents = collections.defaultdict(dict)  # class -> content -> its fraction
    classes_of = collections.defaultdict(set)  # content -> its classes
    side_of = {}
    for label, fraction, sha256, side in zip(labels, file_fractions, sha256s, sides):
        if side is None:
            contents[label][sha256] = fraction
            classes_of[sha256].add(label)
            side_of[sha256] = next(s for s, (_, high) in intervals.items() if fraction < high)
    counts = collections.Counter(
        (c, side_of[sha256]) for sha256 in side_of for c in classes_of[sha256]
    )
    for label, found in sorted(contents.items()):
        if len(found) < len(intervals):
            raise DataError(
                f"class {classes[label]!r} has {len(found)} different images; expected "
                f"{len(intervals)} or more, one for each of train, validation and test; add images "
                "or remove the class"
            )
        for side, interval in intervals.items():
            if not counts[label, side] and not _move(
                side, interval, found, side_of, classes_of, counts
            ):
                raise DataError(
                    f"class {classes[label]!r} has no image for {side} that another class can "
                    "spare; equal images share a side; remove the copies or add images"
                )
    sides[:] = [side or side_of[sha256] for side, sha256 in zip(sides, sha256s)]


def _move(side, interval, found, side_of, classes_of, counts):
    """Moves to `side` the nearest of the contents `found` that no class lacks then, if any."""
    low, high = interval
    movable = [
        (max(low - fraction, fraction - high), sha256)
        for sha256, fraction in found.items()
        if all(counts[label, side_of[sha256]] > 1 for label in classes_of[sha256])
    ]
    if movable:
        sha256 = min(movable)[1]
        for label in classes_of[sha256]:
            counts[label, side_of[sha256]] -= 1
            counts[label, side] += 1
        side_of[sha256] = side
    return bool(movable)


def _halve(sides, labels, file_fractions, sha256s):
    """Replaces 'heldout' in `sides` by validation and test, for half of each class's contents.

    Odd ones take turns.
    """
    contents = collections.defaultdict(set)  # class -> (fraction, content)
    for label, fraction, sha256, side in zip(labels, file_fractions, sha256s, sides):
        if side == "heldout":
            contents[label].add((fraction, sha256))
    side_of, lead = {}, 0  # how many more contents of odd classes went to validation than to test
    for label in sorted(contents):
        ordered = [sha256 for _, sha256 in sorted(contents[label])]
        num_validation, odd = divmod(len(ordered), 2)
        if odd and lead <= 0:
            num_validation += 1
        lead += (1 if lead <= 0 else -1) * odd
        # some stand in a class before too
        left = num_validation - sum(side_of.get(sha256) == "validation" for sha256 in ordered)
        for sha256 in ordered:
            if sha256 not in side_of:
                side_of[sha256] = "validation" if left > 0 else "test"
                left -= 1
    for i, side in enumerate(sides):
        if side == "heldout":
            sides[i] = side_of[sha256s[i]]


def make_manifest(seed, fractions, classes, names, labels, sha256s, sides):
    """Returns the content of `split.json`, files in the order of their names.

    A label that is no place in `classes` stands there as it is.
    """
    named = [classes[label] if isinstance(label, int) else label for label in labels]
    files = [
        {"path": name, "class": label, "sha256": sha256, "side": side}
        for name, label, sha256, side in zip(names, named, sha256s, sides)
    ]
    return {
        "seed": seed,
        "fractions": list(fractions),
        "classes": list(classes),
        "files": sorted(files, key=lambda file: file["path"]),
    }


def write_manifest(path, manifest):
    """Writes `split.json`, one file a line, under its own name only once it is complete.

    Raises:
        StorageError: If it cannot be written.
    """
    head = json.dumps({key: value for key, value in manifest.items() if key != "files"})
    text = head[:-1] + ', "files": [\n' + ",\n".join(map(json.dumps, manifest["files"])) + "\n]}\n"
    write_atomically(path, text)


def check_manifest(path, manifest):
    """Compares what was found with the `split.json` at `path`.

    Raises:
        DataError: If they differ, naming up to five files, or if it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        before = {entry["path"]: entry for entry in known["files"]}
        settings = {key: known[key] for key in ("seed", "fractions", "classes")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read {path} ({error!r}); expected a split; take a new --workdir"
        ) from error
    for key, value in settings.items():
        if value != manifest[key]:
            raise DataError(
                f"split.json was made with {key} {value}, now it is {manifest[key]}; take a new "
                "--workdir"
            )
    now = {entry["path"]: entry for entry in manifest["files"]}
    differences = {
        "missing": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [name for name in before if name in now and before[name] != now[name]],
    }
    if any(differences.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in differences.items() if names)
        examples = ", ".join(_printable(name) for name in sum(differences.values(), [])[:5])
        raise DataError(
            f"split.json does not match the images: {counts} ({examples}); "
            "restore the files or take a new --workdir"
        )


def _printable(name):
    return name if name.isprintable() else ascii(name)[1:-1]
