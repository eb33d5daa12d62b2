"""The language loss: of each token, and how tokens are weighted into one number."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.kernels import soft_cap
from grit_jax.models.layers import Weights, product
from grit_jax.training.losses import LossConfig, cross_entropy
from grit_jax.types import GenerativeBatch


def token_losses(
    hidden: Float[Array, "R T D"],
    tokens: Int[Array, "R T"],
    weights: Weights,
    *,
    softcap: float | None = None,
    block: int = 4096,
) -> Float[Array, "R T"]:
    """Negative log-likelihood of each token given the one before it; 0 in the first column.

    The vocabulary is taken in blocks, so that no more logits exist at a time than those of `block`
    tokens, and that each part of an output head that is split over devices is gathered once. A
    token's gradient is summed over the blocks in float32.

    Args:
      weights: those outside the layers: the logits are `hidden @ head`, or by the embedding table
        where there is none.
      softcap: bends the logits (`models.kernels.soft_cap`).
    """
    dtype = hidden.dtype
    head = weights["head"].T if "head" in weights else weights["embed"]
    labels = jnp.roll(tokens, -1, axis=1)  # the last one's is discarded below

    def logits(rows: tuple[Array, Array], words: Array, number: Array) -> tuple[list[Array], Array]:
        hidden, label = rows
        found = product(hidden.astype(dtype), words.T, jnp.float32)
        return [soft_cap(found, softcap)], label[:, :, None] == number

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


def token_weights(batch: GenerativeBatch, config: LossConfig) -> Float[Array, "R T"]:
    """What each token's loss counts in the batch's (`gritlm: gritlm/training/model.py:87-107`).

    They depend on the batch alone, so that rows can be taken in any portions and their sums added.
    """
    targets = batch.targets
    if config.generative == "token":
        return targets / batch.sequences
    if config.mix_group_size is None or config.mix_group_size >= batch.sequences:
        return targets / jnp.maximum(targets.sum(), 1.0)
    groups = -(-batch.sequences // config.mix_group_size)
    group = batch.sequence // config.mix_group_size
    count = jnp.zeros(groups).at[group].add(targets)
    return targets / (groups * jnp.maximum(count, 1.0)[group])


def language_loss(
    losses: Float[Array, "R T"], batch: GenerativeBatch, config: LossConfig
) -> Float[Array, ""]:
    """The batch's language loss from its token losses."""
    return (losses * token_weights(batch, config)).sum()
