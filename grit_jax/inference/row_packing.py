"""Which texts share a row and which rows share a call: little padding in few compiled shapes."""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from grit_jax.data.packing import round_up

SHORTEST_ROW = 64  # tokens
SHORTEST_QUERY = 16  # of a row that is called for alone
PACKED_ROW = (
    256  # rows that hold several texts are at least this long, so that short texts fill them
)
TILE = 128
TOKENS_PER_SEGMENT = (
    4  # a row of T tokens holds at most T / 4 texts: the width of the pooled array is T / 4
)


@dataclasses.dataclass
class Call:
    """One call of the compiled program: `rows` rows of `length` tokens; `texts[r]` are the texts of
    row `r`."""

    length: int
    rows: int
    texts: list[list[int]]


def bucket(number: int, minimum: int = SHORTEST_ROW, *, steps_from: int = PACKED_ROW) -> int:
    """The smallest size of a short list that holds `number`.

    Powers of two from `minimum` to `steps_from`, above it quarters of powers of two as well
    (multiples of 128, the tile of TPU kernels): a quarter at most is padding where it costs
    something, and there are few sizes where it does not.
    """
    size = minimum
    while size < number and size < steps_from:
        size *= 2
    if size >= number:
        return size
    step = max(TILE, (1 << (number - 1).bit_length()) // 8)
    return round_up(number, step)


def plan_calls(lengths: Sequence[int], tokens_per_call: int, row_multiple: int = 1) -> list[Call]:
    """Packs texts into rows (best fit decreasing) and rows into calls of about `tokens_per_call`
    tokens.

    Every text opens a row of its own bucket's length unless an open row has room for it, so that
    short texts fill the gaps behind long ones and the others stand in short rows, where attention
    is cheap. Rows left over from full calls are packed anew into one last call: another shape would
    cost more than the padding.

    Args:
      row_multiple: rows of a call are a multiple of it (the ways in which the mesh splits rows).
    """
    calls, left = _full_calls(lengths, range(len(lengths)), tokens_per_call, row_multiple, None)
    if left:
        length = max(row_length for row_length, _ in left)
        texts = [text for _, row in left for text in row]
        more, left = _full_calls(lengths, texts, tokens_per_call, row_multiple, length)
        calls += more
    if left:
        rows = [row for _, row in left]
        length = left[0][0]
        if not calls and len(rows) == 1:  # a query or two: as short as they are
            length = min(length, bucket(sum(lengths[i] for i in rows[0]), SHORTEST_QUERY))
        full = _rows(length, tokens_per_call, row_multiple)
        known = any(call.length == length for call in calls)
        count = (
            full if known else min(full, round_up(1 << (len(rows) - 1).bit_length(), row_multiple))
        )
        calls.append(Call(length, count, rows))
    return calls


def _full_calls(
    lengths: Sequence[int],
    texts: Sequence[int],
    tokens_per_call: int,
    row_multiple: int,
    row_length: int | None,
) -> tuple[list[Call], list[tuple[int, list[int]]]]:
    """Full calls, and the rows `(length, texts)` that do not fill one."""
    groups: dict[int, list[list[int]]] = defaultdict(list)
    for length, row in _fill_rows(lengths, texts, row_length):
        groups[length].append(row)
    calls, left = [], []
    for length, rows in sorted(groups.items(), reverse=True):
        size = _rows(length, tokens_per_call, row_multiple)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if len(part) == size:
                calls.append(Call(length, size, part))
            else:
                left += [(length, row) for row in part]
    return calls, left


def _fill_rows(
    lengths: Sequence[int], texts: Sequence[int], row_length: int | None
) -> list[tuple[int, list[int]]]:
    """Best fit decreasing in O(n log n): open rows are found by the room they have left."""
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
