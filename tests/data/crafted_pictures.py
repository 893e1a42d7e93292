"""Pictures that claim more than they hold."""

import io
import struct
import zlib

import PIL.Image


def encoded(kind, image, **options):
    """Returns the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    """Returns a part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width, height):
    """Returns a small PNG whose header says that it has so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + png_chunk(b"IEND", b"")
    )


def gif_claiming(width, height):
    """Returns a small GIF whose header says that it has so many pixels."""
    gif = bytearray(encoded("GIF", PIL.Image.new("P", (8, 8))))
    gif[6:10] = struct.pack("<HH", width, height)
    return bytes(gif)


def gif_of_frames(width, height, count):
    """Returns a small GIF whose `count` frames decode to width x height pixels each."""
    gif = encoded("GIF", PIL.Image.new("P", (width, height)))
    start = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    return gif[:start] + gif[start:-1] * count + b";"


def jpeg_claiming(jpeg, width, height):
    """Returns a JPEG whose frame says that it has so many pixels."""
    place = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9 :]


def jpeg_with_scans(jpeg, more):
    """Returns a progressive JPEG whose last scan is there `more` times more."""
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * more + jpeg[-2:]


def gif_of(*sizes):
    """Returns a GIF with a frame of each size."""
    gifs = [encoded("GIF", PIL.Image.new("L", size)) for size in sizes]
    start = 13 + 3 * 2 ** ((gifs[0][10] & 7) + 1)
    return gifs[0][:start] + b"".join(gif[start:-1] for gif in gifs) + b";"


def tiff_with_tile(width, height):
    """Returns a TIFF of 10 x 10 pixels in one tile of that size."""
    tags = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, width)]
    tags += [(323, height), (324, 200), (325, 20)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries
    return start.ljust(220, b"\0")


def webp_claiming(width, height):
    """Returns a small WebP whose canvas is that large."""
    webp = encoded("WEBP", PIL.Image.new("RGBA", (8, 8)), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return webp[:24] + sides + webp[30:]
