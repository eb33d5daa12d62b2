"""From logits to the next token: greedy, temperature, top-k, top-p, each request with its own seed.

A request's tokens depend on its prompt, its settings and its seed alone, not on what else is in the
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


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a request is decoded.

    Args:
      temperature: 0 is greedy.
      top_p: the smallest set of tokens with this much probability is kept (1: all), after `top_k`.
      top_k: the most likely tokens kept (0: all).
      ignore_eos: goes on to `max_new_tokens` whatever the model says (benchmarks).

    Raises:
      GritError: a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GritError(f"max_new_tokens must be at least 1, is {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise GritError(f"temperature must be 0 (greedy) or above, is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise GritError(f"top_p must be above 0 and at most 1, is {self.top_p}")
        if self.top_k < 0:
            raise GritError(f"top_k must be 0 (all tokens) or above, is {self.top_k}")


GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingRows:
    """The settings of `B` requests as arrays, and (static) what of sampling any of them needs."""

    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    top_k: Int[Array, " B"]
    seed: UInt[Array, " B"]
    greedy: bool = dataclasses.field(metadata={"static": True}, default=False)
    filtered: bool = dataclasses.field(metadata={"static": True}, default=False)


def sampling_rows(requests: Sequence[Sampling]) -> SamplingRows:
    """Host arrays of the requests' settings."""
    drawn = [r for r in requests if r.temperature > 0]
    return SamplingRows(
        temperature=np.asarray([r.temperature for r in requests], np.float32),  # type: ignore[arg-type]
        top_p=np.asarray([r.top_p for r in requests], np.float32),  # type: ignore[arg-type]
        top_k=np.asarray([r.top_k for r in requests], np.int32),  # type: ignore[arg-type]
        seed=np.asarray([r.seed % 2**32 for r in requests], np.uint32),  # type: ignore[arg-type]
        greedy=not drawn,
        filtered=any(r.top_p < 1 or r.top_k > 0 for r in drawn),
    )


def sample(
    logits: Float[Array, "B V"], rows: SamplingRows, step: Int[Array, ""]
) -> Int[Array, " B"]:
    """The token number `step` of every row.

    Temperature first, then top-k, then top-p, as transformers' logits warpers do; tokens that tie
    with the last one kept are kept too. The draw is `argmax(logits + Gumbel noise)` with a key made
    of the row's seed and `step`.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if rows.greedy:
        return best
    scaled = logits.astype(jnp.float32) / jnp.maximum(rows.temperature, 1e-6)[:, None]
    if rows.filtered:
        scaled = jnp.where(kept(scaled, rows.top_k, rows.top_p), scaled, -jnp.inf)
    noise = jax.vmap(
        lambda seed: jax.random.gumbel(
            jax.random.fold_in(jax.random.key(seed), step), scaled.shape[1:]
        )
    )
    drawn = jnp.argmax(scaled + noise(rows.seed), axis=-1).astype(jnp.int32)
    return jnp.where(rows.temperature > 0, drawn, best)


def kept(
    logits: Float[Array, "B V"], top_k: Int[Array, " B"], top_p: Float[Array, " B"]
) -> Bool[Array, "B V"]:
    """The tokens that top-k and then top-p leave.

    The threshold is found by bisection over the bits of a float32: 32 sums over the vocabulary
    instead of a sort of it, which takes several times as long on every platform.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    # Order of floats as order of unsigned integers: negative numbers turned round, positive ones
    # above them.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    wanted = jnp.where(top_k > 0, top_k, logits.shape[-1]).astype(jnp.float32)
    keep = order >= _threshold(order, jnp.ones_like(logits), wanted)[:, None]
    p = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf), axis=-1)
    # At top_p = 1 rounding of the sum must not decide.
    floor = jnp.where(top_p < 1, _threshold(order, p, top_p * p.sum(-1)), 0)
    return keep & (order >= floor[:, None])


def _threshold(
    order: UInt[Array, "B V"], weight: Float[Array, "B V"], wanted: Float[Array, " B"]
) -> UInt[Array, " B"]:
    """The highest threshold at or above which the tokens weigh at least `wanted`."""

    def bit(index, low):
        trial = low | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        mass = jnp.sum(jnp.where(order >= trial[:, None], weight, 0.0), axis=-1)
        return jnp.where(mass >= wanted, trial, low)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(order.shape[:1], jnp.uint32))
