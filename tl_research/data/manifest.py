"""`split.json`: the images of a run, their content, sides and groups; checked by later runs."""

import json
from collections.abc import Sequence

from tl_research.data.split import SIDES, Split, printable
from tl_research.errors import DataError
from tl_research.files import Json, read_text, write_atomically


def make(
    seed: int,
    fractions: Sequence[float],
    classes: Sequence[str],
    entries: list[dict],
    found: Split,
    left_out: Sequence[str],
) -> Json:
    """Returns the content of `split.json`, with the files sorted by name.

    Args:
        seed, fractions, classes: As for `split.assign_sides`.
        entries: {"path", "class", "sha256"} of each file; a label that is not a class is "class"
            itself.
        found: The `split.Split` of the files.
        left_out: Names of the images that `--leave_out` lists.
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


def write(path: str, manifest: Json) -> None:
    """Writes `split.json` atomically, with one file per line.

    Raises:
        StorageError: If it cannot be written.
    """
    head = json.dumps({key: value for key, value in manifest.items() if key != "files"})
    text = head[:-1] + ', "files": [\n' + ",\n".join(map(json.dumps, manifest["files"])) + "\n]}\n"
    write_atomically(path, text)


def read(path: str) -> Json:
    """Returns the content of the `split.json` at `path`.

    Earlier versions wrote neither "left_out" nor the "group" of a file.

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
    except Exception as error:  # a file from anyone can be wrong in every way
        raise DataError(
            f"cannot read {path} ({error!r}); expected a split; use a new --workdir"
        ) from error


def check(path: str, manifest: Json) -> None:
    """Compares the images found with the `split.json` at `path`.

    Raises:
        DataError: If they differ, naming up to five files, or if it cannot be read.
    """
    known = read(path)
    if "left_out" not in known:
        raise DataError(
            f"{path} is from an earlier version, which split by another rule; expected this "
            "version's; restart with --resume=never, or finish with the version that began the run"
        )
    for key in ("seed", "fractions", "classes"):
        if known[key] != manifest[key]:
            before, after = (_shown(of[key]) for of in (known, manifest))
            raise DataError(
                f"split.json was made with {key} {before}, now it is {after}; use a new --workdir"
            )
    if others := sorted(set(known["left_out"]) ^ set(manifest["left_out"])):
        raise DataError(
            f"--leave_out names other images than split.json: {_examples(others)}; restore the "
            "file or use a new --workdir"
        )
    check_files(known["files"], manifest["files"])


def check_files(recorded: list[dict], found: list[dict]) -> None:
    """Compares the entries of files that were found with those in a `split.json`.

    Raises:
        DataError: If they differ, naming up to five files.
    """
    before, now = ({entry["path"]: entry for entry in entries} for entries in (recorded, found))
    differences = {
        "missing": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [  # in an entry that both have
            name
            for name in before
            if name in now and before[name] | now[name] != now[name] | before[name]
        ],
    }
    raise_if_any(differences)


def raise_if_any(differences: dict[str, list[str]]) -> None:
    """Raises DataError with the names of each kind of difference, if there are any."""
    if any(differences.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in differences.items() if names)
        examples = _examples(sum(differences.values(), []))
        raise DataError(
            f"split.json does not match the images: {counts} ({examples}); restore the files or "
            "use a new --workdir"
        )


def _shown(value):
    return ", ".join(printable(str(item)) for item in value) if type(value) is list else value


def _examples(names):
    return ", ".join(map(printable, names[:5]))
