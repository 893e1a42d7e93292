"""Flags from a config dataclass, and one error contract for every program: one line on stderr, a documented exit code."""

import dataclasses
import functools
import sys
import traceback

from absl import app
from absl import flags

from tl_research import config as config_lib
from tl_research.errors import UserError

flags.disclaim_key_flags()  # the program that calls define_flags is the one whose --helpshort lists them

_DEBUG = None


def define_flags(config_class=config_lib.Config):
    """Defines one absl flag for each field of `config_class`; values are checked by the class itself."""
    global _DEBUG
    for field in dataclasses.fields(config_class):
        name, rules = field.name, field.metadata
        if rules["repeated"]:
            flags.DEFINE_multi_string(name, list(field.default), rules["help"])
        elif config_lib.is_list(field):
            flags.DEFINE_string(name, config_lib._text(field.default), rules["help"])
        elif config_lib.item_type(field) is bool:
            flags.DEFINE_bool(name, field.default, rules["help"])
        elif rules["choices"]:
            flags.DEFINE_enum(name, field.default, rules["choices"], rules["help"])
        else:
            define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
            define[config_lib.item_type(field)](name, field.default, rules["help"])
    _DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def config_from_flags(config_class=config_lib.Config):
    """Returns the config that the parsed flags describe.

    Raises:
        UserError: If a value cannot be used; the text names the flag.
    """
    return config_class(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(config_class)})


def run(main, takes=False):
    """Parses the flags, calls `main()` and exits with its code, or with that of the UserError it raises.

    Args:
        main: Called without arguments, or with the list of those that are no flags if the program takes any.
        takes: Whether the program takes arguments that are no flags.
    """
    def guarded(argv):
        try:
            return main(argv[1:]) if takes else main()
        except UserError as error:
            if _DEBUG.value:
                traceback.print_exc()
            return fail(error, error.exit_code)
        except KeyboardInterrupt:  # before a run watches for signals itself
            return fail("interrupted", 130)
    app.run(guarded, flags_parser=functools.partial(_parse, takes=takes))


def fail(message, exit_code):
    """Prints `error: message` as one line on stderr and returns the exit code."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    return exit_code


def _parse(argv, takes=False):
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, OSError, UnicodeDecodeError, ValueError) as error:
        sys.exit(fail(f"{error}; run with --helpshort for the flags", 1))
    if len(rest) > 1 and not takes:
        sys.exit(fail(f"{rest[1]!r} is not a flag; expected --name=value; did you mean --{rest[1].lstrip('-')}?", 1))
    return rest
