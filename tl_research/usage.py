"""The texts of --help, --version and --backbone=list, and how to begin."""

import dataclasses
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence

from tl_research import __version__, backbone_table, flagfile, settings

_COLUMNS = 79


def beginning(program: str) -> str:
    """Returns four lines for users who start `program`, a path, without arguments."""
    is_script = program.endswith(".py") and not sys.modules["__main__"].__spec__
    command = f"python {program}" if is_script else "tl-research train"
    return (
        "error: no photographs are given; expected a folder with one folder per class:\n"
        f"  {command} PHOTOS\n"
        f"  {command} --preset=flowers  # downloads 3,670 flower photographs, 229 MB\n"
        f"  {command} --help            # the flags that matter most, then the others"
    )


def answer(
    arguments: Sequence[str],
    about: str,
    fields: Mapping[str, dataclasses.Field],
    first: Sequence[str],
) -> str | None:
    """Returns the text to print instead of running a program: help, version or backbones; or None.

    Args:
        arguments: The command line without the program.
        about: Beginning of the help.
        fields: {name of a flag: field from `settings.setting`}.
        first: Names of the flags that the help shows first; () if the program does not train.
    """
    asked = re.sub(" -- .*", "", f" {' '.join(arguments)} ")
    if re.search(" --?h(elp(short|full)?)? ", asked):
        return _help(about, fields, first)
    if re.search(" --?version ", asked):
        return f"tl_research {__version__}"
    return backbone_table.described() if re.search(" --?backbone[ =]list ", asked) else None


def _help(about, fields, first):
    groups, title = {"The flags that matter most": list(first)}, "Flags"
    for name, field in fields.items():
        title = field.metadata["group"] or title
        groups.setdefault(title, []).extend([name] if name not in first else [])
    parts = [
        text if text.startswith(" ") else textwrap.fill(text, _COLUMNS)
        for text in about.strip().split("\n\n")
    ]
    for title, names in groups.items():
        rows = [_row(_shown(name, fields[name]), _explained(fields[name])) for name in names]
        parts += ["\n".join([f"{title}:", *rows])] if rows else []
    presets = ", ".join(flagfile.presets())
    more = (
        _row("--preset=NAME", f"settings that come with the program: {presets}"),
        _row("--flagfile=FILE", "file of flags, one --name=value per line; or NAME of a preset"),
        _row("--version", "print the version"),
    )
    return "\n".join(["\n\n".join(parts), *more])


def _row(flag, text):
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=f"  {flag:29} ",
        subsequent_indent=" " * 32,
        break_on_hyphens=False,
    )


def _shown(name, field):
    """Returns a flag as in --help: with its default, or with a placeholder."""
    if field.default is False:
        return f"--[no]{name}"
    if field.default in (None, ()):
        return f"--{name}={'PATH' if field.metadata['path'] else '...'}"
    return f"--{name}={settings.flag_text(field.default)}"


def _explained(field):
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
