"""TensorFlow and Keras are imported with our settings, whatever the user's are, and quietly."""

import json
import logging
import os
import subprocess
import sys

import tensorflow as tf

from tl_research import quiet

_REPORT = """
import os, sys
from tl_research import quiet
quiet.import_tensorflow()
import keras
config = keras.config
print(config.backend(), config.image_data_format(), config.floatx(), config.epsilon(),
      config.dtype_policy().name, config.max_epochs(), config.max_steps_per_epoch(),
      type(__import__("tensorflow").keras.Sequential()).__module__)
"""
_HOSTILE = {
    "image_data_format": "channels_first",
    "floatx": "float64",
    "epsilon": 0.01,
    "backend": "jax",
    "nnx_enabled": True,
}


def _python(code, *, input=None, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        input=input,
        env={**os.environ, **environment},
    )


def test_users_settings_of_keras_do_not_reach_in(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(_HOSTILE))
    done = _python(
        _REPORT,
        KERAS_HOME=str(tmp_path),
        KERAS_BACKEND="torch",
        KERAS_NNX_ENABLED="1",
        KERAS_MAX_EPOCHS="1",
        KERAS_MAX_STEPS_PER_EPOCH="none",
        TF_USE_LEGACY_KERAS="1",
    )
    assert done.stderr == "" and done.stdout.split() == [
        *("tensorflow", "channels_last", "float32", "1e-07", "float32", "None", "None"),
        "keras.src.models.sequential",
    ]


def test_keras_json_that_cannot_be_read_is_named_in_one_line(tmp_path):
    (tmp_path / "keras.json").write_text("[]")
    done = _python(
        "from tl_research import cli, quiet; cli.define_flags(); cli.run(quiet.import_tensorflow)",
        KERAS_HOME=str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: TensorFlow and Keras cannot be imported (AttributeError")
    assert done.stderr.count("\n") == 1 and f"{tmp_path}/keras.json" in done.stderr


def test_unknown_home_is_no_folder_here(tmp_path):
    code = (
        "import os, pwd\ndef unknown(number): raise KeyError\npwd.getpwuid = unknown\n"
        f"del os.environ['HOME']; os.chdir({str(tmp_path)!r})\n" + _REPORT
    )
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_HOME"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_names_that_are_not_read_as_utf8_are_refused():
    code = "from tl_research import quiet; quiet.import_tensorflow()"
    done = _python(code, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "UserError: file names are read as ascii; expected utf-8" in done.stderr
    assert "start Python with -X utf8" in done.stderr


def test_what_is_dropped_is_shown_if_the_process_dies_of_it():
    program = """
import os
from tl_research import quiet
with quiet.dropped_stderr():
    os.write(2, b"only noise\\n")
try:
    with quiet.dropped_stderr():
        os.write(2, b"noise before an error\\n")
        raise ValueError
except ValueError:
    os.write(2, b"between\\n")
with quiet.dropped_stderr():
    os.write(2, b"needs AVX, which is not there\\n")
    os.abort()
"""
    done = _python(program)
    assert done.returncode == -6
    assert done.stderr == "between\nneeds AVX, which is not there\n"


def test_several_runs_of_a_process_print_no_retracing_warnings():
    quiet.drop_retracing_notes()
    quiet.drop_retracing_notes()
    logger = tf.get_logger()
    for text, shown in (("5 out of 5 calls triggered tf.function retracing.", False), ("x", True)):
        record = logging.makeLogRecord({"msg": text, "levelno": logging.WARNING})
        assert bool(logger.filter(record)) is shown
    assert len(logger.filters) == 1


_GLOBALS = """
import json, logging, os, sys
import matplotlib, tensorflow as tf
tf.keras.Sequential

def state():
    loggers = {"": logging.root, "tensorflow": tf.get_logger(), **logging.root.manager.loggerDict}
    loggers = {name: of for name, of in loggers.items() if hasattr(of, "filters")}
    ours = ("tl_research", "PIL", "matplotlib", "tqdm")  # made when a module is imported
    return (
        dict(os.environ),
        os.getcwd(),
        matplotlib.rcParams._get("backend"),
        {name: (of.level, list(map(str, of.handlers)), list(map(str, of.filters)))
         for name, of in sorted(loggers.items()) if not name.startswith(ours)},
        [sys.stdout is sys.__stdout__, sys.excepthook is sys.__excepthook__],
    )

before = state()
from tl_research import evaluate, experiment, export, finished, lr_find, predict, run_of, seeds
names = ("environment", "directory", "backend", "loggers", "streams")
print(json.dumps([name for name, a, b in zip(names, before, state()) if a != b]))
"""


def test_import_changes_nothing_for_others():
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", _GLOBALS],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "KERAS_MAX_EPOCHS": "3"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_every_program_imports_tensorflow_quietly_and_with_our_settings(tmp_path):
    programs = {
        "export": [f"--run={tmp_path}"],  # by artefacts, trained and experiment
        "predict": [f"--run={tmp_path}", str(tmp_path)],
        "lr_find": ["--seeds=1"],
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"tl_research.{name}", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": "jax"},
        )
        for name, arguments in programs.items()
    }
    for name, process in started.items():
        _, stderr = process.communicate(timeout=120)
        expected = "error: --seeds=1 where" if name == "lr_find" else f"error: --run={tmp_path} is"
        assert stderr.startswith(expected) and stderr.count("\n") == 1, (name, stderr)
