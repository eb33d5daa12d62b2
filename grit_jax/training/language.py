"""The language loss of a batch: how the losses of its tokens are weighted into one number."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from grit_jax.training.losses import LossConfig
from grit_jax.types import GenerativeBatch


def token_weights(batch: GenerativeBatch, config: LossConfig) -> Float[Array, "B T"]:
    """The weight of each token's loss in the batch's (`gritlm: gritlm/training/model.py:87-107`).

    The weights depend on the batch alone: rows may be taken in any portions and their sums added.
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
    losses: Float[Array, "B T"], batch: GenerativeBatch, config: LossConfig
) -> Float[Array, ""]:
    """The batch's language loss from its token losses."""
    return (losses * token_weights(batch, config)).sum()
