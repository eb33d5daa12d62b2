"""Log-probabilities of continuations after contexts, and whether greedy decoding writes them.

Contexts and continuations are packed into rows as texts to embed are. Logits exist at the tokens
before those of the continuations only. Pairs that differ in nothing but their last token (the
letters of a multiple-choice question) are read once.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grit_jax.errors import GritError
from grit_jax.inference.encoder import PackedTexts
from grit_jax.inference.model import GritLM
from grit_jax.inference.row_packing import RowBatch, pack_rows
from grit_jax.models.adapter_stack import choose
from grit_jax.models.config import ModelConfig
from grit_jax.models.finite import describe_cause
from grit_jax.models.transformer import Params, Transformer
from grit_jax.sharding import put_rows, to_host
from grit_jax.types import AttentionMode, Rows

LOGIT_BLOCK = 256  # tokens whose logits exist at a time
FEWEST_PLACES = 16  # smallest bucket

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and of its continuation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Places:
    """The places in packed rows after which a token is predicted (`p` a row), and the tokens whose
    log-probabilities are asked for there (`n` a place); 0 where there is none."""

    index: Int[Array, "B p"]
    tokens: Int[Array, "B p n"]


@dataclasses.dataclass
class ContinuationScores:
    """Natural logarithms of the continuations' probabilities; and whether each of their tokens is
    the most likely one in its place."""

    logprobs: Float[np.ndarray, " N"]
    greedy: Bool[np.ndarray, " N"]


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def continuation_step(
    params: Params, rows: Rows, places: Places, *, config: ModelConfig, mode: AttentionMode
) -> tuple[Float[Array, "B p n"], Int[Array, "B p"]]:
    """Log-probabilities of tokens after the given places, and the most likely token after each."""
    model = Transformer(config, choose(params, rows.adapters))
    out = model(rows.tokens, rows.positions, rows.segments, mode=mode, blocks=rows.blocks)
    B, p, n = places.tokens.shape
    hidden = jnp.take_along_axis(out.hidden, places.index[:, :, None], axis=1)

    def predict(place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state, tokens = place
        logits = model.logits(state[None])[0].astype(jnp.float32)
        return logits[tokens] - jax.nn.logsumexp(logits), jnp.argmax(logits).astype(jnp.int32)

    logprobs, best = jax.lax.map(
        predict,
        (hidden.reshape(B * p, -1), places.tokens.reshape(B * p, n)),
        batch_size=min(LOGIT_BLOCK, B * p),
    )
    return logprobs.reshape(B, p, n), best.reshape(B, p)


def score_continuations(
    model: GritLM, pairs: Sequence[Pair], *, on_scored: Callable[[int], None] = lambda count: None
) -> ContinuationScores:
    """Scores of continuations, each after its own context.

    Args:
      pairs: token ids of context and continuation, at least one each.
      on_scored: called with the number of pairs that a batch has scored.

    Raises:
      GritError: an empty context or continuation, more tokens than the model's context, an id
        outside the vocabulary, or logits that are not finite.
    """
    check_pairs(pairs, model.config)
    # A text is read without its last token, which is only predicted. The length of the context is
    # part of the key: a prefix language model reads the context bidirectionally.
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = collections.defaultdict(list)
    for number, (context, continuation) in enumerate(pairs):
        groups[len(context), (*context, *continuation[:-1])].append(number)
    texts = [ids for _, ids in groups]
    starts = [start for start, _ in groups]
    owners = list(groups.values())
    packed = PackedTexts(
        texts, starts, np.zeros((0, 0), np.float32), None, None, _adapters(model, len(texts))
    )
    scores = ContinuationScores(np.zeros(len(pairs)), np.zeros(len(pairs), bool))
    lengths = [len(ids) for ids in texts]
    under_way: collections.deque[tuple[RowBatch, tuple[jax.Array, jax.Array]]] = collections.deque()

    def collect() -> None:
        batch, output = under_way.popleft()
        logprobs, best = map(to_host, output)
        for row, members in enumerate(batch.texts):
            place = 0
            for text in members:
                size = lengths[text] - starts[text] + 1
                span = slice(place, place + size)
                _fill(scores, pairs, owners[text], logprobs[row, span], best[row, span])
                place += size
        done = [number for row in batch.texts for text in row for number in owners[text]]
        if not np.isfinite(scores.logprobs[done]).all():
            raise GritError(
                "the log-probability of a continuation is not finite: "
                + describe_cause(model.params, model.config.dtype)
            )
        on_scored(len(done))

    tokens = model.encoder.tokens_in_call()
    for batch in pack_rows(lengths, tokens, model.encoder.row_multiple):
        under_way.append((batch, _dispatch(model, batch, packed, pairs, owners)))
        if len(under_way) > 1:  # the host prepares a batch while the device computes another
            collect()
    while under_way:
        collect()
    return scores


def check_pairs(pairs: Sequence[Pair], config: ModelConfig) -> None:
    """Raises GritError: see `score_continuations`."""
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            side = "continuation" if len(context) else "context"
            raise GritError(f"pair {number}: the {side} has no tokens")
        length = len(context) + len(continuation) - 1
        if length > config.context_length:
            raise GritError(
                f"pair {number} has {length} tokens, but this model's context is"
                f" {config.context_length}"
            )
        ids = (*context, *continuation)
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            raise GritError(
                f"pair {number} has a token id outside the vocabulary (0 to"
                f" {config.vocab_size - 1})"
            )


def _dispatch(
    model: GritLM,
    batch: RowBatch,
    texts: PackedTexts,
    pairs: Sequence[Pair],
    owners: Sequence[Sequence[int]],
) -> tuple[jax.Array, jax.Array]:
    """Starts the computation of a batch."""
    rows, _ = texts.lay_out(batch, model.tokenizer.pad_id)
    if model.generation_mode is AttentionMode.PREFIX:
        blocks = np.zeros_like(rows.segments)
        for row, members in enumerate(batch.texts):
            for segment, (i, begin, _) in enumerate(texts.spans(members), 1):
                blocks[row, begin : begin + texts.pool_starts[i]] = segment
        rows = dataclasses.replace(rows, blocks=blocks)
    places = _places(batch, texts, pairs, owners)
    with jax.set_mesh(model.mesh) if model.mesh is not None else contextlib.nullcontext():
        if model.mesh is not None:
            rows, places = put_rows((rows, places), model.mesh)
        return continuation_step(
            model.params, rows, places, config=model.config, mode=model.generation_mode
        )


def _places(
    batch: RowBatch, texts: PackedTexts, pairs: Sequence[Pair], owners: Sequence[Sequence[int]]
) -> Places:
    """Host arrays, in shapes from buckets (powers of two)."""
    power = lambda number: 1 << (number - 1).bit_length()
    sizes = [sum(len(texts.ids[i]) - texts.pool_starts[i] + 1 for i in row) for row in batch.texts]
    p = power(max(FEWEST_PLACES, *sizes, 0))
    n = power(max(len(owners[i]) for row in batch.texts for i in row))
    index = np.zeros((batch.rows, p), np.int32)
    tokens = np.zeros((batch.rows, p, n), np.int32)
    for row, members in enumerate(batch.texts):
        place = 0
        for i, begin, stop in texts.spans(members):
            first = begin + texts.pool_starts[i] - 1
            size = stop - first
            index[row, place : place + size] = np.arange(first, stop)
            shared = texts.ids[i][texts.pool_starts[i] :]
            tokens[row, place : place + size - 1, 0] = shared
            last = [pairs[number][1][-1] for number in owners[i]]
            tokens[row, place + size - 1, : len(last)] = last
            place += size
    return Places(index, tokens)


def _fill(
    scores: ContinuationScores,
    pairs: Sequence[Pair],
    owners: Sequence[int],
    logprobs: Float[np.ndarray, "p n"],
    best: Int[np.ndarray, " p"],
) -> None:
    """Stores the scores of the pairs that were read as one text."""
    shared = float(logprobs[:-1, 0].astype(np.float64).sum())
    tokens = list(pairs[owners[0]][1][:-1])
    greedy = best[:-1].tolist() == tokens
    for label, number in enumerate(owners):
        scores.logprobs[number] = shared + float(logprobs[-1, label])
        scores.greedy[number] = greedy and int(best[-1]) == pairs[number][1][-1]


def _adapters(model: GritLM, texts: int) -> list[int] | None:
    """The adapter of each text: the model's own weights, where it has adapters beside them."""
    return [0] * texts if model.adapters else None
