"""Blocked cross-entropy: of tokens over the vocabulary, and of any rows over candidates.

Used by training and evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

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
Running = tuple[Array, Array, Array]  # maximum, sum of exponentials, score of the target


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
    dtype = hidden.dtype
    plain = lambda head: head.dequantise(dtype) if isinstance(head, Quantised) else head
    head = plain(weights["head"]).T if "head" in weights else plain(weights["embed"])
    labels = jnp.roll(tokens, -1, axis=1)  # the last token predicts none: dropped below

    def logits(rows: tuple[Array, Array], words: Array, number: Array) -> tuple[list[Array], Array]:
        hidden, label = rows
        scores = product(hidden.astype(dtype), words.T, jnp.float32)
        return [soft_cap(scores, softcap)], label[:, :, None] == number

    (losses,) = cross_entropy(
        logits,
        (hidden.astype(jnp.float32), labels),
        jnp.asarray(head).astype(dtype),
        block,
        row_axes=("rows", "tokens"),
        axes=("vocab_out", "embed"),
        split=True,
    )
    return jnp.roll(losses, 1, axis=1).at[:, 0].set(0.0)


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

    def step(state: list[Running], given: tuple[Array, Array]) -> tuple[list[Running], None]:
        part, number = given
        kinds, target = score(rows, constrain(part, (*lead, None, None)), number)
        real = jnp.expand_dims(number >= 0, range(len(lead), target.ndim - 1))
        return [
            _on(one, jnp.where(real, x, -jnp.inf), target)
            for one, x in zip(state, kinds, strict=True)
        ], None

    rows = jax.tree.map(for_each_group, rows)
    numbers = in_blocks(jnp.arange(count) + 1) - 1  # -1 is none
    blocks = constrain(in_blocks(candidates), (None, *lead, way, *axes[1:])), numbers
    first = jax.tree.map(lambda x: x[0], blocks)
    kinds, _ = jax.eval_shape(score, rows, *first)
    state = [
        (jnp.full(x.shape[:-1], LOWEST), jnp.zeros(x.shape[:-1]), jnp.zeros(x.shape[:-1]))
        for x in kinds
    ]
    state = (
        step(state, first)[0]
        if len(numbers) == 1
        else jax.lax.scan(jax.checkpoint(step), state, blocks)[0]
    )
    if lead:
        return [
            jax.nn.logsumexp(top + jnp.log(total), axis=0) - own.sum(axis=0)
            for top, total, own in state
        ]
    return [top + jnp.log(total) - own for top, total, own in state]


def _on(running: Running, scores: Array, target: Array) -> Running:
    """The maximum, the sum and the target's score with those of one more block."""
    top, total, own = running
    new = jax.lax.stop_gradient(jnp.maximum(top, scores.max(axis=-1)))
    total = total * jnp.exp(top - new) + jnp.exp(scores - new[..., None]).sum(axis=-1)
    return new, total, own + jnp.where(target, scores, 0.0).sum(axis=-1)
