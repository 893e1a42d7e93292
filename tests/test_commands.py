"""The installed command: what it answers without TensorFlow, and how a folder becomes a run."""

import dataclasses
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from absl import flags

from tl_research import __version__, backbone_table, cli, flagfile
from tl_research.config import Config, ToolConfig
from tl_research.data import sides
from tl_research.errors import UserError
from tl_research.run import environment
from tl_research.settings import setting

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# importing either fails
_NO_TENSORFLOW = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; "


def _command(*arguments, cwd=None):
    """Runs `tl-research` where TensorFlow cannot be imported."""
    code = (
        f"{_NO_TENSORFLOW}sys.argv = ['tl-research', *sys.argv[1:]]; "
        "from tl_research.__main__ import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": _ROOT},
    )


def test_wheel_holds_command_and_presets(tmp_path):
    """The links to the flag files become files, each with the bytes of the one in the clone."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(
        _ROOT,
        clone,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "*.egg-info", "build"),
    )
    quiet = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    where = [f"--wheel-dir={tmp_path}", "--no-build-isolation", clone]
    subprocess.run([*pip, "wheel", *quiet, *where], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *quiet, f"--target={site}", wheel], check=True)
    installed = site / "tl_research" / "presets"
    assert sorted(os.listdir(installed)) == [f"{name}.flags" for name in flagfile.presets()]
    for path in installed.iterdir():
        folder = "" if path.name in ("flowers.flags", "cats_vs_dogs.flags") else "recipes"
        with open(os.path.join(_ROOT, folder, path.name), "rb") as file:
            assert path.read_bytes() == file.read() and not path.is_symlink()
    command = [sys.executable, "-P", site / "bin" / "tl-research"]
    answers = [
        subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
        )
        for arguments in (["--version"], ["train", "--preset=gradual", "--epochs=1,2"])
    ]
    assert answers[0].stdout == f"tl_research {__version__}\n"
    assert answers[1].stderr == (
        "error: --epochs=1,2 has 2 entries; expected 1 or 3, one for each of "
        "--phases=head,top,finetune; add or remove entries\n"
    )


def test_presets_are_links_to_the_files_that_are_kept():
    for path in glob.glob(os.path.join(_ROOT, "tl_research", "presets", "*")):
        assert os.path.islink(path) and os.path.isfile(path)
        assert re.fullmatch(r"\.\./\.\./(recipes/)?\w+\.flags", os.readlink(path))
    for name in ("flowers.flags", "cats_vs_dogs.flags"):
        assert not os.path.islink(os.path.join(_ROOT, name))


# A line for the exit code and the arguments, then what is said, wrapped.
_WRONG = """
1 trian
    'trian' is not a command; expected train, predict, evaluate, export, lr-find; did you mean
    train?
1 ./photos
    './photos' is not a command; expected train, predict, evaluate, export, lr-find; did you mean
    `tl-research train ./photos`?
2 train flower
    'flower' does not exist; expected a folder with one folder of photographs per class; did you
    mean --preset=flowers?
2 train setup.cfg
    'setup.cfg' is a file; expected a folder with one folder of photographs per class; correct it
1 train my photos
    2 arguments are not flags ('my', 'photos'); expected one, the folder of the images; put quotes
    around a name with spaces
1 train docs --data-dir=docs
    'docs' is given with --data_dir; expected one of them to name the images; leave one out
1 train epochs=3
    'epochs=3' is not a flag; expected --name=value; did you mean --epochs=3?
1 train docs --lr=1
    --lr is not a flag of this program; did you mean learning_rate?
1 predict --model=x
    --model is not a flag of this program; did you mean run?
1 lr-find docs --backbone-size=1
    --backbone_size is not a flag of this program; did you mean backbone?
1 train --preset=flower
    --preset=flower; expected one of at_once, cats_vs_dogs, flowers, gradual, instant, minute,
    plain; did you mean flowers?; a file of yours is given with --flagfile
1 train docs --unfreeze=0%,30
    --unfreeze=0%,30; expected for each phase N% with N from 0 to 100, all, or the name of a layer
    or block; for example --unfreeze=0%,30%
1 train docs --name=a/b
    --name=a/b; expected letters, digits, spaces and . _ + -, and not latest; for example
    --name=roses
1 evaluate --run=latest
    --run=latest, and runs/latest cannot be read (No such file or directory); expected the
    directory in which a run was made; go there, or give the run's directory
"""


@pytest.mark.parametrize("case", re.split(r"\n(?! )", _WRONG.strip()))
def test_wrong_start_is_answered_without_tensorflow(case):
    command, *said = case.split("\n    ")
    code, *arguments = command.split()
    done = _command(*arguments, cwd=_ROOT)
    assert (done.returncode, done.stdout) == (int(code), "")
    assert done.stderr == f"error: {' '.join(said)}\n"


def test_without_arguments_it_says_how_to_begin_and_does_nothing(tmp_path):
    done = _command("train", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "") and os.listdir(tmp_path) == []
    assert done.stderr == (
        "error: no photographs are given; expected a folder with one folder per class:\n"
        "  tl-research train PHOTOS\n"
        "  tl-research train --preset=flowers  # downloads 3,670 flower photographs, 229 MB\n"
        "  tl-research train --help            # the flags that matter most, then the others\n"
    )
    done = _command()
    assert (done.returncode, done.stdout) == (1, "")
    assert "    tl-research train PHOTOS " in done.stderr and done.stderr.count("\n") == 9


def test_version():
    for arguments in (["--version"], ["train", "--version"], ["predict", "--version"]):
        done = _command(*arguments)
        assert (done.returncode, done.stdout) == (0, f"tl_research {__version__}\n")


def test_help_shows_ten_flags_and_then_all_others_in_groups():
    done = _command("train", "-h")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if re.fullmatch(r"\w.*:", line)] == [
        "The flags that matter most:",
        "Data:",
        "Model:",
        "Fine-tuning:",
        "Optimization:",
        "Loop:",
        "Precision:",
        "Devices:",
        "Output:",
        "Every program:",
    ]
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)
    assert shown[:10] == list(Config.FIRST)
    fields = set(Config.__dataclass_fields__)
    assert sorted(shown) == sorted(fields | {"debug", "preset", "flagfile", "version"})
    assert "  --unfreeze=0%,30%             trainable part of the backbone in each phase:" in lines
    for flag in ("--help", "--helpshort", "--helpfull"):
        assert _command("lr-find", "photos", flag).stdout.endswith(done.stdout[-900:])


def test_help_of_a_tool_tells_it_and_its_flags():
    done = _command("predict", "--help")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.startswith("Predicts the classes")
    assert "  --run=PATH " in done.stdout and "\nFlags:\n" in done.stdout


def test_list_of_backbones_says_what_each_is_like():
    done = _command("train", "--backbone=list")
    assert done.returncode == 0 and done.stderr == ""
    assert _command("lr-find", "photos", "--backbone", "list").stdout == done.stdout
    head, *rows = done.stdout.splitlines()
    assert head == "backbone            parameters    weights  ImageNet  without a network"
    assert {row.split()[0] for row in rows} == set(backbone_table.BACKBONES)
    assert len(rows) == len(backbone_table.BACKBONES)
    for row in (
        "EfficientNetLite0       4.7 M      19 MB    75.1 %  yes",
        "EfficientNetV2B0        7.2 M      29 MB    78.7 %  once downloaded",
        "VGG16                 138.4 M     528 MB    71.3 %  once downloaded",
    ):
        assert row in rows
    assert all(re.fullmatch(r"\w+ +[\d.]+ M +\d+ MB +\d\d\.\d %  .+", row) for row in rows)


# What the arguments mean.


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """A function from arguments, given in a folder with photographs, to a Config."""
    species = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    for name in ("photos/ant", "photos/bee", *(f"flower_photos/{name}" for name in species)):
        os.makedirs(tmp_path / name)
    (tmp_path / "flower_photos" / "LICENSE.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    cli.define_flags(Config)

    def parse(*arguments):
        flags.FLAGS.unparse_flags()
        cli.parse(["train.py", *arguments], takes="folder")
        return cli.config_from_flags(Config)

    yield parse
    flags.FLAGS.remove_flag_values([*Config.__dataclass_fields__, "debug"])


@pytest.mark.parametrize(
    "arguments, dataset",
    [
        (["photos"], "directory"),
        (["--data_dir=photos"], "directory"),
        (["--data-dir=photos"], "directory"),
        (["--data_dir", "photos"], "directory"),
        (["--preset=flowers", "photos"], "directory"),
        (["photos", "--preset", "flowers"], "directory"),
        (["photos", "--flagfile=flowers.flags"], "directory"),
        (["--flagfile=flowers.flags", "--data_dir=photos"], "tf_flowers"),
        (["--flagfile=cats_vs_dogs", "--data_dir=photos"], "cats_vs_dogs"),
        (["--dataset=tf_flowers", "--data_dir=photos"], "tf_flowers"),
    ],
)
def test_folder_is_one_of_classes_unless_a_data_set_is_named(parsed, tmp_path, arguments, dataset):
    config = parsed(*arguments)
    assert (config.dataset, config.data_dir) == (dataset, str(tmp_path / "photos"))
    assert f"--dataset={dataset}\n" in config.to_flags()


def test_copy_of_the_flower_photographs_is_that_data_set(parsed):
    assert parsed("--data_dir=flower_photos").dataset == "tf_flowers"
    assert parsed("flower_photos").dataset == "directory"  # as it was said
    assert parsed("--seed=1").dataset == Config().dataset == "tf_flowers"
    os.mkdir("flower_photos/weeds")
    assert parsed("--data_dir=flower_photos").dataset == "directory"
    assert Config(data_dir="nowhere").dataset == "directory"


def test_later_flags_win_over_a_preset_and_presets_over_each_other(parsed):
    config = parsed("photos", "--preset=flowers", "--preset=gradual", "--batch-size=16")
    assert config.phases == ("head", "top", "finetune") and config.batch_size == 16
    assert config.image_size == 288 and config.epochs == (3, 6, 6)


def test_file_here_comes_before_the_preset_of_its_name(parsed, tmp_path):
    (tmp_path / "flowers.flags").write_text("--preset=instant\n--seed=7\n")
    config = parsed("--flagfile=flowers.flags", "photos")
    assert (config.seed, config.head_init, config.epochs) == (7, "lda", (0,))
    assert parsed("--flagfile=flowers", "photos").seed == 0
    assert parsed("--preset=flowers.flags", "photos").lr_schedule == ("constant", "cosine")
    (tmp_path / "flowers.flags").write_text("--preset=nothing\n")
    with pytest.raises(SystemExit):
        parsed("--flagfile=flowers.flags")


def test_argument_behind_two_dashes_or_that_is_one_dash_is_no_flag():
    assert flagfile.expand(["-", "--batch-size=3", "--", "--batch-size=3"], set()) == (
        ["-", "--batch_size=3", "--", "--batch-size=3"],
        {},
    )


@pytest.mark.parametrize(
    "words, name",
    [
        ("lr", "learning_rate"),
        ("model arch", "backbone"),
        ("epoch", "epochs"),
        ("size imgsz", "image_size"),
        ("data path", "data_dir"),
        ("val", "validation_dir"),
        ("out output", "workdir"),
        ("batch", "batch_size"),
        ("freeze", "unfreeze"),
        ("gpus", "distribute"),
        ("epocs", "epochs"),
    ],
)
def test_other_words_for_a_flag_are_understood(words, name):
    names = set(Config.__dataclass_fields__)
    for word in words.split():
        assert flagfile.nearest(word, names) == f"; did you mean {name}?"
    assert flagfile.nearest("model", {"run", "csv"}) == "; did you mean run?"
    assert flagfile.nearest("zzz", names) == ""


def test_values_of_an_error_in_a_preset_name_its_line(parsed, capsys):
    with pytest.raises(Exception, match=r"presets/gradual\.flags:\d: --epochs=3,6,6 has 3 entries"):
        parsed("photos", "--preset=gradual", "--phases=head,finetune")


def test_latest_run_is_named_to_every_tool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").write_text("roses-VGG16\n")
    assert ToolConfig(run="latest").run == "runs/roses-VGG16"

    @dataclasses.dataclass(frozen=True)
    class Several(ToolConfig):
        run: tuple[str, ...] = setting((), "several", repeated=True)

    assert Several(run=("latest", "other")).run == ("runs/roses-VGG16", "other")
    (tmp_path / "runs" / "latest").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="--run=latest, and runs/latest cannot be read"):
        ToolConfig(run="latest")


# A run.


def test_run_of_a_folder_of_sides_is_named_and_written_down_as_what_ran(
    run_train, write_images, tmp_path
):
    for number, side in enumerate(("train", "val", "test")):
        write_images(tmp_path / "photos" / side, ("ant", "bee"), 6, 32 + number)
    (tmp_path / "photos" / "about.txt").write_text("taken in June")
    flags = ["--backbone=MobileNetV2", "--image-size=32", "--epochs=0", "--head_init=lda"]
    more = ["--if_offline=embedded", "--data_audit=off", "--batch_size=4"]
    ((code, stdout, stderr),) = run_train([tmp_path / "photos", *flags, *more], home=tmp_path)
    assert code == 0, stderr
    names = {"data_dir": "train", "validation_dir": "val", "test_dir": "test"}
    given = [f"--{flag}={tmp_path}/photos/{side}" for flag, side in names.items()]
    assert f"{tmp_path}/photos is already split; using {' '.join(given)}\n" in stdout

    run = re.search(r"^run directory: (.*)$", stdout, re.MULTILINE)[1]
    place, name = os.path.split(run)
    assert re.fullmatch(r"\d{8}-\d{6}-photos-EfficientNetLite0", name)
    assert sorted(os.listdir(place)) == [name, "latest"]
    with open(os.path.join(place, "latest"), encoding="utf-8") as file:
        assert file.read() == f"{name}\n"

    with open(os.path.join(run, "flags.txt"), encoding="utf-8") as file:
        text = file.read()
    lines = ["--dataset=directory", "--backbone=MobileNetV2", *given]
    assert all(f"\n{line}\n" in text for line in lines)
    replayed = Config.from_flags(text)
    assert sides.resolved(replayed) == replayed
    results = json.loads(stdout.splitlines()[-1].removeprefix("RESULT "))
    assert [results["test"]["n"], results["classes"]] == [12, ["ant", "bee"]]
    assert results["substitutions"][0]["used"] == "EfficientNetLite0"


def test_gpu_that_is_there_and_not_seen_is_told_of(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    there = [str(tmp_path / "none"), str(tmp_path)]
    environment.warn_of_hidden_gpu(["GPU:0"], there)
    environment.warn_of_hidden_gpu([], there[:1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    environment.warn_of_hidden_gpu([], there)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    environment.warn_of_hidden_gpu([], there)
    assert capsys.readouterr().err == (
        "warning: this machine has an NVIDIA GPU that TensorFlow does not see, so the CPU "
        f"is used; expected CUDA's libraries; install them: {sys.executable} -m pip install "
        "'tensorflow[and-cuda]'\n"
    )
