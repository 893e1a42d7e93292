"""Flags from a config dataclass, and the error contract of every program: one line on stderr and a
documented exit code.
"""

import dataclasses
import errno
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO, cast

from absl import app, flags

from tl_research import flagfile, settings, usage
from tl_research.config import Config
from tl_research.errors import (
    DataError,
    Interrupted,
    StorageError,
    UserError,
    suggestion,
    to_stderr,
)
from tl_research.files import storage_reason
from tl_research.run.directory import with_flags_of_run
from tl_research.signals import Signals

_names: dict[str, Any] = {}  # {name: field} of the flags of this program
_places: dict[str, str] = {}  # {name: FILE:LINE} of flags set by a flag file


def define_flags(config_class: type = Config) -> None:
    """Defines one absl flag per field of `config_class`, replacing those of an earlier call.

    The class itself checks the values.
    """
    flags.FLAGS.remove_flag_values(_names.keys() & set(flags.FLAGS))
    _names.clear()
    debug = settings.setting(False, "show the traceback of an error", group="Every program")
    _names.update({field.name: field for field in dataclasses.fields(config_class)}, debug=debug)
    for name, field in _names.items():
        default, help = field.default, field.metadata["help"]
        if field.metadata["repeated"]:
            flags.DEFINE_multi_string(name, list(default), help)
        elif isinstance(default, bool):
            flags.DEFINE_bool(name, default, help)
        else:
            text = default if default is None else settings.flag_text(default)
            flags.DEFINE_string(name, text, help)


def config_from_flags(config_class: type = Config) -> Any:
    """Returns the config given by the parsed flags.

    Raises:
        UserError: If a value is wrong; the text names the flag, and the line of the flag file that
            set it.
    """
    try:
        given = {field.name: flags.FLAGS[field.name] for field in dataclasses.fields(config_class)}
        values = {name: flag.value for name, flag in given.items()}
        if config_class is Config:
            values = with_flags_of_run(values, [name for name in given if given[name].present])
        settings.check_fields(config := config_class(**values))  # some classes do not check
        return config
    except UserError as error:
        if error.flag not in _places:
            raise
        raise UserError(f"{_places[error.flag]}: {error}", error.flag) from error


def debug_flag() -> list[str]:
    """Returns --debug as arguments for another program."""
    return ["--debug"] if flags.FLAGS.debug else []


def run(main: Callable, takes: bool | str = False, about: str | None = None) -> None:
    """Parses the flags, calls `main()` and exits with its code, or that of the error it raises.

    Args:
        main: Called without arguments, or with the list of arguments that are not flags if the
            program takes any.
        takes: Whether the program takes arguments that are not flags; "folder": at most one, the
            folder of the images to train on, and it needs some argument.
        about: What --help shows first; by default the docstring of the module of `main`.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            with Signals():  # for the time before and after a run, which has its own
                code = main(argv[1:]) if takes is True else main()
            cast(_Output, sys.stdout).check()
            return code
        except Interrupted as stop:
            to_stderr(stop)
            return stop.exit_code
        except Exception as error:
            if flags.FLAGS.debug:
                traceback.print_exc()
            return fail(*_describe(error))

    _in_utf8()
    _open_closed_streams()
    os.environ["MPLBACKEND"] = "Agg"  # a notebook that starts this program sets another one
    sys.stdout, sys.stderr = (_Output(stream) for stream in (sys.stdout, sys.stderr))
    about = about or main.__globals__["__doc__"] or ""
    app.run(guarded, flags_parser=functools.partial(parse, takes=takes, about=about))


def _in_utf8():
    """Restarts the program in UTF-8 if the locale has another encoding, so that names of images are
    the same in every locale and all output can be printed.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_closed_streams():
    """Opens streams closed by `2>&-` to the null device: otherwise the next file to be opened would
    take their number and receive what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (for good)
            setattr(sys, name, nowhere)


def _describe(error):
    """Returns (one line, exit code) for an error that ended a program."""
    if isinstance(error, UserError):
        return error, error.exit_code
    if isinstance(error, MemoryError):
        fix = "expected a run that fits; try a smaller --batch_size or --cache_bytes"
        return f"out of memory ({error}); {fix}", 10
    if isinstance(error, OSError) or storage_reason(error):
        return f"{error}; expected files that can be read and written; correct that", 9
    frame, text = traceback.extract_tb(error.__traceback__)[-1], str(error)
    place = f"{frame.filename}:{frame.lineno}"
    if traced := re.findall(
        r'File "([^"]+)", line (\d+)', text
    ):  # inside a function that is traced
        place, text = ":".join(traced[-1]), text.strip().splitlines()[-1].strip()
    fix = "expected no such error; --debug shows the traceback"
    return f"{type(error).__name__} in {place}: {text}; {fix}", 1


def fail(message: object, exit_code: int) -> int:
    """Prints `error: message` as one line on stderr and returns the exit code."""
    to_stderr("error: " + re.sub(r"\s*[\r\n]\s*", " ", str(message).strip()))
    return exit_code


def parse(argv: list[str], takes: bool | str = False, about: str = "") -> list[str]:
    """Sets the flags from a command line; returns the program and the arguments that are not flags.

    Exits with code 1 and one line if they cannot be set, and with 0 after --help and the like.

    Args:
        argv: The command line, program first.
        takes: As for `run`.
        about: The beginning of the text of --help.
    """
    trains = takes == "folder"
    if answer := usage.answer(argv[1:], about, _names, Config.FIRST if trains else ()):
        print(answer)
        sys.exit()
    if trains and not argv[1:]:
        sys.exit(usage.beginning(argv[0]))
    try:
        return _set_flags(argv, takes)
    except UserError as error:
        sys.exit(fail(error, error.exit_code))
    except flags.UnrecognizedFlagError as error:
        near = flagfile.nearest(error.flagname, _names) or "; run with --help for the flags"
        sys.exit(fail(f"--{error.flagname} is not a flag of this program{near}", 1))
    except (flags.Error, ValueError) as error:
        sys.exit(fail(f"{error}; run with --help for the flags", 1))


def _set_flags(argv, takes):
    names = {name for name, field in _names.items() if field.metadata["in_files"]}
    arguments, places = flagfile.expand(argv[1:], names)
    rest = flags.FLAGS([argv[0], *arguments])
    _places.clear()
    _places.update(places)
    if takes == "folder":
        _take_folder(rest[1:])
    elif len(rest) > 1 and not takes:
        raise UserError(_not_a_flag(rest[1]))
    return rest


def _take_folder(rest):
    """Sets the flags to train on the folder given without a flag, if there is one."""
    if not rest:
        return
    folder = rest[0]
    if "=" in folder:
        raise UserError(_not_a_flag(folder))
    if len(rest) > 1:
        raise UserError(
            f"{len(rest)} arguments are not flags ({', '.join(map(repr, rest))}); expected one, "
            "the folder of the images; put quotes around a name with spaces"
        )
    for name in ("dataset", "data_dir"):
        if flags.FLAGS[name].present and name not in _places:
            raise UserError(
                f"{folder!r} is given with --{name}; expected one of them to name the images; "
                "leave one out"
            )
    if not os.path.isdir(folder):
        received = "is a file" if os.path.exists(folder) else "does not exist"
        hint = suggestion(folder, flagfile.presets()).replace("mean ", "mean --preset=")
        raise DataError(
            f"{folder!r} {received}; expected a folder with one folder of photographs per class"
            f"{hint or '; correct it'}"
        )
    flags.FLAGS(["", "--dataset=directory", f"--data_dir={folder}"])


def _not_a_flag(word):
    return f"{word!r} is not a flag; expected --name=value; did you mean --{word.lstrip('-')}?"


def _printable(letter):
    return letter if letter.isprintable() else ascii(letter)[1:-1]


class _Output:
    """A standard stream that accepts every character and survives its reader: a run continues if
    `| head` ends, the terminal closes or the disk with its log is full, which is an error at the
    end. Control characters, which may be part of names, are not sent to a terminal.
    """

    def __init__(self, stream: TextIO):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
        self._stream, self._error = stream, None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream.isatty() and not re.fullmatch(r"\n*(\x1b\[A)*", text):  # of nested bars
            own = r"\x1b\[(?:0|1|32)m|[\n\r\t]"  # bold and green are ours
            text = re.sub(f"({own})|.", lambda c: c[1] or _printable(c[0]), text)
        return self._unless_closed(self._stream.write, text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def check(self) -> None:
        """Raises StorageError if some output could not be written."""
        self.flush()
        if self._error:
            raise StorageError(
                f"the output could not be written ({self._error.strerror}), all else is done; "
                "expected room for it; free some and give the same command again"
            ) from self._error

    def _unless_closed(self, call, *arguments):
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the reader or the terminal is gone
                self._error = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
