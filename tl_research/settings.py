"""Fields of a config dataclass that carry all that is to know about a setting, and their checks.

Imports neither tensorflow nor absl.
"""

import dataclasses
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
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    may_change: bool = False,
    repeated: bool = False,
    path: str | None = None,
    words: tuple[str, ...] = (),
    address: bool = False,
    recorded: bool = True,
    in_files: bool = True,
    group: str | None = None,
) -> Any:
    """Returns a dataclass field that carries all that is to know about one setting.

    Args:
        default: The value, or a tuple for a list setting.
        help: One line; gives the unit and what 0 or None means.
        choices: The closed set of values, if it is one.
        low, high: Inclusive bounds of a number, or of each number of a list.
        above: Exclusive lower bound.
        may_change: Whether a resumed run may be given another value.
        repeated: Whether the flag is given once per value instead of as a comma-separated list.
        path: `absolute` for a path that is made so, so that flags.txt repeats the run from any
            place, `as given` for one that is not.
        words: Values of such a setting that are no paths.
        address: Whether a text may be an address, such as gs://bucket/run.
        recorded: Whether flags.txt has it: not what belongs to one place or one call.
        in_files: Whether a flag file may set it.
        group: Under which it and those after it stand in --help; None: as the one before.
    """
    rules = dict(locals())
    return dataclasses.field(default=rules.pop("default"), metadata=rules)


def item_type(field: dataclasses.Field) -> Any:
    """The type of one value of a field: int, float, bool or str, also for lists of it and for
    `str | None`.
    """
    arguments = getattr(field.type, "__args__", (field.type,))
    return arguments[0]


def is_list(field: dataclasses.Field) -> bool:
    return getattr(field.type, "__origin__", None) is tuple


def has_comment_or_quotes(value: str) -> bool:
    """Returns whether a value, in a flag file, looks like one with a comment behind it or quotes
    around it.
    """
    return " #" in value or (value[:1] in ("'", '"') and value[:1] == value[-1:])


def flag_text(value: Any) -> str:
    """Returns a value as it stands behind `--name=`."""
    if isinstance(value, tuple):
        return ",".join(flag_text(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def check_fields(config: Any) -> None:
    """Gives every field of a config dataclass its own type.

    Raises:
        UserError: If a value is of the wrong type or out of bounds.
    """
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, _checked(field, getattr(config, field.name)))


def _checked(field, value):
    """Returns the value of a field in its own type, or raises UserError."""
    try:
        return _in_own_type(field, f"--{field.name}", value)
    except UserError as error:
        error.flag = field.name
        raise


def _in_own_type(field, flag, value):
    if value is None:
        if field.default is not None:
            raise UserError(
                f"{flag} has no value; expected one; leave the flag out for "
                f"{flag_text(field.default)}"
            )
        return None
    check = {bool: _checked_bool, str: _checked_text}.get(item_type(field), _checked_number)
    if not is_list(field):
        return check(field, flag, value)
    if isinstance(value, str):
        value = value.split(",") if value or field.default else ()
    elif not isinstance(value, (tuple, list)):
        value = (value,)
    checked = tuple(check(field, flag, item) for item in value)
    if not checked and field.metadata["words"]:
        return field.metadata["words"]  # an empty flag could not be read back
    if not checked and field.default:
        raise UserError(
            f"{flag} is empty; expected at least one entry; leave it out for "
            f"{flag_text(field.default)}"
        )
    return checked


def _checked_bool(field, flag, value):
    if not isinstance(value, bool):
        raise UserError(f"{flag}={value}; expected true or false; correct it")
    return value


def _checked_text(field, flag, value):
    rules, is_text = field.metadata, isinstance(value, (str, os.PathLike))
    if not is_text or not str(value).strip() or set(str(value)) & set("\0\r\n"):
        raise UserError(
            f"{flag}={value!r}; expected a line of text; leave the flag out for its default"
        )
    value = str(value).strip()
    if re.match(r"[A-Za-z][\w+.-]+:/", value) and not rules["address"]:  # a Path has one slash
        raise UserError(
            f"{flag}={value}; expected what is on this machine, no address; mount or copy it, and "
            "name that place"
        )
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(
            f"{flag}={value}; expected one of {', '.join(rules['choices'])}"
            f"{suggestion(value, rules['choices'])}"
        )
    if rules["path"] and value not in rules["words"]:
        value = _checked_path(field, flag, value)
    if rules["recorded"] and (not value.isprintable() or has_comment_or_quotes(value)):
        raise UserError(
            f"{flag}={value!r}; expected what a flag file can hold, text without invisible "
            "characters, quotes around it and ' #'; rename what is called so"
        )
    return value


def _checked_path(field, flag, value):
    if "$" in value and not os.path.lexists(_through_last_dollar(value)):
        raise UserError(
            f"{flag}={value}; expected a path without $, which is not expanded here; write it out"
        )
    value = os.path.expanduser(value)
    if value.startswith("~") and value == field.default:
        return value  # refused where it is needed
    if value.startswith("~"):
        raise UserError(
            f"{flag}={value}, and no home directory is known for {value.split(os.sep)[0]}; "
            "expected a path; write it out, with ./ in front if that is its name"
        )
    return os.path.abspath(value) if field.metadata["path"] == "absolute" else value


def _through_last_dollar(path):
    """Returns a path up to the last part of it that has a dollar in its name."""
    end = path.find(os.sep, path.rindex("$"))
    return path if end < 0 else path[:end]


def _checked_number(field, flag, value):
    rules = field.metadata
    value = number(item_type(field), value, flag)
    low, high, above = rules["low"], rules["high"], rules["above"]
    wrong = {
        f"at least {low}": low is not None and value < low,
        f"above {above}": above is not None and value <= above,
        f"at most {high}": high is not None and value > high,
    }
    if any(wrong.values()):
        bounds = [text for text in wrong if not text.endswith("None")]
        fix = (
            "use --unfreeze to freeze"
            if value == 0 == above and flag != "--split"
            else "correct it"
        )
        raise UserError(f"{flag}={value}; expected {' and '.join(bounds)}; {fix}")
    return value


def number(kind: type, value: Any, flag: str) -> Any:
    """Returns a value as a finite number of a kind, int or float.

    Raises:
        UserError: If it is none; the text begins with `flag`.
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
