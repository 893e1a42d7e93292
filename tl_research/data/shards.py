"""Which images a process holds.

An image belongs to one of S shards by the SHA-256 of its content. Batches have equally many rows of
each shard. So n processes, n a divisor of S, can each read, decode, keep and compute the images of
S / n shards, and train on the same batches as one process that holds all of them.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tl_research import distribution


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a run, and those of them that this process holds."""

    count: int = 1  # S
    own: range = range(1)

    @property
    def are_all_own(self) -> bool:
        """Whether this process holds all images."""
        return len(self.own) == self.count

    def of(self, sha256s: Sequence[str]) -> np.ndarray:
        """Returns int64 [N], the shard of each image.

        Args:
            sha256s: Hexadecimal, of each image's content.
        """
        return np.array([int(sha256[:16], 16) % self.count for sha256 in sha256s], np.int64)

    def held(self, sha256s: Sequence[str]) -> np.ndarray:
        """Returns int64 [M], the places of this process's images among all, ascending.

        Args:
            sha256s: Hexadecimal, of each image's content.
        """
        if self.are_all_own:
            return np.arange(len(sha256s))
        return np.flatnonzero(np.isin(self.of(sha256s), self.own))

    def all_gather(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `distribution.all_gather`, of rows that each process has for its own images."""
        return columns if self.are_all_own else distribution.all_gather(columns)


def of_process(count: int) -> Shards:
    """Returns which of `count` shards this process holds: all, unless the number of processes
    divides theirs.
    """
    processes, index = distribution.num_processes(), distribution.process_index()
    if count % processes:
        return Shards(count, range(count))
    size = count // processes
    return Shards(count, range(index * size, (index + 1) * size))


class Members:
    """Where the images of each shard stand on one side of the split.

    Args:
        shards: The shards of the run.
        sha256s: Hexadecimal, of the content of each of the side's N images; of one shard they are
            not needed.
        count: N.

    Attributes:
        of_shard: For each shard int64 [N_s], the places of its images, ascending.
        own: int64 [M], the places of the images that this process holds, ascending.
    """

    def __init__(self, shards: Shards, sha256s: Sequence[str] | None, count: int):
        shard = shards.of(sha256s or ()) if shards.count > 1 else np.zeros(count, np.int64)
        self.of_shard = [np.flatnonzero(shard == number) for number in range(shards.count)]
        self.own = np.sort(np.concatenate([self.of_shard[number] for number in shards.own]))
        self._process_shards = len(shards.own)

    @functools.cached_property
    def rows(self) -> np.ndarray | None:
        """int32 [N], the place of each image among `own`, -1 elsewhere; None where all are own."""
        count = sum(map(len, self.of_shard))
        if len(self.own) == count:
            return None
        rows = np.full(count, -1, np.int32)
        rows[self.own] = np.arange(len(self.own))
        return rows

    @property
    def most_held(self) -> int:
        """How many images the process that holds most of them holds."""
        sizes = np.array(list(map(len, self.of_shard)))
        return int(sizes.reshape(-1, self._process_shards).sum(axis=1).max())
