"""Equal images: those that stand in two classes, and those that stand twice in one."""

import collections


def contradictory(files, pixel_sha256s, classes):
    """Returns {row: reason} of the images that stand in several classes.

    Args:
        files: `catalog.ImageFile`s whose labels are places in `classes`.
        pixel_sha256s: Of each, in the same order.
        classes: Their names.
    """
    reasons = {}
    for rows in _equal(pixel_sha256s):
        for row in rows:
            others = [files[other] for other in rows if files[other].label != files[row].label]
            if others:
                reasons[row] = f"stands in class {classes[others[0].label]} too, as " + ", ".join(
                    other.name for other in others
                )
    return reasons


def duplicates(names, pixel_sha256s):
    """Returns [{path, equals, sha256}] of the images that equal an earlier one, by name; the hash
    is that of their pixels.
    """
    return sorted(
        (
            {"path": names[row], "equals": names[rows[0]], "sha256": pixel_sha256s[row]}
            for rows in _equal(pixel_sha256s)
            for row in rows[1:]
        ),
        key=lambda entry: entry["path"],
    )


def _equal(pixel_sha256s):
    """Returns lists of the rows whose pixels are equal."""
    rows = collections.defaultdict(list)
    for row, sha256 in enumerate(pixel_sha256s):
        rows[sha256].append(row)
    return [equal for equal in rows.values() if len(equal) > 1]
