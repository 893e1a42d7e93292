import batchnorm_trap as trap
import keras
import pytest
import tiny_network

from tl_research.models import backbones


def _with_batchnorm_at_the_top(build):
    """Returns `build` with BatchNorm after block 3, which is what the top 30 % of the layers are
    then.
    """

    def built(name, *args, **kwargs):
        if name != "Tiny":
            return build(name, *args, **kwargs)
        tiny = tiny_network.build_tiny(name, *args, **kwargs)
        x = keras.layers.BatchNormalization(name="block3_bn")(tiny.output)
        return keras.Model(tiny.input, keras.layers.ReLU(name="block3_last")(x), name="tiny")

    return built


@pytest.fixture(scope="module")
def result(with_tiny_backbone, write_images, tmp_path_factory):
    photographs = write_images(tmp_path_factory.mktemp("photographs"), count=10, size=16)
    settings = trap.Settings(
        dataset="directory",
        data_dir=photographs,
        backbone="Tiny@16",
        batch_size=8,
        epochs="1,1",
    )
    with with_tiny_backbone(), pytest.MonkeyPatch.context() as patch:
        build = _with_batchnorm_at_the_top(backbones.build_backbone)
        patch.setattr(backbones, "build_backbone", build)
        return trap.compare(settings)


def test_copied_line_moves_statistics_under_fit_and_nothing_of_ours_does(result):
    changed = {name: column["statistics_changed"] for name, column in result["columns"].items()}
    # mean and variance of the one of three layers that is open
    assert changed == {trap.TRAP: 2, trap.LOOP: 0, trap.HELD: 0}
    assert {column["statistics_total"] for column in result["columns"].values()} == {6}


def test_all_columns_begin_alike(result):
    starts = [column["start"] for column in result["columns"].values()]
    assert [start["val_accuracy"] for start in starts] == pytest.approx(
        [starts[1]["val_accuracy"]] * 3
    )
    assert [start["val_loss"] for start in starts] == pytest.approx(
        [starts[1]["val_loss"]] * 3, rel=1e-4
    )


def test_table_and_figure_show_every_epoch_of_every_column(result, tmp_path):
    lines = trap.table(result).splitlines()
    assert [line.split("|")[1].strip()[:2] for line in lines] == [
        "ep",
        "--",
        "1,",
        "2,",
        "mo",
    ]
    assert all(line.count("|") == 5 for line in lines)
    trap.save_figure(tmp_path / "figure.png", result)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
