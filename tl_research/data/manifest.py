"""`split.json`: which images a run has, their content, sides and groups; checked on later runs."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tl_research.data.split import SIDES, Split, printable
from tl_research.errors import DataError
from tl_research.files import read_text, write_atomically


def make(
    seed: int,
    fractions: Sequence[float],
    classes: Sequence[str],
    entries: list[dict],
    found: Split,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """Returns the content of `split.json`, files in the order of their names.

    Args:
        seed, fractions, classes: As of `split.assign_sides`.
        entries: {"path", "class", "sha256"} of each file, where a label that is no class stands as
            it is.
        found: The `split.Split` of the files.
        left_out: Names of the images that `--leave_out` names.
    """
    files = [
        {**entry, "side": side, "group": group}
        for entry, side, group in zip(entries, found.sides, found.groups)
    ]
    return {
        "seed": seed,
        "fractions": list(fractions),
        "classes": list(classes),
        "left_out": list(left_out),
        "files": sorted(files, key=lambda file: file["path"]),
    }


def write(path: str, manifest: dict[str, Any]) -> None:
    """Writes `split.json`, one file a line, under its own name only once it is complete.

    Raises:
        StorageError: If it cannot be written.
    """
    head = json.dumps({key: value for key, value in manifest.items() if key != "files"})
    text = head[:-1] + ', "files": [\n' + ",\n".join(map(json.dumps, manifest["files"])) + "\n]}\n"
    write_atomically(path, text)


def read(path: str) -> dict[str, Any]:
    """Returns the content of the `split.json` at `path`.

    One of an earlier version has neither "left_out" nor the "group" of a file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        known = json.loads(read_text(path))
        whole = {"seed", "fractions", "classes"} <= known.keys() and all(
            {"path", "class", "sha256", "side"} <= entry.keys()
            and {type(entry[name]) for name in ("path", "sha256", "side")} == {str}
            and entry["side"] in SIDES
            for entry in known["files"]
        )
        if not whole or not all(isinstance(name, str) for name in known.get("left_out", ())):
            raise ValueError("it lacks entries")
        return known
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read {path} ({error!r}); expected a split; take a new --workdir"
        ) from error


def check(path: str, manifest: dict[str, Any]) -> None:
    """Compares what was found with the `split.json` at `path`.

    Raises:
        DataError: If they differ, naming up to five files, or if it cannot be read.
    """
    known = read(path)
    if "left_out" not in known:
        raise DataError(
            f"{path} is of an earlier version, which split by another rule; expected this "
            "version's; start anew with --resume=never, or finish the run with the version that "
            "began it"
        )
    check_same(known, manifest)


def check_same(known: dict[str, Any], found: dict[str, Any]) -> None:
    """Compares what `found` has of a manifest with the one that is known.

    Raises:
        DataError: If they differ, naming up to five files.
    """
    for key in ("seed", "fractions", "classes"):
        if key in found and known[key] != found[key]:
            before, after = (_shown(of[key]) for of in (known, found))
            raise DataError(
                f"split.json was made with {key} {before}, now it is {after}; take a new --workdir"
            )
    left_out = set(known.get("left_out", ()))
    if others := sorted(left_out ^ set(found.get("left_out", left_out))):
        raise DataError(
            f"--leave_out names other images than split.json: {_examples(others)}; restore the "
            "file or take a new --workdir"
        )
    _check_files(known["files"], found["files"])


def check_names(before: Iterable[str], now: Iterable[str]) -> None:
    """Raises DataError if names are missing; before the files are read."""
    _raise_if_any({"missing": sorted(set(before) - set(now))})


def _check_files(before, now):
    before, now = ({entry["path"]: entry for entry in entries} for entries in (before, now))
    differences = {
        "missing": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [  # in what both say
            name
            for name, entry in before.items()
            if name in now and {**entry, **now[name]} != {**now[name], **entry}
        ],
    }
    _raise_if_any(differences)


def _raise_if_any(differences):
    """Raises DataError with the names of each kind of difference, if there are some."""
    if any(differences.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in differences.items() if names)
        raise DataError(
            "split.json does not match the images: "
            f"{counts} ({_examples(sum(differences.values(), []))}); "
            "restore the files or take a new --workdir"
        )


def _shown(value):
    return ", ".join(printable(str(item)) for item in value) if type(value) is list else value


def _examples(names):
    return ", ".join(map(printable, names[:5]))
