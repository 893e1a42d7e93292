"""Event files: what was written is read back, and a resumed run's files hold each record once."""

import os

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import plugin_data_pb2

from tl_research.reporting import summaries


def _records(directory):
    """Returns [(file name, step, tag, value)] of all scalars in a directory, by step: names of one
    second have no order.
    """
    found = []
    for name in sorted(os.listdir(directory)):
        for record in tf.data.TFRecordDataset(os.path.join(directory, name)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [
                (name, event.step, value.tag, float(tf.make_ndarray(value.tensor)))
                for value in event.summary.value
                if value.metadata.plugin_data.plugin_name == "scalars"
            ]
    return sorted(found, key=lambda record: record[1])


def _write(directory, last_step, steps, offset=0.0):
    writer = summaries.Summaries(str(directory), last_step)
    for step in steps:
        writer.scalar("train", "loss", step + offset, step)
        writer.scalar("validation", "loss", 10 * step + offset, step)
    writer.close()


def test_sides_are_runs_with_the_same_tags(tmp_path):
    _write(tmp_path, -1, [3, 6])
    assert [record[1:] for record in _records(tmp_path / "train")] == [
        (3, "loss", 3.0),
        (6, "loss", 6.0),
    ]
    assert [record[1:] for record in _records(tmp_path / "validation")] == [
        (3, "loss", 30.0),
        (6, "loss", 60.0),
    ]


def test_records_are_on_the_disk_as_soon_as_they_are_written(tmp_path):
    writer = summaries.Summaries(str(tmp_path), -1)
    writer.scalar("train", "loss", 1.0, 1)
    assert len(_records(tmp_path / "train")) == 1
    writer.close()


def test_resumed_run_drops_the_records_that_it_writes_again(tmp_path):
    _write(tmp_path, -1, [1, 2, 3, 4])
    _write(tmp_path, 2, [3, 4, 5], offset=0.5)
    assert [record[1::2] for record in _records(tmp_path / "train")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.5),
        (4, 4.5),
        (5, 5.5),
    ]
    _write(tmp_path, 4, [5])
    assert [record[1::2] for record in _records(tmp_path / "train")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.5),
        (4, 4.5),
        (5, 5.0),
    ]


def test_run_that_begins_anew_drops_all(tmp_path):
    _write(tmp_path, -1, [0, 1, 2])
    _write(tmp_path, -1, [0])
    assert len(_records(tmp_path / "train")) == len(_records(tmp_path / "validation")) == 1


def test_half_a_record_at_the_end_is_dropped_and_other_files_stay(tmp_path):
    _write(tmp_path, -1, [1, 2])
    (name,) = os.listdir(tmp_path / "train")
    content = (tmp_path / "train" / name).read_bytes()
    (tmp_path / "train" / name).write_bytes(content[:-5])
    (tmp_path / "train" / "notes.txt").write_text("mine")
    (tmp_path / "train" / "events.out.tfevents.1.mine.v2").write_bytes(content)
    summaries.drop_records_after(str(tmp_path / "train"), 9)
    others = ["events.out.tfevents.1.mine.v2", "notes.txt"]
    assert sorted(os.listdir(tmp_path / "train")) == sorted([name, *others])
    assert (tmp_path / "train" / others[0]).read_bytes() == content
    for other in others:
        os.remove(tmp_path / "train" / other)
    assert [record[1] for record in _records(tmp_path / "train")] == [1]


def test_text_is_a_markdown_summary(tmp_path):
    writer = summaries.Summaries(str(tmp_path), -1)
    writer.text("train", "plan", "**first** line", 0)
    writer.close()
    (name,) = os.listdir(tmp_path / "train")
    values = [
        value
        for record in tf.data.TFRecordDataset(str(tmp_path / "train" / name))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    assert [value.tag for value in values] == ["plan"] and values[
        0
    ].metadata.plugin_data.plugin_name == "text"
    assert tf.make_ndarray(values[0].tensor).item() == b"**first** line"


def _values_of(directory):
    return [
        (event.step, value)
        for name in sorted(os.listdir(directory))
        for record in tf.data.TFRecordDataset(str(directory / name))
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
    ]


def test_record_that_an_interrupted_run_wrote_is_not_written_again(tmp_path):
    _write(tmp_path, -1, [1, 2])
    writer = summaries.Summaries(str(tmp_path), 2)
    assert (
        writer.has("train", "loss", 2)
        and not writer.has("train", "loss", 3)
        and not writer.has("train", "accuracy", 2)
    )
    writer.scalar("train", "loss", 9.0, 2)
    writer.scalar("train", "accuracy", 0.5, 2)
    writer.close()
    assert [record[1:] for record in _records(tmp_path / "train")] == [
        (1, "loss", 1.0),
        (2, "loss", 2.0),
        (2, "accuracy", 0.5),
    ]


def test_text_that_is_not_utf8_is_escaped(tmp_path):
    writer = summaries.Summaries(str(tmp_path), -1)
    writer.text("train", "classes", "caf\udce9", 0)
    writer.close()
    ((_, value),) = _values_of(tmp_path / "train")
    assert tf.make_ndarray(value.tensor).item() == b"caf\\xe9"


def test_picture_is_a_png(tmp_path):
    writer = summaries.Summaries(str(tmp_path), -1)
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    writer.image("train", "picture", picture, 4)
    writer.close()
    ((_, value),) = _values_of(tmp_path / "train")
    width, height, png = tf.make_ndarray(value.tensor)
    assert (width, height, value.metadata.plugin_data.plugin_name) == (b"3", b"2", "images")
    np.testing.assert_array_equal(tf.io.decode_png(png), picture)


def test_graph_is_written_once_and_without_large_constants(tmp_path):
    @tf.function
    def add(x):
        return x + tf.constant(np.arange(1000.0)) + tf.constant([1.0, 2.0], tf.float64)[0]

    graph = add.get_concrete_function(tf.TensorSpec([1000], tf.float64)).graph
    writer = summaries.Summaries(str(tmp_path), -1)
    for _ in range(2):
        writer.graph("step", graph, 0)
    writer.close()
    ((_, value),) = _values_of(tmp_path / "train")
    content = tf.make_ndarray(value.tensor).item()
    metadata = tf.compat.v1.RunMetadata.FromString(content)
    (function,) = metadata.function_graphs
    sizes = [
        len(node.attr["value"].tensor.tensor_content)
        for node in function.pre_optimization_graph.node
        if node.op == "Const"
    ]
    assert len(content) < 4000 and 0 in sizes and 16 in sizes


def test_runs_of_two_people_are_two_rows_of_hparams(tmp_path):
    names = set()
    for person in ("ann", "bob"):
        writer = summaries.Summaries(str(tmp_path / person / "runs" / "x"), -1)
        writer.hyperparameters({"seed": 0}, {"loss": "the loss"})
        writer.close()
        (file,) = (tmp_path / person / "runs" / "x" / "validation").iterdir()
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                data = plugin_data_pb2.HParamsPluginData.FromString(
                    value.metadata.plugin_data.content
                )
                names.add(data.session_start_info.group_name)
                for metric in data.experiment.metric_infos:
                    assert (metric.name.tag, metric.display_name) == ("loss", "the loss")
    names.discard("")
    assert len(names) == 2 and {name[:2] for name in names} == {"x "}
