"""Which images a CSV file leaves out."""

import pytest

from tl_research.data import left_out
from tl_research.data.catalog import Catalog, ImageFile
from tl_research.errors import DataError

NAMES = ("a/1.jpg", "a/2, blue.jpg", "b/\udcff.jpg", "b/3.jpg")


@pytest.fixture
def catalog():
    files = tuple(ImageFile(f"/{name}", name, name[0] == "b", None) for name in NAMES)
    return Catalog(("a", "b"), files, 0, (("b/4.jpg", "not a regular file"),), ())


@pytest.fixture
def read(catalog, tmp_path):
    def read(text):
        (tmp_path / "out.csv").write_bytes(text)
        return left_out.read_names(str(tmp_path / "out.csv"), catalog)

    return read


def test_names_are_those_of_the_path_column_as_our_files_write_them(read, catalog):
    # with a spreadsheet's mark and line ends, an empty line, a name twice and one that is no image
    names = read(
        b'\xef\xbb\xbfdoubt,path\r\n0.9,"a/2, blue.jpg"\r\n0.8,b/\\xff.jpg\r\n\r\n'
        b"0.7,b/\\xff.jpg\r\n0.6,b/4.jpg\r\n"
    )
    assert names == ["a/2, blue.jpg", "b/4.jpg", "b/\udcff.jpg"]
    rest = left_out.without(catalog, names)
    assert [file.name for file in rest.files] == ["a/1.jpg", "b/3.jpg"] and rest.refused == ()
    assert left_out.without(catalog, read(b"path\n")) == catalog


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "has the columns none; expected a column path"),
        (b"file,label\na/1.jpg,a\n", "has the columns file, label; expected a column path"),
        (b"path\n" + b"".join(b"%d\n" % i for i in range(7)),
         r"names 7 files that are not images .*\(0, 1, 2, 3, 4\); .*such as a/1.jpg"),
        (b"path\n\xff\xfe\n", "cannot be read"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_followed_is_one_line(read, text, message):
    with pytest.raises(DataError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_missing_file_and_nothing_left_are_errors(catalog, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        left_out.read_names(str(tmp_path / "none.csv"), catalog)
    with pytest.raises(DataError, match="every image"):
        left_out.without(catalog, list(NAMES))
