"""Packing: every token once and in its place, rows not wasted, batches as `types.py` describes
them."""

import numpy as np
import pytest

from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    cached_batch,
    embedding_batch,
    first_fit_decreasing,
    fit_documents,
    generative_batch,
    round_up,
)
from grit_jax.data.token_texts import TokenCached, TokenText


def random_texts(seed, count, longest):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def segment(rows, r, s):
    """Tokens and positions of segment `s` of row `r`; its tokens must stand side by side."""
    here = np.flatnonzero(rows.segments[r] == s)
    assert (np.diff(here) == 1).all()
    return rows.tokens[r, here].tolist(), rows.positions[r, here].tolist(), here


def test_pack_fits_and_wastes_little():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(4, 0.8, 700).astype(int) + 1, 512)
    placement = first_fit_decreasing(lengths.tolist(), 512)
    fill = np.bincount(placement.row, lengths, placement.num_rows)
    assert fill.max() <= 512 and len(fill) == placement.num_rows
    assert placement.num_rows <= np.ceil(lengths.sum() / 512 * 1.03)
    for r in range(placement.num_rows):
        assert sorted(placement.index[placement.row == r]) == list(
            range((placement.row == r).sum())
        )


def test_pack_with_two_capacities():
    rng = np.random.default_rng(1)
    sizes = np.stack([rng.integers(0, 300, 200), rng.integers(1, 200, 200)], 1)
    placement = first_fit_decreasing([tuple(size) for size in sizes.tolist()], (512, 384))
    for column, room in enumerate((512, 384)):
        assert np.bincount(placement.row, sizes[:, column]).max() <= room
    assert placement.num_rows < 1.2 * max(sizes[:, 0].sum() / 512, sizes[:, 1].sum() / 384)


def test_pack_edges():
    assert first_fit_decreasing([], 8).num_rows == 0
    assert first_fit_decreasing([8, 8, 8], 8).num_rows == 3
    with pytest.raises(ValueError, match=r"text 1 of length .* does not fit"):
        first_fit_decreasing([3, 9], 8)
    assert [round_up(n, 8) for n in (0, 1, 8, 9)] == [8, 8, 8, 16]


def test_texts_are_where_locations_say():
    queries, passages = random_texts(2, 20, 40), random_texts(3, 40, 40)
    texts = queries + passages
    prompts = [min(3, len(text) - 1) for text in texts]
    batch = embedding_batch(queries, passages, prompts, EmbeddingPacking(64, row_multiple=8))
    assert batch.rows.tokens.shape[0] % 8 == 0 and batch.segments_per_row % 8 == 0
    for i, location in enumerate([*batch.queries.tolist(), *batch.passages.tolist()]):
        r, s = divmod(location, batch.segments_per_row)
        tokens, positions, here = segment(batch.rows, r, s + 1)
        assert tokens == texts[i] and positions == list(range(len(texts[i])))
        assert batch.pool[r, here].tolist() == [False] * prompts[i] + [True] * (
            len(texts[i]) - prompts[i]
        )
    assert (batch.rows.segments > 0).sum() == sum(map(len, texts))
    empty = batch.rows.segments == 0
    assert not batch.rows.tokens[empty].any() and not batch.pool[empty].any()


def test_lower_bounds_of_shapes():
    packing = EmbeddingPacking(2, row_multiple=4, min_rows=5, min_segments=16)
    batch = embedding_batch([[1, 2]], [[3]], [0, 0], packing)
    assert batch.rows.tokens.shape == (8, 2) and batch.segments_per_row == 16
    generative = generative_batch([TokenText([1], [True])], GenerativePacking(2, 4, min_rows=5))
    assert generative.rows.tokens.shape == (8, 2)


def test_embedding_batch():
    queries, passages = random_texts(3, 6, 20), random_texts(4, 12, 60)
    prompts = [1] * 18
    batch = embedding_batch(
        queries, passages, prompts, EmbeddingPacking(row_length=64, row_multiple=2)
    )
    for texts, places in ((queries, batch.queries), (passages, batch.passages)):
        for text, place in zip(texts, places.tolist(), strict=True):
            r, s = divmod(place, batch.segments_per_row)
            assert segment(batch.rows, r, s + 1)[0] == text
    assert batch.pool.sum() == sum(map(len, [*queries, *passages])) - 18


def found_at(batch, place):
    """Tokens of the text at a location, and placement they stand."""
    r, s = divmod(int(place), batch.segments_per_row)
    tokens, _, here = segment(batch.rows, r, s + 1)
    return tokens, r, here


def test_sides_in_rows_of_their_own():
    """More queries fit a row than passages, and both count their segments alike."""
    queries, passages = random_texts(3, 40, 6), random_texts(4, 12, 60)
    batch = embedding_batch(
        queries,
        passages,
        [0] * 52,
        EmbeddingPacking(
            row_length=64, row_multiple=2, min_rows=30, min_query_rows=7, separate=True
        ),
    )
    assert batch.query_rows == 8 and len(batch.pool) == 38
    for side, texts, places in (
        ("queries", queries, batch.queries),
        ("passages", passages, batch.passages),
    ):
        for text, place in zip(texts, places.tolist(), strict=True):
            tokens, row, _ = found_at(batch, place)
            assert tokens == text and (row < 8) == (side == "queries")


@pytest.mark.parametrize("separate", [False, True])
def test_missing_positives_leave_their_places_empty(separate):
    """Three places a query, two of them for positives; two are empty. Equal passages have equal
    numbers."""
    queries, passages = random_texts(3, 3, 20), random_texts(4, 9, 30)
    passages[1] = passages[4] = []
    passages[8] = list(passages[2])
    batch = embedding_batch(
        queries,
        passages,
        [1] * 12,
        EmbeddingPacking(row_length=64, row_multiple=2, positives=2, separate=separate),
        scores=[float(i) for i in range(9)],
    )
    assert batch.positives == 2 and batch.present.tolist() == [i not in (1, 4) for i in range(9)]
    for i in (0, 2, 3, 5, 6, 7, 8):
        assert found_at(batch, batch.passages[i])[0] == passages[i]
    same = [[batch.texts[i] == batch.texts[j] for j in range(9)] for i in range(9)]
    assert same == [[passages[i] == passages[j] for j in range(9)] for i in range(9)]
    assert batch.scores.dtype == np.float32 and batch.scores.tolist() == list(range(9))
    assert (batch.rows.segments > 0).sum() == sum(map(len, [*queries, *passages]))


def test_samples_as_blocks():
    queries, passages = random_texts(3, 6, 20), random_texts(4, 12, 60)
    queries[0] = [5, 6, 7]
    batch = embedding_batch(
        queries, passages, [2] + [0] * 17, EmbeddingPacking(row_length=64, blocks=True)
    )
    np.testing.assert_array_equal(batch.rows.blocks, batch.pool.astype(int))
    _, row, here = found_at(batch, batch.queries[0])
    assert batch.rows.blocks[row, here].tolist() == [0, 0, 1]
    assert (
        embedding_batch(queries, passages, [0] * 18, EmbeddingPacking(row_length=64)).rows.blocks
        is None
    )


def test_prefixes_as_blocks():
    """All before the first target, in texts and in continuations; a text without targets is nothing
    but prefix."""
    texts = [
        TokenText([1, 2, 3, 4], [False, False, True, True]),
        TokenText([5, 6, 7], [False] * 3),
        TokenText([8, 9], [True, True]),
    ]
    expected = {1: [1, 1, 0, 0], 5: [1, 1, 1], 8: [0, 0]}
    batch = generative_batch(texts, GenerativePacking(row_length=16, row_multiple=1, prefix=True))
    cached = cached_batch(
        [TokenCached([[20, 21, 22], [23, 24]], text, prompt_length=2) for text in texts],
        CachedPacking(
            cached_row_length=20, row_length=16, row_multiple=1, blocks=True, prefix=True
        ),
    )
    for rows in (batch.rows, cached.text.rows):
        for r, s in {(r, s) for r, s in zip(*np.nonzero(rows.segments))}:
            number = rows.segments[r, s]
            tokens, _, here = segment(rows, r, number)
            assert rows.blocks[r, here].tolist() == expected[tokens[0]]
        assert not rows.blocks[rows.segments == 0].any()
    here = cached.cached_texts.segments > 0
    assert (cached.cached_texts.blocks[here] == (cached.cached_texts.positions[here] >= 2)).all()
    assert generative_batch(texts, GenerativePacking(row_length=16)).rows.blocks is None


def test_generative_batch():
    rng = np.random.default_rng(5)
    texts = [
        TokenText(ids, (rng.random(len(ids)) < 0.5).tolist()) for ids in random_texts(5, 30, 50)
    ]
    batch = generative_batch(texts, GenerativePacking(row_length=64, row_multiple=4))
    assert batch.sequences == 30
    for i, text in enumerate(texts):
        rows = np.flatnonzero(((batch.sequence == i) & (batch.rows.segments > 0)).any(1))
        assert len(rows) == 1
        here = np.flatnonzero((batch.sequence[rows[0]] == i) & (batch.rows.segments[rows[0]] > 0))
        assert batch.rows.tokens[rows[0], here].tolist() == list(text.ids)
        # The first token of a text has nothing before it.
        assert batch.targets[rows[0], here].tolist() == [0.0, *map(float, text.targets[1:])]
    assert not batch.targets[batch.rows.segments == 0].any()


def test_cached_batch():
    examples = [
        TokenCached(
            random_texts(10 + i, i % 4, 30), TokenText([7, *ids], [False] + [True] * len(ids))
        )
        for i, ids in enumerate(random_texts(7, 25, 40))
    ]
    batch = cached_batch(
        examples, CachedPacking(cached_row_length=128, row_length=64, row_multiple=8)
    )
    assert batch.cached_texts.tokens.shape[0] == batch.text.rows.tokens.shape[0]
    assert batch.cached_texts.tokens.shape[1] == 128 and batch.text.rows.tokens.shape[1] == 64
    for i, example in enumerate(examples):
        r = int(
            np.flatnonzero(((batch.text.sequence == i) & (batch.text.rows.segments > 0)).any(1))[0]
        )
        here = (batch.text.sequence[r] == i) & (batch.text.rows.segments[r] > 0)
        (owner,) = set(batch.text.rows.segments[r, here].tolist())
        assert batch.text.rows.tokens[r, here].tolist() == list(example.text.ids)
        assert batch.text.targets[r, here].tolist() == list(map(float, example.text.targets))
        # Its pieces: in order, each a segment of its own, at the positions of the composed prompt.
        mine = np.flatnonzero(batch.cached_owner[r] == owner)
        total = sum(map(len, example.cached_texts))
        assert batch.cached_texts.tokens[r, mine].tolist() == [
            i for piece in example.cached_texts for i in piece
        ]
        assert batch.cached_positions[r, mine].tolist() == list(range(total))
        assert batch.cached_texts.positions[r, mine].tolist() == [
            p for piece in example.cached_texts for p in range(len(piece))
        ]
        lengths = [len(list(piece)) for piece in example.cached_texts]
        ids = batch.cached_texts.segments[r, mine]
        assert np.unique(ids, return_counts=True)[1].tolist() == lengths
        positions = batch.text.rows.positions[r, here].tolist()
        assert positions == list(range(total, total + len(example.text.ids)))
    assert ((batch.cached_owner > 0) == (batch.cached_texts.segments > 0)).all()


@pytest.mark.parametrize(
    "lengths, room, kept",
    [
        ([5, 5], 20, [5, 5]),
        ([10, 2, 10], 12, [5, 2, 5]),
        ([10, 2, 10], 13, [5, 2, 6]),
        ([100], 7, [7]),
        ([3, 3], 0, [0, 0]),
        ([3, 3], -5, [0, 0]),
        ([], 5, []),
    ],
)
def test_fit_documents(lengths, room, kept):
    assert fit_documents(lengths, room) == kept


def test_a_teacher_reads_every_example_in_its_own_row():
    """A target of the continuation leads to the token before the same token of the teacher's
    text."""
    rng = np.random.default_rng(0)
    examples = []
    for i in range(12):
        documents, answer = random_texts(i, 2, 12), random_texts(50 + i, 1, 9)[0]
        text = TokenText([7, 8, *answer], [False] * 2 + [True] * len(answer))
        read = [3, *documents[1], *documents[0], 7, *answer]
        teacher = TokenText(read, [i >= len(read) - len(answer) for i in range(len(read))])
        examples.append(
            TokenCached(documents, text, 0, teacher if rng.random() < 0.8 else TokenText([], []))
        )
    packing = CachedPacking(48, 40, row_multiple=2, prefix=True, teacher_row_length=50)
    batch = cached_batch(examples, packing)
    rows, columns = batch.teacher.rows, batch.teacher.columns
    assert (
        len(rows.tokens) == len(batch.text.targets) == len(columns) and rows.tokens.shape[1] == 50
    )
    seen = 0
    for i, example in enumerate(examples):
        predicted = (batch.text.sequence == i) & (batch.text.targets > 0)
        (r,) = set(np.nonzero(predicted)[0].tolist())
        if not example.teacher.ids:
            assert (columns[predicted] == -1).all()
            continue
        seen += 1
        np.testing.assert_array_equal(
            rows.tokens[r, columns[predicted] + 1], batch.text.rows.tokens[predicted]
        )
        (segment,) = set(rows.segments[r, columns[predicted] + 1].tolist())
        here = rows.segments[r] == segment
        assert rows.tokens[r, here].tolist() == list(example.teacher.ids)
        assert rows.positions[r, here].tolist() == list(range(here.sum()))
        # What stands before the answer is one block of prefix attention.
        assert (rows.blocks[r, here] == ~np.array(example.teacher.targets)).all()
    assert 0 < seen < len(examples)
    assert ((columns >= 0) <= (batch.text.targets > 0)).all()


def test_a_teachers_row_limits_what_is_packed_into_one():
    text = TokenText([1, 2], [False, True])
    examples = [TokenCached([[5]], text, 0, TokenText([1] * 6, [False] * 5 + [True]))] * 4
    rows = lambda length: len(
        cached_batch(examples, CachedPacking(99, 99, 1, teacher_row_length=length)).text.targets
    )
    assert (rows(None), rows(24), rows(12), rows(6)) == (1, 1, 2, 4)
    assert cached_batch(examples, CachedPacking(99, 99, 1)).teacher is None
