"""Bad inputs for `fault_injection.py`: damaged checkpoints, odd images, mutated flag files and
hostile artefacts.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
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
    names = sorted(os.listdir(path))
    name = draw.choice(names)
    kind, file = draw.choice([*_CHANGES, *_DAMAGES]), f"{path}/{name}"
    if kind in _DAMAGES:
        _DAMAGES[kind](path, other, name, draw)
    else:
        content = bytearray(_read(file))
        _CHANGES[kind](content, draw)
        _write(file, content)
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


def _swap(path, other, name, draw):
    second = draw.choice([entry for entry in sorted(os.listdir(path)) if entry != name])
    first, second = f"{path}/{name}", f"{path}/{second}"
    contents = _read(first), _read(second)
    _write(second, contents[0])
    _write(first, contents[1])


_DAMAGES = {
    "missing": lambda path, other, name, draw: os.remove(f"{path}/{name}"),
    "swapped": _swap,
    # a whole file of another step
    "mixed": lambda path, other, name, draw: shutil.copy(f"{other}/{name}", path),
    "extra": lambda path, other, name, draw: shutil.copy(f"{path}/{name}", f"{path}/arrays.bin.1"),
    # a whole checkpoint under another step's name
    "renamed": lambda path, other, name, draw: shutil.copytree(other, path, dirs_exist_ok=True),
}


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
    outside = f"{os.path.dirname(os.path.dirname(directory))}/outside.png"
    PIL.Image.new("RGB", (8, 8)).save(outside)
    expected = {}
    for i in range(number):
        start = f"{directory}/{i:02d}"
        for kind, contents in _odd_images(i, draw).items():
            for name, content in contents.items():
                place = b".%d" if kind == "ignored" else b"%02d"
                name = place % i + os.fsencode(name)
                _write(os.path.join(os.fsencode(directory), name), content)
                expected[os.fsdecode(name)] = kind
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

    def noise(*shape, kind=np.uint8):
        return PIL.Image.fromarray(seed.randint(0, np.iinfo(kind).max + 1, shape).astype(kind))

    image, deep = noise(*size, 3), noise(*size, kind=np.uint16)
    frames = [noise(*size, 3) for _ in range(3)]
    whole = {kind: encoded(_FORMATS[kind], image) for kind in _FORMATS}
    rotated = PIL.Image.Exif()
    rotated[0x0112] = draw.choice([3, 6, 8])
    return {
        "bad": _bad_images(i, draw, seed, **whole),
        "good": _good_images(i, seed, image, deep, frames, rotated, whole),
        "either": {f"flipped.{kind}": _flipped(of, draw) for kind, of in whole.items()},
        "ignored": {"._hidden.jpg": whole["jpg"], ".directory.png": whole["png"]},
    }


_FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP"}


def _bad_images(i, draw, seed, jpg, png, gif, bmp, webp):
    flat = encoded("JPEG", PIL.Image.new("RGB", (64, 64)), progressive=True)
    progressive = fault_pictures.jpeg_claiming(flat, 6000, 4000)
    broken = bytearray(png)
    broken[len(png) // 2 + i] ^= 1
    return {
        "empty.jpg": b"",
        "random.jpg": seed.bytes(draw.randint(1, 900)),
        "page.jpg": b"\n" * i + b"<!DOCTYPE html><html></html>",
        "drawing.png": b'<svg xmlns="x">' + b" " * i + b"</svg>",
        "text.png": b"not an image\n" * (i + 1),
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(50 + i),
        "cut.jpg": jpg[: draw.randint(30, len(jpg) - 10)],
        "tail.jpg": jpg[:-2],
        "cut.png": png[: draw.randint(60, len(png) - 20)],
        "checksum.png": bytes(broken),
        "cut.gif": gif[: draw.randint(800, len(gif) - 300)],
        "cut.bmp": bmp[: draw.randint(60, len(bmp) - 100)],
        "cut.webp": webp[: draw.randint(30, len(webp) // 2)],
        "header.jpg": jpg[:20],
        "huge.png": fault_pictures.png_claiming(20000 + i, draw.choice([20000, 60000])),
        "huge.gif": fault_pictures.gif_claiming(12000 + i, 60000),
        "scans.jpg": fault_pictures.jpeg_with_scans(progressive, 8000 + i),
        "large.jpg": fault_pictures.jpeg_claiming(progressive, 16000, 12000 + i),
        "tile.tif": fault_pictures.tiff_with_tile(40000, 40000 + i),
        "canvas.webp": fault_pictures.webp_claiming(60000, 60000 + i),
        "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\nsize %d\n" % i,
        "solid.gif": fault_pictures.gif_of_frames(8000, 8000 + i, 1),
    }


_MODES = {"palette.png": "P", "bit.png": "1", "alpha.png": "RGBA", "grey.png": "L"}


def _good_images(i, seed, image, deep, frames, rotated, whole):
    png, text = whole["png"], fault_pictures.png_chunk(b"tEXt", b"a\0" + b"x" * (3 << 20))
    return {
        "print.jpg": encoded("JPEG", image.convert("CMYK")),
        "deep.png": encoded("PNG", deep),
        **{name: encoded("PNG", image.convert(mode)) for name, mode in _MODES.items()},
        "moving.gif": encoded("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "frames.gif": fault_pictures.gif_of_frames(500, 500, 40 + i),
        "scan.jpg": encoded("TIFF", image),
        "bitmap.jpg": whole["bmp"],
        "table.bmp": encoded("BMP", image.quantize(64)),
        "grey.pgm": encoded("PPM", image.convert("L")),
        "texts.png": png[:33] + text + png[33:],
        "crossed.gif": fault_pictures.gif_of((65535, 1 + i), (1 + i, 65535)),
        "trailing.jpg": whole["jpg"] + seed.bytes(50),
        "dot.png": encoded("PNG", image.resize((1, 1))),
        "line.png": encoded("PNG", image.resize((1, 5000))),
        "rotated.jpg": encoded("JPEG", image, exif=rotated),
        "new\nline\t\U0001f33b.png": png,
        b"-\xff\xfe.png": png + b"0",
        "x" * 240 + ".png": png + b"1",
    }


# Flag files.

_ODD_VALUES = """
nan
inf
-0.0
1e400
1e-400
0x10
1_000

maybe
~
$HOME
a b
8,,10
8;10
\u0663
True
-1
"""[1:-1].splitlines()
_ODD_LINES = """
--
---
--undefok=epoch
--run_with_profiling
--profile_file=canary
--flagfile=/etc/passwd
--flagfile=odd.flags
--pdb_post_mortem
--help
--logtostderr
--log_dir=.
--noseed
--nodeterministic=true
--nonesterov
epochs=9
--seed 3
--seed=3 # three
--dataset='directory'
--workdir="x"
  # indented
// comment
\u2014seed=3
=
--=3
"""[1:-1].splitlines()
# What becomes of a line `--{bare}`, which is `{name}={value}`; "//" parts two lines.
_MUTATIONS = """
{bare}
{dashed}
-{line}
\u2014{bare}
\ufeff{line}
{name}={odd}
{name} {value}
{name} = {value}
{name}
{name}="{value}"
{line}  # why
  {line} \x20
\t{line}
{line}//{line}
{line}//{name}={odd}
{before}{character}{after}
{before}{rest}
{before}//{after}
{upper}
--no{bare}
{odd_line}
{line}//{odd_line}
{line}{other}
# {line}
{doubled}
"""[1:-1].split("\n")


def mutated_flags(lines, draw):
    """Returns the bytes of a flag file, made from good lines by one to three mutations."""
    lines = [line for line in lines if line.strip()]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(lines))
        line = lines[at]
        name, _, value = line.partition("=")
        character = draw.choice(" \t\r\0\u00a0\u2014\ufeff\u200b#'\"=-,.xX0\U0001f33b")
        place = draw.randrange(len(line) + 1)
        parts = {"before": line[:place], "after": line[place:], "rest": line[place + 1 :]}
        parts |= {
            "bare": line[2:],
            "dashed": line[1:],
            "upper": line.upper(),
            "doubled": line.replace("=", "=="),
        }
        forms = draw.choice(_MUTATIONS).split("//")
        for part, choices in {"odd": _ODD_VALUES, "odd_line": _ODD_LINES, "other": lines}.items():
            if f"{{{part}}}" in forms[-1]:
                parts[part] = draw.choice(choices)
        lines[at : at + 1] = [
            form.format(line=line, name=name, value=value, character=character, **parts)
            for form in forms
        ]
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
        "weights": _weights(secret, touch, pickled),
        "torch": {
            "PyTorch file that runs a command": pickled * 5,
            "PyTorch file that asks for builtins.eval": b"cbuiltins\neval\n(S'1'\ntR." * 5,
        },
        "archive": _tars(secret, folder),
        "archive.zip": {
            "zip with ../": _zip(("../canary", b"x", 0o100644)),
            "zip with an absolute name": _zip((f"{folder}/canary", b"x", 0o100644)),
            "zip with a backslash": _zip(("..\\canary", b"x", 0o100644)),
            "zip with a link": _zip(("a", secret.encode(), 0o120777)),
            "zip bomb": lambda path: _zip(("zeros", bytes(1 << 28), 0o100644))(path),
        },
        "checkpoint": _checkpoints(secret, pickled),
        "flagfile": {
            "flag file with a profile": f"--run_with_profiling\n--profile_file={folder}/canary\n",
            "flag file that names another": f"--flagfile={secret}\n",
            "flag file that is a FIFO": os.mkfifo,
            "flag file that is a link to a device": functools.partial(os.symlink, "/dev/zero"),
        },
        "run": _runs(secret, folder),
        "photos": {
            "class named ; rm -rf": {f"; {touch} #": _photos(0)},
            "class named $()": {f"$({touch.replace('/', '_')})": _photos(0)},
            "class with a newline and an escape": {"a\n\x1b[2J=\u202e": _photos(0)},
        },
    }
    beside = {
        "run": {"flags.txt": Config(dataset="directory", data_dir="photos").to_flags()},
        "photos": {"other": _photos(1)},
    }
    return {
        name: (kind, functools.partial(_make, {**beside[kind], **what} if kind in beside else what))
        for kind, of in kinds.items()
        for name, what in of.items()
    }


def _runs(secret, folder):
    link = functools.partial(functools.partial, os.symlink)
    return {
        "run with its lock linked outside": {".lock": link(secret)},
        "run with its checkpoints linked outside": {"checkpoints": link(folder)},
        "run with a link in its export": {"run.json": "{}", "export": {"a": link(secret)}},
        "run whose results are a pipe": {"run.json": "{}", "results.json": os.mkfifo},
        "run with results of no run": {"run.json": "{}", "results.json": '{"test": 5}'},
        "run with nested results": {"run.json": "{}", "results.json": "[" * 100_000},
    }


def _make(what, path):
    """Makes a file of a text or of bytes, a folder of a dict, or whatever a function makes."""
    if callable(what):
        what(path)
    elif isinstance(what, dict):
        os.makedirs(path)
        for name, part in what.items():
            _make(part, f"{path}/{name}")
    else:
        _write(path, what if isinstance(what, bytes) else what.encode())


def _photos(label):
    draws = (np.random.RandomState(1000 * label + i) for i in range(6))
    images = [draw.randint(0, 256, (8, 8, 3)).astype(np.uint8) for draw in draws]
    return {
        f"{i}.png": encoded("PNG", PIL.Image.fromarray(image)) for i, image in enumerate(images)
    }


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


def _weights(secret, touch, pickled):
    import h5py

    kernel = "block3_conv/kernel"
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(secret, "x", (4,))
    config = {"name": "l", "function": [touch, None, None], "function_type": "lambda"}
    layers = [{"class_name": "Lambda", "config": config}]
    model = json.dumps({"class_name": "Sequential", "config": {"layers": layers}})
    four, zeros = {"name": kernel, "shape": (4,), "dtype": "f4"}, np.zeros(1 << 22, "f4")

    def lambda_config(file):
        file.attrs["model_config"] = model
        file.create_dataset(kernel, (1,), "f4")

    fill = {
        "Lambda in its config": lambda_config,
        "a pickle in an attribute": lambda file: file.attrs.create(
            "weight_names", np.void(pickled)
        ),
        "an external link": lambda file: file.__setitem__(
            "block3_conv", h5py.ExternalLink(secret, "/")
        ),
        "a soft link": lambda file: file.__setitem__("block3_conv", h5py.SoftLink("/elsewhere")),
        "external storage": lambda file: file.create_dataset(**four, external=[(secret, 0, 16)]),
        "a virtual data set": lambda file: file.create_virtual_dataset(kernel, layout),
        "a shape bomb": lambda file: file.create_dataset(kernel, (1 << 42,), "f4"),
        "a compression bomb": lambda file: file.create_dataset(
            kernel, data=zeros, compression="gzip"
        ),
        "500 nested groups": lambda file: file.create_group("g/" * 500),
    }

    def write(make, path):
        with h5py.File(path, "w") as file:
            make(file)

    return {
        "pickle as weights": pickled,
        "npz with a pickle": _zip(("arr_0.npy", b"\x93NUMPY\x01\0" + pickled, 0)),
        ".keras with Lambda": _keras_file("Lambda", function=touch),
        ".keras with TFSMLayer": _keras_file("TFSMLayer", filepath=os.path.dirname(secret)),
        ".keras with StringLookup": _keras_file("StringLookup", vocabulary=secret),
        **{f"h5 with {what}": functools.partial(write, make) for what, make in fill.items()},
    }


def _tars(secret, folder):
    file, link = tarfile.REGTYPE, tarfile.SYMTYPE
    members = {
        "../": [(file, "../canary", b"x")],
        "an absolute name": [(file, f"{folder}/canary", b"x")],
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
    secrets = {"../secret": {"size": 1, "sha256": ""}}
    made = {
        "that names ../secret": _checkpoint(files=secrets, offset=64),
        "with objects": _checkpoint(arrays=pickled, dtype="|O"),
        "with a pickle as state": _checkpoint(state=pickled),
        "of 100,000 nested lists": _checkpoint(manifest=b"[" * 100_000),
        "with a number of 100,000 digits": _checkpoint(
            state=b'{"global_step": ' + b"9" * 100_000 + b"}"
        ),
        "with a negative offset": _checkpoint(offset=-64),
        "with a shape of 2^62": _checkpoint(shape=[1 << 31, 1 << 31]),
        "that is a link to a secret": _checkpoint()
        | {"state.json": functools.partial(os.symlink, secret)},
        "with a FIFO": _checkpoint() | {"state.json": os.mkfifo},
        "of 4 TB": _checkpoint()
        | {"arrays.bin": lambda path: (_write(path, b""), os.truncate(path, 1 << 42))},
    }
    return {f"checkpoint {what}": {"step-00000009": of} for what, of in made.items()}


def _checkpoint(arrays=bytes(64), state=b'{"global_step": 9}', manifest=None, files=None, **entry):
    """Returns a checkpoint of step 9 for `_make`, whole but for what is given.

    Args:
        arrays, state, manifest: Contents of these files.
        files: More files in the manifest.
        entry: Changes of the manifest's entry of its one array.
    """
    contents = {"arrays.bin": arrays, "state.json": state}
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    array = {"dtype": "<f4", "shape": [4], "offset": 0, **entry}
    said = {"arrays": {"variables/x": array}, "files": {**listed, **(files or {})}}
    manifest = manifest or json.dumps(said).encode()
    contents["manifest.json"] = hashlib.sha256(manifest).hexdigest().encode() + b"\n" + manifest
    return contents
