"""Bad inputs for `fault_injection.py`: damaged checkpoints, odd images, mutated flag files and
hostile artefacts.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile

import fault_pictures
import numpy as np
import PIL.Image
from fault_pictures import encoded

from tl_research.config import Config


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _write(path, content):
    with open(path, "wb") as file:
        file.write(content)


# Checkpoints.


def damage(path, other, draw):
    """Damages the checkpoint at `path` in one way and returns which.

    Args:
        path: Directory of the checkpoint.
        other: Directory of another whole checkpoint of the run.
        draw: `random.Random`.
    """
    name = draw.choice(sorted(os.listdir(path)))
    kind = draw.choice([*_CHANGES, *_DAMAGES])
    if kind in _DAMAGES:
        _DAMAGES[kind](path, other, name, draw)
    else:
        content = bytearray(_read(os.path.join(path, name)))
        _CHANGES[kind](content, draw)
        _write(os.path.join(path, name), content)
    return f"{kind} {name}"


def _cut(content, draw):
    del content[draw.randrange(0, len(content), 64) if len(content) > 64 else 0 :]


def _flip(content, draw):
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _zero(content, draw):
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice([1, 64, 4096]))
    if not any(content[start:stop]):
        start, stop = 0, len(content)
    content[start:stop] = bytes(stop - start)


_CHANGES = {
    "cut": _cut,
    "flipped": _flip,
    "zeroed": _zero,
    "emptied": lambda content, draw: content.clear(),
    "lengthened": lambda content, draw: content.extend(bytes(draw.choice([1, 64]))),
}


def _remove(path, other, name, draw):
    os.remove(os.path.join(path, name))


def _swap(path, other, name, draw):
    second = draw.choice([entry for entry in sorted(os.listdir(path)) if entry != name])
    first, second, aside = (os.path.join(path, entry) for entry in (name, second, name + "~"))
    os.rename(first, aside)
    os.rename(second, first)
    os.rename(aside, second)


def _mix(path, other, name, draw):  # a whole file, of another step
    _write(os.path.join(path, name), _read(os.path.join(other, name)))


def _add(path, other, name, draw):
    _write(os.path.join(path, "arrays.bin.1"), _read(os.path.join(path, name)))


def _rename(path, other, name, draw):  # a whole checkpoint under another step's name
    for entry in os.listdir(path):
        _mix(path, other, entry, draw)


_DAMAGES = {"missing": _remove, "swapped": _swap, "mixed": _mix, "extra": _add, "renamed": _rename}


# Images.


def _flipped(content, draw):
    content = bytearray(content)
    for _ in range(draw.randint(1, 20)):
        _flip(content, draw)
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
        for kind, contents in _odd_images(i, draw).items():
            for name, content in contents.items():
                name = os.fsencode(name)
                name = b".%d%s" % (i, name) if kind == "ignored" else b"%02d%s" % (i, name)
                _write(os.path.join(os.fsencode(directory), name), content)
                expected[os.fsdecode(name)] = kind
        start = os.path.join(directory, f"{i:02d}")
        os.mkfifo(f"{start}pipe.jpg")
        os.symlink("/nowhere.png", f"{start}dangling.png")
        os.symlink(outside, f"{start}outside.png")
        os.symlink(f"{i:02d}loop.png", f"{start}loop.png")
        os.mkdir(f"{start}folder.jpg")
        for name in ("pipe.jpg", "dangling.png", "outside.png", "loop.png"):
            expected[f"{i:02d}{name}"] = "bad"
        expected[f"{i:02d}folder.jpg"] = "ignored"
    return expected


def _odd_images(i, draw):
    """Returns {kind: {end of a name: content}}, other ones for each `i`."""
    seed = np.random.RandomState(draw.randrange(2**31))
    size = (draw.randint(20, 90), draw.randint(20, 90))

    def noise(*shape, largest=255, kind=np.uint8):
        return PIL.Image.fromarray(seed.randint(0, largest + 1, shape).astype(kind))

    image, deep = noise(*size, 3), noise(*size, largest=65535, kind=np.uint16)
    frames = [noise(*size, 3) for _ in range(3)]
    jpeg, png, gif, bmp, webp = (
        encoded(kind, image) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")
    )
    flat = encoded("JPEG", PIL.Image.new("RGB", (64, 64)), progressive=True)
    progressive = fault_pictures.jpeg_claiming(flat, 6000, 4000)
    rotated = PIL.Image.Exif()
    rotated[0x0112] = draw.choice([3, 6, 8])
    broken = bytearray(png)
    broken[len(png) // 2 + i] ^= 1
    bad = {
        "empty.jpg": b"",
        "random.jpg": seed.bytes(draw.randint(1, 900)),
        "page.jpg": b"\n" * i + b"<!DOCTYPE html><html></html>",
        "drawing.png": b'<svg xmlns="x">' + b" " * i + b"</svg>",
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
        "huge.png": fault_pictures.png_claiming(20000 + i, draw.choice([20000, 60000])),
        "huge.gif": fault_pictures.gif_claiming(12000 + i, 60000),
        "scans.jpg": fault_pictures.jpeg_with_scans(progressive, 8000 + i),
        "large.jpg": fault_pictures.jpeg_claiming(progressive, 16000, 12000 + i),
        "tile.tif": fault_pictures.tiff_with_tile(40000, 40000 + i),
        "canvas.webp": fault_pictures.webp_claiming(60000, 60000 + i),
        "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\nsize %d\n" % i,
        "solid.gif": fault_pictures.gif_of_frames(8000, 8000 + i, 1),
    }
    good = {
        "print.jpg": encoded("JPEG", image.convert("CMYK")),
        "deep.png": encoded("PNG", deep),
        "palette.png": encoded("PNG", image.convert("P")),
        "bit.png": encoded("PNG", image.convert("1")),
        "alpha.png": encoded("PNG", image.convert("RGBA")),
        "grey.png": encoded("PNG", image.convert("L")),
        "moving.gif": encoded("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "frames.gif": fault_pictures.gif_of_frames(500, 500, 40 + i),
        "scan.jpg": encoded("TIFF", image),
        "bitmap.jpg": bmp,
        "table.bmp": encoded("BMP", image.quantize(64)),
        "grey.pgm": encoded("PPM", image.convert("L")),
        "texts.png": png[:33]
        + fault_pictures.png_chunk(b"tEXt", b"a\0" + b"x" * (3 << 20))
        + png[33:],
        "crossed.gif": fault_pictures.gif_of((65535, 1 + i), (1 + i, 65535)),
        "trailing.jpg": jpeg + seed.bytes(50),
        "dot.png": encoded("PNG", image.resize((1, 1))),
        "line.png": encoded("PNG", image.resize((1, 5000))),
        "rotated.jpg": encoded("JPEG", image, exif=rotated),
        "new\nline\t\U0001f33b.png": png,
        b"-\xff\xfe.png": png + b"0",
        "x" * 240 + ".png": png + b"1",
    }
    whole = {"jpg": jpeg, "png": png, "gif": gif, "bmp": bmp, "webp": webp}
    either = {f"flipped.{kind}": _flipped(content, draw) for kind, content in whole.items()}
    ignored = {"._hidden.jpg": jpeg, ".directory.png": png}
    return {"bad": bad, "good": good, "either": either, "ignored": ignored}


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


def artefacts(secret, touch):
    """Returns {name: (kind, function that makes it at a path)}.

    Kinds are `weights`, `torch`, `archive`, `archive.zip`, `checkpoint`, `flagfile`, `run` and
    `photos`.

    Args:
        secret: Path of a file that holds SECRET.
        touch: Shell command that creates the canary.
    """
    folder, pickled = os.path.dirname(secret), pickle.dumps(_Payload(touch))
    kinds = {
        "weights": {
            "pickle as weights": _text(pickled),
            "npz with a pickle": _zip(("arr_0.npy", b"\x93NUMPY\x01\0" + pickled, 0)),
            ".keras with Lambda": _keras_file("Lambda", function=touch),
            ".keras with TFSMLayer": _keras_file("TFSMLayer", filepath=folder),
            ".keras with StringLookup": _keras_file("StringLookup", vocabulary=secret),
            **_h5_files(secret, touch, pickled),
        },
        "torch": {
            "PyTorch file that runs a command": _text(pickled * 5),
            "PyTorch file that asks for builtins.eval": _text(b"cbuiltins\neval\n(S'1'\ntR." * 5),
        },
        "archive": _tars(secret, folder),
        "archive.zip": {
            "zip with ../": _zip(("../canary", b"x", 0o100644)),
            "zip with an absolute name": _zip((os.path.join(folder, "canary"), b"x", 0o100644)),
            "zip with a backslash": _zip(("..\\canary", b"x", 0o100644)),
            "zip with a link": _zip(("a", secret.encode(), 0o120777)),
            "zip bomb": lambda path: _zip(("zeros", bytes(1 << 28), 0o100644))(path),
        },
        "checkpoint": _checkpoints(secret, pickled),
        "flagfile": {
            "flag file with a profile": _text(
                f"--run_with_profiling\n--profile_file={folder}/canary\n"
            ),
            "flag file that names another": _text(f"--flagfile={secret}\n"),
            "flag file that is a FIFO": os.mkfifo,
            "flag file that is a link to a device": _link("/dev/zero"),
        },
        "run": {
            "run with its lock linked outside": _run({".lock": _link(secret)}),
            "run with its checkpoints linked outside": _run({"checkpoints": _link(folder)}),
            "run with a link in its export": _run(
                {
                    "run.json": _text("{}"),
                    "export": lambda path: (os.mkdir(path), os.symlink(secret, f"{path}/a")),
                }
            ),
            "run whose results are a pipe": _run(
                {"run.json": _text("{}"), "results.json": os.mkfifo}
            ),
            "run with results of no run": _run(
                {"run.json": _text("{}"), "results.json": _text('{"test": 5}')}
            ),
            "run with nested results": _run(
                {"run.json": _text("{}"), "results.json": _text("[" * 100_000)}
            ),
        },
        "photos": {
            "class named ; rm -rf": _class_named(f"; {touch} #"),
            "class named $()": _class_named(f"$({touch.replace('/', '_')})"),
            "class with a newline and an escape": _class_named("a\n\x1b[2J=\u202e"),
        },
    }
    return {name: (kind, make) for kind, of in kinds.items() for name, make in of.items()}


def _text(content):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda path: _write(path, content)


def _link(target):
    return lambda path: os.symlink(target, path)


def _zip(*members):
    def write(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content, mode in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)

    return write


def _keras_file(layer, **config):
    layers = [{"class_name": layer, "config": config}]
    model = {
        "module": "keras",
        "class_name": "Sequential",
        "registered_name": None,
        "config": {"name": "evil", "layers": layers},
    }
    return _zip(
        ("config.json", json.dumps(model), 0o600),
        ("metadata.json", json.dumps({"keras_version": "3.15.1"}), 0o600),
        ("model.weights.h5", b"", 0o600),
    )


def _h5_files(secret, touch, pickled):
    import h5py

    kernel = "block3_conv/kernel"

    def virtual(file):
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(secret, "x", (4,))
        file.create_virtual_dataset(kernel, layout)

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
        file.create_dataset(kernel, (1,), "f4")

    def bomb(file):
        file.create_dataset(kernel, data=np.zeros(1 << 22, "f4"), compression="gzip")

    fill = {
        "Lambda in its config": lambda_config,
        "a pickle in an attribute": lambda file: file.attrs.create(
            "weight_names", np.void(pickled)
        ),
        "an external link": lambda file: file.__setitem__(
            "block3_conv", h5py.ExternalLink(secret, "/")
        ),
        "a soft link": lambda file: file.__setitem__("block3_conv", h5py.SoftLink("/elsewhere")),
        "external storage": lambda file: file.create_dataset(
            kernel, (4,), "f4", external=[(secret, 0, 16)]
        ),
        "a virtual data set": virtual,
        "a shape bomb": lambda file: file.create_dataset(kernel, (1 << 42,), "f4"),
        "a compression bomb": bomb,
        "500 nested groups": deep,
    }

    def written(make):
        def write(path):
            with h5py.File(path, "w") as file:
                make(file)

        return write

    return {f"h5 with {what}": written(make) for what, make in fill.items()}


def _tars(secret, folder):
    file, link = tarfile.REGTYPE, tarfile.SYMTYPE
    members = {
        "../": [(file, "../canary", b"x")],
        "an absolute name": [(file, os.path.join(folder, "canary"), b"x")],
        "a link outside": [(link, "a", secret)],
        "a link that it writes through": [(link, "a", folder), (file, "a/canary", b"x")],
        "a chain of links": [(link, "a", "."), (link, "a/b", ".."), (file, "b/canary", b"x")],
        "a hard link": [(tarfile.LNKTYPE, "a", secret)],
        "a device": [(tarfile.CHRTYPE, "null", "")],
        "a FIFO": [(tarfile.FIFOTYPE, "pipe", "")],
        "100,000 members": [(file, f"{i}", b"") for i in range(100_000)],
        "one name twice": [(file, "a", b"1"), (file, "a", b"2")],
    }
    tars = {f"tar with {what}": functools.partial(_tar, of) for what, of in members.items()}
    tars["tar.gz of 1 GB zeros"] = lambda path: _tar(
        [(file, "zeros", bytes(1 << 30))], path, "w:gz"
    )
    return tars


def _tar(members, path, mode="w"):
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


def _checkpoints(secret, pickled):
    def sparse(path):
        with open(path, "wb") as file:
            file.truncate(1 << 42)

    long_number = b'{"global_step": ' + b"9" * 100_000 + b"}"
    return {
        f"checkpoint {what}": make
        for what, make in {
            "that names ../secret": _checkpoint(
                files={"../secret": {"size": 1, "sha256": ""}}, entry={"offset": 64}
            ),
            "with objects": _checkpoint(entry={"dtype": "|O"}, arrays=pickled),
            "with a pickle as state": _checkpoint(state=pickled),
            "of 100,000 nested lists": _checkpoint(manifest=b"[" * 100_000),
            "with a number of 100,000 digits": _checkpoint(state=long_number),
            "with a negative offset": _checkpoint(entry={"offset": -64}),
            "with a shape of 2^62": _checkpoint(entry={"shape": [1 << 31, 1 << 31]}),
            "that is a link to a secret": _checkpoint(instead={"state.json": _link(secret)}),
            "with a FIFO": _checkpoint(instead={"state.json": os.mkfifo}),
            "of 4 TB": _checkpoint(instead={"arrays.bin": sparse}),
        }.items()
    }


def _checkpoint(
    *,
    arrays=bytes(64),
    state=b'{"global_step": 9}',
    manifest=None,
    entry=None,
    files=None,
    instead=None,
):
    """Returns a maker of a checkpoint of step 9, whole but for what is given.

    Args:
        arrays, state, manifest: Contents of these files.
        entry: Changes of the manifest's entry of its one array.
        files: More files in the manifest.
        instead: {name: maker of what takes the place of a file}.
    """
    contents = {"arrays.bin": arrays, "state.json": state}
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    array = {"dtype": "<f4", "shape": [4], "offset": 0, **(entry or {})}
    said = {"arrays": {"variables/x": array}, "files": {**listed, **(files or {})}}
    manifest = manifest or json.dumps(said).encode()
    contents["manifest.json"] = hashlib.sha256(manifest).hexdigest().encode() + b"\n" + manifest

    def write(path):
        place = os.path.join(path, "step-00000009")
        os.makedirs(place)
        for name, content in contents.items():
            make = (instead or {}).get(name, _text(content))
            make(os.path.join(place, name))

    return write


def _run(entries):
    """Returns a maker of a run directory with `entries`, {name: maker}."""
    flags = _text(Config(dataset="directory", data_dir="photos").to_flags())

    def write(path):
        os.makedirs(path)
        for name, make in {"flags.txt": flags, **entries}.items():
            make(os.path.join(path, name))

    return write


def _class_named(name):
    def write(path):
        for folder_name in (name, "other"):
            os.makedirs(os.path.join(os.fsencode(path), os.fsencode(folder_name)))
            for i in range(6):
                random = np.random.RandomState(1000 * len(folder_name) + i)
                pixels = random.randint(0, 256, (8, 8, 3)).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(os.path.join(path, folder_name, f"{i}.png"))

    return write
