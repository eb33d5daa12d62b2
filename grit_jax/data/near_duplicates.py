"""Rows of a data set that repeat earlier ones.

Memory: about 50 bytes a row, beside files that are memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from grit_jax.data.word_hashes import Grams, similarity

PAIRS_TOGETHER = 2048  # whose texts are in memory at a time


def exact_duplicates(keys: UInt64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which rows have the key of an earlier one."""
    repeated = np.ones(len(keys), bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated


def near_duplicates(
    bands: UInt64[np.ndarray, "N BANDS"],
    rows: Int[np.ndarray, " n"],
    shingles_of: Callable[[Sequence[int]], Grams],
    least: float,
) -> Bool[np.ndarray, " N"]:
    """Which rows are close to an earlier one, directly or by way of others.

    Rows that share a band are compared by their shingles: each with the first of them and with the
    one before it, so that the work grows with the number of rows.

    Args:
      bands: `min_hash_bands` of all rows; memory-mapped, a column is read at a time.
      rows: the rows to compare; the others are no duplicates.
      shingles_of: the shingles of some rows.
      least: the least Jaccard similarity of close rows.
    """
    root = np.arange(len(bands))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = int(root[row])
        return row

    for band in range(bands.shape[1]):
        keys = np.ascontiguousarray(bands[:, band])[rows]
        order = np.argsort(keys, kind="stable")
        keys, own = keys[order], rows[order]
        repeats = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] > 0)) + 1
        # The first row of the group that each repeat is in.
        firsts = own[np.searchsorted(keys, keys[repeats])]
        before = own[repeats - 1]
        for start in range(0, len(repeats), PAIRS_TOGETHER):
            part = slice(start, start + PAIRS_TOGETHER)
            pairs = {
                (int(one), int(other))
                for ones in (firsts[part], before[part])
                for one, other in zip(ones, own[repeats[part]], strict=True)
                if find(int(one)) != find(int(other))
            }
            if not pairs:
                continue
            needed = sorted({row for pair in pairs for row in pair})
            shingles, place = shingles_of(needed), {row: i for i, row in enumerate(needed)}
            for one, other in sorted(pairs):
                first, second = find(one), find(other)
                if first != second and (
                    similarity(shingles.of(place[one]), shingles.of(place[other])) >= least
                ):
                    root[max(first, second)] = min(first, second)
    near = np.zeros(len(bands), bool)
    near[rows] = root[rows] != rows
    return near
