"""Every line of a flag file is applied, or named with its file and line.

Nothing is lost without a word.
"""

import contextlib
import dataclasses
import glob
import os
import random
import re

import pytest
from absl import flags

from tl_research import cli, flagfile
from tl_research.config import Config
from tl_research.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module", autouse=True)
def defined():
    cli.define_flags(Config)
    yield
    flags.FLAGS.remove_flag_values([*Config.__dataclass_fields__, "debug"])


@pytest.fixture
def parse(tmp_path, capsys):
    """A function from a flag file's content (and more arguments) to (Config or None, stderr)."""

    def parse(content, *arguments):
        path = tmp_path / "my.flags"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        flags.FLAGS.unparse_flags()
        config = None
        try:
            cli.parse(["train.py", f"--flagfile={path}", *arguments])
            config = cli.config_from_flags(Config)
        except cli.UserError as error:
            cli.fail(error, error.exit_code)
        except SystemExit as error:
            assert error.code == 1
        return config, capsys.readouterr().err.replace(f"{tmp_path}/", "")

    return parse


@pytest.mark.parametrize(
    "line, named",
    [
        ("epochs=9", "'epochs=9' is not a flag; expected --name=value; did you mean --epochs=?"),
        ("\u2014epochs=9", "is not a flag; expected --name=value; did you mean --epochs=?"),
        ("\ufeff--epochs=9", "invisible character '\\ufeff'"),
        ("--epochs=\u200b9", "invisible character '\\u200b'"),
        ("--epochs=9\r--seed=1", "invisible character '\\r'"),
        ("--data_dir=a\0b", "invisible character '\\x00'"),
        ("--", "'--' is not a flag"),
        ("--undefok=lrr", "--undefok is not a flag that a file may set"),
        ("--epochs=9  # why", "a comment or quotes"),
        ('--backbone="VGG16"', "a comment or quotes"),
        ("--data_dir='photos'", "a comment or quotes"),
        ("--epochs 9", "'--epochs 9' is not a flag"),
        ("--epochs = 9", "is not a flag"),
        ("--epocs=9", "--epocs is not a flag that a file may set; did you mean epochs?"),
        ("--epochs=1e3", "--epochs=1e3; expected a whole number"),
        ("--nesterov=maybe", "Non-boolean"),
        ("--nonesterov=true", "--nonesterov is not a flag"),
        ("--noseed", "--noseed is not a flag"),
        ("--seed", "--seed has no value"),
        ("--batch_size=many", "--batch_size=many; expected a whole number; correct it"),
        (
            "--optimizer=adm",
            "--optimizer=adm; expected one of sgd, adam, adamw, rmsprop, lion; did",
        ),
        ("--dropout=nan", "--dropout=nan; expected a finite number"),
        ("--dropout=-0.1", "--dropout=-0.1; expected at least 0"),
        ("--learning_rate=1e-400", "--learning_rate=0.0; expected above 0"),
        ("--run_with_profiling", "--run_with_profiling is not a flag that a file may set"),
        ("--profile_file=x", "is not a flag that a file may set"),
        ("--run_with_pdb", "is not a flag that a file may set"),
        ("--pdb_post_mortem", "is not a flag that a file may set"),
        ("--use_cprofile_for_profiling", "is not a flag that a file may set"),
        ("--log_dir=x", "is not a flag that a file may set"),
        ("--help", "is not a flag that a file may set"),
        ("--workdir=$HOME/x", "--workdir=$HOME/x; expected a path without $"),
        ("--data_dir=", "--data_dir=''; expected a line of text"),
        ("--flagfile=/etc/passwd", "--flagfile=/etc/passwd is refused"),
        ("--flagfile=../x.flags", "--flagfile=../x.flags is refused"),
        ("--flagfile=nowhere.flags", "nowhere.flags cannot be read (No such file or directory)"),
        ("--augment=flip,zoom=0.1--seed=3", "--augment=zoom=0.1--seed=3; expected a finite number"),
        ("--flagfile", "is refused"),
        (
            "--flagfile=my.flags",
            "--flagfile=my.flags is refused",
        ),  # in the file that it names: itself
        (b"--seed=\xff", "byte 8 is not UTF-8"),
    ],
)
def test_line_that_cannot_be_applied_is_named(parse, line, named):
    line = line if isinstance(line, bytes) else line.encode()
    config, error = parse(b"# a comment\n--seed=3\n" + line + b"\n--momentum=0.5\n")
    assert config is None and error.startswith("error: my.flags:3: ") and error.count("\n") == 1, (
        error
    )
    assert named in error


@pytest.mark.parametrize(
    "content, settings",
    [
        ("--seed=3\r\n--dropout=0.5\r\n", {"seed": 3, "dropout": 0.5}),
        ("--seed=3", {"seed": 3}),
        ("", {}),
        ("  # indented\n\t// so too\n\n   --seed=3   \n", {"seed": 3}),
        ("--seed=0x10\n--cache_bytes=1_000", {"seed": 16, "cache_bytes": 1000}),
        ("-seed=3\n--nesterov\n--optimizer=sgd", {"seed": 3, "nesterov": True, "optimizer": "sgd"}),
        ("--nodeterministic\n--nesterov=false", {}),
        ("--lr_multiplier=a=1\n--lr_multiplier=b=2", {"lr_multiplier": ("a=1", "b=2")}),
        ("--data_dir=/a b/\u00e9t\u00e9", {"data_dir": "/a b/\u00e9t\u00e9"}),
    ],
)
def test_good_lines_are_applied(parse, content, settings):
    config, error = parse(content)
    assert error == "" and config == Config(**settings)


def test_command_line_wins_over_the_file_silently_and_a_second_line_with_a_warning(parse):
    assert parse("--seed=3\n", "--seed=4") == (Config(seed=4), "")
    config, error = parse("--seed=3\n\n--seed=5\n")
    assert (
        config.seed == 5
        and error == "warning: my.flags:3: --seed is also set in line 1; this one is used\n"
    )
    # not the file's fault
    assert parse("--dropout=0.99\n", "--dropout=0.98")[1].startswith(
        "error: --dropout=0.98; expected"
    )


def test_file_may_name_another_one_beside_it(parse, tmp_path):
    (tmp_path / "base.flags").write_text("--seed=3\n--dropout=0.5\n")
    assert parse("--flagfile=base.flags\n--seed=4\n") == (Config(seed=4, dropout=0.5), "")
    (tmp_path / "base.flags").write_text("--sed=3\n")
    assert parse("--flagfile=base.flags")[1].startswith("error: base.flags:1: --sed is not a flag")
    os.remove(tmp_path / "base.flags")
    (tmp_path / "base.flags").symlink_to("/etc/passwd")
    assert "is refused" in parse("--flagfile=base.flags")[1]


def test_what_is_no_small_file_is_refused_at_once(parse, tmp_path):
    os.mkfifo(tmp_path / "pipe.flags")
    (tmp_path / "large.flags").write_text("#" * (1 << 20) + "\n")
    for name in ("pipe.flags", "large.flags", "", "gone.flags"):
        config, error = parse("", f"--flagfile={tmp_path / name}")
        assert config is None and error.startswith("error: --flagfile=") and error.count("\n") == 1
    assert parse("", "--undefok=sed", "--sed=1")[1].startswith(
        "error: --undefok=sed would hide misspelled flags"
    )


def test_flags_of_a_run_are_read_back(parse):
    config = Config(
        data_dir="/photos",
        lr_multiplier=("head/=2", "b=0.5"),
        nesterov=True,
        optimizer="sgd",
        learning_rate=(1 / 3, 1e-9),
    )
    assert parse(config.to_flags()) == (config, "")


def test_each_setting_can_stand_in_a_file(parse):
    for field in dataclasses.fields(Config):
        if field.default not in (None, ()) and field.metadata["recorded"]:
            (line,) = (
                line
                for line in Config().to_flags().splitlines()
                if line.startswith(f"--{field.name}=")
            )
            assert parse(line) == (Config(), ""), line


@pytest.mark.parametrize(
    "path",
    sorted(
        glob.glob(os.path.join(_ROOT, "*.flags"))
        + glob.glob(os.path.join(_ROOT, "recipes", "*.flags"))
    ),
)
def test_shipped_files_are_settings_that_go_together(parse, path):
    first = [f"--flagfile={os.path.join(_ROOT, 'flowers.flags')}"] if "recipes" in path else []
    config, error = parse("", *first, f"--flagfile={path}")
    assert error == "" and config != Config() and config.if_offline == "embedded"
    with open(path) as file:
        assert file.readline().startswith("# ")


def test_file_that_grows_after_it_was_looked_at_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.flags"
    path.write_text("--seed=1\n")
    before = os.stat(path)
    path.write_text("# more\n" * (1 << 18))
    monkeypatch.setattr(os, "stat", lambda path: before)
    with pytest.raises(UserError, match="not a regular file of at most"):
        flagfile.expand([f"--flagfile={path}"], {"seed"})


# Mutated files: every line is applied, or named in one line.

_ODD_VALUES = """
nan
inf
-0.0
1e400
1e-400
0x10
1_000

maybe
~
$HOME
a b
8,,10
8;10
\u0663
True
-1
"""[1:-1].splitlines()
_ODD_LINES = """
--
---
--undefok=epoch
--run_with_profiling
--profile_file=canary
--flagfile=/etc/passwd
--flagfile=odd.flags
--pdb_post_mortem
--help
--logtostderr
--log_dir=.
--noseed
--nodeterministic=true
--nonesterov
epochs=9
--seed 3
--seed=3 # three
--dataset='directory'
--workdir="x"
  # indented
// comment
\u2014seed=3
=
--=3
"""[1:-1].splitlines()
# What becomes of a line `--{bare}`, which is `{name}={value}`; "//" parts two lines.
_MUTATIONS = """
{bare}
{dashed}
-{line}
\u2014{bare}
\ufeff{line}
{name}={odd}
{name} {value}
{name} = {value}
{name}
{name}="{value}"
{line}  # why
  {line} \x20
\t{line}
{line}//{line}
{line}//{name}={odd}
{before}{character}{after}
{before}{rest}
{before}//{after}
{upper}
--no{bare}
{odd_line}
{line}//{odd_line}
{line}{other}
# {line}
{doubled}
"""[1:-1].split("\n")


def _mutated(lines, draw):
    """Returns the bytes of a flag file, made from good lines by one to three mutations."""
    lines = [line for line in lines if line.strip()]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(lines))
        line = lines[at]
        name, _, value = line.partition("=")
        character = draw.choice(" \t\r\0\u00a0\u2014\ufeff\u200b#'\"=-,.xX0\U0001f33b")
        place = draw.randrange(len(line) + 1)
        parts = {"before": line[:place], "after": line[place:], "rest": line[place + 1 :]}
        parts |= {
            "bare": line[2:],
            "dashed": line[1:],
            "upper": line.upper(),
            "doubled": line.replace("=", "=="),
        }
        forms = draw.choice(_MUTATIONS).split("//")
        for part, choices in {"odd": _ODD_VALUES, "odd_line": _ODD_LINES, "other": lines}.items():
            if f"{{{part}}}" in forms[-1]:
                parts[part] = draw.choice(choices)
        lines[at : at + 1] = [
            form.format(line=line, name=name, value=value, character=character, **parts)
            for form in forms
        ]
    content = draw.choice(["\n", "\r\n"]).join(lines).encode() + draw.choice([b"\n", b""])
    if draw.random() < 0.1:
        content = bytearray(content)
        for _ in range(draw.randint(1, 20)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _misread(content, config, output):
    """Returns what is wrong with how a flag file was understood, or None.

    Decided apart from the program's own parser.

    Args:
        content: Bytes of the file.
        config: `Config` that it was understood as, or None if it was refused.
        output: What was printed.
    """
    if "Traceback" in output:
        return "a traceback"
    if config is None:
        named = output.count("error: ") == 1 and ".flags" in output.split("error: ")[1]
        return None if named else f"not named: {output!r}"
    said, problem = _settings_of(content, output)
    if problem:
        return problem
    expected = Config(**said)
    different = [name for name in said if getattr(config, name) != getattr(expected, name)]
    return f"not as the file says: {different}" if different else None


def _settings_of(content, output):
    """Returns ({name: value} of a flag file, what is wrong with how it was taken or None)."""
    said = {}
    for number, line in enumerate(content.decode().replace("\r\n", "\n").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        name, value = _setting_of(line)
        if name not in Config.__dataclass_fields__:
            return said, f"line {number} is lost: {line!r}"
        if Config.__dataclass_fields__[name].metadata["repeated"]:
            said.setdefault(name, []).append(value)
            continue
        if name in said and f":{number}: " not in output:
            return said, f"line {number} overrides an earlier one without a word: {line!r}"
        said[name] = value
    return said, None


def _setting_of(line):
    """Returns (name, value) of a line of a flag file; a name that is none, if it is not a flag."""
    match, fields = re.fullmatch(r"--?([a-z_]+)(?:=(.*))?", line), Config.__dataclass_fields__
    name, value = match.groups() if match else ("", "")
    if value is None:
        return (name, True) if name in fields else (name.removeprefix("no"), False)
    kind = fields[name].type if name in fields else None
    if kind is bool:
        value = value.lower() in ("true", "t", "1", "y", "yes")
    with contextlib.suppress(ValueError):  # then it is refused, as the text that it is
        return name, int(value, 0) if kind is int else value
    return name, value


def test_mutated_files_lose_nothing(parse, times):
    good = Config(dataset="directory", data_dir="/photos", lr_multiplier=("head/=2",)).to_flags()
    draw, accepted = random.Random(0), 0
    for _ in range(500 * times):
        content = _mutated(draw.sample(good.splitlines(), 8), draw)
        config, error = parse(content)
        accepted += config is not None
        assert _misread(content, config, error) is None, content
    assert 50 * times < accepted < 450 * times
