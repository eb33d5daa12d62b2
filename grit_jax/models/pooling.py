"""From hidden states of packed rows to one vector a text, through a projection where the model has
one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models.attention import finite_or_zero
from grit_jax.models.projection import project

PoolingMethod = Literal["mean", "weightedmean", "lasttoken", "cls"]
EPSILON = 1e-12  # of the L2 norm, as torch's normalize


def pool(
    hidden: Float[Array, "B T D"],
    segments: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments_per_row: int,
    method: PoolingMethod = "mean",
) -> Float[Array, "B M D"]:
    """One float32 vector per segment (`gritlm: gritlm/gritlm.py:188-218`); absent segments give
    zeros.

    A segment that pools a token which is not finite gives NaN; the other segments of its row do
    not.

    Args:
      mask: the tokens that `mean` and `weightedmean` average (instruction and tags excluded). `cls`
        takes the first token of the segment and `lasttoken` its last one, whatever the mask.
      segments_per_row: `M`, at least the highest segment number.
    """
    numbers = jnp.arange(1, segments_per_row + 1)
    member = segments[:, :, None] == numbers  # [B T M]
    if method == "mean":
        weights = (member & mask[:, :, None]).astype(jnp.float32)
    elif method == "weightedmean":  # 1, 2, ... n from the first pooled token on
        chosen = (member & mask[:, :, None]).astype(jnp.float32)
        weights = chosen * jnp.cumsum(chosen, axis=1)
    elif method == "cls":
        weights = (member & (jnp.cumsum(member, axis=1) == 1)).astype(jnp.float32)
    elif method == "lasttoken":
        after = jnp.cumsum(member[:, ::-1], axis=1)[:, ::-1]
        weights = (member & (after == 1)).astype(jnp.float32)
    else:
        raise ValueError(f"pooling must be mean, weightedmean, lasttoken or cls, got {method!r}")
    # Zero times NaN is NaN: what is not finite is taken out of the sum over a row's tokens, and put
    # back into the segments it belongs to.
    finite = jnp.isfinite(hidden).all(axis=-1)
    broken = ((weights > 0) & ~finite[:, :, None]).any(axis=1)
    total = jnp.einsum("btm,btd->bmd", weights, finite_or_zero(hidden.astype(jnp.float32)))
    total += jnp.where(broken, jnp.nan, 0.0)[..., None]
    return total / jnp.maximum(weights.sum(axis=1), 1e-9)[..., None]


def normalize(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Unit length, float32."""
    x = x.astype(jnp.float32)
    # The epsilon goes inside the root: the gradient of a zero vector (an absent segment) stays
    # finite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), EPSILON**2))


def text_vectors(
    params: Mapping[str, Any],
    hidden: Float[Array, "B T D"],
    segments: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments_per_row: int,
    method: PoolingMethod = "mean",
) -> Float[Array, "B M d"]:
    """The unit vector of each segment: pooled, projected where `params` has a projection,
    normalised.

    The original projects each token before it pools (`gritlm: gritlm/training/model.py:147-148`).
    All four methods are averages with weights that sum to one, and a linear map with a bias
    commutes with those; so this is the same vector for a fraction of the work, and what
    sentence-transformers computes (its Dense modules come after Pooling).
    """
    return normalize(project(params, pool(hidden, segments, mask, segments_per_row, method)))
