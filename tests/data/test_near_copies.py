"""Pictures of drawn shapes: which are one picture in other bytes, and which are two."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import pytest

from tl_research.data import drawn_flowers, near_copies


def picture(seed, size=(240, 200)):
    """Returns a PIL image of 40 ellipses in colors that a seed draws."""
    random = np.random.RandomState(seed)
    image = PIL.Image.new("RGB", size, tuple(random.randint(0, 256, 3)))
    draw = PIL.ImageDraw.Draw(image)
    for _ in range(40):
        x, y, width, height = random.rand(4) * [size[0], size[1], 60, 60]
        draw.ellipse((x, y, x + width, y + height), fill=tuple(random.randint(0, 256, 3)))
    return image


def encoded(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PIL.Image.open(buffer)


def cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((left * width, top * height, right * width, bottom * height))


CHANGES = {
    "encoded": lambda image: encoded(image, 70),
    "resized": lambda image: image.resize((216, 180)),
    "half": lambda image: image.resize((120, 100), PIL.Image.Resampling.BICUBIC),
    "enlarged": lambda image: image.resize((2400, 2000)),
    "square": lambda image: image.resize((224, 224)),
    "cropped": lambda image: cropped(image, 0.025, 0.025, 0.975, 0.975),
    "one edge": lambda image: cropped(image, 0.05, 0, 1, 1),
    "brighter": lambda image: PIL.ImageEnhance.Brightness(image).enhance(1.15),
}


def thumbnails(images):
    return np.stack([near_copies.thumbnail(np.array(image.convert("RGB"))) for image in images])


@pytest.mark.parametrize("change", CHANGES)
def test_same_picture_in_other_bytes_is_found_and_no_other(change):
    originals = [picture(seed) for seed in range(30)]
    found = near_copies.pairs(thumbnails(originals + [CHANGES[change](p) for p in originals]))
    assert [pair.tolist() for pair in found] == [[i, i + 30] for i in range(30)]


def test_other_pictures_are_no_near_copies():
    flowers = [drawn_flowers.draw(name, i) for name in drawn_flowers.CLASSES for i in range(8)]
    found = np.stack([near_copies.thumbnail(np.asarray(flower, np.uint8)) for flower in flowers])
    assert len(near_copies.pairs(found)) == 0
    mirrored = [picture(0), picture(0).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)]
    assert len(near_copies.pairs(thumbnails(mirrored))) == 0


def test_pictures_without_details_are_groups_only_if_they_look_equal():
    levels = np.linspace(100, 120, 64 * 64 * 3).reshape(64, 64, 3)
    shades = [PIL.Image.fromarray((levels + i).astype(np.uint8)) for i in range(3)]
    flat = [PIL.Image.new("RGB", (64, 64), color) for color in ("red", "red", "blue")]
    assert len(near_copies.pairs(thumbnails(shades + flat))) == 0
    assert near_copies.groups(thumbnails(flat), ["c", "b", "a"]) == ("b", "b", "a")


def test_groups_have_the_smallest_content_of_all_that_are_joined():
    first, second = picture(1), picture(2)
    images = [first, second, encoded(first), first.resize((90, 75)), second]
    # the last equals the second in its bytes
    assert near_copies.groups(thumbnails(images), ["e", "d", "c", "b", "d"]) == (
        *("b", "d", "b", "b", "d"),
    )
    order = [3, 1, 0, 4, 2]
    found = near_copies.groups(thumbnails([images[i] for i in order]), list("bdedc"))
    assert found == ("b", "d", "b", "d", "b")
    assert near_copies.groups(np.zeros((0, 16, 16, 3), np.uint8), []) == ()


def test_pairs_are_found_across_blocks(monkeypatch):
    images = thumbnails([picture(i) for i in range(9)] + [encoded(picture(i)) for i in range(9)])
    whole = near_copies.pairs(images)
    monkeypatch.setattr(near_copies, "_BLOCK", 4)
    assert sorted(near_copies.pairs(images).tolist()) == sorted(whole.tolist())
    assert len(whole) == 9


def test_of_too_many_candidates_the_most_alike_are_compared(monkeypatch):
    # one shape, and details of each its own
    shape = np.array(picture(0).resize((16, 16)), np.int64)
    details = np.random.RandomState(0).randint(-25, 26, (30, 16, 16, 3))
    images = (shape + details).clip(0, 255).astype(np.uint8)
    images = np.concatenate([images, np.minimum(images, 254)])  # nearly the same once more
    with monkeypatch.context() as patch:
        patch.setattr(near_copies, "COPY_CORRELATION", -2)  # every candidate is a copy
        assert len(near_copies.pairs(images)) == 60 * 59 / 2
        monkeypatch.setattr(near_copies, "_MOST_CANDIDATES", 100)
        assert len(near_copies.pairs(images)) == 100
    assert sorted(near_copies.pairs(images).tolist()) == [[i, i + 30] for i in range(30)]
