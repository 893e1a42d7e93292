"""Dataclass fields that declare a setting, and the checks of their values.

Imports neither tensorflow nor absl.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from tl_research.errors import UserError, suggestion


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float = 0,
    high: float = math.inf,
    above: float | None = None,
    may_change: bool = False,
    repeated: bool = False,
    path: bool = False,
    words: tuple[str, ...] = (),
    address: bool = False,
    recorded: bool = True,
    in_files: bool = True,
    group: str | None = None,
) -> Any:
    """Returns a dataclass field that declares one setting.

    Args:
        default: The default value; a tuple for a list setting.
        help: One line; gives the unit and the meaning of 0 or None.
        choices: The allowed values, if they are a closed set.
        low, high: Inclusive bounds of a number, or of each number in a list.
        above: Exclusive lower bound, used instead of `low`.
        may_change: Whether a resumed run may use another value. Unrecorded settings always may.
        repeated: Whether the flag is given once per value instead of as a comma-separated list.
        path: Whether the value is a path on this machine. A recorded path is made absolute, so
            that flags.txt repeats the run from any directory.
        words: Values of a path setting that are not paths.
        address: Whether a text may be an address, such as gs://bucket/run.
        recorded: Whether flags.txt includes it. Settings of one machine or one call are left out.
        in_files: Whether a flag file may set it.
        group: Heading in --help for this and the following settings; None: same as the previous.
    """
    rules = dict(locals())
    rules["may_change"] = may_change or not recorded
    return dataclasses.field(default=rules.pop("default"), metadata=rules)


unrecorded_path = functools.partial(setting, path=True, recorded=False)  # of this call alone


def item_type(field: dataclasses.Field) -> Any:
    """Returns the type of a single value: int, float, bool or str, also for lists and for
    `str | None`.
    """
    return getattr(field.type, "__args__", (field.type,))[0]


def has_comment_or_quotes(value: str) -> bool:
    """Returns whether a value in a flag file seems to include a comment or enclosing quotes."""
    return " #" in value or (value[:1] in ("'", '"') and value[:1] == value[-1:])


def flag_text(value: Any) -> str:
    """Returns a value as it is written after `--name=`."""
    if isinstance(value, tuple):
        return ",".join(map(flag_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def check_fields(config: Any) -> None:
    """Converts every field of a config dataclass to its own type.

    Raises:
        UserError: If a value has the wrong type or is out of bounds.
    """
    for field in dataclasses.fields(config):
        try:
            value = _checked(field, f"--{field.name}", getattr(config, field.name))
        except UserError as error:
            error.flag = field.name
            raise
        object.__setattr__(config, field.name, value)


def _checked(field, flag, value):
    """Returns the value of a field in its own type."""
    check = {bool: _checked_bool, str: _checked_text}.get(item_type(field), _checked_number)
    if value is None:
        if field.default is None:
            return None
        raise UserError(
            f"{flag} has no value; expected one; leave the flag out for {flag_text(field.default)}"
        )
    if getattr(field.type, "__origin__", None) is not tuple:
        return check(field, flag, value)
    if isinstance(value, str):  # an empty text has no entries if the default has none
        value = value.split(",") if value or field.default else ()
    items = value if isinstance(value, (tuple, list)) else (value,)
    checked = tuple(check(field, flag, item) for item in items)
    return checked or _checked_empty(field, flag)


def _checked_empty(field, flag):
    """Returns the value of an empty list."""
    if field.metadata["words"] or not field.default:
        return field.metadata["words"]  # an empty flag could not be read back
    raise UserError(
        f"{flag} is empty; expected at least one entry; leave it out for {flag_text(field.default)}"
    )


def _checked_bool(field, flag, value):
    if not isinstance(value, bool):
        raise UserError(f"{flag}={value}; expected true or false; correct it")
    return value


def _checked_text(field, flag, value):
    rules, text = field.metadata, str(value)
    is_text = isinstance(value, (str, os.PathLike))
    if not is_text or not re.fullmatch(r"[^\0\r\n]*[^\0\s][^\0\r\n]*", text):
        raise UserError(
            f"{flag}={value!r}; expected a line of text; leave the flag out for its default"
        )
    text = text.strip()
    # one slash, since a pathlib.Path keeps no more
    if re.match(r"[A-Za-z][\w+.-]+:/", text) and not rules["address"]:
        raise UserError(
            f"{flag}={text}; expected a path on this machine, no address; mount or copy it and "
            "give that path"
        )
    if rules["choices"] and text not in rules["choices"]:
        raise UserError(
            f"{flag}={text}; expected one of {', '.join(rules['choices'])}"
            f"{suggestion(text, rules['choices'])}"
        )
    if rules["path"]:
        text = _checked_path(field, flag, text)
    if rules["recorded"]:
        _check_for_flag_file(flag, text)
    return text


def _check_for_flag_file(flag, text):
    if not text.isprintable() or has_comment_or_quotes(text):
        raise UserError(
            f"{flag}={text!r}; expected text that a flag file can hold, without invisible "
            "characters, quotes around it and ' #'; rename the file, folder or class"
        )


def _checked_path(field, flag, value):
    if value in field.metadata["words"]:
        return value
    if "$" in value and not os.path.lexists(re.match(r".*\$[^/]*", value)[0]):
        raise UserError(
            f"{flag}={value}; expected a path without $, which is not expanded here; write it out"
        )
    value = os.path.expanduser(value)
    if value.startswith("~") and value == field.default:
        return value  # an error only if it is used
    if value.startswith("~"):
        raise UserError(
            f"{flag}={value}, and no home directory is known for {value.split(os.sep)[0]}; "
            "expected a path; write it out, or put ./ in front if the name begins with ~"
        )
    return os.path.abspath(value) if field.metadata["recorded"] else value.rstrip("/") or value


def _checked_number(field, flag, value):
    rules = field.metadata
    value = number(item_type(field), value, flag)
    above, low, high = rules["above"], rules["low"], rules["high"]
    if value > high or value <= above if above is not None else not low <= value <= high:
        bounds = f"at least {low}" if above is None else f"above {above}"
        bounds += f" and at most {high}" * math.isfinite(high)
        is_frozen = value == above and flag != "--split"
        fix = "use --unfreeze to freeze" if is_frozen else "correct it"
        raise UserError(f"{flag}={value}; expected {bounds}; {fix}")
    return value


def number(kind: type, value: Any, flag: str) -> Any:
    """Returns a value as a finite number.

    Args:
        kind: int or float.
        value: A number, or text.
        flag: The flag it belongs to, which begins the error's text.

    Raises:
        UserError: If it is not a finite number of this kind.
    """
    try:
        is_hex = kind is int and str(value).lower().startswith("0x")
        found = int(value, 0) if is_hex else kind(value)
    except (TypeError, ValueError):
        found = math.nan
    is_cut = isinstance(value, float) and found != value
    if isinstance(value, bool) or not math.isfinite(found) or is_cut:
        raise UserError(
            f"{flag}={value}; expected {'a whole' if kind is int else 'a finite'} number; correct "
            "it",
            flag.lstrip("-").partition("=")[0],
        )
    return found
