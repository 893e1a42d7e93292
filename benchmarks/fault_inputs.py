"""Bad inputs for `fault_injection.py`: damaged checkpoints, odd images, mutated flag files and
hostile artefacts.
"""

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import PIL.Image

from tl_research.config import Config

# Checkpoints.


def damage(path, other, draw):
    """Damages the checkpoint at `path` in one way and returns which.

    Args:
        path: Directory of the checkpoint.
        other: Directory of another whole checkpoint of the run.
        draw: `random.Random`.
    """
    name = draw.choice(sorted(os.listdir(path)))
    file = os.path.join(path, name)
    with open(file, "rb") as handle:
        content = bytearray(handle.read())
    kind = draw.choice(
        [
            "cut",
            "flipped",
            "zeroed",
            "emptied",
            "lengthened",
            "missing",
            "swapped",
            "mixed",
            "extra",
            "renamed",
        ]
    )
    if kind == "missing":
        os.remove(file)
    elif kind == "extra":
        with open(os.path.join(path, "arrays.bin.1"), "wb") as handle:
            handle.write(content)
    elif kind == "swapped":
        second = os.path.join(
            path, draw.choice([entry for entry in sorted(os.listdir(path)) if entry != name])
        )
        os.rename(file, file + "~")
        os.rename(second, file)
        os.rename(file + "~", second)
    elif kind == "mixed":  # a whole file, of another step
        with open(os.path.join(other, name), "rb") as handle:
            content = handle.read()
        with open(file, "wb") as handle:
            handle.write(content)
    elif kind == "renamed":  # a whole checkpoint under another step's name
        for entry in os.listdir(path):
            os.remove(os.path.join(path, entry))
            with (
                open(os.path.join(other, entry), "rb") as source,
                open(os.path.join(path, entry), "wb") as handle,
            ):
                handle.write(source.read())
    else:
        if kind == "cut":
            del content[draw.randrange(0, len(content), 64) if len(content) > 64 else 0 :]
        elif kind == "flipped":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif kind == "zeroed":
            start = draw.randrange(len(content))
            stop = min(len(content), start + draw.choice([1, 64, 4096]))
            if not any(content[start:stop]):
                start, stop = 0, len(content)
            content[start:stop] = bytes(stop - start)
        elif kind == "emptied":
            content.clear()
        else:
            content += bytes(draw.choice([1, 64]))
        with open(file, "wb") as handle:
            handle.write(content)
    return f"{kind} {name}"


# Images.


def _encoded(kind, image, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    """Returns a small PNG whose header says that it has so many pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def gif_claiming(width, height):
    """Returns a small GIF whose header says that it has so many pixels."""
    gif = bytearray(_encoded("GIF", PIL.Image.new("P", (8, 8))))
    gif[6:10] = struct.pack("<HH", width, height)
    return bytes(gif)


def gif_of_frames(width, height, count):
    """Returns a small GIF whose `count` frames decode to width x height pixels each."""
    gif = _encoded("GIF", PIL.Image.new("P", (width, height)))
    start = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    return gif[:start] + gif[start:-1] * count + b";"


def _flipped(content, draw):
    content = bytearray(content)
    for _ in range(draw.randint(1, 20)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def write_images(directory, draw, number):
    """Writes `number` images of each odd kind into a class folder.

    Returns {name: `bad`, `good`, `either` or `ignored`}.

    `either` are randomly damaged: some still decode.
    """
    outside = os.path.join(os.path.dirname(os.path.dirname(directory)), "outside.png")
    PIL.Image.new("RGB", (8, 8)).save(outside)
    expected = {}
    for i in range(number):
        seed = np.random.RandomState(draw.randrange(2**31))
        size = (draw.randint(20, 90), draw.randint(20, 90))
        image = PIL.Image.fromarray(seed.randint(0, 256, (*size, 3)).astype(np.uint8))
        deep = PIL.Image.fromarray(seed.randint(0, 65536, size).astype(np.uint16))
        frames = [
            PIL.Image.fromarray(seed.randint(0, 256, (*size, 3)).astype(np.uint8)) for _ in range(3)
        ]
        jpeg, png, gif, bmp, webp = (
            _encoded(kind, image) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")
        )
        rotated = PIL.Image.Exif()
        rotated[0x0112] = draw.choice([3, 6, 8])
        broken = bytearray(png)
        broken[len(png) // 2 + i] ^= 1
        bad = {
            "empty.jpg": b"",
            "random.jpg": seed.bytes(draw.randint(1, 900)),
            "page.jpg": b"\n" * i + b"<!DOCTYPE html><html></html>",
            "drawing.png": b'<svg xmlns="x">' + b" " * i + b"</svg>",
            "scan.jpg": _encoded("TIFF", image),
            "text.png": b"not an image\n" * (i + 1),
            "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(50 + i),
            "cut.jpg": jpeg[: draw.randint(30, len(jpeg) - 10)],
            "tail.jpg": jpeg[:-2],
            "cut.png": png[: draw.randint(60, len(png) - 20)],
            "checksum.png": bytes(broken),
            "cut.gif": gif[: draw.randint(800, len(gif) - 300)],
            "cut.bmp": bmp[: draw.randint(60, len(bmp) - 100)],
            "cut.webp": webp[: draw.randint(30, len(webp) // 2)],
            "header.jpg": jpeg[:20],
            "huge.png": png_claiming(20000 + i, draw.choice([20000, 60000])),
            "huge.gif": gif_claiming(12000 + i, 60000),
            "solid.gif": gif_of_frames(8000, 8000 + i, 1),
            "frames.gif": gif_of_frames(2000, 2000, 40 + i),
        }
        good = {
            "print.jpg": _encoded("JPEG", image.convert("CMYK")),
            "deep.png": _encoded("PNG", deep),
            "palette.png": _encoded("PNG", image.convert("P")),
            "bit.png": _encoded("PNG", image.convert("1")),
            "alpha.png": _encoded("PNG", image.convert("RGBA")),
            "grey.png": _encoded("PNG", image.convert("L")),
            "moving.gif": _encoded("GIF", frames[0], save_all=True, append_images=frames[1:]),
            "bitmap.jpg": bmp,
            "trailing.jpg": jpeg + seed.bytes(50),
            "dot.png": _encoded("PNG", image.resize((1, 1))),
            "line.png": _encoded("PNG", image.resize((1, 5000))),
            "rotated.jpg": _encoded("JPEG", image, exif=rotated),
            "new\nline\t\U0001f33b.png": png,
            b"-\xff\xfe.png": png + b"0",
            "x" * 240 + ".png": png + b"1",
        }
        either = {
            f"flipped.{kind}": _flipped(content, draw)
            for kind, content in (
                ("jpg", jpeg),
                ("png", png),
                ("gif", gif),
                ("bmp", bmp),
                ("webp", webp),
            )
        }
        ignored = {"._hidden.jpg": jpeg, ".directory.png": png}
        for kind, contents in (
            ("bad", bad),
            ("good", good),
            ("either", either),
            ("ignored", ignored),
        ):
            for name, content in contents.items():
                name = os.fsencode(name)
                name = b".%d%s" % (i, name) if kind == "ignored" else b"%02d%s" % (i, name)
                with open(os.path.join(os.fsencode(directory), name), "wb") as file:
                    file.write(content)
                expected[os.fsdecode(name)] = kind
        os.mkfifo(os.path.join(directory, f"{i:02d}pipe.jpg"))
        os.symlink("/nowhere.png", os.path.join(directory, f"{i:02d}dangling.png"))
        os.symlink(outside, os.path.join(directory, f"{i:02d}outside.png"))
        os.symlink(f"{i:02d}loop.png", os.path.join(directory, f"{i:02d}loop.png"))
        os.mkdir(os.path.join(directory, f"{i:02d}folder.jpg"))
        expected.update(
            {
                f"{i:02d}{name}": "bad"
                for name in ("pipe.jpg", "dangling.png", "outside.png", "loop.png")
            }
        )
        expected[f"{i:02d}folder.jpg"] = "ignored"
    return expected


# Flag files.

_ODD_VALUES = [
    "nan",
    "inf",
    "-0.0",
    "1e400",
    "1e-400",
    "0x10",
    "1_000",
    "",
    "maybe",
    "~",
    "$HOME",
    "a b",
    "8,,10",
    "8;10",
    "\u0663",
    "True",
    "-1",
]
_ODD_LINES = [
    "--",
    "---",
    "--undefok=epoch",
    "--run_with_profiling",
    "--profile_file=canary",
    "--flagfile=/etc/passwd",
    "--flagfile=odd.flags",
    "--pdb_post_mortem",
    "--help",
    "--logtostderr",
    "--log_dir=.",
    "--noseed",
    "--nodeterministic=true",
    "--nonesterov",
    "epochs=9",
    "--seed 3",
    "--seed=3 # three",
    "--dataset='directory'",
    '--workdir="x"',
    "  # indented",
    "// comment",
    "\u2014seed=3",
    "=",
    "--=3",
]


def mutated_flags(lines, draw):
    """Returns the bytes of a flag file, made from good lines by one to three mutations."""
    lines = [line for line in lines if line.strip()]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(lines))
        line = lines[at]
        name, _, value = line.partition("=")
        character = draw.choice(" \t\r\0\u00a0\u2014\ufeff\u200b#'\"=-,.xX0\U0001f33b")
        place = draw.randrange(len(line) + 1)
        lines[at : at + 1] = draw.choice(
            [
                lambda: [line[2:]],
                lambda: [line[1:]],
                lambda: ["-" + line],
                lambda: ["\u2014" + line[2:]],
                lambda: ["\ufeff" + line],
                lambda: [f"{name}={draw.choice(_ODD_VALUES)}"],
                lambda: [f"{name} {value}"],
                lambda: [f"{name} = {value}"],
                lambda: [name],
                lambda: [f'{name}="{value}"'],
                lambda: [f"{line}  # why"],
                lambda: ["  " + line + "  "],
                lambda: ["\t" + line],
                lambda: [line, line],
                lambda: [line, f"{name}={draw.choice(_ODD_VALUES)}"],
                lambda: [line[:place] + character + line[place:]],
                lambda: [line[:place] + line[place + 1 :]],
                lambda: [line[:place], line[place:]],
                lambda: [line.upper()],
                lambda: ["--no" + line[2:]],
                lambda: [draw.choice(_ODD_LINES)],
                lambda: [line, draw.choice(_ODD_LINES)],
                lambda: [line + draw.choice(lines)],
                lambda: ["# " + line],
                lambda: [line.replace("=", "==")],
            ]
        )()
    content = draw.choice(["\n", "\r\n"]).join(lines).encode() + draw.choice([b"\n", b""])
    if draw.random() < 0.1:
        content = _flipped(content, draw)
    return content


# Hostile artefacts. `touch` is code that would create the canary; SECRET stands in a file that
# nothing may read.

SECRET = "the-secret-of-another-file"


class _Payload:
    """Pickles to a call of `os.system`."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


def _tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for kind, name, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)


def _zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def _keras_file(path, layer):
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "registered_name": None,
        "config": {"name": "evil", "layers": [layer]},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", b"")


def artefacts(secret, touch):
    """Returns {name: (kind, function that makes it at a path)}.

    Kinds are `weights`, `torch`, `archive`, `checkpoint`, `flagfile`, `run` and `photos`.

    Args:
        secret: Path of a file that holds SECRET.
        touch: Shell command that creates the canary.
    """
    import h5py

    folder = os.path.dirname(secret)

    def weights(make):
        def write(path):
            with h5py.File(path, "w") as file:
                make(file)

        return write

    def external(file):
        file.create_dataset("block3_conv/kernel", (4,), "f4", external=[(secret, 0, 16)])

    def virtual(file):
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(secret, "x", (4,))
        file.create_virtual_dataset("block3_conv/kernel", layout)

    def deep(file):
        group = file
        for _ in range(500):
            group = group.create_group("g")

    def lambda_config(file):
        layer = {
            "class_name": "Lambda",
            "config": {"name": "l", "function": [touch, None, None], "function_type": "lambda"},
        }
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"layers": [layer]}}
        )
        file.create_dataset("block3_conv/kernel", (1,), "f4")

    def checkpoint(**changes):
        """Returns a maker of a checkpoint of step 9 whose manifest is valid but for `changes`."""

        def write(path):
            place = os.path.join(path, "step-00000009")
            os.makedirs(place)
            contents = {
                "arrays.bin": changes.get("arrays", bytes(64)),
                "state.json": changes.get("state", b'{"global_step": 9}'),
            }
            for name, content in contents.items():
                with open(os.path.join(place, name), "wb") as file:
                    file.write(content)
            sizes = {
                name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in contents.items()
            }
            manifest = (
                changes.get("manifest")
                or json.dumps(
                    {
                        "arrays": {
                            "variables/x": {
                                "dtype": "<f4",
                                "shape": [4],
                                "offset": 0,
                                **changes.get("entry", {}),
                            }
                        },
                        "files": {**sizes, **changes.get("files", {})},
                    }
                ).encode()
            )
            with open(os.path.join(place, "manifest.json"), "wb") as file:
                file.write(hashlib.sha256(manifest).hexdigest().encode() + b"\n" + manifest)

        return write

    def checkpoint_with(change):
        def write(path):
            checkpoint()(path)
            change(os.path.join(path, "step-00000009"))

        return write

    def replaced(name, make):
        def change(place):
            os.remove(os.path.join(place, name))
            make(os.path.join(place, name))

        return checkpoint_with(change)

    def sparse(path):
        with open(path, "wb") as file:
            file.truncate(1 << 42)

    def text(content):
        def write(path):
            with open(path, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())

        return write

    def run_with(change):
        def write(path):
            os.makedirs(path)
            text(Config(dataset="directory", data_dir="photos").to_flags())(
                os.path.join(path, "flags.txt")
            )
            change(path)

        return write

    def class_named(name):
        def write(path):
            for folder_name in (name, "other"):
                os.makedirs(os.path.join(os.fsencode(path), os.fsencode(folder_name)))
                for i in range(6):
                    pixels = (
                        np.random.RandomState(i + len(folder_name))
                        .randint(0, 256, (8, 8, 3))
                        .astype(np.uint8)
                    )
                    PIL.Image.fromarray(pixels).save(os.path.join(path, folder_name, f"{i}.png"))

        return write

    pickled = pickle.dumps(_Payload(touch))
    file, link = tarfile.REGTYPE, tarfile.SYMTYPE
    long_number = b'{"global_step": ' + b"9" * 100_000 + b"}"
    return {
        "pickle as weights": ("weights", text(pickled)),
        "npz with a pickle": (
            "weights",
            lambda path: _zip(path, ("arr_0.npy", b"\x93NUMPY\x01\0" + pickled, 0)),
        ),
        ".keras with Lambda": (
            "weights",
            lambda path: _keras_file(path, {"class_name": "Lambda", "config": {"function": touch}}),
        ),
        ".keras with TFSMLayer": (
            "weights",
            lambda path: _keras_file(
                path, {"class_name": "TFSMLayer", "config": {"filepath": folder}}
            ),
        ),
        ".keras with StringLookup": (
            "weights",
            lambda path: _keras_file(
                path, {"class_name": "StringLookup", "config": {"vocabulary": secret}}
            ),
        ),
        "h5 with Lambda in its config": ("weights", weights(lambda_config)),
        "h5 with a pickle in an attribute": (
            "weights",
            weights(lambda f: f.attrs.create("weight_names", np.void(pickled))),
        ),
        "h5 external link": (
            "weights",
            weights(lambda f: f.__setitem__("block3_conv", h5py.ExternalLink(secret, "/"))),
        ),
        "h5 soft link": (
            "weights",
            weights(lambda f: f.__setitem__("block3_conv", h5py.SoftLink("/elsewhere"))),
        ),
        "h5 external storage": ("weights", weights(external)),
        "h5 virtual data set": ("weights", weights(virtual)),
        "h5 shape bomb": (
            "weights",
            weights(lambda f: f.create_dataset("block3_conv/kernel", (1 << 42,), "f4")),
        ),
        "h5 compression bomb": (
            "weights",
            weights(
                lambda f: f.create_dataset(
                    "block3_conv/kernel", data=np.zeros(1 << 22, "f4"), compression="gzip"
                )
            ),
        ),
        "h5 of 500 nested groups": ("weights", weights(deep)),
        "PyTorch file that runs a command": ("torch", text(pickled * 5)),
        "PyTorch file that asks for builtins.eval": (
            "torch",
            text(b"cbuiltins\neval\n(S'1'\ntR." * 5),
        ),
        "tar with ../": ("archive", lambda path: _tar(path, (file, "../canary", b"x"))),
        "tar with an absolute name": (
            "archive",
            lambda path: _tar(path, (file, os.path.join(folder, "canary"), b"x")),
        ),
        "tar with a link outside": ("archive", lambda path: _tar(path, (link, "a", secret))),
        "tar that writes through a link": (
            "archive",
            lambda path: _tar(path, (link, "a", folder), (file, "a/canary", b"x")),
        ),
        "tar with a chain of links": (
            "archive",
            lambda path: _tar(
                path, (link, "a", "."), (link, "a/b", ".."), (file, "b/canary", b"x")
            ),
        ),
        "tar with a hard link": (
            "archive",
            lambda path: _tar(path, (tarfile.LNKTYPE, "a", secret)),
        ),
        "tar with a device": ("archive", lambda path: _tar(path, (tarfile.CHRTYPE, "null", ""))),
        "tar with a FIFO": ("archive", lambda path: _tar(path, (tarfile.FIFOTYPE, "pipe", ""))),
        "tar of 100,000 members": (
            "archive",
            lambda path: _tar(path, *((file, f"{i}", b"") for i in range(100_000))),
        ),
        "tar.gz of 1 GB zeros": (
            "archive",
            lambda path: _tar(path, (file, "zeros", bytes(1 << 30)), mode="w:gz"),
        ),
        "tar with one name twice": (
            "archive",
            lambda path: _tar(path, (file, "a", b"1"), (file, "a", b"2")),
        ),
        "zip with ../": ("archive.zip", lambda path: _zip(path, ("../canary", b"x", 0o100644))),
        "zip with an absolute name": (
            "archive.zip",
            lambda path: _zip(path, (os.path.join(folder, "canary"), b"x", 0o100644)),
        ),
        "zip with a backslash": (
            "archive.zip",
            lambda path: _zip(path, ("..\\canary", b"x", 0o100644)),
        ),
        "zip with a link": (
            "archive.zip",
            lambda path: _zip(path, ("a", secret.encode(), 0o120777)),
        ),
        "zip bomb": ("archive.zip", lambda path: _zip(path, ("zeros", bytes(1 << 28), 0o100644))),
        "checkpoint that names ../secret": (
            "checkpoint",
            checkpoint(files={"../secret": {"size": 1, "sha256": ""}}, entry={"offset": 64}),
        ),
        "checkpoint with objects": (
            "checkpoint",
            checkpoint(entry={"dtype": "|O"}, arrays=pickled),
        ),
        "checkpoint with a pickle as state": ("checkpoint", checkpoint(state=pickled)),
        "checkpoint of 100,000 nested lists": ("checkpoint", checkpoint(manifest=b"[" * 100_000)),
        "checkpoint with a number of 100,000 digits": ("checkpoint", checkpoint(state=long_number)),
        "checkpoint with a negative offset": ("checkpoint", checkpoint(entry={"offset": -64})),
        "checkpoint with a shape of 2^62": (
            "checkpoint",
            checkpoint(entry={"shape": [1 << 31, 1 << 31]}),
        ),
        "checkpoint that is a link to a secret": (
            "checkpoint",
            replaced("state.json", lambda path: os.symlink(secret, path)),
        ),
        "checkpoint with a FIFO": ("checkpoint", replaced("state.json", os.mkfifo)),
        "checkpoint of 4 TB": ("checkpoint", replaced("arrays.bin", sparse)),
        "flag file with a profile": (
            "flagfile",
            text(f"--run_with_profiling\n--profile_file={folder}/canary\n"),
        ),
        "flag file that names another": ("flagfile", text(f"--flagfile={secret}\n")),
        "flag file that is a FIFO": ("flagfile", os.mkfifo),
        "flag file that is a link to a device": (
            "flagfile",
            lambda path: os.symlink("/dev/zero", path),
        ),
        "run with its lock linked outside": (
            "run",
            run_with(lambda path: os.symlink(secret, os.path.join(path, ".lock"))),
        ),
        "run with its checkpoints linked outside": (
            "run",
            run_with(lambda path: os.symlink(folder, os.path.join(path, "checkpoints"))),
        ),
        "run with nested results": (
            "run",
            run_with(
                lambda path: (
                    text("{}")(os.path.join(path, "run.json")),
                    text("[" * 100_000)(os.path.join(path, "results.json")),
                )
            ),
        ),
        "class named ; rm -rf": ("photos", class_named(f"; {touch} #")),
        "class named $()": ("photos", class_named(f"$({touch.replace('/', '_')})")),
        "class with a newline and an escape": ("photos", class_named("a\n\x1b[2J=\u202e")),
    }
