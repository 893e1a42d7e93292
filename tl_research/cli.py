"""Flags from a config dataclass, and one error contract for every program: one line on stderr, a
documented exit code.
"""

import dataclasses
import errno
import functools
import os
import re
import sys
import traceback

from absl import app, flags

from tl_research import flagfile, settings
from tl_research.config import Config
from tl_research.errors import Interrupted, StorageError, UserError, suggestion
from tl_research.files import storage_reason
from tl_research.signals import Signals

# the program that calls define_flags is the one whose --helpshort lists them
flags.disclaim_key_flags()


class _WholeNumber(flags.IntegerParser):
    def convert(self, argument):
        try:
            return super().convert(argument)
        except ValueError:
            raise ValueError("expected one whole number") from None


class _Number(flags.FloatParser):
    def convert(self, argument):
        try:
            return super().convert(argument)
        except ValueError:
            raise ValueError("expected one number") from None


_PARSERS = {int: _WholeNumber, float: _Number}
_names = {}  # the flags of this program: whether a flag file may set them
_places = {}  # {name: FILE:LINE} of those that a flag file set


def define_flags(config_class=Config):
    """Defines one absl flag for each field of `config_class`, in place of those of a call before.

    Values are checked by the class itself.
    """
    flags.FLAGS.remove_flag_values(_names)
    _names.clear()
    for field in dataclasses.fields(config_class):
        name, rules = field.name, field.metadata
        if rules["repeated"]:
            flags.DEFINE_multi_string(name, list(field.default), rules["help"])
        elif settings.is_list(field):
            flags.DEFINE_string(name, settings.flag_text(field.default), rules["help"])
        elif settings.item_type(field) is bool:
            flags.DEFINE_bool(name, field.default, rules["help"])
        elif rules["choices"]:
            flags.DEFINE_enum(name, field.default, rules["choices"], rules["help"])
        elif parser := _PARSERS.get(settings.item_type(field)):
            serializer = flags.ArgumentSerializer()
            flags.DEFINE(parser(), name, field.default, rules["help"], serializer=serializer)
        else:
            flags.DEFINE_string(name, field.default, rules["help"])
        _names[name] = rules["in_files"]
    flags.DEFINE_bool("debug", False, "show the traceback of an error")
    _names["debug"] = True


def config_from_flags(config_class=Config):
    """Returns the config that the parsed flags describe.

    Raises:
        UserError: If a value cannot be used; the text names the flag, and the line of the flag file
            that set it.
    """
    try:
        values = {
            field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(config_class)
        }
        settings.check_fields(config := config_class(**values))
        return config
    except UserError as error:
        if error.flag not in _places:
            raise
        raise UserError(f"{_places[error.flag]}: {error}", error.flag) from error


def debug_flag():
    """Returns --debug as arguments for another program."""
    return ["--debug"] if flags.FLAGS.debug else []


def run(main, takes=False):
    """Parses the flags, calls `main()` and exits with its code, or with that of the error that it
    raises.

    Args:
        main: Called without arguments, or with the list of those that are no flags if the program
            takes any.
        takes: Whether the program takes arguments that are no flags.
    """

    def guarded(argv):
        try:
            with Signals():  # a run has its own; this one is for what comes before and after
                code = main(argv[1:]) if takes else main()
            sys.stdout.check()
            return code
        except (Exception, Interrupted) as error:
            if flags.FLAGS.debug:
                traceback.print_exc()
            return fail(*_describe(error))

    _in_utf8()
    _open_closed_streams()
    os.environ["MPLBACKEND"] = "Agg"  # a notebook that starts this program has set its own
    sys.stdout, sys.stderr = (_Output(stream) for stream in (sys.stdout, sys.stderr))
    app.run(guarded, flags_parser=functools.partial(parse, takes=takes))


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
    if isinstance(error, (UserError, Interrupted)):
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


def fail(message, exit_code):
    """Prints `error: message` as one line on stderr and returns the exit code."""
    print("error: " + re.sub(r"\s*[\r\n]\s*", " ", str(message).strip()), file=sys.stderr)
    return exit_code


def parse(argv, takes=False):
    """Sets the flags from a command line, program first.

    Exits with 1 and one line if they cannot be.
    """
    try:
        arguments, places = flagfile.expand(argv[1:], set(filter(_names.get, _names)))
        rest = flags.FLAGS([argv[0], *arguments])
    except UserError as error:
        sys.exit(fail(error, error.exit_code))
    except flags.UnrecognizedFlagError as error:
        near = suggestion(error.flagname, _names) or "; run with --helpshort for the flags"
        sys.exit(fail(f"--{error.flagname} is no flag of this program{near}", 1))
    except (flags.Error, ValueError) as error:
        sys.exit(fail(f"{error}; run with --helpshort for the flags", 1))
    if len(rest) > 1 and not takes:
        sys.exit(
            fail(
                f"{rest[1]!r} is not a flag; expected --name=value; did you mean "
                f"--{rest[1].lstrip('-')}?",
                1,
            )
        )
    _places.clear()
    _places.update(places)
    return rest


class _Output:
    """A standard stream that takes every character, and whose reader may leave: a run goes on
    without `| head`, without its terminal, and without room for its log, of which it ends. What is
    no text reaches no terminal: names may hold what one obeys.
    """

    def __init__(self, stream):
        stream.reconfigure(errors="backslashreplace")
        self._stream, self._error = stream, None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        if self._stream.isatty() and not re.fullmatch(r"\n*(\x1b\[A)*", text):  # of nested bars
            text = "".join(c if c.isprintable() or c in "\n\r\t" else ascii(c)[1:-1] for c in text)
        return self._unless_closed(self._stream.write, text)

    def flush(self):
        self._unless_closed(self._stream.flush)

    def check(self):
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
