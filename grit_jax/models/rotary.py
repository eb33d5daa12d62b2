"""Rotary embedding: the frequencies of every scaling, and the rotation itself.

Keys are stored before rotation and rotated once, when their position is known. Everything that a
scaling does to queries and keys (yarn also multiplies both) happens here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.models.config import ModelConfig, RopeScaling


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rotation:
    """float32 cosines and sines of the angle of each token and frequency, times yarn's attention
    factor."""

    cos: Float[Array, "*B T H/2"]
    sin: Float[Array, "*B T H/2"]


def rotation(
    config: ModelConfig,
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    *,
    local: bool = False,
) -> Rotation:
    """The rotation of every token.

    Args:
      segments: used by dynamic scaling only: the length of a text is the largest position of its
        segment, plus 1.
      local: use the base of layers with a sliding window (`rope_local_base_freq`).
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic" and not local:
        frequencies = _dynamic_frequencies(config, scaling, positions, segments)
    else:
        frequencies = jnp.asarray(inverse_frequencies(config, local=local))
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    factor = 1.0 if local else attention_factor(scaling)
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x: Float[Array, "... B T N H"], by: Rotation) -> Float[Array, "... B T N H"]:
    """Rotary embedding in the half-split layout of Hugging Face checkpoints, computed in float32.

    A key rotated to its position needs no further rotation, wherever later queries are.
    """
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def inverse_frequencies(config: ModelConfig, *, local: bool = False) -> Float[np.ndarray, " H/2"]:
    """Radians per position, float32: `theta^(-2i/H)`, scaled (`transformers:
    modeling_rope_utils.py`)."""
    if local:
        assert config.rope_local_base_freq is not None
        return _unscaled(config.rope_local_base_freq, config.head_dim).astype(np.float32)
    frequencies, scaling = _unscaled(config.rope_theta, config.head_dim), config.rope_scaling
    if scaling is not None and scaling.rope_type == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling is not None and scaling.rope_type == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif scaling is not None and scaling.rope_type == "yarn":
        frequencies = _yarn(frequencies, config, scaling)
    return frequencies.astype(np.float32)


def attention_factor(scaling: RopeScaling | None) -> float:
    """The factor of rotated queries and keys: yarn's (arXiv 2309.00071, section 3.4), else 1."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def depends_on_length(config: ModelConfig) -> bool:
    """True if a token's rotation depends on the length of its text (dynamic scaling): then its
    cached keys cannot be used beside other texts."""
    return config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic"


def _unscaled(theta: float, head_dim: int) -> Float[np.ndarray, " H/2"]:
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides low frequencies by the factor, keeps high ones, and interpolates between the two."""
    length = scaling.original_max_position_embeddings
    assert length is not None
    turns = length * frequencies / (2 * np.pi)  # in the original length
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(ramp, 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(frequencies: np.ndarray, config: ModelConfig, scaling: RopeScaling) -> np.ndarray:
    """Keeps dimensions that turn often within the original length, divides those that turn little
    by the factor, and interpolates between the two."""
    length, H = scaling.original_max_position_embeddings, config.head_dim
    assert length is not None

    def dimension(turns: float) -> float:
        return H * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    ramp = np.clip((np.arange(H // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return frequencies * (1 - ramp + ramp / scaling.factor)


def _dynamic_frequencies(
    config: ModelConfig,
    scaling: RopeScaling,
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
) -> Float[Array, "B T H/2"]:
    """NTK scaling: the base grows with the length of a text beyond `max_position_embeddings`.

    transformers uses the length of the longest text of a batch; here each text has its own, so that
    its numbers do not depend on the others.
    """
    H, limit = config.head_dim, config.max_position_embeddings
    same = segments[:, :, None] == segments[:, None, :]
    length = jnp.maximum(jnp.max(jnp.where(same, positions[:, None, :], 0), axis=-1) + 1, limit)
    stretch = scaling.factor * length.astype(jnp.float32) / limit - (scaling.factor - 1)
    log_theta = math.log(config.rope_theta) + H / (H - 2) * jnp.log(stretch)
    return jnp.exp(-jnp.arange(0, H, 2, dtype=jnp.float32) / H * log_theta[..., None])
