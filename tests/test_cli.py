"""What a user who mistypes sees: one line on stderr and the right exit code, never a traceback."""

import os
import pty
import resource
import subprocess
import sys
import time

import pytest

from tl_research import cli, errors

_TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")


def _train(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, _TRAIN, *arguments], capture_output=True, text=True, timeout=60, **kwargs
    )


def _assert_one_line(stderr, *parts):
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for part in parts:
        assert part in stderr


# Without TensorFlow.


def test_helpshort_answers_within_a_second_and_lists_the_settings():
    # importing either fails
    times, tensorflow = [], "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; "
    code = (
        f"{tensorflow}import runpy; sys.argv = ['train.py', '--helpshort']; "
        f"runpy.run_path({_TRAIN!r}, run_name='__main__')"
    )
    for _ in range(3):  # the quickest of three: the machine may be busy
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=os.path.dirname(_TRAIN),
        )
        times.append(time.perf_counter() - start)
    assert min(times) < 1
    assert done.stderr == ""
    for name in ("--dataset", "--unfreeze", "--[no]nesterov", "--lr_multiplier", "--if_offline"):
        assert name in done.stdout
    assert "TensorFlow" not in done.stderr and "Traceback" not in done.stdout


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--epocs=3"], ["--epocs is not a flag", "did you mean epochs?"]),
        (["--warmup_steps=276"], ["--warmup_steps is not a flag", "did you mean warmup?"]),
        (["epochs=3"], ["'epochs=3' is not a flag", "did you mean --epochs=3?"]),
        (["--batch_size=many"], ["--batch_size=many; expected a whole number; correct it"]),
        (["--image_size=64,96"], ["--image_size=64,96; expected a whole number; correct it"]),
        (["--dropout=a half"], ["--dropout=a half; expected a finite number; correct it"]),
        (
            ["--optimizer=adm"],
            ["--optimizer=adm; expected one of sgd, adam, adamw, rmsprop, lion; did you mean adam"],
        ),
        (["--flagfile=/nowhere.flags"], ["/nowhere.flags"]),
        (["--epochs=1,2,3"], ["--epochs=1,2,3", "one for each of --phases"]),
        (["--learning_rate=nan"], ["--learning_rate=nan", "finite"]),
    ],
)
def test_wrong_flag_is_exit_1(arguments, parts):
    done = _train(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    _assert_one_line(done.stderr, *parts)


@pytest.mark.parametrize(
    "content",
    [b"epochs=3\n", "\u2014epochs=3\n".encode(), b"\xef\xbb\xbf--epochs=3\n", b"--epochs=\xff\n"],
)
def test_line_of_a_flagfile_that_is_no_flag_is_exit_1(tmp_path, content):
    (tmp_path / "odd.flags").write_bytes(content)
    done = _train(f"--flagfile={tmp_path}/odd.flags")
    assert done.returncode == 1
    _assert_one_line(done.stderr)


# The parser itself.


def test_each_field_is_one_flag_of_the_same_type_and_default():
    code = (
        "import dataclasses, sys; from tl_research import cli; from tl_research.config import "
        "Config; from absl import flags\ncli.define_flags(Config); flags.FLAGS(['train.py', "
        "'--epochs=1,2', '--nesterov', '--optimizer=sgd', '--lr_multiplier=a=1', "
        "'--lr_multiplier=b=2', '--dropout=0.5'])\nconfig = cli.config_from_flags(Config)\nassert "
        "config == Config(epochs=(1, 2), nesterov=True, optimizer='sgd', lr_multiplier=('a=1', "
        "'b=2'), dropout=0.5)\nassert {f.name for f in dataclasses.fields(Config)} | {'debug'} == "
        "{f.name for f in flags.FLAGS.get_key_flags_for_module('tl_research.cli')}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_error_is_one_line_whatever_its_text(capsys):
    # spaces stay: they may be those of a name, in a command to copy
    assert cli.fail("first\r\n  second  third\n", 7) == 7
    assert capsys.readouterr().err == "error: first second  third\n"


def test_exit_codes_are_those_of_the_contract():
    codes = {
        errors.UserError: 1,
        errors.DataError: 2,
        errors.UnreachableError: 2,
        errors.GateError: 3,
        errors.AuditError: 4,
        errors.NonFiniteError: 5,
        errors.ExportError: 6,
        errors.CheckpointError: 7,
        errors.RunDirectoryError: 8,
        errors.StorageError: 9,
        errors.OutOfMemoryError: 10,
        errors.MissingWorkerError: 11,
    }
    for kind, code in codes.items():
        assert kind("x").exit_code == code
    assert [errors.Interrupted("x", number).exit_code for number in (1, 2, 15)] == [129, 130, 143]


_PROGRAM = """
import signal
from tl_research import cli, errors
from tl_research.config import Config
cli.define_flags(Config)
def main():
    {body}
cli.run(main)
"""


@pytest.mark.parametrize(
    "body, arguments, code",
    [
        ("raise errors.AuditError('moved')", [], 4),
        ("signal.raise_signal(signal.SIGINT)", [], 130),
        ("signal.raise_signal(signal.SIGTERM)", [], 143),
        ("raise MemoryError", [], 10),
        ("raise OSError(28, 'No space left')", [], 9),
        ("{}['nothing']", [], 1),
        ("raise errors.Interrupted('stopped', 15)", [], 143),
        ("return None", [], 0),
    ],
)
def test_error_of_main_decides_the_exit_code(body, arguments, code):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body=body), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code else 0)


def test_debug_shows_the_traceback():
    program = _PROGRAM.format(body="raise errors.AuditError('moved')")
    done = subprocess.run(
        [sys.executable, "-c", program, "--debug"], capture_output=True, text=True
    )
    assert (
        done.returncode == 4
        and "Traceback" in done.stderr
        and done.stderr.endswith("error: moved\n")
    )


def test_error_of_no_kind_of_ours_is_one_line_that_names_its_place():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body="{}['nothing']")],
        capture_output=True,
        text=True,
    )
    _assert_one_line(
        done.stderr, "KeyError in <string>:7: 'nothing'", "--debug shows the traceback"
    )


def test_run_goes_on_when_nobody_reads_its_output():
    body = "print('x' * 100_000, flush=True); print('y', flush=True); sys.stderr.write('done')"
    with subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + _PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"done" and process.wait() == 0


def test_every_character_can_be_printed_in_every_locale():
    program = _PROGRAM.format(
        body="print('\\udcff \\u2014', flush=True); raise errors.DataError('\\udcff \\u2014')"
    )
    for settings in ({"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, env={**os.environ, **settings}
        )
        assert (
            done.returncode == 2
            and done.stderr.startswith(b"error: \\udcff ")
            and done.stderr.count(b"\n") == 1
        )
        assert done.stdout.startswith(b"\\udcff ")


def test_programs_run_in_utf8_with_the_same_arguments_in_every_locale(tmp_path):
    program = _PROGRAM.format(body="print(sys.getfilesystemencoding(), *map(ascii, rest))")
    program = "import sys\n" + program.replace("main()", "main(rest)").replace(
        "cli.run(main)", "cli.run(main, takes=True)"
    )
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, "r\u00e9d", b"\xff"],
        capture_output=True,
        env={**os.environ, **other},
    )
    assert (done.stdout, done.stderr) == (b"utf-8 'r\\xe9d' '\\udcff'\n", b"")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_closed_streams_are_no_file_that_is_opened_next(tmp_path, closed):
    body = "file = open('log', 'w'); print('lost' * 9999); os.write(2, b'lost'); file.write('kept')"
    (tmp_path / "program.py").write_text("import os\n" + _PROGRAM.format(body=body))
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' program.py {closed}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(cli.__file__))},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "kept"


def test_run_goes_on_when_its_log_cannot_be_written_and_ends_with_that(tmp_path):
    body = (
        f"print('x' * 100_000, flush=True); open({str(tmp_path / 'done')!r}, 'w').close(); "
        "print('RESULT', flush=True)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(body=body)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 9 and (tmp_path / "done").exists()
    _assert_one_line(done.stderr, "the output could not be written (No space left on device)")


def test_run_goes_on_when_its_terminal_is_gone():
    terminal, output = pty.openpty()
    body = "sys.stdin.read(1); print('x', flush=True); print('y', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + _PROGRAM.format(body=body)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        os.close(output)
        os.close(terminal)
        process.communicate(b"x", timeout=60)
    assert process.returncode == 0


def test_signal_that_was_ignored_still_is():
    body = "signal.raise_signal(signal.SIGHUP); print('on')"
    # as nohup does
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + _PROGRAM.format(
        body=body
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "on\n")


# With TensorFlow, up to where the run would begin.


def _directory(name):
    """Flags of a run on images in a directory."""
    data = ["--dataset=directory", f"--data_dir={{home}}/{name}", "--image_size=32"]
    return [*data, f"--workdir={{home}}/run_{name}"]


_DATA = ["--dataset=directory", "--data_dir={home}/photos", "--backbone=EfficientNetLite0"]
_DATA += ["--image_size=32"]
# {what is wrong: (flags, exit code, what is said)}
_WRONG = {
    "misspelt backbone": (
        ["--backbone=EfficientNetLit0"],
        1,
        ["'EfficientNetLit0'", "did you mean EfficientNetLite0"],
    ),
    "missing directory": (
        _directory("nowhere"),
        2,
        ["--data_dir=", "/nowhere cannot be read (No such file or directory)"],
    ),
    "one class": (_directory("one"), 2, ["holds 1 classes ('ant')", "at least 2"]),
    "sides": (_directory("sides"), 2, ["are sides and not classes", "--validation_dir="]),
    "broken image": (
        _directory("broken"),
        2,
        ["1 of 12 images", "bee/00.png", "add --on_bad_image=skip"],
    ),
    "unwritable workdir": (
        ["--workdir={home}/file/run"],
        9,
        ["{home}/file/run", "Not a directory", "--workdir"],
    ),
    "foreign workdir": ([*_DATA, "--workdir={home}/other"], 8, ["holds files but no run"]),
    "foreign workdir, never": (
        [*_DATA, "--workdir={home}/other", "--resume=never"],
        8,
        ["holds files but no run"],
    ),
    "run among its images": (
        [*_DATA, "--workdir={home}/photos/run"],
        1,
        [
            "--workdir={home}/photos/run lies in --data_dir={home}/photos",
            "add --workdir={home}/run",
        ],
    ),
    "runs among test images, through a link": (
        [*_DATA, "--test_dir={home}/sides", "--workdir={home}/link/runs", "--seeds=1,2"],
        1,
        ["--workdir={home}/link/runs lies in --test_dir={home}/sides"],
    ),
    "misspelt layer": (
        [*_DATA, "--unfreeze=0%,blok6a", "--workdir={home}/layer"],
        1,
        ["blok6a", "did you mean block6a"],
    ),
    "misspelt layer, before the images are looked for": (
        [*_directory("nowhere"), "--unfreeze=blok6a"],
        1,
        ["blok6a", "did you mean block6a"],
    ),
    "too small, before the images are looked for": (
        [*_directory("nowhere"), "--backbone=InceptionV3"],
        1,
        ["at least 75 pixels"],
    ),
    "no such weights, before the images are looked for": (
        [*_directory("nowhere"), "--weights={home}/mine.h5"],
        2,
        ["--weights={home}/mine.h5 does not exist; expected imagenet, none, a Keras weights"],
    ),
    "misspelt pattern": (
        [*_DATA, "--lr_multiplier=blok6=2", "--workdir={home}/pattern"],
        1,
        ["'blok6'", "did you mean"],
    ),
    "images not reached": (
        ["--backbone=EfficientNetLite0", "--workdir={home}/no_images"],
        2,
        ["put it at {home}/.cache/tl_research/flower_photos.tgz"],
    ),
    "weights not reached": (
        [*_DATA, "--backbone=MobileNetV2", "--workdir={home}/no_weights"],
        2,
        ["mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", "{keras}"],
    ),
}


@pytest.fixture(scope="module")
def wrong(run_train, write_images, tmp_path_factory):
    """({name: (exit code, stdout, stderr)} of train.py with one thing wrong in each, where)."""
    home = tmp_path_factory.mktemp("wrong")
    write_images(home / "photos", count=4, size=16)
    write_images(home / "one", classes=("ant",), count=4, size=16)
    write_images(home / "sides", classes=("train", "validation"), count=4, size=16)
    broken = write_images(home / "broken", count=4, size=16)
    with open(os.path.join(broken, "bee", "00.png"), "r+b") as file:
        file.truncate(200)
    (home / "file").write_text("")
    (home / "other").mkdir()
    (home / "other" / "thesis.txt").write_text("precious")
    (home / "link").symlink_to(home / "sides")
    cases = [[flag.format(home=home) for flag in flags] for flags, _, _ in _WRONG.values()]
    return dict(zip(_WRONG, run_train(*cases, home=home))), home


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_input_is_one_line_and_the_right_exit_code(wrong, fork_home, name):
    found, home = wrong
    _, expected, parts = _WRONG[name]
    code, stdout, stderr = found[name]
    assert code == expected, stderr
    _assert_one_line(stderr, *(part.format(home=home, keras=fork_home / "keras") for part in parts))
    assert "RESULT" not in stdout


def test_bad_image_is_written_down_before_the_run_stops(wrong):
    _, home = wrong
    lines = (home / "run_broken" / "bad_images.csv").read_text().splitlines()
    assert lines[0] == "path,reason" and len(lines) == 2 and lines[1].startswith("bee/00.png,")


def test_failed_start_leaves_no_directory(wrong):
    _, home = wrong
    left = {"photos", "one", "sides", "broken", "file", "other", "link", "run_broken"}
    assert {name for name in os.listdir(home) if not name.startswith(".")} == left


def test_what_is_no_run_stays_as_it_was(wrong):
    _, home = wrong
    assert (home / "other" / "thesis.txt").read_text() == "precious"
    assert not [name for name in os.listdir(home) if ".old-" in name]
    assert sorted(os.listdir(home / "photos")) == sorted(os.listdir(home / "broken"))
    assert sorted(os.listdir(home / "sides")) == ["train", "validation"]


_NO_CHECKS = """
import dataclasses
from tl_research import cli
from tl_research.settings import setting

@dataclasses.dataclass(frozen=True)
class Settings:
    output_json: str | None = setting(None, "file for all numbers")

cli.define_flags(Settings)
cli.run(lambda: cli.config_from_flags(Settings))
"""


def test_address_is_refused_by_programs_that_check_nothing_themselves():
    done = subprocess.run(
        [sys.executable, "-c", _NO_CHECKS, "--output_json=gs://bucket/all.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    _assert_one_line(done.stderr, "--output_json=gs://bucket/all.json", "no address")


def test_name_does_not_command_a_terminal():
    body = r"print('caf\u00e9 \x1b[2J\u202egnp\x07', flush=True)"
    terminal, end = os.openpty()
    subprocess.run([sys.executable, "-c", _PROGRAM.format(body=body)], stdout=end, check=True)
    os.close(end)
    assert os.read(terminal, 1000).decode() == "café \\x1b[2J\\u202egnp\\x07\r\n"
    os.close(terminal)


def test_log_on_a_full_disk_is_exit_9(tmp_path):
    """Not 1, nor the 120 of an interpreter that cannot empty its buffers."""
    both = tmp_path / "both"
    with open(both, "wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(body="print('x' * 9000, flush=True)")],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
        )
    assert done.returncode == 9 and both.stat().st_size == 10
