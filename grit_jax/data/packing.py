"""Packs tokenized examples into rows of one length: the batches of `grit_jax.types`.

Packing is first fit decreasing: the longest text first, each into the first row with enough room.
The number of rows and the number of texts per row are rounded up, because every new shape compiles
a new program.

Each kind of batch is made in two steps. `place_*` needs only the lengths of the texts, and
`pack_*` writes them to their places; between the two, hosts that prepare a batch together exchange
their texts (see `multihost`). `*_batch` does both on one host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from grit_jax.data.token_texts import PromptedText, TokenCached, TokenText, max_targets
from grit_jax.types import CachedBatch, EmbeddingBatch, GenerativeBatch, Rows, TeacherRows

SEGMENT_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Placement:
    """The place of each of M texts: text `i` is segment `index[i] + 1` of row `row[i]`.

    Attributes:
      row: -1 for a text that is in no row.
      num_rows: B, padding rows included.
    """

    row: Int[np.ndarray, " M"]
    index: Int[np.ndarray, " M"]
    num_rows: int

    @property
    def most_in_a_row(self) -> int:
        """The largest number of texts in a row."""
        return int(self.index.max(initial=-1)) + 1

    def in_row_order(self) -> list[int]:
        """Numbers of the texts such that those of a row come in the order of their segments."""
        order = np.argsort(self.index, kind="stable")
        return order[self.row[order] >= 0].tolist()


@dataclasses.dataclass(frozen=True)
class GenerativePacking:
    """How generative examples are packed.

    Attributes:
      row_length: T, tokens of a row.
      row_multiple: the number of rows is rounded up to a multiple of it.
      min_rows: the least number of rows.
      min_targets: the least `max_targets` of a batch that has one.
      prefix: the tokens before a sequence's first target are a block of prefix attention.
      pad_id: token id of padding.
    """

    row_length: int
    row_multiple: int = 8
    min_rows: int = 0
    min_targets: int = 0
    prefix: bool = False
    pad_id: int = 0


@dataclasses.dataclass(frozen=True)
class EmbeddingPacking:
    """How embedding examples are packed.

    Attributes:
      row_length, row_multiple, pad_id: as in `GenerativePacking`.
      min_rows: the least number of rows (with `separate`: of rows with passages).
      min_query_rows: with `separate`, the least number of rows with queries.
      min_segments: the least `segments_per_row`.
      positives: the places for positives of each query, before those of its negatives.
      separate: queries and passages are in different rows, the queries' first.
      blocks: the pooled tokens of a text are a block of prefix attention (the paper's "cb").
    """

    row_length: int
    row_multiple: int = 8
    min_rows: int = 0
    min_query_rows: int = 0
    min_segments: int = 0
    positives: int = 1
    separate: bool = False
    blocks: bool = False
    pad_id: int = 0


@dataclasses.dataclass(frozen=True)
class CachedPacking:
    """How examples with cached texts are packed.

    Attributes:
      cached_row_length: S, tokens of a row of cached texts.
      row_length: T, tokens of a row of continuations.
      row_multiple, min_rows, min_targets, prefix, pad_id: as in `GenerativePacking`, for the
        continuations.
      blocks: a cached text without its tags is a block of prefix attention.
      teacher_row_length: U, tokens of a row that a teacher reads; None: there is no teacher.
    """

    cached_row_length: int
    row_length: int
    row_multiple: int = 8
    min_rows: int = 0
    min_targets: int = 0
    blocks: bool = False
    prefix: bool = False
    pad_id: int = 0
    teacher_row_length: int | None = None


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `number`, and at least one
    `multiple`."""
    return max(1, -(-number // multiple)) * multiple


def first_fit_decreasing(
    lengths: Sequence[int] | Sequence[tuple[int, ...]], capacity: int | tuple[int, ...]
) -> Placement:
    """Assigns texts to rows, the longest first, each to the first row with enough room.

    With tuples, a row has several capacities and a text takes up some of each.

    Raises:
      ValueError: a text is longer than a row (texts are truncated before they are packed).
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
    row, index = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    used = 0
    for i in order:
        fits = (
            (free[: used + 1] >= sizes[i]).all(1)
            if len(room) > 1
            else free[: used + 1, 0] >= sizes[i, 0]
        )
        r = int(fits.argmax())
        free[r] -= sizes[i]
        row[i], index[i] = r, count[r]
        count[r] += 1
        used = max(used, r + 1)
    return Placement(row, index, used)


# ---- embedding -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EmbeddingPlacement(Placement):
    """Where queries and passages go; the first `query_rows` rows hold queries alone."""

    segments_per_row: int
    query_rows: int

    @property
    def locations(self) -> Int[np.ndarray, " M"]:
        """`row * segments_per_row + index`. A missing passage gets the location of another text; it
        is counted nowhere."""
        located = np.where(self.row >= 0, self.row * self.segments_per_row + self.index, -1)
        in_passage_rows = self.row >= self.query_rows
        located[self.row < 0] = located[int(np.argmax(in_passage_rows))]
        return located.astype(np.int32)


def place_embedding(
    texts: Sequence[PromptedText], num_queries: int, packing: EmbeddingPacking
) -> EmbeddingPlacement:
    """Where queries and passages go; of the texts, only the lengths matter.

    Args:
      texts: the queries, then the passages; a missing passage has no ids.
    """
    present = [i for i, text in enumerate(texts) if len(text.ids)]
    if packing.separate:
        groups = [
            ([i for i in present if i < num_queries], packing.min_query_rows),
            ([i for i in present if i >= num_queries], packing.min_rows),
        ]
    else:
        groups = [(present, packing.min_rows)]
    row, index = np.full(len(texts), -1), np.zeros(len(texts), np.int64)
    ends = [0]  # of the rows of each group
    most = 0
    for numbers, min_rows in groups:
        placed = first_fit_decreasing([len(texts[i].ids) for i in numbers], packing.row_length)
        row[numbers], index[numbers] = ends[-1] + placed.row, placed.index
        most = max(most, placed.most_in_a_row)
        ends.append(ends[-1] + round_up(max(placed.num_rows, min_rows), packing.row_multiple))
    return EmbeddingPlacement(
        row,
        index,
        num_rows=ends[-1],
        segments_per_row=max(round_up(most, SEGMENT_MULTIPLE), packing.min_segments),
        query_rows=ends[1] if packing.separate else 0,
    )


def pack_embedding(
    texts: Sequence[PromptedText],
    num_queries: int,
    placement: EmbeddingPlacement,
    packing: EmbeddingPacking,
    scores: Sequence[float] | None = None,
) -> EmbeddingBatch:
    """The batch with the texts at their places.

    Args:
      texts: the queries, then as many passages for each query, its positives first.
      scores: a teacher's scores of the passages.
    """
    rows = _empty_rows(placement.num_rows, packing.row_length, packing.pad_id)
    starts = _write_texts(rows, placement, [text.ids for text in texts])
    pool = np.zeros(rows.tokens.shape, bool)
    for i in placement.in_row_order():
        begin, end = starts[i] + texts[i].prompt_length, starts[i] + len(texts[i].ids)
        pool[placement.row[i], begin:end] = True
    if packing.blocks:
        rows = dataclasses.replace(rows, blocks=pool.astype(np.int32))
    passages, locations = texts[num_queries:], placement.locations
    # Equal passages get the same number.
    numbers: dict[bytes, int] = {}
    return EmbeddingBatch(
        rows=rows,
        pool=pool,
        queries=locations[:num_queries],
        passages=locations[num_queries:],
        segments_per_row=placement.segments_per_row,
        query_rows=placement.query_rows,
        positives=packing.positives,
        texts=np.array([numbers.setdefault(text.key, len(numbers)) for text in passages], np.int32),
        present=np.array([len(text.ids) > 0 for text in passages])
        if packing.positives > 1
        else None,
        scores=None if scores is None else np.asarray(scores, np.float32),
    )


def embedding_batch(
    queries: Sequence[Sequence[int]],
    passages: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    packing: EmbeddingPacking,
    scores: Sequence[float] | None = None,
) -> EmbeddingBatch:
    """A batch of token ids, prepared on one host.

    Args:
      passages: as many for each query, its positives first; a missing one is empty.
      prompt_lengths: of the queries, then of the passages.
      scores: a teacher's scores of the passages.
    """
    texts = [
        PromptedText(ids, length)
        for ids, length in zip([*queries, *passages], prompt_lengths, strict=True)
    ]
    placement = place_embedding(texts, len(queries), packing)
    return pack_embedding(texts, len(queries), placement, packing, scores)


# ---- generative ----------------------------------------------------------------------------------


def place_generative(texts: Sequence[TokenText], packing: GenerativePacking) -> Placement:
    """Where sequences go; of the texts, only the lengths matter."""
    return _place_rows([len(text.ids) for text in texts], packing.row_length, packing)


def pack_generative(
    texts: Sequence[TokenText],
    placement: Placement,
    packing: GenerativePacking,
    distilled: Sequence[bool] | None = None,
) -> GenerativeBatch:
    """The batch with the texts at their places; `sequence` numbers them in the order given.

    Args:
      distilled: which of them are distilled from the base model; None: the run distils none.
    """
    rows = _empty_rows(placement.num_rows, packing.row_length, packing.pad_id)
    starts = _write_texts(rows, placement, [text.ids for text in texts])
    if packing.prefix:
        blocks = _prefix_blocks(texts, rows, placement.row, starts)
        rows = dataclasses.replace(rows, blocks=blocks)
    targets, sequence = _targets(texts, rows, placement.row, starts)
    if distilled is None:
        return GenerativeBatch(rows, targets, sequence, len(texts))
    marks = np.asarray(distilled, bool)[sequence] & (rows.segments > 0)
    most = min(max_targets(texts, placement.row, packing.min_targets), packing.row_length)
    return GenerativeBatch(rows, targets, sequence, len(texts), marks, most)


def generative_batch(
    texts: Sequence[TokenText],
    packing: GenerativePacking,
    distilled: Sequence[bool] | None = None,
) -> GenerativeBatch:
    """A batch for the language loss, prepared on one host."""
    return pack_generative(texts, place_generative(texts, packing), packing, distilled)


# ---- cached --------------------------------------------------------------------------------------


def place_cached(examples: Sequence[TokenCached], packing: CachedPacking) -> Placement:
    """Where examples go, each with its cached texts, its continuation and its teacher's text in the
    same row of all arrays; only lengths matter."""
    lengths = [(sum(map(len, example.cached_texts)), len(example.text.ids)) for example in examples]
    capacity = packing.cached_row_length, packing.row_length
    if packing.teacher_row_length is None:
        return _place_rows(lengths, capacity, packing)
    read = [len(example.teacher.ids) for example in examples]
    lengths_read = [(*pair, length) for pair, length in zip(lengths, read, strict=True)]
    return _place_rows(lengths_read, (*capacity, packing.teacher_row_length), packing)


def pack_cached(
    examples: Sequence[TokenCached], placement: Placement, packing: CachedPacking
) -> CachedBatch:
    """The batch with the examples at their places.

    The cached texts of an example are counted one after the other and its continuation goes on from
    there, so the positions are those of the composed prompt.
    """
    num_rows = placement.num_rows
    cached = _empty_rows(num_rows, packing.cached_row_length, packing.pad_id)
    text = _empty_rows(num_rows, packing.row_length, packing.pad_id)
    owner, positions = np.zeros_like(cached.tokens), np.zeros_like(cached.tokens)
    blocks = np.zeros_like(cached.tokens)
    cached_fill, text_fill, cached_count = [0] * num_rows, [0] * num_rows, [0] * num_rows
    starts = np.zeros(len(examples), np.int64)
    for i in placement.in_row_order():
        r, example, segment = int(placement.row[i]), examples[i], int(placement.index[i]) + 1
        offset = 0
        for ids in example.cached_texts:
            cached_count[r] += 1
            begin = cached_fill[r]
            cached_fill[r] = end = begin + len(ids)
            _write(cached, r, begin, ids, 0, cached_count[r])
            blocks[r, begin + example.prompt_length : end] = 1
            owner[r, begin:end] = segment
            positions[r, begin:end] = np.arange(offset, offset + len(ids))
            offset += len(ids)
        starts[i] = text_fill[r]
        _write(text, r, text_fill[r], example.text.ids, offset, segment)
        text_fill[r] += len(example.text.ids)
    continuations = [example.text for example in examples]
    targets, sequence = _targets(continuations, text, placement.row, starts)
    if packing.blocks:
        cached = dataclasses.replace(cached, blocks=blocks)
    if packing.prefix:
        prefixes = _prefix_blocks(continuations, text, placement.row, starts)
        text = dataclasses.replace(text, blocks=prefixes)
    generative = GenerativeBatch(text, targets, sequence, len(examples))
    teacher = None
    if packing.teacher_row_length is not None:
        teacher = _teacher_rows(examples, placement, packing, starts)
        most = max_targets(continuations, placement.row, packing.min_targets)
        generative.max_targets = min(most, packing.row_length)
    return CachedBatch(cached, owner, positions, generative, teacher)


def _teacher_rows(
    examples: Sequence[TokenCached],
    placement: Placement,
    packing: CachedPacking,
    starts: np.ndarray,
) -> TeacherRows:
    """The teacher's texts at the places of their examples.

    Args:
      starts: the token of its row where each continuation begins.
    """
    assert packing.teacher_row_length is not None
    rows = _empty_rows(placement.num_rows, packing.teacher_row_length, packing.pad_id)
    texts = [example.teacher for example in examples]
    begins = _write_texts(rows, placement, [text.ids for text in texts])
    if packing.prefix:
        blocks = _prefix_blocks(texts, rows, placement.row, begins)
        rows = dataclasses.replace(rows, blocks=blocks)
    columns = np.full((placement.num_rows, packing.row_length), -1, np.int32)
    for i, example in enumerate(examples):
        read, predicted = (np.flatnonzero(t.targets) for t in (example.teacher, example.text))
        if len(read):  # both end with the answer
            # A token is predicted from the one before it.
            columns[placement.row[i], starts[i] + predicted] = begins[i] + read - 1
    return TeacherRows(rows, columns)


def cached_batch(examples: Sequence[TokenCached], packing: CachedPacking) -> CachedBatch:
    """A batch of continuations of cached texts, prepared on one host."""
    return pack_cached(examples, place_cached(examples, packing), packing)


def fit_documents(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each document to keep so that all fit into `room`: the longest are
    truncated first.

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


# ---- rows ----------------------------------------------------------------------------------------


def _place_rows(
    lengths: Sequence[int] | Sequence[tuple[int, ...]],
    capacity: int | tuple[int, ...],
    packing: GenerativePacking | CachedPacking,
) -> Placement:
    placement = first_fit_decreasing(lengths, capacity)
    num_rows = round_up(max(placement.num_rows, packing.min_rows), packing.row_multiple)
    return dataclasses.replace(placement, num_rows=num_rows)


def _empty_rows(num_rows: int, row_length: int, pad_id: int) -> Rows:
    shape = (num_rows, row_length)
    return Rows(
        np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    )


def _write_texts(
    rows: Rows, placement: Placement, texts: Sequence[Sequence[int]]
) -> Int[np.ndarray, " M"]:
    """Writes the texts to their rows, one behind the other; returns the token where each begins."""
    fill, starts = [0] * placement.num_rows, np.zeros(len(texts), np.int64)
    for i in placement.in_row_order():
        r = int(placement.row[i])
        starts[i] = fill[r]
        _write(rows, r, fill[r], texts[i], 0, int(placement.index[i]) + 1)
        fill[r] += len(texts[i])
    return starts


def _write(
    rows: Rows, row: int, start: int, ids: Sequence[int], position: int, segment: int
) -> None:
    end = start + len(ids)
    rows.tokens[row, start:end] = ids
    rows.positions[row, start:end] = np.arange(position, position + len(ids))
    rows.segments[row, start:end] = segment


def _targets(
    texts: Sequence[TokenText], rows: Rows, row: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`targets` and `sequence` of packed texts. The first token of a text is no target: nothing
    before it predicts it."""
    targets = np.zeros(rows.tokens.shape, np.float32)
    sequence = np.zeros(rows.tokens.shape, np.int32)
    for i, text in enumerate(texts):
        r, begin = int(row[i]), int(starts[i])
        end = begin + len(text.ids)
        targets[r, begin:end] = text.targets
        targets[r, begin] = 0
        sequence[r, begin:end] = i
    return targets, sequence


def _prefix_blocks(
    texts: Sequence[TokenText], rows: Rows, row: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """1 at the tokens of a packed text before its first target, 0 elsewhere."""
    blocks = np.zeros(rows.tokens.shape, np.int32)
    for text, r, begin in zip(texts, row.tolist(), starts.tolist(), strict=True):
        blocks[r, begin : begin + text.first_target] = 1
    return blocks
