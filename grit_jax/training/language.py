"""The language loss of a batch: how the losses of its tokens are weighted into one number, and what
a pass over packed sequences returns."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.models.cache import KVCache
from grit_jax.models.transformer import Transformer
from grit_jax.training.losses import LossConfig
from grit_jax.training.step_config import StepConfig
from grit_jax.types import GenerativeBatch, ModelOutput, RouterStats, Rows

Parts = dict[str, Float[Array, ""]]  # losses and other numbers by name


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


@dataclasses.dataclass
class LanguagePass:
    """The language loss of a pass, how its tokens were spread over experts (None without them), the
    divergence from a teacher (None without one), and further metrics."""

    loss: Float[Array, ""]
    router: RouterStats | None
    divergence: Float[Array, ""] | None = None
    metrics: Parts = dataclasses.field(default_factory=dict)


def read_rows(
    model: Transformer, rows: Rows, config: StepConfig, cache: KVCache | None = None
) -> ModelOutput:
    """Packed sequences as the language loss reads them, after cached documents where there are
    any."""
    return model(
        rows.tokens,
        rows.positions,
        rows.segments,
        mode=config.generation_mode,
        cache=cache,
        blocks=rows.blocks,
    )


def target_columns(text: GenerativeBatch) -> Int[Array, "B A"]:
    """The columns of each row's targets, padded with others (of weight 0): logits are much of the
    work, and are computed at targets alone."""
    columns = jnp.argsort(text.targets <= 0, axis=1, stable=True)
    return columns[:, : text.max_targets or text.targets.shape[1]]


def states_at(hidden: Float[Array, "B T D"], columns: Int[Array, "B A"]) -> Float[Array, "B A D"]:
    """The hidden states of some columns of each row; those of column 0 for a column below it."""
    return jnp.take_along_axis(hidden, jnp.maximum(columns, 0)[:, :, None], axis=1)
