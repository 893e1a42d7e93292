"""Flag files, of which every line is applied or reported: absl silently drops some odd lines."""

import os
import re
import stat
from collections.abc import Collection, Sequence

from absl import flags

from tl_research.errors import UserError, suggestion, to_stderr
from tl_research.settings import has_comment_or_quotes

_MAX_BYTES = 1 << 20
_PRESETS = f"{os.path.dirname(__file__)}/presets"
# names of flags in other programs; if several of ours match, the first one that a program has
_MEANT = {
    "learning_rate": "lr rate",
    "backbone": "model arch architecture network",
    "run": "model checkpoint",
    "epochs": "epoch n_epochs num_epochs",
    "image_size": "size imgsz img resolution",
    "data_dir": "data path folder images input source train_dir",
    "validation_dir": "val val_dir valid",
    "test_dir": "test",
    "batch_size": "batch bs",
    "workdir": "out output out_dir save_dir project log_dir checkpoint_dir",
    "output_dir": "out output out_dir",
    "csv": "out output",
    "weights": "pretrained load",
    "unfreeze": "freeze trainable",
    "patience": "early_stopping",
    "optimizer": "opt",
    "precision": "amp fp16 dtype",
    "distribute": "gpus devices strategy",
    "cluster": "slurm kubernetes tf_config",
    "augment": "transforms aug",
}


def nearest(name: str, names: Collection[str]) -> str:
    """Returns `; did you mean NAME?` for the one of `names` with the meaning or spelling nearest to
    `name`, or an empty text.
    """
    meant = (known for known, words in _MEANT.items() if name in words.split() and known in names)
    return suggestion(next(meant, name), names)


def expand(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Replaces every `--flagfile=FILE` and `--preset=NAME` by the flags in the file.

    A name for which there is no file may be that of a preset. Dashes in names of flags become
    underscores.

    A line is blank, a comment (#), or one flag that may be set in a file; flags of absl itself may
    not, since they write files, start a debugger or hide misspelled flags. A file may name another
    one in the same directory, one level deep.

    Args:
        arguments: The command line without the program.
        names: Names of the flags that a file may set.

    Returns:
        (arguments, {name of a flag: `FILE:LINE` that set it}), without flags that the command line
        sets

    Raises:
        UserError: If a file cannot be read or a line cannot be applied; the text begins with
            `FILE:LINE`.
    """
    expanded, places, rest = [], {}, iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if 0 < len(dashed := name.lstrip("-")) < len(name):
            name = f"--{dashed.replace('-', '_')}"
            argument = name + equals + value
        if name == "--undefok":
            raise UserError(
                f"{argument} would hide misspelled flags; expected flags of this program only; "
                "leave it out"
            )
        if argument == "--":
            expanded += [argument, *rest]
        elif name in ("--flagfile", "--preset"):
            path = _path_of(name, value if equals else next(rest, ""))
            for name, place, line in _read(path, names):
                expanded.append(line)
                places[name] = place
        else:
            expanded.append(argument)
            for known in (name[2:], name[2:].removeprefix("no")):
                places.pop(known, None)
    return expanded, places


def presets() -> list[str]:
    """Returns the names of the flag files that come with the package."""
    return sorted(name.removesuffix(".flags") for name in os.listdir(_PRESETS))


def _path_of(flag, value):
    """Returns the path of the file given by a flag."""
    name, known = value.removesuffix(".flags"), presets()
    if flag == "--preset" and name not in known:
        raise UserError(
            f"{flag}={value}; expected one of {', '.join(known)}{suggestion(name, known)}; a file "
            "of yours is given with --flagfile"
        )
    is_preset = flag == "--preset" or not os.path.lexists(value) and name in known
    return f"{_PRESETS}/{name}.flags" if is_preset else value


def _read(path, names, outer=""):
    """Yields (name, `FILE:LINE`, `--name=value`) of each flag in a file.

    `outer` is the place that names this file, with a colon.
    """
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{outer}--flagfile={path} cannot be read ({getattr(error, 'strerror', error)}); "
            "expected lines of --name=value; correct it"
        ) from error
    seen = {}
    for number, bytes_of in enumerate(content.split(b"\n"), 1):
        place = f"{path}:{number}"
        try:
            if not (line := _text(bytes_of)):
                continue
            name, value = _name_and_value(line, names)
            nested = _nested(name, value or "", path, outer)
            flag = None if nested else _checked(name, value, line, names)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if nested:
            yield from _read(nested, names, f"{place}: ")
            continue
        if name in seen and not isinstance(flag, flags.MultiFlag):
            to_stderr(
                f"warning: {place}: --{name} is also set in line {seen[name]}; this one is used"
            )
        seen[name] = number
        yield name, place, line


def _content(path):
    """Returns the bytes of a flag file."""
    # opened first, since the name may change; O_NONBLOCK, since a pipe would block
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        content = file.read(_MAX_BYTES + 1) if is_file else b""
    if not is_file or len(content) > _MAX_BYTES:
        raise ValueError(f"not a regular file of at most {_MAX_BYTES:,} bytes")
    return content


def _text(content):
    """Returns a line as text without invisible characters; an empty text for a comment."""
    try:
        line = content.decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} is not UTF-8; expected text; save the file as UTF-8"
        ) from error
    if line.startswith(("#", "//")):
        return ""
    for character in line:
        if not character.isprintable():
            raise UserError(
                f"contains the invisible character {character!a}; expected --name=value; remove it"
            )
    return line


def _name_and_value(line, names):
    """Returns the parts of `--name=value`; without a value it is None, and `--noname` is `name`."""
    match = re.fullmatch(r"--?(\w+)(?:=(.*))?", line)
    if not match:
        known = [f"--{name}=" for name in names]
        near = suggestion("--" + line.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212 "), known)
        raise UserError(f"{line[:80]!r} is not a flag; expected --name=value{near}")
    name, value = match.groups()
    positive = name.removeprefix("no")
    if name not in names and value is None and positive in names and flags.FLAGS[positive].boolean:
        name = positive
    return name, value


def _checked(name, value, line, names):
    """Returns the flag `name`, which a file may set to `value`."""
    if name not in names:
        hint = nearest(name, names) or "; remove it"
        raise UserError(f"--{name} is not a flag that a file may set{hint}")
    flag = flags.FLAGS[name]
    if value is None and not flag.boolean:
        raise UserError(f"--{name} has no value; expected --{name}=value; add it")
    if value and has_comment_or_quotes(value):
        raise UserError(
            f"{line[:80]!r} has a comment or quotes in its value; expected the value alone; put "
            "comments on a line of their own"
        )
    try:
        flag.parser.parse("true" if value is None else value)
    except ValueError as error:
        raise UserError(
            f"{line[:80]!r} cannot be used ({error}); expected another value; correct it"
        ) from error
    return flag


def _nested(name, value, path, outer):
    """Returns the path of a file named by a line of another one at `path`; None for other lines."""
    if name == "preset":
        return _path_of("--preset", value)
    if name != "flagfile":
        return None
    folder = os.path.dirname(os.path.abspath(path))
    nested = os.path.realpath(os.path.join(folder, value))
    if outer or os.path.dirname(nested) != os.path.realpath(folder):
        raise UserError(
            f"--flagfile={value} is refused; expected a file in {folder}, named by a file that no "
            "other file names; give it on the command line"
        )
    return nested
