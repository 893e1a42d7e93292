"""Every setting is checked where it is declared, for Python callers and flags alike."""

import dataclasses
import pathlib
import pwd
import subprocess
import sys

import pytest

from tl_research.config import Config
from tl_research.data import catalog
from tl_research.errors import UserError


def _parse(text):
    """Returns the Config that flagfile lines describe, as train.py would."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    values = {}
    for line in text.splitlines():
        name, _, value = line.removeprefix("--").partition("=")
        if fields[name].metadata["repeated"]:
            values[name] = (*values.get(name, ()), value)
        elif fields[name].type is bool:
            values[name] = {"true": True, "false": False}[value]
        else:
            values[name] = value
    return Config(**values)


def test_imports_neither_tensorflow_nor_absl():
    code = (
        "import sys, tl_research.config; print([name for name in ('tensorflow', 'absl', 'keras', "
        "'numpy') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_address_is_no_place_of_this_machine_in_any_setting():
    """A path of that name would be a folder `gs:` here, filled for hours."""
    from tl_research import evaluate, export, predict

    checked = 0
    for kind in (Config, predict.PredictConfig, export.ExportConfig, evaluate.EvaluateConfig):
        given = {} if kind is Config else {"run": "run"}
        for field in dataclasses.fields(kind):
            if not field.metadata["path"]:
                continue
            for value in ("gs://bucket/run", "S3://b", "file:///run", pathlib.Path("dbfs://a/b")):
                with pytest.raises(UserError, match="no address") as error:
                    kind(**{**given, field.name: value})
                assert error.value.exit_code == 1 and error.value.flag == field.name
                checked += 1
    assert checked > 4 * 14
    assert Config(workdir="runs/12:30/a").workdir == "runs/12:30/a"
    assert Config(download_base_url="https://mirror").download_base_url == "https://mirror"


@pytest.mark.parametrize(
    "name, value, received",
    [
        ("dataset", "tf_flower", "did you mean tf_flowers"),
        ("optimizer", "adm", "did you mean adam"),
        ("lr_schedule", "constant,cosin", "did you mean cosine"),
        ("image_size", 15, "at least 16"),
        ("image_size", "224px", "expected a whole number"),
        ("image_size", 32.5, "expected a whole number"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", True, "expected a whole number"),
        ("dropout", float("nan"), "expected a finite number"),
        ("dropout", 0.96, "at least 0 and at most 0.95"),
        ("learning_rate", "1e-3,0", "above 0; use --unfreeze to freeze"),
        ("data_dir", "/my #1 photos", "without invisible characters, quotes around it and ' #'"),
        ("class_share", "'ant=0.5'", "quotes around it"),
        ("data_dir", "/caf\udce9", "without invisible characters"),
        ("learning_rate", "inf", "expected a finite number"),
        ("layer_decay", 0, "above 0 and at most 1"),
        ("nesterov", "yes", "expected true or false"),
        ("data_dir", "$HOME/photos", "not expanded here"),
        ("data_dir", " ", "expected a line of text"),
        ("workdir", "a\0b", "expected a line of text"),
        ("weights", None, "has no value"),
        ("epochs", (), "is empty"),
        ("epochs", "1e3", "expected a whole number"),
        ("seed", -1, "at least 0"),
        ("split", "0.8,0.1", "three fractions"),
        ("split", "0.8,0.1,0.2", "sum to 1"),
        ("split", "0.9,0.1,0", "above 0"),
        ("epochs", "1,2,3", "--epochs=1,2,3 has 3 entries; expected 1 or 2"),
        ("warmup", "0.1,0.2,0.3", "has 3 entries"),
        ("warmup", 1, "at most 0.99"),
        ("phases", "head,head", "repeats a name"),
        (
            "phases",
            "head,fine/tune",
            "--phases=head,fine/tune; expected names of letters, digits, _ and -",
        ),
        ("augment", "flop", "did you mean flip"),
        ("augment", "flip,flip", "at most once"),
        ("augment", "none,flip", "at most once, or none"),
        ("augment", "rotation", "the others with a factor"),
        ("augment", "flip=0.5", "flip without"),
        ("augment", "rotation=nan", "finite"),
        ("augment", "rotation=1.5", "--augment=rotation=1.5; expected a number in (0, 1]"),
        ("weight_decay", 0.1, "use --optimizer=adamw"),
        ("nesterov", True, "expected --optimizer=sgd"),
        ("dataset", "directory", "add --data_dir"),
        ("validation_dir", "x", "add --data_dir"),
        ("test_dir", "x", "add --data_dir"),
    ],
)
def test_error_names_the_flag_and_the_fix(name, value, received):
    with pytest.raises(UserError) as error:
        Config(**{name: value})
    assert f"--{name}" in str(error.value) and received in str(error.value)
    assert "\n" not in str(error.value) and error.value.exit_code == 1


def test_one_entry_serves_all_phases():
    plan = Config(
        phases="a,b,c",
        epochs=(1, 2, 3),
        unfreeze="0%",
        learning_rate=0.5,
        patience="4",
        warmup=(0, 0.5, 0.6),
        lr_schedule="constant,constant,cosine",
    ).phase_plan
    assert [dataclasses.astuple(phase) for phase in plan] == [
        ("a", 1, "0%", 0.5, 4, 0, "constant"),
        ("b", 2, "0%", 0.5, 4, 0.5, "constant"),
        ("c", 3, "0%", 0.5, 4, 0.6, "cosine"),
    ]


def test_default_plan_is_the_recipe():
    assert [dataclasses.astuple(phase) for phase in Config().phase_plan] == [
        ("head", 8, "0%", 1e-3, 0, 0, "constant"),
        ("finetune", 10, "30%", 3e-4, 3, 0.3, "cosine"),
    ]
    assert Config().label_smoothing == 0.1 and Config().augment_views == 4


def test_default_lists_fit_any_number_of_phases():
    head, finetune = (dataclasses.astuple(phase)[1:] for phase in Config().phase_plan)
    for phases, rows in {
        "head": [head],
        "all": [finetune],
        "head,top,finetune": [head, finetune, finetune],
        "warm,tune": [head, finetune],
    }.items():
        plan = Config(phases=phases).phase_plan
        assert [dataclasses.astuple(phase)[1:] for phase in plan] == rows, phases
    (only,) = Config(phases="head", epochs=3, warmup=0.5).phase_plan
    assert (only.epochs, only.warmup, only.learning_rate) == (3, 0.5, 1e-3)
    with pytest.raises(UserError, match="--epochs=8,9 has 2 entries; expected 1 or 3"):
        Config(phases="a,b,c", epochs=(8, 9))


def test_augmentation_factors():
    assert Config().augmentation == {"flip": 1.0, "rotation": 0.1, "zoom": 0.1}
    assert Config(augment="none").augmentation == Config(augment=()).augmentation == {}


def test_only_an_extension_may_bring_other_operations():
    config = Config(augment="jitter=0.4,flip,cutmix=2", extension="mine.py")
    assert config.augment_factors == {"jitter": 0.4, "flip": 1.0, "cutmix": 2.0}
    assert config.augmentation == {"flip": 1.0}
    recorded = Config.from_flags("# extension mine.py of SHA-256 ab\n" + config.to_flags())
    assert recorded.augment_factors == config.augment_factors and recorded.extension != "mine.py"
    for wrong in ("jitter", "jitter=0", "jitter=nan", "jitter=1,jitter=1"):
        with pytest.raises(UserError, match="--augment"):
            Config(augment=wrong, extension="mine.py")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"augment": ()},
        {"lr_multiplier": ("block6=0.1", "a,b=c=2"), "learning_rate": (1 / 3, 1e-300)},
        {
            "dataset": "directory",
            "data_dir": "/a b/c",
            "nesterov": True,
            "optimizer": "sgd",
            "augment": "none",
        },
    ],
)
def test_flags_text_gives_the_same_config_back(settings):
    config = Config(**settings)
    assert _parse(config.to_flags()) == config


def test_flags_text_leaves_out_the_runs_own_place():
    text = Config(workdir="/tmp/x", resume="never").to_flags()
    assert (
        "workdir" not in text and "resume" not in text and text.startswith("--dataset=tf_flowers\n")
    )


def test_paths_are_expanded_and_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    assert Config(data_dir="~/photos").data_dir == "/home/somebody/photos"
    assert Config(data_dir="photos").data_dir == str(tmp_path / "photos")
    assert (
        Config(weights="w.h5").weights == str(tmp_path / "w.h5")
        and Config(weights="none").weights == "none"
    )


def test_home_that_is_not_known_is_no_folder_here(monkeypatch):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for path in ("~/photos", "~nobody-of-that-name/photos"):
        with pytest.raises(UserError, match="no home directory is known for ~"):
            Config(data_dir=path)
    config = Config()  # a run may do without it
    assert config.download_dir == "~/.cache/tl_research"
    with pytest.raises(UserError, match="set HOME or give --download_dir"):
        catalog.find_images(config)


def test_slash_at_the_end_of_a_path_is_dropped():
    assert Config(workdir="runs/mine/").workdir == "runs/mine"
    assert Config(workdir="/").workdir == "/"


def test_dollar_may_be_part_of_a_name_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "a$b").mkdir()
    monkeypatch.chdir(tmp_path / "a$b")
    again = Config(data_dir=Config(data_dir="photos").data_dir)  # as flags.txt has it
    assert again.data_dir == f"{tmp_path}/a$b/photos"
    with pytest.raises(UserError, match="not expanded here"):
        Config(data_dir=f"{tmp_path}/$c/photos")


def test_every_setting_says_what_it_is():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"], field.name


def test_flags_that_a_run_wrote_give_its_config_again():
    config = Config(
        epochs=(1, 2),
        nesterov=True,
        optimizer="sgd",
        lr_multiplier=("a=1", "b=2"),
        dropout=0.25,
        augment=("none",),
    )
    assert Config.from_flags(config.to_flags()) == config and Config.from_flags("") == Config()
    with pytest.raises(UserError, match="'--no_such=1' is no setting of this version"):
        Config.from_flags("--no_such=1\n")
    assert Config.from_flags("--warmup_steps=0,276\n--epochs=1,2\n") == Config(epochs=(1, 2))


@pytest.mark.parametrize("value", ["5", "5:5", "7:5", "a:b", "-1:5", "1:2:3"])
def test_profiled_steps_are_two_numbers_in_order(value):
    assert Config(profile_steps="20:30").profiled_steps == range(20, 30)
    assert Config().profiled_steps == range(0)
    with pytest.raises(UserError, match=f"--profile_steps={value}; expected A:B"):
        Config(profile_steps=value)


def test_path_that_no_flag_file_can_hold_is_refused_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos #1").mkdir()
    monkeypatch.chdir(tmp_path / "photos #1")
    with pytest.raises(
        UserError, match="--data_dir='.*photos #1/flowers'; expected text that a flag file can hold"
    ):
        Config(data_dir="flowers")
    # which no flags.txt has
    assert Config(workdir=str(tmp_path / "run #1")).workdir.endswith("run #1")
