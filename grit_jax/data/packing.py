"""Texts of different lengths into rows of one length, and the batches of `types.py` from tokenised
examples.

First fit decreasing: the longest text first, each into the first row that has room. Rows are
rounded up to a multiple and so is the number of texts a row may hold, because every new shape is
compiled anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from grit_jax.types import CachedBatch, EmbeddingBatch, GenerativeBatch, Rows

SEGMENT_MULTIPLE = 8

T = TypeVar("T")
# Called once it is known where everything goes, with the row of each text (-1: it is missing) and
# the number of rows; returns the texts to lay down, of the lengths given before (see `shares.py`).
Arrive = Callable[[np.ndarray, int], Sequence[T]]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Where each text goes: its row, and its place among the texts of that row (from 0)."""

    row: np.ndarray
    place: np.ndarray
    rows: int

    @property
    def most(self) -> int:
        """The largest number of texts in a row."""
        return int(self.place.max(initial=-1)) + 1


@dataclasses.dataclass(frozen=True)
class PackedTexts:
    """Packed texts. With `G = segments_per_row`, text `i` is segment `locations[i] % G + 1` of row
    `locations[i] // G` and begins there at token `starts[i]`; `pool` marks tokens behind the
    prompts."""

    rows: Rows
    pool: np.ndarray
    locations: np.ndarray
    starts: np.ndarray
    segments_per_row: int


@dataclasses.dataclass(frozen=True)
class TokenText:
    """Token ids of a sequence; `targets` marks those to be predicted."""

    ids: Sequence[int]
    targets: Sequence[bool]


@dataclasses.dataclass(frozen=True)
class TokenCached:
    """A continuation with its answer, and the cached texts that it follows, each behind `prompt`
    tokens of tags."""

    pieces: Sequence[Sequence[int]]
    text: TokenText
    prompt: int = 0


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `number`, and at least one
    `multiple`."""
    return max(1, -(-number // multiple)) * multiple


def pack(
    lengths: Sequence[int] | Sequence[tuple[int, ...]], capacity: int | tuple[int, ...]
) -> Assignment:
    """First fit decreasing. With tuples, a row has several capacities and a text takes some of
    each.

    Raises:
      ValueError: a text is longer than a row (texts are cut before they are packed).
    """
    sizes = np.asarray(lengths, np.int64)
    room = np.atleast_1d(np.asarray(capacity, np.int64))
    sizes = sizes.reshape(len(sizes), len(room))
    if len(sizes) and (sizes > room).any():
        worst = int(np.argmax((sizes > room).any(1)))
        raise ValueError(
            f"text {worst} of length {sizes[worst].tolist()} does not fit a row of {room.tolist()}"
        )
    order = np.argsort(-(sizes / np.maximum(room, 1)).max(1, initial=0), kind="stable")
    free = np.repeat(room[None], len(sizes), 0)  # never more rows than texts
    count = np.zeros(len(sizes), np.int64)
    row, place = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    used = 0
    for i in order:
        fits = (
            (free[: used + 1] >= sizes[i]).all(1)
            if len(room) > 1
            else free[: used + 1, 0] >= sizes[i, 0]
        )
        r = int(fits.argmax())
        free[r] -= sizes[i]
        row[i], place[i] = r, count[r]
        count[r] += 1
        used = max(used, r + 1)
    return Assignment(row, place, used)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where texts of these lengths go, in how many rows (padding rows too) of what width."""

    where: Assignment
    lengths: Sequence[int]
    height: int
    width: int
    segments_per_row: int

    @property
    def locations(self) -> np.ndarray:
        """As `PackedTexts.locations`."""
        return (self.where.row * self.segments_per_row + self.where.place).astype(np.int32)


def place_texts(
    lengths: Sequence[int],
    row_length: int | None = None,
    row_multiple: int = 1,
    min_rows: int = 0,
    min_segments: int = 0,
) -> Placement:
    """The first half of `pack_texts`, for which lengths are enough."""
    width = row_length or max(lengths, default=1)
    where = pack(lengths, width)
    height = max(
        round_up(where.rows, row_multiple), round_up(min_rows, row_multiple) if min_rows else 0
    )
    return Placement(
        where, lengths, height, width, max(round_up(where.most, SEGMENT_MULTIPLE), min_segments)
    )


def pack_texts(
    ids: Sequence[Sequence[int]],
    *,
    row_length: int | None = None,
    row_multiple: int = 1,
    min_rows: int = 0,
    min_segments: int = 0,
    prompt_lengths: Sequence[int] | None = None,
    blocks: bool = False,
    pad_id: int = 0,
) -> PackedTexts:
    """Tokenised texts into rows.

    Args:
      row_length: tokens of a row; None is the longest text.
      row_multiple: rows are rounded up to it (the added ones are empty).
      min_rows, min_segments: floors of the number of rows and of `segments_per_row`.
      prompt_lengths: leading tokens of each text that pooling leaves out.
      blocks: whether what is pooled is a block of prefix attention (the paper's "cb").
    """
    placement = place_texts(
        [len(text) for text in ids], row_length, row_multiple, min_rows, min_segments
    )
    return lay_texts(ids, placement, prompt_lengths=prompt_lengths, blocks=blocks, pad_id=pad_id)


def lay_texts(
    ids: Sequence[Sequence[int]],
    placement: Placement,
    *,
    prompt_lengths: Sequence[int] | None = None,
    blocks: bool = False,
    pad_id: int = 0,
) -> PackedTexts:
    """The second half of `pack_texts`."""
    where, lengths, height, width = (
        placement.where,
        placement.lengths,
        placement.height,
        placement.width,
    )
    tokens = np.full((height, width), pad_id, np.int32)
    positions, segments = np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)
    pool = np.zeros((height, width), bool)
    fill = [0] * height
    starts = np.zeros(len(ids), np.int64)
    # Texts of a row are laid down in the order of their places.
    for i in np.argsort(where.place, kind="stable").tolist():
        r, n = int(where.row[i]), lengths[i]
        a = fill[r]
        fill[r] = b = a + n
        starts[i] = a
        tokens[r, a:b] = ids[i]
        positions[r, a:b] = np.arange(n)
        segments[r, a:b] = where.place[i] + 1
        pool[r, a + (prompt_lengths[i] if prompt_lengths is not None else 0) : b] = True
    rows = Rows(tokens, positions, segments, pool.astype(np.int32) if blocks else None)  # type: ignore[arg-type]
    return PackedTexts(rows, pool, placement.locations, starts, placement.segments_per_row)


def embedding_batch(
    queries: Sequence[Sequence[int]],
    passages: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    *,
    row_length: int,
    row_multiple: int = 8,
    min_rows: int = 0,
    min_query_rows: int = 0,
    min_segments: int = 0,
    positives: int = 1,
    separate: bool = False,
    blocks: bool = False,
    scores: Sequence[float] | None = None,
    keys: Sequence[bytes] | None = None,
    arrive: Arrive[Sequence[int]] | None = None,
    pad_id: int = 0,
) -> EmbeddingBatch:
    """Queries and passages in the same rows, or each in rows of their own (`separate`).

    Args:
      passages: as many for each query, its `positives` first. With more than one positive, some may
        be missing: an empty sequence each.
      prompt_lengths: of the queries, then of the passages.
      min_query_rows: as `min_rows`, of the queries' own rows (`min_rows` then is the passages').
      scores: a teacher's, of the passages.
      keys: of the passages, the same for the same ids; None: the ids themselves.
      arrive: brings the texts (queries, then passages), those given being of their length only.
    """
    Q, texts = len(queries), [*queries, *passages]
    there = [i for i, ids in enumerate(texts) if len(ids)]
    members = [[i for i in there if i < Q], [i for i in there if i >= Q]] if separate else [there]
    placements = [
        place_texts([len(texts[i]) for i in numbers], row_length, row_multiple, rows, min_segments)
        for numbers, rows in zip(members, (min_query_rows, min_rows)[-len(members) :], strict=True)
    ]
    per_row = max(placement.segments_per_row for placement in placements)
    query_rows = placements[0].height if separate else 0
    rows = np.full(len(texts), -1)
    rows[there] = np.concatenate(
        [p.where.row + above for p, above in zip(placements, (0, query_rows), strict=False)]
    )
    place = np.concatenate([placement.where.place for placement in placements])
    # A missing passage points at another one; it counts nowhere.
    locations = np.full(
        len(texts), rows[members[-1][0]] * per_row + placements[-1].where.place[0], np.int32
    )
    locations[there] = rows[there] * per_row + place
    if keys is None:
        keys = [np.asarray(ids, np.int32).tobytes() for ids in passages]
    if arrive is not None:
        texts = list(arrive(rows, sum(placement.height for placement in placements)))
    sides = [
        lay_texts(
            [texts[i] for i in numbers],
            placement,
            prompt_lengths=[prompt_lengths[i] for i in numbers],
            blocks=blocks,
            pad_id=pad_id,
        )
        for numbers, placement in zip(members, placements, strict=True)
    ]
    numbers: dict[bytes, int] = {}
    return EmbeddingBatch(
        rows=jax.tree.map(lambda *x: np.concatenate(x), *(side.rows for side in sides)),
        pool=np.concatenate([side.pool for side in sides]),  # type: ignore[arg-type]
        queries=locations[:Q],  # type: ignore[arg-type]
        passages=locations[Q:],  # type: ignore[arg-type]
        segments_per_row=per_row,
        query_rows=query_rows,
        positives=positives,
        texts=np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32),  # type: ignore[arg-type]
        present=np.array([len(ids) > 0 for ids in passages]) if positives > 1 else None,  # type: ignore[arg-type]
        scores=None if scores is None else np.asarray(scores, np.float32),  # type: ignore[arg-type]
    )


def generative_batch(
    texts: Sequence[TokenText],
    *,
    row_length: int,
    row_multiple: int = 8,
    min_rows: int = 0,
    prefix: bool = False,
    arrive: Arrive[TokenText] | None = None,
    pad_id: int = 0,
) -> GenerativeBatch:
    """Sequences for the language loss, packed; `sequence` numbers them in the order given.

    With `prefix`, what stands before a sequence's first target is a block of prefix attention (a
    prefix-LM). `arrive` brings the texts, those given being of their lengths only.
    """
    placement = place_texts([len(text.ids) for text in texts], row_length, row_multiple, min_rows)
    if arrive is not None:
        texts = arrive(placement.where.row, placement.height)
    packed = lay_texts([text.ids for text in texts], placement, pad_id=pad_id)
    rows, places = packed.rows, packed.locations // packed.segments_per_row
    if prefix:
        rows = dataclasses.replace(rows, blocks=_prefix_blocks(texts, rows, places, packed.starts))
    targets, sequence = _targets(texts, rows, places, packed.starts)
    return GenerativeBatch(rows, targets, sequence, len(texts))  # type: ignore[arg-type]


def cached_batch(
    examples: Sequence[TokenCached],
    *,
    pieces_row_length: int,
    row_length: int,
    row_multiple: int = 8,
    min_rows: int = 0,
    blocks: bool = False,
    prefix: bool = False,
    arrive: Arrive[TokenCached] | None = None,
    pad_id: int = 0,
) -> CachedBatch:
    """Continuations and the cached texts that they follow: an example's are in the same row of both
    arrays.

    The cached texts of an example stand one after the other and its continuation goes on from
    there, so positions are those of the composed prompt. `blocks` is that of `pack_texts` for the
    cached texts, `prefix` that of `generative_batch` for the continuations; `arrive` brings the
    examples.
    """
    totals = [sum(map(len, example.pieces)) for example in examples]
    where = pack(
        [(total, len(example.text.ids)) for total, example in zip(totals, examples, strict=True)],
        (pieces_row_length, row_length),
    )
    height = max(
        round_up(where.rows, row_multiple), round_up(min_rows, row_multiple) if min_rows else 0
    )
    if arrive is not None:
        examples = arrive(where.row, height)
    pieces, text = (
        _empty_rows(height, pieces_row_length, pad_id),
        _empty_rows(height, row_length, pad_id),
    )
    owner, places = (
        np.zeros((height, pieces_row_length), np.int32),
        np.zeros((height, pieces_row_length), np.int32),
    )
    marks = np.zeros_like(owner)
    piece_fill, text_fill, piece_count = [0] * height, [0] * height, [0] * height
    starts = np.zeros(len(examples), np.int64)
    for i in np.argsort(where.place, kind="stable").tolist():
        r, example, number = int(where.row[i]), examples[i], int(where.place[i]) + 1
        offset = 0
        for ids in example.pieces:
            piece_count[r] += 1
            a = piece_fill[r]
            piece_fill[r] = b = a + len(ids)
            _lay(pieces, r, a, ids, 0, piece_count[r])
            marks[r, a + example.prompt : b] = 1
            owner[r, a:b] = number
            places[r, a:b] = np.arange(offset, offset + len(ids))
            offset += len(ids)
        starts[i] = text_fill[r]
        _lay(text, r, text_fill[r], example.text.ids, offset, number)
        text_fill[r] += len(example.text.ids)
    continuations = [example.text for example in examples]
    targets, sequence = _targets(continuations, text, where.row, starts)
    if blocks:
        pieces = dataclasses.replace(pieces, blocks=marks)
    if prefix:
        text = dataclasses.replace(
            text, blocks=_prefix_blocks(continuations, text, where.row, starts)
        )
    return CachedBatch(
        pieces=pieces,
        piece_owner=owner,  # type: ignore[arg-type]
        piece_positions=places,  # type: ignore[arg-type]
        text=GenerativeBatch(text, targets, sequence, len(examples)),  # type: ignore[arg-type]
    )


def fit_documents(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each document to keep so that all fit into `room`: the longest are cut
    first.

    Short documents stay whole; the others are cut to one common length (the first ones get the odd
    tokens).
    """
    kept = [0] * len(lengths)
    left = max(room, 0)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for rank, i in enumerate(order):
        kept[i] = min(lengths[i], left // (len(order) - rank))
        left -= kept[i]
    for i in range(len(lengths)):
        extra = min(lengths[i] - kept[i], left)
        kept[i] += extra
        left -= extra
    return kept


def _empty_rows(height: int, width: int, pad_id: int) -> Rows:
    shape = (height, width)
    return Rows(
        np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    )  # type: ignore[arg-type]


def _lay(rows: Rows, row: int, start: int, ids: Sequence[int], position: int, segment: int) -> None:
    end = start + len(ids)
    rows.tokens[row, start:end] = ids  # type: ignore[index]
    rows.positions[row, start:end] = np.arange(position, position + len(ids))  # type: ignore[index]
    rows.segments[row, start:end] = segment  # type: ignore[index]


def _targets(
    texts: Sequence[TokenText], rows: Rows, row: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`targets` and `sequence` of packed texts; a text's first token has none before it to predict
    it."""
    targets = np.zeros(rows.tokens.shape, np.float32)
    sequence = np.zeros(rows.tokens.shape, np.int32)
    for i, text in enumerate(texts):
        r, a = int(row[i]), int(starts[i])
        b = a + len(text.ids)
        targets[r, a:b] = text.targets
        targets[r, a] = 0
        sequence[r, a:b] = i
    return targets, sequence


def _prefix_blocks(
    texts: Sequence[TokenText], rows: Rows, row: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """1 where a packed text's tokens stand before its first target, 0 elsewhere."""
    blocks = np.zeros(rows.tokens.shape, np.int32)
    for text, r, a in zip(texts, row.tolist(), starts.tolist(), strict=True):
        targets = list(text.targets)
        blocks[r, a : a + (targets.index(True) if True in targets else len(targets))] = 1
    return blocks
