"""The language loss: of each token, and how tokens are weighted into one number."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.training.losses import LossConfig, in_blocks
from grit_jax.types import GenerativeBatch


def token_losses(
    logits_of: Callable[[jax.Array], jax.Array],
    hidden: Float[Array, "R T D"],
    tokens: Int[Array, "R T"],
    *,
    block: int = 4096,
) -> Float[Array, "R T"]:
    """Negative log-likelihood of each token given the one before it; 0 in the first column.

    Only `block` tokens' logits exist at a time; they are recomputed in the backward pass.
    """
    R, T, D = hidden.shape

    def block_losses(args) -> Float[Array, " n"]:
        h, label = args
        logits = logits_of(h)
        return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]

    # Row by row the label of token t is token t + 1; the last one's label is discarded below.
    labels = jnp.roll(tokens, -1, axis=1).reshape(R * T)
    losses = in_blocks(block_losses, (hidden.reshape(R * T, D), labels), block).reshape(R, T)
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


def language_loss(losses: Float[Array, "R T"], batch: GenerativeBatch, config: LossConfig) -> Float[Array, ""]:
    """The batch's language loss from its token losses."""
    return (losses * token_weights(batch, config)).sum()
