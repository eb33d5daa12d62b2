"""Log-probabilities of chosen tokens, and of the most likely ones beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

TOP = 20  # most likely tokens that are returned, OpenAI's limit


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TokenLogprobs:
    """Log-probabilities under the model's own distribution, before temperature and adjustments.

    Arrays of one call of the engine are `[B n ..]`; those of an answer or a prompt are `[n ..]`.

    Attributes:
      chosen: of each token.
      top, top_ids: of the `TOP` most likely tokens, best first.
    """

    chosen: Float[Array, "*n"]
    top: Float[Array, "*n k"]
    top_ids: Int[Array, "*n k"]

    def __getitem__(self, index: object) -> TokenLogprobs:
        return jax.tree.map(lambda array: array[index], self)

    def __len__(self) -> int:
        return len(self.chosen)

    def with_column(self, new: TokenLogprobs, step: Int[Array, ""]) -> TokenLogprobs:
        """Those of a call `[B n ..]` with the tokens of one step `[B ..]`."""
        write = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(
            whole, part[:, None], step, 1
        )
        return jax.tree.map(write, self, new)


def joined(parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
    """Those of consecutive tokens, in host arrays."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def no_logprobs(shape: Sequence[int], vocab_size: int) -> TokenLogprobs:
    """Zeros, where nothing is asked for."""
    k = min(TOP, vocab_size)
    return TokenLogprobs(
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, k), jnp.float32),
        jnp.zeros((*shape, k), jnp.int32),
    )


def logprobs_of(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> TokenLogprobs:
    """Log-probabilities of one token of each row, and of the row's most likely ones."""
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, ids = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    return TokenLogprobs((chosen - total)[:, 0], top - total, ids.astype(jnp.int32))


def with_labels(
    logprobs: TokenLogprobs, logits: Float[Array, "B V"], labels: Int[Array, "B l"]
) -> TokenLogprobs:
    """With the log-probabilities of labels in the first places of the most likely tokens; -1: the
    place keeps its token."""
    logits, count = logits.astype(jnp.float32), min(labels.shape[1], logprobs.top.shape[1])
    labels = labels[:, :count]
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=-1) - total
    place = lambda whole, part: whole.at[:, :count].set(
        jnp.where(labels >= 0, part, whole[:, :count])
    )
    return dataclasses.replace(
        logprobs, top=place(logprobs.top, own), top_ids=place(logprobs.top_ids, labels)
    )


def wanted_logprobs(
    logits: Float[Array, "B V"],
    tokens: Int[Array, " B"],
    wanted: Bool[Array, " B"],
    labels: Int[Array, "B l"] | None = None,
) -> TokenLogprobs:
    """`logprobs_of`, with `labels` if there are some; skipped when it runs if no row wants them."""

    def found(logits: jax.Array, tokens: jax.Array) -> TokenLogprobs:
        logprobs = logprobs_of(logits, tokens)
        return logprobs if labels is None else with_labels(logprobs, logits, labels)

    return jax.lax.cond(
        wanted.any(),
        found,
        lambda logits, tokens: no_logprobs(tokens.shape, logits.shape[-1]),
        logits,
        tokens,
    )
