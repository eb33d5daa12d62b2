"""Blocked cross-entropy: of tokens over the vocabulary, and of any rows over candidates; and the
divergence of tokens from a teacher.

Used by training and evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models.kernels import soft_cap
from grit_jax.models.layers import Weights, product
from grit_jax.models.quantise import Quantised
from grit_jax.sharding import constrain, num_shards

TILE = 128  # larger blocks have a multiple of this many candidates per device
LOWEST = -1e30  # start of a running maximum: finite, since `-inf - (-inf)` is NaN

# (rows, a block of candidates, the candidates' numbers) -> scores of one or more kinds, and whether
# a score is that of the row's target.
Scores = Callable[
    [Any, Array, Int[Array, " c"]], tuple[list[Float[Array, "... c"]], Bool[Array, "... c"]]
]
Computed = TypeVar("Computed")  # arrays [..., c]: what is computed for a block of c candidates
State = TypeVar("State")
Running = tuple[Array, Array, Array]  # maximum, sum of exponentials, score of the target
# Of a teacher: maximum, sum of exponentials, and their sum weighted by the difference between the
# teacher's and the student's scores.
Compared = tuple[Array, Array, Array]


def token_losses(
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    weights: Weights,
    *,
    softcap: float | None = None,
    block: int = 4096,
) -> Float[Array, "B T"]:
    """Negative log-likelihood of each token given the one before it; 0 in the first column.

    The vocabulary is taken in blocks: no more logits exist at a time than those of `block` tokens
    over the whole vocabulary, and each part of an output head that is split over devices is
    gathered once. A token's gradient is summed over the blocks in float32.

    Args:
      weights: those outside the layers; the logits are `hidden @ head`, and `hidden @ embed.T` for
        a model without a head.
      softcap: of the logits (see `kernels.soft_cap`).
    """
    labels = jnp.roll(tokens, -1, axis=1)  # the last token predicts none: dropped below
    losses = target_losses(hidden, labels, weights, softcap=softcap, block=block)
    return jnp.roll(losses, 1, axis=1).at[:, 0].set(0.0)


def target_losses(
    hidden: Float[Array, "B A D"],
    labels: Int[Array, "B A"],
    weights: Weights,
    *,
    softcap: float | None = None,
    block: int = 4096,
) -> Float[Array, "B A"]:
    """Negative log-likelihood of the tokens `labels`, each given the state from which it is
    predicted; see `token_losses`."""

    def logits(rows: tuple[Array, Array], words: Array, number: Array) -> tuple[list[Array], Array]:
        hidden, label = rows
        return [_logits(hidden, words, softcap)], label[:, :, None] == number

    (losses,) = cross_entropy(
        logits,
        (hidden.astype(jnp.float32), labels),
        _words(weights, hidden.dtype),
        block,
        row_axes=("rows", "tokens"),
        axes=("vocab_out", "embed"),
        split=True,
    )
    return losses


@dataclasses.dataclass
class DistilledLosses:
    """Losses of predicted tokens.

    Attributes:
      nll: negative log-likelihood.
      divergence: KL(teacher, student) over the vocabulary.
    """

    nll: Float[Array, "B A"]
    divergence: Float[Array, "B A"]


def distilled_losses(
    hidden: Float[Array, "B A D"],
    teacher: Float[Array, "B A D"],
    labels: Int[Array, "B A"],
    weights: Weights,
    *,
    softcap: float | None = None,
    block: int = 4096,
) -> DistilledLosses:
    """Losses of tokens given the states before them: beside the negative log-likelihood, the
    divergence from a teacher with the same head.

    The divergence of the token's distributions `p` (teacher) and `q` (student) is
    `sum(p * (log p - log q))` over the vocabulary, in float32. Both models' logits are computed
    block by block in one pass, and no more of them exist at a time than `block` tokens have over
    the whole vocabulary. The teacher gets no gradient, neither does the head from its logits.

    Args:
      hidden: states of the student from which the tokens `labels` are predicted.
      teacher: those of the teacher.
      weights, softcap: as in `token_losses`.
    """
    dtype = hidden.dtype

    def logits(rows: Any, words: Array, number: Array) -> tuple[Array, Array, Array]:
        hidden, teacher, label = rows
        fixed = _logits(teacher.astype(dtype), jax.lax.stop_gradient(words), softcap)
        return _logits(hidden, words, softcap), fixed, label[:, :, None] == number

    def start(shapes: tuple[Array, Array, Array]) -> tuple[Running, Compared]:
        return _start(shapes[0]), _start(shapes[1])

    def update(
        state: tuple[Running, Compared], scores: tuple[Array, Array, Array], real: Array
    ) -> tuple[Running, Compared]:
        student, fixed, target = scores
        running, (top, total, difference) = state
        new = jnp.maximum(top, jnp.where(real, fixed, -jnp.inf).max(axis=-1))
        share = jnp.where(real, jnp.exp(fixed - new[..., None]), 0.0)
        # Of each candidate, not of the sums: where the two agree, it is exactly 0.
        apart = (share * (fixed - student)).sum(axis=-1)
        shrunk = jnp.exp(top - new)
        compared = new, total * shrunk + share.sum(axis=-1), difference * shrunk + apart
        return _on(running, jnp.where(real, student, -jnp.inf), target), compared

    rows = hidden.astype(jnp.float32), jax.lax.stop_gradient(teacher).astype(jnp.float32), labels
    running, compared = _over_blocks(
        _Reduction(logits, start, update),
        rows,
        _words(weights, dtype),
        max(1, block // 2),
        row_axes=("rows", "tokens"),
        axes=("vocab_out", "embed"),
        split=True,
    )
    top, total, own = running
    fixed_top, fixed_total, difference = compared
    if top.ndim > labels.ndim:  # sums over parts of the vocabulary
        normaliser = jax.nn.logsumexp(top + jnp.log(total), axis=0)
        fixed = jax.nn.logsumexp(fixed_top + jnp.log(fixed_total), axis=0)
        own = own.sum(axis=0)
        mean = (difference * jnp.exp(fixed_top - fixed)).sum(axis=0)
    else:
        normaliser, fixed = top + jnp.log(total), fixed_top + jnp.log(fixed_total)
        mean = difference / fixed_total
    return DistilledLosses(normaliser - own, mean - fixed + normaliser)


def _words(weights: Weights, dtype: jnp.dtype) -> Float[Array, "V D"]:
    """The vectors of the vocabulary's words, by whose products with hidden states logits arise."""
    plain = lambda head: head.dequantise(dtype) if isinstance(head, Quantised) else head
    head = plain(weights["head"]).T if "head" in weights else plain(weights["embed"])
    return jnp.asarray(head).astype(dtype)


def _logits(
    hidden: Float[Array, "B T D"], words: Float[Array, "v D"], softcap: float | None
) -> Float[Array, "B T v"]:
    return soft_cap(product(hidden.astype(words.dtype), words.T, jnp.float32), softcap)


def cross_entropy(
    scores: Scores,
    rows: Any,
    candidates: Float[Array, "C D"],
    block: int,
    *,
    row_axes: Sequence[str | None],
    axes: Sequence[str | None],
    split: bool = False,
) -> list[Array]:
    """`logsumexp(scores) - score of the target` of each row and kind of scores, computed in blocks
    of candidates.

    No more scores of a kind exist at a time than those of `block` rows with all candidates. The
    backward pass computes them again, block by block (running sum: arXiv 1805.02867). Sharded
    candidates are gathered once, one block at a time, and their gradient is summed over devices in
    the same way. Rows stay sharded.

    Args:
      scores: computes the scores of a block; -inf where a candidate does not count for a row.
      rows: arrays `[..., D]` or `[...]`: the values of each row.
      block: bounds memory, as above.
      row_axes, axes: logical axes of the rows (without `D`) and of the candidates.
      split: candidates stay sharded along their first axis, and each device scores its own; the
        sums are joined once, after the last block.
    """

    def update(
        state: list[Running], given: tuple[list[Array], Array], real: Array
    ) -> list[Running]:
        kinds, target = given
        return [
            _on(one, jnp.where(real, x, -jnp.inf), target)
            for one, x in zip(state, kinds, strict=True)
        ]

    state = _over_blocks(
        _Reduction(scores, lambda shapes: [_start(x) for x in shapes[0]], update),
        rows,
        candidates,
        block,
        row_axes=row_axes,
        axes=axes,
        split=split,
    )
    if state[0][0].ndim > len(row_axes):  # of parts of the candidates
        return [
            jax.nn.logsumexp(top + jnp.log(total), axis=0) - own.sum(axis=0)
            for top, total, own in state
        ]
    return [top + jnp.log(total) - own for top, total, own in state]


@dataclasses.dataclass(frozen=True)
class _Reduction(Generic[Computed, State]):
    """What is computed for each block of candidates, and how it joins the numbers so far.

    Attributes:
      scores: computes the scores of a block, arrays `[..., c]`.
      start: the state before the first block, from the shapes of a block's scores.
      update: the state with the scores of one more block, and whether a candidate is real.
    """

    scores: Callable[[Any, Array, Int[Array, " c"]], Computed]
    start: Callable[[Computed], State]
    update: Callable[[State, Computed, Bool[Array, "... c"]], State]


def _over_blocks(
    reduction: _Reduction[Computed, State],
    rows: Any,
    candidates: Float[Array, "C D"],
    block: int,
    *,
    row_axes: Sequence[str | None],
    axes: Sequence[str | None],
    split: bool,
) -> State:
    """Running numbers of each row over all blocks of candidates (see `cross_entropy`).

    With `split` candidates on several devices, the numbers have a leading axis: those of each part.
    """
    scores = reduction.scores
    count, leaf = candidates.shape[0], jax.tree.leaves(rows)[0]
    number_of_rows = math.prod(leaf.shape[: len(row_axes)])
    groups, ways = (num_shards(axes[0], count), 1) if split else (1, num_shards(axes[0], count))
    each = count // (groups * ways)
    if number_of_rows > block:
        each = max(1, round(block * each / number_of_rows))
        each = each if each < TILE else round(each / TILE) * TILE
    # With one group no array has an axis for it: XLA's CPU backend is half as fast at products of
    # one batch.
    lead, way, score = ((axes[0],), None, jax.vmap(scores)) if groups > 1 else ((), axes[0], scores)

    def in_blocks(x: Array) -> Array:
        """`[n, (groups), ways * each, ...]`: each block has as many from every device, so that
        nothing is sent."""
        parts = x.reshape(groups, ways, -1, *x.shape[1:])
        parts = jnp.pad(
            parts, [(0, 0), (0, 0), (0, -parts.shape[2] % each)] + [(0, 0)] * (x.ndim - 1)
        )
        parts = jnp.moveaxis(parts.reshape(groups, ways, -1, each, *x.shape[1:]), 2, 0)
        return parts.reshape(-1, *[groups] * len(lead), ways * each, *x.shape[1:])

    def for_each_group(x: Array) -> Array:
        rest = [None] * (x.ndim - len(row_axes))
        return (
            constrain(jnp.broadcast_to(x, (groups, *x.shape)), (*lead, *row_axes, *rest))
            if lead
            else x
        )

    def step(state: State, given: tuple[Array, Array]) -> tuple[State, None]:
        part, number = given
        computed = score(rows, constrain(part, (*lead, None, None)), number)
        dimensions = jax.tree.leaves(computed)[0].ndim
        real = jnp.expand_dims(number >= 0, range(len(lead), dimensions - 1))
        return reduction.update(state, computed, real), None

    rows = jax.tree.map(for_each_group, rows)
    numbers = in_blocks(jnp.arange(count) + 1) - 1  # -1 is none
    blocks = constrain(in_blocks(candidates), (None, *lead, way, *axes[1:])), numbers
    first = jax.tree.map(lambda x: x[0], blocks)
    state = reduction.start(jax.eval_shape(score, rows, *first))
    if len(numbers) == 1:
        return step(state, first)[0]
    return jax.lax.scan(jax.checkpoint(step), state, blocks)[0]


def _start(scores: Array) -> tuple[Array, Array, Array]:
    """The running numbers before the first block, for scores `[..., c]`."""
    shape = scores.shape[:-1]
    return jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros(shape)


def _on(running: Running, scores: Array, target: Array) -> Running:
    """The maximum, the sum and the target's score with those of one more block."""
    top, total, own = running
    new = jax.lax.stop_gradient(jnp.maximum(top, scores.max(axis=-1)))
    total = total * jnp.exp(top - new) + jnp.exp(scores - new[..., None]).sum(axis=-1)
    return new, total, own + jnp.where(target, scores, 0.0).sum(axis=-1)
