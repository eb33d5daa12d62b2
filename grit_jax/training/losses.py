"""What the losses are: their options, checked, and the one thing they share, a cross-entropy in
blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.sharding import constrain, num_shards

TEMPERATURE = 0.02  # grit.md 1.6: scores are divided by it
TILE = 128  # blocks of as many candidates a device, or a multiple, where they can be that large
LOWEST = -1e30  # where a running maximum starts; finite, so that nothing minus itself stays nothing

# Rows, a block of candidates and their numbers -> scores of one or more kinds, and whether they are
# a row's target's.
Scores = Callable[
    [Any, Array, Int[Array, " c"]], tuple[list[Float[Array, "... c"]], Bool[Array, "... c"]]
]
Running = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the losses are formed and added: `contrastive + generative_factor * language +
    cached_factor * cached`.

    Attributes:
      generative: the language loss over tokens: "token" sums over tokens and divides by sequences;
        "mixed" is the mean over tokens of each group of `mix_group_size` sequences (None: the whole
        batch), averaged over groups.
      emb_grad_scale: parity only: the original's effective gradient is 1/devices of the true one.
      symmetric: also the positives' direction, each positive against all queries; the mean of both
        directions.
      false_negatives: leaves out a negative that is too similar to the query to be one: by
        "absolute", its similarity is above `s - false_negative_margin`, `s` being that of the
        positive; by "relative", above `s - false_negative_margin * |s|`. A margin below 0 leaves
        out only what exceeds the positive by so much.
      mask_duplicates: leaves out a passage that is, token for token, one of the query's own
        positives.
      matryoshka_dims: the contrastive loss is the sum, by `matryoshka_weights` (none: 1 each), of
        those of the first `d` dimensions of the vectors, normalised anew. Empty: the whole vector
          alone.
      distillation_factor: adds so much of the divergence KL(teacher, student) over the passages of
        a query: the teacher's is the softmax of the row's `scores / distillation_temperature`, the
          student's that of the
        similarities over `temperature`. Above 0, every embedding row needs `scores`.
    """

    temperature: float = TEMPERATURE
    generative: Literal["token", "mixed"] = "mixed"
    generative_factor: float = 1.0
    cached_factor: float = 1.0
    mix_group_size: int | None = None
    emb_grad_scale: float = 1.0
    symmetric: bool = False
    false_negatives: Literal["none", "absolute", "relative"] = "none"
    false_negative_margin: float = 0.0
    mask_duplicates: bool = False
    matryoshka_dims: list[int] = dataclasses.field(default_factory=list)
    matryoshka_weights: list[float] = dataclasses.field(default_factory=list)
    distillation_factor: float = 0.0
    distillation_temperature: float = 1.0
    similarity_block: int = (
        4096  # a block of the similarity matrix has as many numbers as so many queries' rows of it
    )
    logits_block: int = 4096  # and one of the logits as many as those of so many tokens

    def __post_init__(self) -> None:
        for key in ("temperature", "distillation_temperature"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"train.loss.{key} must be above 0, is {getattr(self, key)}")
        for key in ("generative_factor", "cached_factor", "distillation_factor", "emb_grad_scale"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"train.loss.{key} must not be negative, is {getattr(self, key)}")
        for key in ("mix_group_size", "similarity_block", "logits_block"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"train.loss.{key} must be at least 1, is {getattr(self, key)}")
        if not math.isfinite(self.false_negative_margin):
            raise ValueError(
                "train.loss.false_negative_margin must be a number, is"
                f" {self.false_negative_margin}"
            )
        if self.false_negative_margin and self.false_negatives == "none":
            raise ValueError(
                "train.loss.false_negative_margin has no effect with train.loss.false_negatives:"
                " none"
            )
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if any(d < 1 for d in dims) or len(set(dims)) != len(dims):
            raise ValueError(
                f"train.loss.matryoshka_dims must be different numbers from 1 on, is {dims}"
            )
        if weights and len(weights) != len(dims):
            raise ValueError(
                f"train.loss.matryoshka_weights has {len(weights)} numbers, matryoshka_dims"
                f" {len(dims)}; give one for each, or none"
            )
        if any(not 0 <= w < math.inf for w in weights):
            raise ValueError(f"train.loss.matryoshka_weights must not be negative, is {weights}")


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
    """Of each row, `logsumexp(scores) - score of its target` for each kind of scores, the
    candidates block by block.

    No more scores of a kind exist at a time than those of `block` rows, nor in the backward pass,
    where they are computed again (the running sum is that of arXiv 1805.02867). Candidates that are
    split over devices are gathered once, each block as its turn comes; their gradient is summed
    over devices as often. Rows stay where they are.

    Args:
      scores: of one block; -inf for what is no candidate of a row.
      rows: arrays `[..., D]`, or `[...]`, of what there is for each row.
      row_axes, axes: logical axes of rows without `D`, and of candidates as they lie.
      split: candidates stay split as the first of their axes is, each device scoring its own; sums
        of devices are joined once, after the last block.
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
