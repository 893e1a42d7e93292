"""Bad inputs for `fault_injection.py`: damaged checkpoints, odd images, mutated flag files and hostile artefacts."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image


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
    kind = draw.choice(["cut", "flipped", "zeroed", "emptied", "lengthened", "missing", "swapped", "mixed", "extra", "renamed"])
    if kind == "missing":
        os.remove(file)
    elif kind == "extra":
        with open(os.path.join(path, "arrays.bin.1"), "wb") as handle:
            handle.write(content)
    elif kind == "swapped":
        second = os.path.join(path, draw.choice([entry for entry in sorted(os.listdir(path)) if entry != name]))
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
            with open(os.path.join(other, entry), "rb") as source, open(os.path.join(path, entry), "wb") as handle:
                handle.write(source.read())
    else:
        if kind == "cut":
            del content[draw.randrange(0, len(content), 64) if len(content) > 64 else 0:]
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


def _png_claiming(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def _gif_claiming(width, height):
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
    """Writes `number` images of each odd kind into a class folder; returns {name: `bad`, `good`, `either` or `ignored`}.

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
        frames = [PIL.Image.fromarray(seed.randint(0, 256, (*size, 3)).astype(np.uint8)) for _ in range(3)]
        jpeg, png, gif, bmp, webp = (_encoded(kind, image) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP"))
        rotated = PIL.Image.Exif()
        rotated[0x0112] = draw.choice([3, 6, 8])
        broken = bytearray(png)
        broken[len(png) // 2 + i] ^= 1
        bad = {
            "empty.jpg": b"", "random.jpg": seed.bytes(draw.randint(1, 900)), "page.jpg": b"\n" * i + b"<!DOCTYPE html><html></html>",
            "drawing.png": b'<svg xmlns="x">' + b" " * i + b"</svg>", "scan.jpg": _encoded("TIFF", image), "text.png": b"not an image\n" * (i + 1),
            "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(50 + i), "cut.jpg": jpeg[:draw.randint(30, len(jpeg) - 10)], "tail.jpg": jpeg[:-2],
            "cut.png": png[:draw.randint(60, len(png) - 20)], "checksum.png": bytes(broken), "cut.gif": gif[:draw.randint(800, len(gif) - 300)],
            "cut.bmp": bmp[:draw.randint(60, len(bmp) - 100)], "cut.webp": webp[:draw.randint(30, len(webp) // 2)],
            "header.jpg": jpeg[:20], "huge.png": _png_claiming(20000 + i, draw.choice([20000, 60000])),
            "huge.gif": _gif_claiming(12000 + i, 60000), "solid.gif": gif_of_frames(8000, 8000 + i, 1),
            "frames.gif": gif_of_frames(2000, 2000, 40 + i)}
        good = {
            "print.jpg": _encoded("JPEG", image.convert("CMYK")), "deep.png": _encoded("PNG", deep), "palette.png": _encoded("PNG", image.convert("P")),
            "bit.png": _encoded("PNG", image.convert("1")), "alpha.png": _encoded("PNG", image.convert("RGBA")), "grey.png": _encoded("PNG", image.convert("L")),
            "moving.gif": _encoded("GIF", frames[0], save_all=True, append_images=frames[1:]), "bitmap.jpg": bmp, "trailing.jpg": jpeg + seed.bytes(50),
            "dot.png": _encoded("PNG", image.resize((1, 1))), "line.png": _encoded("PNG", image.resize((1, 5000))),
            "rotated.jpg": _encoded("JPEG", image, exif=rotated), "new\nline\t\U0001f33b.png": png, b"-\xff\xfe.png": png + b"0", "x" * 240 + ".png": png + b"1"}
        either = {f"flipped.{kind}": _flipped(content, draw)
                  for kind, content in (("jpg", jpeg), ("png", png), ("gif", gif), ("bmp", bmp), ("webp", webp))}
        ignored = {"._hidden.jpg": jpeg, ".directory.png": png}
        for kind, contents in (("bad", bad), ("good", good), ("either", either), ("ignored", ignored)):
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
        expected.update({f"{i:02d}{name}": "bad" for name in ("pipe.jpg", "dangling.png", "outside.png", "loop.png")})
        expected[f"{i:02d}folder.jpg"] = "ignored"
    return expected


# Flag files.

_ODD_VALUES = ["nan", "inf", "-0.0", "1e400", "1e-400", "0x10", "1_000", "", "maybe", "~", "$HOME", "a b", "8,,10", "8;10", "\u0663", "True", "-1"]
_ODD_LINES = ["--", "---", "--undefok=epoch", "--run_with_profiling", "--profile_file=canary", "--flagfile=/etc/passwd", "--flagfile=odd.flags",
              "--pdb_post_mortem", "--help", "--logtostderr", "--log_dir=.", "--noseed", "--nodeterministic=true", "--nonesterov", "epochs=9",
              "--seed 3", "--seed=3 # three", "--dataset='directory'", '--workdir="x"', "  # indented", "// comment", "\u2014seed=3", "=", "--=3"]


def mutated_flags(lines, draw):
    """Returns the bytes of a flag file, made from good lines by one to three mutations."""
    lines = [line for line in lines if line.strip()]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(lines))
        line = lines[at]
        name, _, value = line.partition("=")
        character = draw.choice(" \t\r\0\u00a0\u2014\ufeff\u200b#'\"=-,.xX0\U0001f33b")
        place = draw.randrange(len(line) + 1)
        lines[at:at + 1] = draw.choice([
            lambda: [line[2:]], lambda: [line[1:]], lambda: ["-" + line], lambda: ["\u2014" + line[2:]], lambda: ["\ufeff" + line],
            lambda: [f"{name}={draw.choice(_ODD_VALUES)}"], lambda: [f"{name} {value}"], lambda: [f"{name} = {value}"], lambda: [name],
            lambda: [f'{name}="{value}"'], lambda: [f"{line}  # why"], lambda: ["  " + line + "  "], lambda: ["\t" + line], lambda: [line, line],
            lambda: [line, f"{name}={draw.choice(_ODD_VALUES)}"], lambda: [line[:place] + character + line[place:]],
            lambda: [line[:place] + line[place + 1:]], lambda: [line[:place], line[place:]], lambda: [line.upper()],
            lambda: ["--no" + line[2:]], lambda: [draw.choice(_ODD_LINES)], lambda: [line, draw.choice(_ODD_LINES)],
            lambda: [line + draw.choice(lines)], lambda: ["# " + line], lambda: [line.replace("=", "==")]])()
    content = draw.choice(["\n", "\r\n"]).join(lines).encode() + draw.choice([b"\n", b""])
    if draw.random() < 0.1:
        content = _flipped(content, draw)
    return content
