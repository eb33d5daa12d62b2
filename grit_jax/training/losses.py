"""The losses of the joint step, as pure functions of representations and hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grit_jax.types import GenerativeBatch

TEMPERATURE = 0.02  # grit.md 1.6: scores are divided by it


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the losses are formed and added: `contrastive + generative_factor * language + cached_factor * cached`.

    `generative` is the language loss over tokens: "token" sums over tokens and divides by sequences; "mixed" is
    the mean over tokens of each group of `mix_group_size` sequences (None: the whole batch), averaged over groups.
    """

    temperature: float = TEMPERATURE
    generative: Literal["token", "mixed"] = "mixed"
    generative_factor: float = 1.0
    cached_factor: float = 1.0
    mix_group_size: int | None = None
    emb_grad_scale: float = 1.0  # parity only: the original's effective gradient is 1/devices of the true one
    similarity_block: int = 4096  # queries per block of the similarity matrix
    logits_block: int = 4096  # tokens per block of the vocabulary's logits

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"train.loss.temperature must be above 0, is {self.temperature}")


def contrastive_loss(
    queries: Float[Array, "Q D"],
    passages: Float[Array, "P D"],
    *,
    temperature: float = TEMPERATURE,
    block: int = 4096,
) -> Float[Array, ""]:
    """InfoNCE over the global batch (`gritlm: gritlm/training/model.py:36-47`).

    The positive of query `i` is passage `i * (P // Q)`; every other passage is a negative. Representations come
    normalised. Only `block` rows of the Q x P similarity exist at a time.
    """
    count = queries.shape[0]
    group = passages.shape[0] // count
    targets = jnp.arange(count) * group

    def block_losses(args) -> Float[Array, " q"]:
        q, target = args
        scores = jnp.einsum("qd,pd->qp", q, passages, preferred_element_type=jnp.float32) / temperature
        return jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]

    return _in_blocks(block_losses, (queries, targets), block).mean()


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
    losses = _in_blocks(block_losses, (hidden.reshape(R * T, D), labels), block).reshape(R, T)
    return jnp.roll(losses, 1, axis=1).at[:, 0].set(0.0)


def language_loss(losses: Float[Array, "R T"], batch: GenerativeBatch, config: LossConfig) -> Float[Array, ""]:
    """The batch's language loss from its token losses (`gritlm: gritlm/training/model.py:87-107`)."""
    weighted = losses * batch.targets
    if config.generative == "token":
        return weighted.sum() / batch.sequences
    if config.mix_group_size is None or config.mix_group_size >= batch.sequences:
        return weighted.sum() / jnp.maximum(batch.targets.sum(), 1.0)
    groups = -(-batch.sequences // config.mix_group_size)
    group = batch.sequence // config.mix_group_size
    total = jnp.zeros(groups).at[group].add(weighted)
    count = jnp.zeros(groups).at[group].add(batch.targets)
    return (total / jnp.maximum(count, 1.0)).mean()


def _in_blocks(function, arrays, block: int) -> Float[Array, " n"]:
    """`function` over blocks of the leading axis, each recomputed in the backward pass; one value a row."""
    count = arrays[0].shape[0]
    if count <= block:
        return function(arrays)
    pad = -count % block
    padded = [jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)) for a in arrays]
    blocks = [a.reshape(-1, block, *a.shape[1:]) for a in padded]
    return jax.lax.map(jax.checkpoint(function), tuple(blocks)).reshape(-1)[:count]
