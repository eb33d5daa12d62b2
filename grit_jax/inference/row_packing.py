"""Which texts share a row and which rows share a batch: little padding in few compiled shapes."""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from grit_jax.data.packing import round_up

SHORTEST_ROW = 64  # tokens
SHORTEST_QUERY = 16  # of a row that is a batch by itself
# Rows that hold several texts are at least this long, so that short texts fill them.
PACKED_ROW = 256
TILE = 128
# A row of T tokens holds at most T / 4 texts: the pooled array has that many segments M.
TOKENS_PER_SEGMENT = 4


@dataclasses.dataclass
class RowBatch:
    """Rows that one call of the compiled program encodes.

    Attributes:
      length: tokens of a row.
      rows: how many there are, empty ones at the end included.
      texts: the numbers of the texts in each row that has any.
    """

    length: int
    rows: int
    texts: list[list[int]]


def bucket(number: int, minimum: int = SHORTEST_ROW, *, steps_from: int = PACKED_ROW) -> int:
    """The smallest size of a short list that holds `number`.

    Powers of two from `minimum` to `steps_from`; above it quarters of powers of two as well, in
    multiples of 128 (the tile of TPU kernels). So there are few small sizes, where padding is
    cheap, and above 512 less than a fifth of a size is padding.
    """
    size = minimum
    while size < number and size < steps_from:
        size *= 2
    if size >= number:
        return size
    step = max(TILE, (1 << (number - 1).bit_length()) // 8)
    return round_up(number, step)


def pack_rows(
    lengths: Sequence[int], tokens_per_call: int, row_multiple: int = 1
) -> list[RowBatch]:
    """Packs texts into rows (best fit decreasing) and rows into batches of about `tokens_per_call`
    tokens.

    A text goes into an open row that has room for it, else into a new row of its own bucket's
    length: short texts fill the gaps behind long ones, and the rest stay in short rows, where
    attention is cheap. Rows left over from full batches are packed anew into one last batch,
    because compiling another shape would cost more than the padding.

    Args:
      row_multiple: the rows of a batch are a multiple of it (the number of row shards of the mesh).
    """
    batches, rest = _full_batches(lengths, range(len(lengths)), tokens_per_call, row_multiple, None)
    if rest:
        length = max(row_length for row_length, _ in rest)
        texts = [text for _, row in rest for text in row]
        more, rest = _full_batches(lengths, texts, tokens_per_call, row_multiple, length)
        batches += more
    if rest:
        rows = [row for _, row in rest]
        length = rest[0][0]
        if not batches and len(rows) == 1:  # one or two queries: a row as short as they are
            length = min(length, bucket(sum(lengths[i] for i in rows[0]), SHORTEST_QUERY))
        full = _rows(length, tokens_per_call, row_multiple)
        if any(batch.length == length for batch in batches):  # a shape that is compiled anyway
            count = full
        else:
            count = min(full, round_up(1 << (len(rows) - 1).bit_length(), row_multiple))
        batches.append(RowBatch(length, count, rows))
    return batches


def batch_shapes(
    longest: int, tokens_per_call: int, row_multiple: int = 1
) -> list[tuple[int, int]]:
    """All shapes `(rows, length)` that `pack_rows` may give for texts of up to `longest` tokens.

    >>> batch_shapes(300, 512)
    [(1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (2, 256), (1, 384)]
    """
    shapes = []
    # Short texts share a row of any length up to PACKED_ROW.
    longest = max(longest, PACKED_ROW)
    lengths = sorted({bucket(n, SHORTEST_QUERY) for n in range(1, longest + 1)})
    for length in lengths:
        full = _rows(length, tokens_per_call, row_multiple)
        counts = [1] if length < PACKED_ROW else [1 << n for n in range(full.bit_length() + 1)]
        rows = {min(full, round_up(count, row_multiple)) for count in counts}
        shapes += [(count, length) for count in sorted(rows)]
    return shapes


def _full_batches(
    lengths: Sequence[int],
    texts: Sequence[int],
    tokens_per_call: int,
    row_multiple: int,
    row_length: int | None,
) -> tuple[list[RowBatch], list[tuple[int, list[int]]]]:
    """Full batches, and the rows `(length, texts)` that do not fill one."""
    groups: dict[int, list[list[int]]] = defaultdict(list)
    for length, row in _fill_rows(lengths, texts, row_length):
        groups[length].append(row)
    batches, rest = [], []
    for length, rows in sorted(groups.items(), reverse=True):
        size = _rows(length, tokens_per_call, row_multiple)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if len(part) == size:
                batches.append(RowBatch(length, size, part))
            else:
                rest += [(length, row) for row in part]
    return batches, rest


def _fill_rows(
    lengths: Sequence[int], texts: Sequence[int], row_length: int | None
) -> list[tuple[int, list[int]]]:
    """Rows `(length, texts)` by best fit decreasing in O(n log n), open rows being found by their
    free tokens."""
    rows: list[tuple[int, list[int]]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # sorted keys of by_room with an open row
    chosen = np.asarray(texts, np.int64)
    order = (
        chosen[np.argsort(-np.asarray(lengths, np.int64)[chosen], kind="stable")]
        if len(chosen)
        else chosen
    )
    for i in order.tolist():
        n = max(int(lengths[i]), 1)
        at = bisect.bisect_left(rooms, n)
        if at < len(rooms):
            room = rooms[at]
            r = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(at)
        else:
            length = row_length or bucket(n, PACKED_ROW)
            r, room = len(rows), length
            rows.append((length, []))
        rows[r][1].append(i)
        room -= n
        if room and len(rows[r][1]) < rows[r][0] // TOKENS_PER_SEGMENT:
            if not by_room[room]:
                bisect.insort(rooms, room)
            by_room[room].append(r)
    return rows


def _rows(length: int, tokens_per_call: int, row_multiple: int) -> int:
    return round_up(max(1, tokens_per_call // length), row_multiple)
