"""The benchmark finds what it plants among pictures of noise, and draws the groups it is given."""

import re

import near_copies
import numpy as np
import PIL.Image


def test_planted_copies_are_found_and_counted(tmp_path, capsys):
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            # coarse noise, which encoding keeps; the last bee is the first ant
            seed = 0 if (name, i) == ("bee", 5) else 10 * label + i
            pixels = np.random.RandomState(seed).randint(0, 256, (12, 12, 3)).astype(np.uint8)
            image = PIL.Image.fromarray(pixels).resize((120, 96), PIL.Image.Resampling.BICUBIC)
            image.save(tmp_path / "photos" / name / f"{i}.png")
    sheet = tmp_path / "groups.png"
    near_copies.measure(
        near_copies.Settings(data_dir=f"{tmp_path}/photos", planted=5, sheet=str(sheet))
    )
    out = capsys.readouterr().out
    assert re.search(r"^12 photographs, .*\n1 groups of 2 photographs", out)
    rows = re.findall(r"^\| (.*) \| ([\d.]+) % \| (\d+) \|$", out, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(near_copies.CHANGES)
    assert all((share, others) == ("100.0", "0") for _, share, others in rows[:4])
    with PIL.Image.open(sheet) as image:
        assert image.height == 132
        pixels = np.asarray(image).astype(int)
    np.testing.assert_array_equal(pixels[:120, :120], pixels[:120, 120:240])
    assert (pixels[:120, 240:] == 255).all()  # nothing beside the two
