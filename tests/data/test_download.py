"""The downloader against a local server, and the unpacker against hostile archives."""

import errno
import fcntl
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest

from tl_research import errors
from tl_research.data import download

GOOD = bytes(range(256)) * 1024  # 256 KiB
GOOD_SHA256 = hashlib.sha256(GOOD).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/file":
            self._redirect("file:///etc/passwd")
        elif self.path == "/away":
            self._redirect("http://192.0.2.1/good")
        elif self.path == "/hop":
            self._redirect("/good")
        elif self.path == "/silent":
            self.server.released.wait(30)
        else:
            self.send_response(200)
            self.send_header(
                "Content-Length", str(len(GOOD) * (8 if self.path == "/steady" else 1))
            )
            self.end_headers()
            if self.path == "/stall":
                self.wfile.write(GOOD[:100])
                self.server.released.wait(30)
            elif self.path == "/trickle":
                while not self.server.released.wait(0.05):
                    self.wfile.write(b"x")
            elif self.path == "/broken" or self.path == "/flaky" and len(self.server.requests) < 3:
                self.wfile.write(GOOD[:1000])
            elif self.path == "/steady":
                for _ in range(32):
                    time.sleep(0.05)
                    self.wfile.write(GOOD[: 1 << 16])
            else:
                if self.path == "/slow":
                    time.sleep(0.3)
                self.wfile.write(GOOD)

    def _redirect(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.requests, server.released = [], threading.Event()
    server.handle_error = lambda *_: None  # a client that hangs up is what we test
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def visible(directory):
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def test_good_file_arrives_and_is_fetched_once(server, tmp_path):
    cache = tmp_path / "new"
    for _ in range(2):
        path = download.fetch(
            server.url + "/good", str(cache), "a.bin", size=len(GOOD), sha256=GOOD_SHA256
        )
        assert open(path, "rb").read() == GOOD
    assert server.requests == ["/good"]
    assert visible(cache) == ["a.bin"]
    assert os.stat(cache).st_mode & 0o777 == 0o700


def test_file_that_changed_after_its_download_is_noticed(server, tmp_path):
    path = download.fetch(server.url + "/good", str(tmp_path), "a.bin", sha256=GOOD_SHA256)
    with open(path, "ab") as file:
        file.write(b"!")
    with pytest.raises(errors.DataError, match="262145 bytes"):
        download.fetch(server.url + "/good", str(tmp_path), "a.bin", sha256=GOOD_SHA256)


def test_file_placed_by_hand_is_verified_and_needs_no_server(tmp_path):
    (tmp_path / "a.bin").write_bytes(GOOD)
    path = download.fetch(
        "https://nowhere.invalid/a.bin", str(tmp_path), "a.bin", size=len(GOOD), sha256=GOOD_SHA256
    )
    assert path == str(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"another")
    with pytest.raises(errors.DataError, match=GOOD_SHA256):
        download.fetch("https://nowhere.invalid/b.bin", str(tmp_path), "b.bin", sha256=GOOD_SHA256)
    assert (tmp_path / "b.bin.bad").read_bytes() == b"another"


@pytest.mark.parametrize("expected", [dict(sha256="0" * 64), dict(size=7)])
def test_complete_file_of_wrong_hash_or_size_is_a_data_error_and_kept(server, tmp_path, expected):
    with pytest.raises(errors.DataError) as raised:
        download.fetch(server.url + "/good", str(tmp_path), "a.bin", **expected)
    assert not isinstance(raised.value, errors.UnreachableError)
    assert GOOD_SHA256 in str(raised.value) and str(*expected.values()) in str(raised.value)
    assert visible(tmp_path) == ["a.bin.bad"]


@pytest.mark.parametrize(
    "path, reason, num_requests", [("/missing", "HTTP 404", 1), ("/broken", "1000 of 262144", 3)]
)
def test_unreachable_names_url_and_place(server, tmp_path, path, reason, num_requests):
    with pytest.raises(errors.UnreachableError) as raised:
        download.fetch(server.url + path, str(tmp_path), "a.bin")
    assert reason in str(raised.value)
    assert server.url + path in str(raised.value) and str(tmp_path / "a.bin") in str(raised.value)
    assert len(server.requests) == num_requests
    assert visible(tmp_path) == []


@pytest.mark.parametrize("path", ["/stall", "/trickle", "/silent"])
def test_standing_still_is_unreachable_within_the_deadline(server, tmp_path, path):
    began = time.monotonic()
    with pytest.raises(errors.UnreachableError):
        download.fetch(server.url + path, str(tmp_path), "a.bin", deadline_seconds=1.2)
    assert time.monotonic() - began < 1.2 + 0.8
    assert visible(tmp_path) == []


def test_name_lookup_that_hangs_ends_within_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(
        download.urllib.request.OpenerDirector, "open", lambda *_, **__: time.sleep(5)
    )
    began = time.monotonic()
    with pytest.raises(errors.UnreachableError, match="no answer"):
        download.fetch("https://nowhere.invalid/a", str(tmp_path), "a.bin", deadline_seconds=0.6)
    assert time.monotonic() - began < 1.5


def test_refused_connection_is_unreachable(tmp_path):
    with pytest.raises(errors.UnreachableError, match="refused"):
        download.fetch("http://127.0.0.1:9/a", str(tmp_path), "a.bin")


def test_transfer_that_breaks_twice_succeeds(server, tmp_path):
    path = download.fetch(server.url + "/flaky", str(tmp_path), "a.bin", sha256=GOOD_SHA256)
    assert open(path, "rb").read() == GOOD
    assert len(server.requests) == 3


def test_steady_transfer_may_outlast_the_deadline(server, tmp_path):
    # it takes 32 * 0.05 s
    path = download.fetch(server.url + "/steady", str(tmp_path), "a.bin", deadline_seconds=1.2)
    assert os.path.getsize(path) == 8 * len(GOOD)


@pytest.mark.parametrize("path", ["/file", "/away"])
def test_redirect_to_another_scheme_or_plain_http_host_is_refused(server, tmp_path, path):
    with pytest.raises(errors.DataError, match="refused|will not") as raised:
        download.fetch(server.url + path, str(tmp_path), "a.bin")
    assert not isinstance(raised.value, errors.UnreachableError)
    assert visible(tmp_path) == []


def test_redirect_on_the_same_scheme_is_followed(server, tmp_path):
    download.fetch(server.url + "/hop", str(tmp_path), "a.bin", sha256=GOOD_SHA256)


@pytest.mark.parametrize("url", ["http://192.0.2.1/a", "ftp://127.0.0.1/a", "file:///etc/passwd"])
def test_plain_http_is_for_loopback_only(tmp_path, url):
    with pytest.raises(errors.UserError, match="expected https"):
        download.fetch(url, str(tmp_path), "a.bin")


def test_full_disk_is_a_storage_error_and_leaves_nothing(server, tmp_path, monkeypatch):
    def open_full(path, mode="r"):
        file = open(path, mode)
        if ".part-" not in path:
            return file

        class Full:
            fileno = file.fileno

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, _):
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(download, "open", open_full, raising=False)
    with pytest.raises(errors.StorageError, match="No space left"):
        download.fetch(server.url + "/good", str(tmp_path), "a.bin")
    assert visible(tmp_path) == []


def test_unwritable_cache_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageError, match="choose another --download_dir, for"):
        download.fetch("https://nowhere.invalid/a", str(tmp_path / "file" / "cache"), "a.bin")


def test_two_fetches_at_once_transfer_once(server, tmp_path):
    threads = [
        threading.Thread(
            target=download.fetch,
            args=(server.url + "/slow", str(tmp_path), "a.bin"),
            kwargs={"sha256": GOOD_SHA256},
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == ["/slow"]
    assert visible(tmp_path) == ["a.bin"]


def test_file_system_without_locks_will_do(server, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with download.locked(str(tmp_path / "a.bin")):
        assert ".a.bin.lock.held" in os.listdir(tmp_path)
    download.fetch(server.url + "/good", str(tmp_path), "a.bin")
    assert visible(tmp_path) == ["a.bin"] and ".a.bin.lock.held" not in os.listdir(tmp_path)


def test_leftovers_of_a_killed_run_are_removed(server, tmp_path):
    code = f"""
import os, signal
from tl_research.data import download
from tl_research.files import temporary_name
with download.locked({str(tmp_path / "a.bin")!r}):
    open(temporary_name({str(tmp_path / "a.bin")!r}, "part"), "w")
def die(folder):
    os.kill(os.getpid(), signal.SIGKILL)
download.make_folder({str(tmp_path / "a")!r}, die)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(visible(tmp_path)) == 2
    (tmp_path / "a.bin.part-1").write_bytes(b"mine")
    download.fetch(server.url + "/good", str(tmp_path), "a.bin")
    download.make_folder(str(tmp_path / "a"), lambda folder: None)
    assert visible(tmp_path) == ["a", "a.bin", "a.bin.part-1"]


# --- archives -------------------------------------------------------------------------------------


def make_tar(path, *members):
    """Writes a .tgz of (name, content or a dict of TarInfo attributes)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                for key, value in what.items():
                    setattr(info, key, value)
                tar.addfile(info)


def make_zip(path, *members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            file.writestr(name, content)


def listing(root):
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, files in os.walk(root)
        for name in folders + files
        if not name.startswith(".")
    }


@pytest.mark.parametrize("make, name", [(make_tar, "a.tgz"), (make_zip, "a.zip")])
def test_good_archive_unpacks_once(tmp_path, make, name):
    archive = tmp_path / name
    make(archive, ("flowers/daisy/1.jpg", b"one"), ("flowers/LICENSE", b""))
    for _ in range(2):
        out = download.unpack(str(archive), str(tmp_path / "out"), max_files=3, max_bytes=3)
    assert listing(out) == {"flowers", "flowers/daisy", "flowers/daisy/1.jpg", "flowers/LICENSE"}
    assert open(os.path.join(out, "flowers/daisy/1.jpg"), "rb").read() == b"one"
    archive.unlink()
    assert download.unpack(str(archive), out, max_files=1, max_bytes=1) == out


_LINK = zipfile.ZipInfo("link")
_LINK.external_attr = 0o120777 << 16
_BIG = b"0" * 5000

HOSTILE = {
    "dotdot.tgz": [("a", b""), ("../evil", b"x")],
    "inner_dotdot.tgz": [("a/../../evil", b"x")],
    "absolute.tgz": [("/tmp/evil_of_test_download", b"x")],
    "backslash.tgz": [("..\\evil", b"x")],
    "drive.tgz": [("C:/evil", b"x")],
    "symlink.tgz": [("link", dict(type=tarfile.SYMTYPE, linkname=".."))],
    "inner_symlink.tgz": [("a", b""), ("link", dict(type=tarfile.SYMTYPE, linkname="a"))],
    "through_symlink.tgz": [
        ("link", dict(type=tarfile.SYMTYPE, linkname="..")),
        ("link/evil", b"x"),
    ],
    "hardlink.tgz": [("a", b""), ("link", dict(type=tarfile.LNKTYPE, linkname="a"))],
    "device.tgz": [("null", dict(type=tarfile.CHRTYPE, devmajor=1, devminor=3))],
    "fifo.tgz": [("fifo", dict(type=tarfile.FIFOTYPE))],
    "many.tgz": [(f"{i}", b"") for i in range(20)],
    "large.tgz": [("large", _BIG)],
    "sum.tgz": [(f"{i}", b"0" * 400) for i in range(5)],
    "twice.tgz": [("a", b"1"), ("a", b"2")],
    "file_as_folder.tgz": [("a", b"1"), ("a/b", b"2")],
    "long_name.tgz": [("n" * 300, b"")],
    "dotdot.zip": [("a", b""), ("../evil", b"x")],
    "absolute.zip": [("/tmp/evil_of_test_download", b"x")],
    "symlink.zip": [(_LINK, b"..")],
    "many.zip": [(f"{i}", b"") for i in range(20)],
    "large.zip": [("large", _BIG)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = inner / name
    (make_zip if name.endswith("zip") else make_tar)(archive, *HOSTILE[name])
    before = listing(tmp_path)
    with pytest.raises(errors.DataError):
        download.unpack(str(archive), str(inner / "out"), max_files=10, max_bytes=1000)
    assert listing(tmp_path) == before
    assert not os.path.exists("/tmp/evil_of_test_download")


@pytest.mark.parametrize("damage", ["cut.tgz", "crc.zip", "lie.zip", "text.tgz", "text.zip"])
def test_damaged_archive_is_refused_and_leaves_nothing(tmp_path, damage):
    archive = tmp_path / damage
    (make_zip if damage.endswith("zip") else make_tar)(archive, ("a", b"b"), ("c", os.urandom(900)))
    content = bytearray(archive.read_bytes())
    if damage == "cut.tgz":
        content = content[:-200]
    elif damage == "crc.zip":
        # the only byte of "a", behind its 30-byte header and name
        content[content.index(b"b", 30)] ^= 1
    elif damage == "lie.zip":  # the central directory says that "a" has two bytes
        content[content.index(b"PK\1\2") + 24] = 2
    else:
        content = b"<html>404</html>"
    archive.write_bytes(content)
    before = listing(tmp_path)
    with pytest.raises(errors.DataError, match="damaged"):
        download.unpack(str(archive), str(tmp_path / "out"), max_files=10, max_bytes=1000)
    assert listing(tmp_path) == before


def test_full_disk_while_unpacking_is_a_storage_error(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tgz", ("a", b"b"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.tarfile.TarFile, "extract", full)
    with pytest.raises(errors.StorageError, match="No space"):
        download.unpack(str(tmp_path / "a.tgz"), str(tmp_path / "out"), max_files=9, max_bytes=9)
    assert visible(tmp_path) == ["a.tgz"]
