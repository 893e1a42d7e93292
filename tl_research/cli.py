"""Flags from a config dataclass, and one error contract for every program: one line on stderr, a
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
from tl_research.errors import DataError, Interrupted, StorageError, UserError, suggestion
from tl_research.files import storage_reason
from tl_research.run.directory import with_flags_of_run
from tl_research.signals import Signals

_names: dict[str, Any] = {}  # the flags of this program, and what declares them
_places: dict[str, str] = {}  # {name: FILE:LINE} of those that a flag file set


def define_flags(config_class: type = Config) -> None:
    """Defines one absl flag for each field of `config_class`, in place of those of a call before.

    Values are checked by the class itself.
    """
    flags.FLAGS.remove_flag_values(_names.keys() & set(flags.FLAGS))
    _names.clear()
    debug = settings.setting(False, "show the traceback of an error", group="Every program")
    _names.update({field.name: field for field in dataclasses.fields(config_class)}, debug=debug)
    for field in dataclasses.fields(config_class):
        name, default, help = field.name, cast(Any, field.default), field.metadata["help"]
        if field.metadata["repeated"]:
            flags.DEFINE_multi_string(name, list(default), help)
        elif settings.item_type(field) is bool:
            flags.DEFINE_bool(name, default, help)
        else:
            default = default if default is None else settings.flag_text(default)
            flags.DEFINE_string(name, default, help)
    flags.DEFINE_bool("debug", False, debug.metadata["help"])


def config_from_flags(config_class: type = Config) -> Any:
    """Returns the config that the parsed flags describe.

    Raises:
        UserError: If a value cannot be used; the text names the flag, and the line of the flag file
            that set it.
    """
    try:
        given = {field.name: flags.FLAGS[field.name] for field in dataclasses.fields(config_class)}
        values = {name: flag.value for name, flag in given.items()}
        if config_class is Config:
            values = with_flags_of_run(values, [name for name in given if given[name].present])
        settings.check_fields(config := config_class(**values))
        return config
    except UserError as error:
        if error.flag not in _places:
            raise
        raise UserError(f"{_places[error.flag]}: {error}", error.flag) from error


def debug_flag() -> list[str]:
    """Returns --debug as arguments for another program."""
    return ["--debug"] if flags.FLAGS.debug else []


def run(main: Callable, takes: bool | str = False) -> None:
    """Parses the flags, calls `main()` and exits with its code, or with that of the error that it
    raises.

    Args:
        main: Called without arguments, or with the list of those that are no flags if the program
            takes any.
        takes: Whether the program takes arguments that are no flags; "folder": at most one, that
            of the images to train on, and some argument.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            with Signals():  # a run has its own; this one is for what comes before and after
                code = main(argv[1:]) if takes is True else main()
            cast(_Output, sys.stdout).check()
            return code
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return stop.exit_code
        except Exception as error:
            if flags.FLAGS.debug:
                traceback.print_exc()
            return fail(*_describe(error))

    _in_utf8()
    _open_closed_streams()
    os.environ["MPLBACKEND"] = "Agg"  # a notebook that starts this program has set its own
    sys.stdout, sys.stderr = (_Output(stream) for stream in (sys.stdout, sys.stderr))
    about = main.__globals__["__doc__"] or ""
    app.run(guarded, flags_parser=functools.partial(parse, takes=takes, about=about))


def _in_utf8():
    """Starts the program again in UTF-8 where the locale has another encoding: names of images are
    the same in every locale, and what it prints can be read everywhere.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_closed_streams():
    """Opens what was closed by `2>&-` to nowhere: the next file that is opened would take its
    number, and what libraries print there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (for good)
            setattr(sys, name, nowhere)


def _describe(error):
    """Returns (one line, exit code) of what ended a program."""
    if isinstance(error, UserError):
        return error, error.exit_code
    if isinstance(error, MemoryError):
        return (
            (
                f"out of memory ({error}); expected less to be needed; try a smaller --batch_size "
                "or --cache_bytes"
            ),
            10,
        )
    if isinstance(error, OSError) or storage_reason(error):
        return f"{error}; expected files that can be read and written; correct that", 9
    frame, text = traceback.extract_tb(error.__traceback__)[-1], str(error)
    place = f"{frame.filename}:{frame.lineno}"
    if traced := re.findall(r'File "([^"]+)", line (\d+)', text):  # of a function being traced
        place, text = ":".join(traced[-1]), text.strip().splitlines()[-1].strip()
    return (
        f"{type(error).__name__} in {place}: {text}; expected no such thing; --debug shows the "
        "traceback"
    ), 1


def fail(message: object, exit_code: int) -> int:
    """Prints `error: message` as one line on stderr and returns the exit code."""
    print("error: " + re.sub(r"\s*[\r\n]\s*", " ", str(message).strip()), file=sys.stderr)
    return exit_code


def parse(argv: list[str], takes: bool | str = False, about: str = "") -> list[str]:
    """Sets the flags from a command line, program first; returns the arguments that are none.

    Exits with 1 and one line if they cannot be set, and with 0 after an answer to --help and its
    like.

    Args:
        argv: The command line.
        takes: As of `run`.
        about: What --help says first.
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
        sys.exit(fail(f"--{error.flagname} is no flag of this program{near}", 1))
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
    """Trains on the folder that is the one argument without a flag, if there is one."""
    for folder in rest:
        if "=" in folder:
            raise UserError(_not_a_flag(folder))
        if len(rest) > 1:
            raise UserError(
                f"{len(rest)} arguments are no flags ({', '.join(map(repr, rest))}); expected one, "
                "the folder of the images; put quotes around a name with spaces"
            )
        for name in ("dataset", "data_dir"):
            if flags.FLAGS[name].present and name not in _places:
                raise UserError(
                    f"{folder!r} stands beside --{name}; expected one of them to say where the "
                    "images are; leave one out"
                )
        if not os.path.isdir(folder):
            kind = "a file" if os.path.exists(folder) else "not there"
            hint = suggestion(folder, flagfile.presets()).replace("mean ", "mean --preset=")
            raise DataError(
                f"{folder!r} is {kind}; expected a folder that holds one folder of photographs for "
                f"each class{hint or '; correct it'}"
            )
        flags.FLAGS(["", "--dataset=directory", f"--data_dir={folder}"])


def _not_a_flag(word):
    return f"{word!r} is not a flag; expected --name=value; did you mean --{word.lstrip('-')}?"


class _Output:
    """A standard stream that takes every character, and whose reader may leave: a run goes on
    without `| head`, without its terminal, and without room for its log, of which it ends. What is
    no text reaches no terminal: names may hold what one obeys.
    """

    def __init__(self, stream: TextIO):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
        self._stream, self._error = stream, None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream.isatty() and not re.fullmatch(r"\n*(\x1b\[A)*", text):  # of nested bars
            parts = re.split(r"(\x1b\[(?:0|1|32)m)", text)  # bold and green are ours
            for place, part in enumerate(parts[::2]):
                parts[2 * place] = "".join(
                    c if c.isprintable() or c in "\n\r\t" else ascii(c)[1:-1] for c in part
                )
            text = "".join(parts)
        return self._unless_closed(self._stream.write, text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def check(self) -> None:
        """Raises StorageError if what was printed could not be written."""
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
            if error.errno not in (errno.EPIPE, errno.EIO):  # which a terminal leaves behind
                self._error = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
