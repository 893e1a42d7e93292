"""The images that `--leave_out` lists: a CSV file whose column `path` has names of `split.json`."""

import csv

from tl_research.data.catalog import Catalog
from tl_research.data.split import printable
from tl_research.errors import DataError
from tl_research.files import escaped


def read_names(path: str, catalog: Catalog) -> list[str]:
    """Returns the names of the images that the file at `path` lists.

    Raises:
        DataError: If it cannot be read, has no column `path`, or lists a name that is not an image.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"--leave_out={path} cannot be read ({error}); expected a CSV file; correct it"
        ) from error
    if "path" not in columns:
        raise DataError(
            f"--leave_out={path} has the columns {', '.join(columns) or 'none'}; expected a column "
            "path; name it in the first line"
        )
    paths = {row["path"] for row in rows} - {"", None}
    every = [*(file.name for file in catalog.files), *dict(catalog.refused)]
    names = dict(zip(map(escaped, every), every))  # as our own CSV files write them
    if unknown := sorted(paths - names.keys()):
        raise DataError(
            f"--leave_out={path} names {len(unknown)} files that are not images of this data set "
            f"({', '.join(map(printable, unknown[:5]))}); expected names as in split.json, such as "
            f"{printable(min(names))}; correct them"
        )
    return sorted(names[path] for path in paths)


def without(catalog: Catalog, names: list[str]) -> Catalog:
    """Returns a catalog without the images of these names, with a warning that counts them.

    Raises:
        DataError: If no image is left.
    """
    if not names:
        return catalog
    gone = set(names)
    files = tuple(file for file in catalog.files if file.name not in gone)
    if not files:
        raise DataError("--leave_out names every image; expected some to remain; shorten it")
    return catalog._replace(
        files=files,
        refused=tuple(entry for entry in catalog.refused if entry[0] not in gone),
        warnings=(*catalog.warnings, f"{len(gone)} images left out, as --leave_out says"),
    )
