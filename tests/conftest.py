"""A backbone small enough to train in a second, and command lines run in forks of one process that
has TensorFlow.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import gc
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

# A shell starts what runs in the background with interrupts ignored, and nohup with hang-ups; all
# processes here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# the first of several test processes would take all memory
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="session")
def times():
    """How many times as many random cases are tried as by default."""
    return int(os.environ.get("TL_RESEARCH_TIMES", "1"))


@pytest.fixture
def together():
    """A function that calls another as so many processes that gather rows; returns their results.

    They are threads, each of which is given its number and an `all_gather`.
    """

    def run(count, function):
        met, given = threading.Barrier(count), [{}] * count

        def all_gather(index, columns):
            given[index] = columns
            met.wait(30)
            rows = {name: np.concatenate([of[name] for of in given]) for name in columns}
            met.wait(30)  # nobody gives the next before all have these
            return rows

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            calls = [
                pool.submit(function, index, functools.partial(all_gather, index))
                for index in range(count)
            ]
            return [call.result() for call in calls]

    return run


@pytest.fixture(autouse=True)
def _float32_policy():
    """No test leaves the precision of its run to the next one."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def _what_is_kept_is_looked_at_once():
    """A run collects garbage, and would look each time through TensorFlow and through the millions
    of objects that TensorFlow keeps of all runs before.
    """
    before = gc.get_stats()[2]["collections"]
    yield
    if gc.get_stats()[2]["collections"] > before or not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


_FORK_SERVER = r"""
import gc, json, os, runpy, signal, sys, traceback
from tl_research import experiment  # imports TensorFlow, runs nothing: so far it may be forked

gc.freeze()
for line in sys.stdin:
    program, arguments, streams, place, environment = json.loads(line)
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(900)
        try:
            for number, stream in enumerate(streams):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
                os.dup2(os.open(stream, flags | os.O_NOCTTY), number)
            os.chdir(place)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = [program, *arguments]
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def offline_environment(home):
    """Returns an environment whose home is empty and from which no host is reached."""
    nowhere = "http://127.0.0.1:9"  # the discard port, where nobody listens
    return {
        **os.environ,
        "HOME": str(home),
        "KERAS_HOME": os.path.join(str(home), "keras"),
        "PYTHONPATH": ROOT,
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "no_proxy": "",
    }


@pytest.fixture(scope="session")
def fork_home(tmp_path_factory):
    """The home of programs that `run_program` starts, with Keras' own in `keras`."""
    return tmp_path_factory.mktemp("fork_home")


@pytest.fixture(scope="session")
def run_program(fork_home, tmp_path_factory):
    """A function that runs a module, or a file that ends in .py, with arguments, where no host is
    reached, in a fork of a process that has imported TensorFlow.

    Its other arguments are the home and the directory to start in, where the output goes if not to
    a file, and an environment to take instead. Returns (exit code, stdout, stderr).
    """
    server = subprocess.Popen(
        [sys.executable, "-c", _FORK_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=offline_environment(fork_home),
    )

    def run(program, *arguments, home=fork_home, cwd=None, stdout=None, environment=None):
        place = tmp_path_factory.mktemp("fork")
        streams = [os.devnull, stdout or str(place / "stdout"), str(place / "stderr")]
        if environment is None:
            environment = {**offline_environment(home), "KERAS_HOME": str(fork_home / "keras")}
        case = [str(program), list(map(str, arguments)), streams, str(cwd or place), environment]
        print(json.dumps(case), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return code, *("" if name == stdout else open(name).read() for name in streams[1:])

    with server:
        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def run_script(run_program, tmp_path_factory):
    """A function of the text of a program, which may import benchmarks, and its arguments.

    It is run as `run_program` does, where hosts are reached: several processes of a run are, too.
    Returns its stdout.
    """
    benchmarks = os.path.join(ROOT, "benchmarks")

    def run(text, *arguments):
        script = tmp_path_factory.mktemp("script") / "script.py"
        script.write_text(f"import sys\nsys.path.insert(0, {benchmarks!r})\n{text}")
        code, stdout, stderr = run_program(script, *arguments, environment=dict(os.environ))
        assert code == 0, stderr
        return stdout

    return run


@pytest.fixture(scope="session")
def run_train(run_program):
    """A function of command lines of train.py, and their home, run one after the other.

    Returns (exit code, stdout, stderr) for each.
    """

    def run(*cases, **home):
        return [run_program(os.path.join(ROOT, "train.py"), *case, **home) for case in cases]

    return run


@contextlib.contextmanager
def _tiny_backbone():
    import tiny_network

    from tl_research.models import backbones

    build = backbones.build_backbone

    def build_tiny(name, *args, **kwargs):
        return (tiny_network.build_tiny if name == "Tiny" else build)(name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "Tiny", tiny_network.TINY)
        patch.setattr(backbones, "build_backbone", build_tiny)
        yield


@pytest.fixture
def tiny_backbone():
    """Makes `Tiny` a backbone: three blocks, two of them with BatchNorm whose statistics are not
    trivial.
    """
    with _tiny_backbone():
        yield


@pytest.fixture(scope="session")
def with_tiny_backbone():
    """A function to a context in which `Tiny` is a backbone, for fixtures of several tests."""
    return _tiny_backbone


@pytest.fixture(scope="session")
def tiny_settings(write_images):
    """A function of a directory to settings of a run of the tiny backbone, in two phases of 5 steps
    an epoch, on images of 16 px that it writes to `photos` there.

    Its other arguments are how many images of each class, the classes, and settings of `Config`.
    """

    def settings(place, count=15, classes=("ant", "bee", "cat"), **more):
        return {
            "dataset": "directory",
            "data_dir": write_images(place / "photos", classes, count=count, size=16),
            "image_size": 16,
            "backbone": "Tiny",
            "weights": "none",
            "unfreeze": ("0%", "block3"),
            "batch_size": 8,
            "workdir": str(place / "run"),
            **more,
        }

    return settings


@pytest.fixture(scope="session")
def copies_at():
    """A function of a step, a run directory and another one to an observer that copies the run
    there in the first call that reaches the step: as a sudden end of the process would leave it.
    """
    from tl_research.training.events import CallEnded

    def observer(step, run, copy):
        def observe(event):
            if isinstance(event, CallEnded) and event.step >= step and not os.path.exists(copy):
                shutil.copytree(run, copy)
                assert os.listdir(os.path.join(copy, "checkpoints")), "nothing to resume from"

        return observe

    return observer


_ONE_LAYER = """
import keras

def make_backbone(config):
    inputs = keras.Input((config.image_size, config.image_size, 3))
    return keras.Model(inputs, keras.layers.Conv2D(6, 3, 2, activation="relu")(inputs))
"""


@pytest.fixture
def one_layer(tmp_path):
    """An extension file whose backbone is one convolution, for runs in processes of their own."""
    path = tmp_path / "one_layer.py"
    path.write_text(_ONE_LAYER)
    return str(path)


@pytest.fixture
def make_examples():
    """A function of (count, seed) to `Examples` of 16 px in memory, whose brightest channel is
    their class (of 3).
    """
    import tensorflow as tf

    from tl_research.data.pipeline import Examples

    def make(count, seed=0):
        labels = np.arange(count, dtype=np.int32) % 3
        pixels = np.random.RandomState(seed).randint(0, 200, (count, 16, 16, 3)).astype(np.uint8)
        pixels[np.arange(count), :, :, labels] += 50
        names = tuple(f"{i:03d}.png" for i in range(count))
        return Examples(names, names, labels, 16, tf.constant(pixels))

    return make


@pytest.fixture(scope="session")
def write_images():
    """A function that writes `count` PNGs into each class folder of a directory and returns it."""
    import PIL.Image

    def write(directory, classes=("ant", "bee", "cat"), count=20, size=64, strength=8):
        for label, name in enumerate(classes):
            os.makedirs(os.path.join(directory, name))
            for i in range(count):
                pixels = (
                    np.random.RandomState(1000 * label + i)
                    .randint(0, 200, (size, size, 3))
                    .astype(np.uint8)
                )
                pixels[size // 4 :, :, label % 3] += strength
                PIL.Image.fromarray(pixels).save(os.path.join(directory, name, f"{i:02d}.png"))
        return str(directory)

    return write


def _trained(place, photos, epochs, **settings):
    """Trains the head on images of 64 px, in `run`."""
    from tl_research import experiment
    from tl_research.config import Config

    config = Config(
        dataset="directory",
        data_dir=photos,
        image_size=32,
        batch_size=16,
        epochs=(epochs, 0),
        augment=("none",),
        split=(0.4, 0.3, 0.3),
        precision="float32",  # on every processor
        workdir=str(place / "run"),
        **settings,
    )
    experiment.run(config)


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory):
    """A function of a name and of what fills a directory to that directory, which the first of all
    test processes that asks for it makes.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name, fill):
        place = base / f"of_all_{name}"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                fill(place)
                (place / "made").touch()
        return place

    return made


@pytest.fixture(scope="session")
def _trained_run(_made_once, write_images):
    def fill(place):
        photos = write_images(place / "photos", count=25)
        _trained(place, photos, 2, backbone="EfficientNetLite0")

    return _made_once("trained", fill)


@pytest.fixture(scope="session")
def _tiny_trained_run(_made_once, write_images):
    def fill(place):
        photos = write_images(place / "photos", count=25, strength=40)
        with _tiny_backbone():
            _trained(place, photos, 10, backbone="Tiny", weights="none", learning_rate=0.1)
        flags = place / "run" / "flags.txt"
        # as a backbone that every program knows, which the tools do not build
        flags.write_text(flags.read_text().replace("=Tiny\n", "=EfficientNetLite0\n"))

    return _made_once("tiny", fill)


def _copy_of(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "trained")
    flags = tmp_path / "trained" / "run" / "flags.txt"
    flags.write_text(flags.read_text().replace(str(trained), str(tmp_path / "trained")))
    return str(tmp_path / "trained" / "run")


@pytest.fixture
def finished_run(_trained_run, tmp_path):
    """The directory of a run of its own, EfficientNetLite0 at 32 px on photographs of 64 px beside
    it in `photos`.
    """
    return _copy_of(_trained_run, tmp_path)


@pytest.fixture
def tiny_finished_run(_tiny_trained_run, tmp_path):
    """The same of the tiny backbone, which loads at once: for tools that take a model as it is."""
    return _copy_of(_tiny_trained_run, tmp_path)


@pytest.fixture
def read_only():
    """A function that makes a directory one that cannot be written to, also by root."""
    mounted = []

    def protect(path):
        if os.geteuid():
            for folder, _, _ in os.walk(path):
                os.chmod(folder, 0o555)
            return
        for options in ("bind", "remount,bind,ro"):
            done = subprocess.run(["mount", "-o", options, path, path], capture_output=True)
            if done.returncode:
                pytest.skip("needs to mount a directory read-only")
            mounted.append(path)

    yield protect
    for path in mounted[:1]:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def on_terminal():
    """A function of a command, and of variables of its environment, that returns what it shows on a
    terminal of 40 columns.
    """

    def show(command, **environment):
        outer, inner = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40", **environment}
        with subprocess.Popen(command, stdout=inner, stderr=inner, env=environment) as process:
            os.close(inner)
            said = b""
            while part := _read(outer):
                said += part
        os.close(outer)
        assert process.returncode == 0, said
        return said.decode().replace("\r\n", "\n")

    return show


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody writes to it any more
        return b""
