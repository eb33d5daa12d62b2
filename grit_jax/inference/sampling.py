"""From logits to the next token: greedy, temperature, top-k and top-p, a seed for each request.

A request's tokens depend on its prompt, its settings and its seed alone, not on the rest of the
batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from grit_jax.errors import GritError
from grit_jax.inference.adjustments import PLAIN, Adjustments
from grit_jax.runtime.arguments import finite_number, whole_number
from grit_jax.text.length import MAX_NEW_TOKENS

INT32_MAX = 2**31 - 1
# Far below the probability of the most likely token of any vocabulary, so that a smaller top_p
# means the same; and far above the numbers that XLA flushes to zero, which would keep no token.
SMALLEST_TOP_P = 1e-30


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a request is decoded.

    Args:
      max_new_tokens: at most so many. The default is lowered to what the prompt leaves of the
        model's context.
      temperature: 0 is greedy.
      top_p: keeps the smallest set of tokens with this much probability (1: all), after `top_k`.
      top_k: keeps the most likely tokens (0: all).
      seed: any whole number; taken modulo 2**32.
      ignore_eos: continue to `max_new_tokens` past an end of sequence (for benchmarks).
      adjustments: penalties, biases and log-probabilities.

    Raises:
      GritError: a value of another type or out of range.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False
    adjustments: Adjustments = PLAIN

    def __post_init__(self) -> None:
        whole_number("max_new_tokens", self.max_new_tokens, 1)
        if finite_number("temperature", self.temperature) < 0:
            raise GritError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if not 0 < finite_number("top_p", self.top_p) <= 1:
            raise GritError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if whole_number("top_k", self.top_k) < 0:
            raise GritError(f"top_k must be 0 (all tokens) or above, got {self.top_k}")
        whole_number("seed", self.seed)


GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingRows:
    """The settings of `B` requests as arrays."""

    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    top_k: Int[Array, " B"]
    seed: UInt[Array, " B"]


def sampling_rows(requests: Sequence[Sampling]) -> SamplingRows:
    """Host arrays of the requests' settings."""
    hottest = float(np.finfo(np.float32).max)
    return SamplingRows(
        temperature=np.asarray([min(r.temperature, hottest) for r in requests], np.float32),
        top_p=np.asarray([max(r.top_p, SMALLEST_TOP_P) for r in requests], np.float32),
        top_k=np.asarray([min(r.top_k, INT32_MAX) for r in requests], np.int32),
        seed=np.asarray([int(r.seed) % 2**32 for r in requests], np.uint32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SlotSettings:
    """How each slot's tokens are chosen, and when its answer ends: after `limit` tokens, or with
    one of the engine's ends of sequence unless `ignore_eos`."""

    sampling: SamplingRows
    limit: Int[Array, " B"]
    ignore_eos: Bool[Array, " B"]


def settings_of(samplings: Sequence[Sampling]) -> SlotSettings:
    """Host arrays of requests' settings."""
    return SlotSettings(
        sampling_rows(samplings),
        np.asarray([sampling.max_new_tokens for sampling in samplings], np.int32),
        np.asarray([sampling.ignore_eos for sampling in samplings], bool),
    )


def sample(
    logits: Float[Array, "B V"], rows: SamplingRows, step: Int[Array, " B"] | Int[Array, ""]
) -> Int[Array, " B"]:
    """The token number `step` of every row (one number for all, or one for each).

    Temperature is applied first, then top-k, then top-p, as by transformers' logits warpers; tokens
    that tie with the last one kept are kept, too. The draw is `argmax(logits + Gumbel noise)` with
    a key made of the row's seed and `step`.

    One program serves every setting: what no row needs is skipped when it runs.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    drawn = rows.temperature > 0

    def filtered(scaled: jax.Array) -> jax.Array:
        return jnp.where(kept(scaled, rows.top_k, rows.top_p), scaled, -jnp.inf)

    def draw(logits: jax.Array) -> jax.Array:
        scaled = logits.astype(jnp.float32) / jnp.maximum(rows.temperature, 1e-6)[:, None]
        filters = drawn & ((rows.top_p < 1) | (rows.top_k > 0))
        scaled = jax.lax.cond(filters.any(), filtered, lambda scaled: scaled, scaled)
        noise = jax.vmap(
            lambda seed, step: jax.random.gumbel(
                jax.random.fold_in(jax.random.key(seed), step), scaled.shape[1:]
            )
        )
        steps = jnp.broadcast_to(step, rows.seed.shape)
        return jnp.argmax(scaled + noise(rows.seed, steps), axis=-1).astype(jnp.int32)

    return jnp.where(drawn, jax.lax.cond(drawn.any(), draw, lambda _: best, logits), best)


def is_end(token: Int[Array, " B"], eos: Int[Array, " n"] | Int[Array, "B n"]) -> Bool[Array, " B"]:
    """Whether a token ends its answer; `eos` are the same for all rows, or those of each."""
    return (token[:, None] == eos).any(axis=-1)


def kept(
    logits: Float[Array, "B V"], top_k: Int[Array, " B"], top_p: Float[Array, " B"]
) -> Bool[Array, "B V"]:
    """The tokens that top-k and then top-p leave.

    The threshold is found by bisection over the bits of a float32: 32 sums over the vocabulary,
    several times as fast as sorting it on every platform.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    # Unsigned integers in the order of the floats: the bits of negative numbers are inverted, the
    # positive ones are placed above them.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    count = jnp.where(top_k > 0, top_k, logits.shape[-1]).astype(jnp.float32)
    keep = order >= _threshold(order, jnp.ones_like(logits), count)[:, None]
    p = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf), axis=-1)
    # top_p = 1 keeps everything, whatever the sum is rounded to.
    floor = jnp.where(top_p < 1, _threshold(order, p, top_p * p.sum(-1)), 0)
    return keep & (order >= floor[:, None])


def _threshold(
    order: UInt[Array, "B V"], weight: Float[Array, "B V"], mass: Float[Array, " B"]
) -> UInt[Array, " B"]:
    """The highest threshold for which the tokens at or above it weigh at least `mass`."""

    def bit(index, low):
        trial = low | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        above = jnp.sum(jnp.where(order >= trial[:, None], weight, 0.0), axis=-1)
        return jnp.where(above >= mass, trial, low)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(order.shape[:1], jnp.uint32))
