"""What is kept in memory fits into that of the container."""

import os

import pytest

from tl_research import memory

_GIB = 1 << 30


def _limits(root, text, **files):
    for name, value in files.items():
        path = os.path.join(root, *name.split("__")[:-1])
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, name.split("__")[-1].replace("0", ".")), "w") as file:
            file.write(f"{value}\n")
    return sorted(memory.cgroup_limits(text, str(root)))


@pytest.mark.parametrize(
    "text, files, expected",
    [
        ("0::/a/b\n", {"memory0max": "max", "a__memory0max": 7, "a__b__memory0max": 9}, [7, 9]),
        ("0::/\n", {"memory0max": 5, "other__memory0max": 3}, [5]),  # inside a container
        ("4:memory:/x\n3:cpu:/\n0::/\n", {"memory__x__memory0limit_in_bytes": 8}, [8]),
        ("4:memory:/gone\n", {"memory__memory0limit_in_bytes": 6}, [6]),
        ("", {}, []),
    ],
)
def test_limits_are_those_of_a_group_and_all_around_it(tmp_path, text, files, expected):
    assert _limits(tmp_path, text, **files) == expected


def test_no_more_than_half_of_what_is_left_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(memory, "limit", lambda: 5 * _GIB)
    assert memory.allowed(4 * _GIB, "--cache_pixels", needed=_GIB) == 2 * _GIB
    assert capsys.readouterr().err == ""  # what is needed fits
    assert memory.allowed(4 * _GIB, "--cache_pixels", needed=3 * _GIB) == 2 * _GIB
    assert capsys.readouterr().err == (
        "note: --cache_pixels allows 4.0 GiB; using at most 2.0 of the 5.0 available to this "
        "process\n"
    )
    assert memory.allowed(4 * _GIB, "--cache_bytes", 4 * _GIB, taken=2 * _GIB) == _GIB
    assert memory.allowed(_GIB, "--cache_pixels", needed=_GIB) == _GIB
    monkeypatch.setattr(memory, "limit", lambda: _GIB // 2)
    assert memory.allowed(_GIB, "--cache_pixels", needed=_GIB) == 0
    monkeypatch.setattr(memory, "limit", lambda: float("inf"))
    assert memory.allowed(4 * _GIB, "--cache_pixels", needed=4 * _GIB) == 4 * _GIB
