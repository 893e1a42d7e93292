"""Folders that are sides of a data set: those that are given, and those that are taken for classes,
which they are not by their names, or as all hold the same class folders.
"""

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from tl_research.config import Config
from tl_research.data import formats
from tl_research.data.split import SIDES, printable
from tl_research.data.walk import is_system_file
from tl_research.errors import DataError

# what the names of images begin with, where it is not their side
PREFIXES = {None: "", "heldout": "validation/", "development": "train/"}
# words in the names of the folders that each flag takes
_WORDS = {
    "--data_dir": {"train", "training", "trn", "trainset"},
    "--validation_dir": {"validation", "val", "valid", "dev", "eval", "evaluation"},
    "--test_dir": {"test", "testing", "tst", "testset", "pred", "holdout"},
}
_MOST_NAMED = 5
_MOST_DESCENTS = 3  # through folders that hold nothing but one folder


def given(
    root: str, validation_dir: str | None, test_dir: str | None
) -> list[tuple[str, str | None, str]]:
    """Returns (folder, side as of `ImageFile`, flag) of each folder that the flags name."""
    held_out = "validation" if test_dir else "heldout"
    train = "train" if validation_dir else "development" if test_dir else None
    folders = (
        (root, train, "--data_dir"),
        (validation_dir, held_out, "--validation_dir"),
        (test_dir, "test", "--test_dir"),
    )
    return [(folder, side, flag) for folder, side, flag in folders if folder]


def of_cats_vs_dogs(root: str, data_dir: str | None) -> list[tuple[str, str | None, str]]:
    """Returns what `given` does, of the folders in `root`.

    Raises:
        DataError: If the user's own `data_dir` does not hold them.
    """
    train, validation, test = (f"{root}/{side}" for side in SIDES)
    if data_dir and not (os.path.isdir(train) and os.path.isdir(validation)):
        raise DataError(
            f"--data_dir={data_dir} does not hold train/ and validation/; expected both for "
            "cats_vs_dogs; or give --validation_dir too"
        )
    found = given(train, validation, test if os.path.isdir(test) else None)
    return [(folder, side, "--data_dir") for folder, side, _ in found]


def resolved(config: Config) -> Config:
    """Returns a `Config` that names the sides of its folder where that holds nothing else.

    All its folders are then called `train`, `val`, `test` or the like, each side once, and hold
    classes.
    """
    folder, given = config.data_dir, config.validation_dir or config.test_dir
    if config.dataset != "directory" or not folder or given:
        return config
    places = {name: with_classes(folder, name) for name in sorted(_inner(folder))}
    flags = [flag for name in places for flag, words in _WORDS.items() if name.lower() in words]
    are_sides = 1 < len(set(flags)) == len(flags) == len(places) and "--data_dir" in flags
    if not are_sides or any(len(_inner(place)) < 2 for place in places.values()):
        return config
    taken = dict(sorted(zip(flags, places.values()), key=lambda side: list(_WORDS).index(side[0])))
    print(f"{folder} is already split; using {_written(taken)}")
    named: dict[str, Any] = {flag[2:]: place for flag, place in taken.items()}
    return dataclasses.replace(config, **named)


def check(classes: Sequence[str], folder: str, flag: str) -> None:
    """Raises DataError, with the flags to give, if the class folders of `folder` are sides.

    Args:
        classes: Names of the folders in it.
        folder: The data directory.
        flag: That named it.
    """
    sides, why = _named(classes, folder), ""
    if not sides:
        folders = [_inner(folder, name) for name in classes]
        common = sorted(set.intersection(*folders))
        # more than one, and nearly all of them
        if len(common) > 1 and 2 * len(common) >= max(map(len, folders)):
            sides, why = classes, f", as all hold {_listed(common)} (of classes move the images up)"
    if sides:
        raise DataError(
            f"{flag}={folder} holds {_listed(sides)}, which are sides and not classes{why}; use "
            + _fix(folder, sides)
        )


def _named(classes, folder):
    """Returns those folders that have names of different sides, if no class is likely to be called
    so: nobody names a class just "test", or all of them by sides, among them one for training; and
    such a one beside another side holds class folders.
    """
    flags = {name: _flag_of(name) for name in classes}
    named = [name for name in classes if flags[name]]
    just_words = all(name.lower() in set.union(*_WORDS.values()) for name in classes)
    holds_classes = any(
        flags[name] == "--data_dir" and len(_inner(with_classes(folder, name))) > 1
        for name in named
    )
    found = set(map(flags.get, named))
    all_named = len(named) == len(classes) and "--data_dir" in found
    are_sides = len(found) > 1 and (just_words or all_named or holds_classes)
    return named if are_sides else []


def _flag_of(name):
    """Returns the flag that takes a folder of this name, or None."""
    words = set(map(str.lower, re.findall("[A-Z]?[a-z]+|[A-Z]+", name)))
    return next((flag for flag, known in _WORDS.items() if words & known), None)


def _inner(*place):
    """Returns the names of the folders in a folder, of one with images of its own none."""
    names = set()
    try:
        with os.scandir(os.path.join(*place)) as entries:
            for entry in entries:
                if is_system_file(entry.name):
                    continue
                if os.path.isdir(entry.path):
                    names.add(entry.name)
                elif formats.kind_by_suffix(entry.name):
                    return set()
    except OSError:  # which the walk will name
        return set()
    return names


def _listed(names):
    """Returns a few names as a text."""
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return " and ".join([*map(printable, names[:_MOST_NAMED]), *more])


def with_classes(*place: str) -> str:
    """Returns the path of a folder, or of that below it, of several with nothing but one folder in
    each, which holds more.
    """
    first = path = os.path.join(*place)
    for _ in range(_MOST_DESCENTS):
        names = _inner(path)
        if len(names) != 1:
            return path if names else first
        path = os.path.join(path, *names)
    return first


def _fix(folder, names):
    """Returns the flags that take these folders; one whose name says nothing gets a free one."""
    holding = [name for name in names if len(_inner(with_classes(folder, name))) > 1]
    taken, order = {}, list(_WORDS)
    for name in sorted(holding or names, key=lambda name: order.index(_flag_of(name) or order[-1])):
        free = [flag for flag in order if flag not in taken]
        flag = _flag_of(name) or next(iter(free), None) if taken else order[0]
        if flag in free:
            taken[flag] = with_classes(folder, name)
    return _written(taken)


def _written(taken):
    return " ".join(f"{flag}={shlex.quote(path)}" for flag, path in taken.items())
