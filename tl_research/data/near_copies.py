"""Finds near-copies: the same picture re-encoded, resized, brightened, cropped slightly, or taken a
moment later. It uses no backbone, so the split does not depend on the backbone.

A picture is reduced to a thumbnail, and the cosine transforms are compared in two steps:

1. Candidates are pairs whose lowest frequencies, in color, correlate: one matrix product.
2. For each candidate, one gray thumbnail is shifted and scaled to fit the other by two Gauss-Newton
   steps. The pair is a near-copy if the details, the frequencies above the lowest, then correlate:
   different pictures of the same kind agree in the lowest frequencies only.

Mirrored pictures are not near-copies; pictures without details only if their thumbnails are equal.
`python benchmarks/data_audit.py --dataset=directory --data_dir=DIR` measures what the thresholds
find, and lists the groups.
"""

import itertools

import numpy as np
import PIL.Image

THUMBNAIL_SIZE = 16
_ENOUGH_PIXELS = 512  # rows or columns; using all of a large photograph would take 30 ms
CANDIDATE_CORRELATION, COPY_CORRELATION = 0.84, 0.94
_LOWEST = 6  # frequencies per axis that decide candidates
_FIT_FREQUENCIES = (8, 12)  # in each Gauss-Newton step: coarse first, to avoid a local optimum
_DETAILS_FROM = 5  # the lowest frequency of a detail
_NOISE = 1.0  # levels of 255 per pixel of a thumbnail; weaker details prove nothing
_BLOCK = 1024  # images, or pairs, at a time, so that their products stay in the CPU cache
_MOST_CANDIDATES = 16 * _BLOCK  # per block of images: in X-rays, say, the low frequencies agree
_GRAY = np.array([0.299, 0.587, 0.114])


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Returns the thumbnail, uint8 [16, 16, 3], of an image, uint8 [H, W, 3]."""
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    step = max(1, min(pixels.shape[:2]) // _ENOUGH_PIXELS)
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    return np.asarray(image.resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=3.0))


def groups(thumbnails: np.ndarray, contents: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the name of each image's group: the same for equal images and near-copies.

    Args:
        thumbnails: uint8 [N, 16, 16, 3].
        contents: A hash of each image's content, hexadecimal; equal hashes are one group.

    Returns:
        The smallest hash in each image's group, whatever the order of the images.
    """
    parents = {content: content for content in contents}

    def smallest(content: str) -> str:
        while parents[content] != content:
            parents[content] = content = parents[parents[content]]
        return content

    first: dict[bytes, int] = {}
    equal = [(first.setdefault(t.tobytes(), i), i) for i, t in enumerate(thumbnails)]
    different = np.array(list(first.values()), np.int64)
    for i, j in itertools.chain(equal, different[pairs(thumbnails[different])]):
        low, high = sorted((smallest(contents[i]), smallest(contents[j])))
        parents[high] = low
    return tuple(map(smallest, contents))


def pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Returns int64 [P, 2], the pairs of near-copies among thumbnails, uint8 [N, 16, 16, 3].

    The time grows with N**2: 40 s of a CPU core for 100,000.
    """
    found = [np.zeros((0, 2), np.int64)]
    for candidates in _candidates(thumbnails):
        for start in range(0, len(candidates), _BLOCK):
            chosen = candidates[start : start + _BLOCK]
            a, b = (_transform(thumbnails[chosen[:, k]] @ _GRAY) for k in range(2))
            alike = np.maximum(_fitted(a, b), _fitted(b, a))
            found.append(chosen[alike > COPY_CORRELATION])
    return np.concatenate(found)


def _candidates(thumbnails):
    """Yields int64 [C, 2], pairs i < j whose lowest frequencies correlate, for each block of i; if
    there are too many, the ones that correlate most.
    """
    frequency = np.arange(_LOWEST)
    # compensates in part for the greater energy of low frequencies
    weights = np.sqrt(np.hypot(frequency[:, None], frequency))
    colors = [_transform(thumbnails[..., c])[:, :_LOWEST, :_LOWEST] * weights for c in range(3)]
    vectors = np.stack(colors, 1).reshape(-1, 3 * _LOWEST**2)
    vectors = _unit(vectors).astype(np.float32)
    blocks = [vectors[start : start + _BLOCK] for start in range(0, len(vectors), _BLOCK)]
    for row, block in enumerate(blocks):
        found, likeness = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        for column, other in enumerate(blocks[row:], row):
            products = block @ other.T
            is_alike = products > CANDIDATE_CORRELATION
            indices = np.argwhere(is_alike) + (row * _BLOCK, column * _BLOCK)
            is_pair = indices[:, 0] < indices[:, 1]
            found = np.concatenate([found, indices[is_pair]])
            likeness = np.concatenate([likeness, products[is_alike][is_pair]])
            if len(found) > _MOST_CANDIDATES:
                most = np.argpartition(-likeness, _MOST_CANDIDATES)[:_MOST_CANDIDATES]
                found, likeness = found[most], likeness[most]
        yield found


def _fitted(moved, fixed):
    """Returns float64 [P], the correlation of the details of two pictures after the first is
    shifted and scaled to fit the second.

    Args:
        moved, fixed: float64 [P, 16, 16], cosine transforms.
    """
    at = _POINTS * 2 - 1  # from -1 to 1 across a thumbnail
    scale_shift = np.tile([1.0, 0.0, 1.0, 0.0], (len(moved), 1))  # of rows, then of columns
    for count in _FIT_FREQUENCIES:
        (rows, d_rows), (columns, d_columns) = _sampling(scale_shift, count)
        low = moved[:, :count, :count]
        image, d_y, d_x = (
            y @ low @ x.transpose(0, 2, 1)
            for y, x in ((rows, columns), (d_rows, columns), (rows, d_columns))
        )
        target = _BASIS[:, :count] @ fixed[:, :count, :count] @ _BASIS[:, :count].T
        terms = [image, d_y * at[:, None], d_y, d_x * at, d_x]
        terms = _centered(np.stack(terms, 1).reshape(len(moved), len(terms), -1))
        target = _centered(target.reshape(len(moved), -1, 1), axis=1)
        normal = terms @ terms.transpose(0, 2, 1) + 0.1 * np.eye(terms.shape[1])
        solved = np.linalg.solve(normal, terms @ target)[..., 0]
        gain = np.maximum(solved[:, :1], 0.3)  # relative contrast; a negative image is not a copy
        scale_shift += np.clip(solved[:, 1:] / gain, -0.1, 0.1)
    (rows, _), (columns, _) = _sampling(scale_shift, THUMBNAIL_SIZE)
    moved = _details(rows @ moved @ columns.transpose(0, 2, 1))
    return np.sum(moved * _details(_BASIS @ fixed @ _BASIS.T), 1)


def _basis(frequencies, points):
    """Returns (cosines, their derivatives by 2 * points - 1), [..., len(points), frequencies]."""
    frequency = np.arange(frequencies)
    angles = np.pi * points[..., None] * frequency
    norms = np.where(frequency == 0, 1.0, np.sqrt(2.0))
    return np.cos(angles) * norms, np.sin(angles) * norms * frequency * (-np.pi / 2)


_POINTS = (np.arange(THUMBNAIL_SIZE) + 0.5) / THUMBNAIL_SIZE
_BASIS = _basis(THUMBNAIL_SIZE, _POINTS)[0]
_LOW_BASIS = _BASIS[:, :_DETAILS_FROM]
_KEEP_LOW = _LOW_BASIS @ _LOW_BASIS.T / THUMBNAIL_SIZE


def _transform(images):
    """Returns float64 [N, 16, 16], the cosine transform of images [N, 16, 16]."""
    return _BASIS.T @ images @ _BASIS / THUMBNAIL_SIZE**2


def _sampling(scale_shift, frequencies):
    """Returns `_basis` at the rows, and at the columns, of shifted and scaled pictures."""
    at = _POINTS * 2 - 1
    scales, shifts = scale_shift[:, ::2, None], scale_shift[:, 1::2, None]
    return [_basis(frequencies, (at * scales[:, k] + shifts[:, k] + 1) / 2) for k in range(2)]


def _details(images):
    """Returns [P, 196], the details of images [P, 16, 16] without the border, normalized to 1
    unless they are weak.
    """
    inner = (images - _KEEP_LOW @ images @ _KEEP_LOW)[:, 1:-1, 1:-1]
    return _unit(_centered(inner.reshape(len(images), -1)), _NOISE)


def _centered(values, axis=-1):
    return values - values.mean(axis, keepdims=True)


def _unit(vectors, least=1e-6):
    """Returns vectors [N, D] of norm 1, or less if a vector is weaker than `least` per element."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, least * vectors.shape[1] ** 0.5)
