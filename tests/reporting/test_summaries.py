"""Event files: what was written is read back, and a resumed run's files hold each record once."""

import os

import tensorflow as tf

from tl_research.reporting import summaries


def _records(directory):
    """Returns [(file name, step, tag, value)] of all scalars in a directory, by step: names of one second have no order."""
    found = []
    for name in sorted(os.listdir(directory)):
        for record in tf.data.TFRecordDataset(os.path.join(directory, name)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(name, event.step, value.tag, float(tf.make_ndarray(value.tensor)))
                      for value in event.summary.value if value.metadata.plugin_data.plugin_name == "scalars"]
    return sorted(found, key=lambda record: record[1])


def _write(directory, last_step, steps, offset=0.0):
    writer = summaries.Summaries(str(directory), last_step)
    for step in steps:
        writer.scalar("train", "loss", step + offset, step)
        writer.scalar("validation", "loss", 10 * step + offset, step)
    writer.close()


def test_sides_are_runs_with_the_same_tags(tmp_path):
    _write(tmp_path, None, [3, 6])
    assert [record[1:] for record in _records(tmp_path / "train")] == [(3, "loss", 3.0), (6, "loss", 6.0)]
    assert [record[1:] for record in _records(tmp_path / "validation")] == [(3, "loss", 30.0), (6, "loss", 60.0)]


def test_flush_makes_records_readable(tmp_path):
    writer = summaries.Summaries(str(tmp_path), None)
    writer.scalar("train", "loss", 1.0, 1)
    writer.flush()
    assert len(_records(tmp_path / "train")) == 1
    writer.close()


def test_resumed_run_drops_the_records_that_it_writes_again(tmp_path):
    _write(tmp_path, None, [1, 2, 3, 4])
    _write(tmp_path, 2, [3, 4, 5], offset=0.5)
    assert [record[1::2] for record in _records(tmp_path / "train")] == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]
    _write(tmp_path, 4, [5])
    assert [record[1::2] for record in _records(tmp_path / "train")] == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.0)]


def test_run_that_begins_anew_drops_all(tmp_path):
    _write(tmp_path, None, [0, 1, 2])
    _write(tmp_path, None, [0])
    assert len(_records(tmp_path / "train")) == len(_records(tmp_path / "validation")) == 1


def test_half_a_record_at_the_end_is_dropped_and_other_files_stay(tmp_path):
    _write(tmp_path, None, [1, 2])
    (name,) = os.listdir(tmp_path / "train")
    content = (tmp_path / "train" / name).read_bytes()
    (tmp_path / "train" / name).write_bytes(content[:-5])
    (tmp_path / "train" / "notes.txt").write_text("mine")
    (tmp_path / "train" / f"{name}.tmp-1").write_text("half")
    summaries.drop_records_after(str(tmp_path / "train"), 9)
    assert sorted(os.listdir(tmp_path / "train")) == sorted([name, "notes.txt"])
    os.remove(tmp_path / "train" / "notes.txt")
    assert [record[1] for record in _records(tmp_path / "train")] == [1]


def test_text_is_a_markdown_summary(tmp_path):
    writer = summaries.Summaries(str(tmp_path), None)
    writer.text("train", "plan", "**first** line", 0)
    writer.close()
    (name,) = os.listdir(tmp_path / "train")
    values = [value for record in tf.data.TFRecordDataset(str(tmp_path / "train" / name))
              for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value]
    assert [value.tag for value in values] == ["plan"] and values[0].metadata.plugin_data.plugin_name == "text"
    assert tf.make_ndarray(values[0].tensor).item() == b"**first** line"
