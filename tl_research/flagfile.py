"""Flag files, read so that every line is applied or named: absl drops some kinds of odd lines
without a word.
"""

import os
import re
import stat
import sys
from collections.abc import Collection, Sequence

from absl import flags

from tl_research.errors import UserError, suggestion
from tl_research.settings import has_comment_or_quotes

_MAX_BYTES = 1 << 20
_PRESETS = os.path.join(os.path.dirname(__file__), "presets")
# words of other programs for our flags; of several the one that a program has
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
    "augment": "transforms aug",
}


def nearest(name: str, names: Collection[str]) -> str:
    """Returns `; did you mean NAME?` of the one of `names` that means or looks like `name`, or
    nothing.
    """
    meant = (known for known, words in _MEANT.items() if name in words.split() and known in names)
    return suggestion(next(meant, name), names)


def expand(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Replaces every `--flagfile=FILE` and `--preset=NAME` by the flags that stand in the file.

    A name that is no file here may be that of a preset. Dashes within the names of flags become
    underscores.

    A line is blank, a comment (#), or one flag that may be set in a file: none of absl's own, which
    write files, start a debugger or hide misspelt flags. A file may name another one that lies in
    the same directory, one level deep.

    Args:
        arguments: What stands on the command line, without the program.
        names: Names of the flags that a file may set.

    Returns:
        (arguments, {name of a flag: `FILE:LINE` where it got its value}); flags set on the command
        line are not in it.

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
                f"{argument} would hide misspelt flags; expected flags of this program only; leave "
                "it out"
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
            for known in (name.lstrip("-"), name.lstrip("-").removeprefix("no")):
                places.pop(known, None)
    return expanded, places


def presets() -> list[str]:
    """Returns the names of the flag files that come with the package."""
    return sorted(name.removesuffix(".flags") for name in os.listdir(_PRESETS))


def _path_of(flag, value):
    """Returns the path of the file that a flag names."""
    name, known = value.removesuffix(".flags"), presets()
    if flag == "--preset" and name not in known:
        raise UserError(
            f"{flag}={value}; expected one of {', '.join(known)}{suggestion(name, known)}; a file "
            "of yours is given with --flagfile"
        )
    is_preset = flag == "--preset" or not os.path.lexists(value) and name in known
    return os.path.join(_PRESETS, f"{name}.flags") if is_preset else value


def _read(path, names, outer=""):
    """Yields (name, `FILE:LINE`, `--name=value`) of each flag in a file.

    `outer` is the place that names this one, with a colon.
    """
    seen = {}
    for number, content in enumerate(_content(path, outer).split(b"\n"), 1):
        place = f"{path}:{number}"
        line = _text(content, place)
        if not line:
            continue
        name, value = _name_and_value(line, place, names)
        if name == "preset":
            yield from _read(_path_of("--preset", value or ""), names, f"{place}: ")
            continue
        if name == "flagfile":
            yield from _read(_beside(path, value or "", place, outer), names, f"{place}: ")
            continue
        flag = _checked(name, value, line, place, names)
        if name in seen and not isinstance(flag, flags.MultiFlag):
            print(
                f"warning: {place}: --{name} stands in line {seen[name]} too; this one counts",
                file=sys.stderr,
            )
        seen[name] = number
        yield name, place, line


def _content(path, outer):
    """Returns the bytes of a flag file."""
    try:
        # opened first, since what has the name may change; a pipe would be waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_BYTES + 1) if is_file else b""
        if not is_file or len(content) > _MAX_BYTES:
            raise ValueError(f"no regular file of at most {_MAX_BYTES:,} bytes")
        return content
    except (OSError, ValueError) as error:
        raise UserError(
            f"{outer}--flagfile={path} cannot be read ({getattr(error, 'strerror', error)}); "
            "expected lines of --name=value; correct it"
        ) from error


def _text(content, place):
    """Returns a line as text, every character of which can be seen; nothing for a comment."""
    try:
        line = content.decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte {error.start + 1} is not UTF-8; expected text; save the file as UTF-8"
        ) from error
    if line.startswith(("#", "//")):
        return ""
    for character in line:
        if not character.isprintable():
            raise UserError(
                f"{place}: holds the invisible character {character!a}; expected --name=value; "
                "remove it"
            )
    return line


def _name_and_value(line, place, names):
    """Returns the parts of `--name=value`; no value is None, and `--noname` has the name `name`."""
    match = re.fullmatch(r"--?(\w+)(?:=(.*))?", line)
    if not match:
        known = [f"--{name}=" for name in names]
        near = suggestion("--" + line.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212 "), known)
        raise UserError(f"{place}: {line[:80]!r} is not a flag; expected --name=value{near}")
    name, value = match.groups()
    positive = name.removeprefix("no")
    if name not in names and value is None and positive in names and flags.FLAGS[positive].boolean:
        name = positive
    return name, value


def _checked(name, value, line, place, names):
    """Returns the flag `name`, which a file may set to `value`."""
    if name not in names:
        hint = nearest(name, names) or "; remove it"
        raise UserError(f"{place}: --{name} is no flag that a file may set{hint}")
    flag = flags.FLAGS[name]
    if value is None:
        if not flag.boolean:
            raise UserError(f"{place}: --{name} has no value; expected --{name}=value; add it")
        return flag
    if has_comment_or_quotes(value):
        raise UserError(
            f"{place}: {line[:80]!r} has a comment or quotes in its value; expected the value "
            "alone; comments have a line of their own"
        )
    try:
        flag.parser.parse(value)
    except ValueError as error:
        raise UserError(
            f"{place}: {line[:80]!r} cannot be used ({error}); expected another value; correct it"
        ) from error
    return flag


def _beside(path, value, place, outer):
    """Returns the path of a flag file that another one at `path` names."""
    folder = os.path.dirname(os.path.abspath(path))
    nested = os.path.realpath(os.path.join(folder, value))
    if outer or os.path.dirname(nested) != os.path.realpath(folder):
        raise UserError(
            f"{place}: --flagfile={value} is refused; expected a file in {folder}, named by one "
            "that no other file names; give it on the command line"
        )
    return nested
