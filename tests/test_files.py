"""Files that take the place of others, and places that are no files."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from tl_research import files
from tl_research.errors import StorageError


def test_file_keeps_its_mode_and_a_link_stays_one(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link").symlink_to("real.csv")
    (tmp_path / "to a link").symlink_to("link")
    (tmp_path / "dangling").symlink_to("new.csv")
    files.write_atomically(str(tmp_path / "to a link"), "new")
    files.write_atomically(str(tmp_path / "dangling"), "made")
    assert (tmp_path / "to a link").is_symlink() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real.csv").stat().st_mode) == 0o600
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "new.csv").read_text() == "made"
    assert len(os.listdir(tmp_path)) == 5


def test_pipe_is_written_into(tmp_path):
    pipe, received = str(tmp_path / "pipe"), []
    os.mkfifo(pipe)

    def read():
        with open(pipe) as file:
            received.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    files.write_atomically(pipe, "rows")
    reader.join()
    assert received == ["rows"] and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        files.write_atomically(str(tmp_path / "folder"), "rows")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes device nodes")
def test_device_node_of_ones_own_is_written_into(tmp_path):
    for name, minor in (("null", 3), ("full", 7)):
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o600, os.makedev(1, minor))
            (tmp_path / name).open("wb").close()
        except PermissionError:
            pytest.skip("this root may not make or open device nodes")
    files.write_atomically(str(tmp_path / "null"), "rows")
    with pytest.raises(StorageError, match="No space left on device"):
        files.write_atomically(str(tmp_path / "full"), "rows")
    assert all(stat.S_ISCHR(os.stat(tmp_path / name).st_mode) for name in ("null", "full"))


def test_what_is_open_already_is_added_to(tmp_path):
    """`--csv=/dev/stdout >> all.csv` loses nothing."""
    (tmp_path / "all.csv").write_text("before\n")
    code = "from tl_research.files import write_atomically; write_atomically('/dev/stdout', 'rows')"
    with open(tmp_path / "all.csv", "a") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "all.csv").read_text() == "before\nrows"
    assert os.listdir(tmp_path) == ["all.csv"]


def test_file_that_is_mounted_there_is_written_in_place(tmp_path, monkeypatch):
    (tmp_path / "mounted").write_text("something long")

    def replace(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")  # as for a mount of one file

    monkeypatch.setattr(os, "replace", replace)
    files.write_atomically(str(tmp_path / "mounted"), "new")
    assert (tmp_path / "mounted").read_text() == "new" and os.listdir(tmp_path) == ["mounted"]


def test_longest_name_that_a_file_may_have(tmp_path):
    name = "é" * 125 + ".csv"  # 254 bytes
    files.write_atomically(str(tmp_path / name), "rows")
    assert os.listdir(tmp_path) == [name]


def test_failing_writer_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), files.replacing(str(tmp_path / "a")) as file:
        file.write("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


_DISK_FULL = """
import json, os, resource, sys
import h5py, keras, numpy as np, tensorflow as tf
from tl_research.files import storage_errors
place, said = sys.argv[1], {}

class Served(tf.Module):
    def __init__(self):
        self.kept = tf.Variable(np.random.rand(1 << 20))
        self.serve = tf.function(lambda: self.kept[0], input_signature=[])

def event_file():
    with tf.summary.create_file_writer(place).as_default():
        tf.summary.write("a", tf.constant(np.random.bytes(1 << 22)), step=0)

def hdf5():
    with h5py.File(f"{place}/a.h5", "w") as file:
        file["a"] = np.random.rand(1 << 20)

writers = {
    "SavedModel": lambda: tf.saved_model.save(Served(), f"{place}/saved_model"),
    "records": lambda: tf.io.TFRecordWriter(f"{place}/a").write(np.random.bytes(1 << 22)),
    "event file": event_file,
    "HDF5": hdf5,
    "file": lambda: tf.io.write_file(f"{place}/b", np.random.bytes(1 << 22)),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for name, write in writers.items():
    try:
        with storage_errors(place):
            write()
    except Exception as error:
        said[name] = [getattr(error, "exit_code", str(error)), str(error)]
print(json.dumps(said))
"""


def test_full_disk_is_one_for_writers_that_are_not_pythons_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _DISK_FULL, str(tmp_path)], capture_output=True, text=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(said, 9), said
    assert len(said) >= 4 and all("File too large" in text for _, text in said.values())


_LOCKED = """
import fcntl, sys
from tl_research import quiet
quiet.import_tensorflow()
import h5py
with h5py.File(sys.argv[1], "w") as file:
    file["a"] = [1.0]
with open(sys.argv[1]) as locked:
    fcntl.flock(locked, fcntl.LOCK_EX)
    with h5py.File(sys.argv[1], "r") as file:
        print(file["a"][0])
"""


def test_weights_are_read_where_hdf5_gets_no_lock(tmp_path):
    """h5py/h5py#1101: on NFS and Lustre it ends with ENOLCK, ENOSYS or errno 524."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("HDF5_")}
    done = subprocess.run(
        [sys.executable, "-c", _LOCKED, str(tmp_path / "a.h5")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "1.0\n", done.stderr


def test_lack_of_memory_is_none_of_storage():
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    assert files.storage_reason(error) is None and files.storage_reason(ValueError("x")) is None
    assert files.storage_reason(PermissionError(13, "Permission denied")) == "Permission denied"
