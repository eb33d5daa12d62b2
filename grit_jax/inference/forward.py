"""One pass over padded rows of token ids, as transformers takes them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.errors import GritError
from grit_jax.inference.row_packing import bucket
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params, Transformer
from grit_jax.types import AttentionMode


@dataclasses.dataclass
class PaddedRows:
    """Rows of ids in a shape from a short list, so that not every new length is compiled.

    Attributes:
      tokens, mask: 1 a token, 0 padding.
      rows, length: how many rows were given, and their length.
    """

    tokens: Int[np.ndarray, "B T"]
    mask: Int[np.ndarray, "B T"]
    rows: int
    length: int


def padded_rows(input_ids: Any, attention_mask: Any | None, config: ModelConfig) -> PaddedRows:
    """Checked ids and mask, padded.

    Raises:
      GritError: not integers of shape `[B, T]`, ids outside the vocabulary, a mask of another shape
        or with other numbers, rows longer than the model's context.
    """
    ids = _array("input_ids", input_ids)
    mask = np.ones(ids.shape, np.int32)
    if attention_mask is not None:
        mask = _array("attention_mask", attention_mask)
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise GritError(
            f"input_ids and attention_mask must both be [B, T], got {ids.shape} and {mask.shape}"
        )
    if not np.issubdtype(ids.dtype, np.integer) or ((ids < 0) | (ids >= config.vocab_size)).any():
        raise GritError(f"input_ids must be integers from 0 to {config.vocab_size - 1}")
    if not np.isin(mask, (0, 1)).all():
        raise GritError("attention_mask must hold 1 (token) and 0 (padding) only")
    longest, context = int(mask.sum(axis=1).max(initial=0)), config.context_length
    if longest > context:
        raise GritError(
            f"input_ids has a row of {longest} tokens, but this model's context is {context}"
        )
    (B, T), pad = ids.shape, padding(ids.shape[0], ids.shape[1])
    return PaddedRows(np.pad(ids.astype(np.int32), pad), np.pad(mask.astype(np.int32), pad), B, T)


def padding(rows: int, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is added to rows and to their length: the number of rows becomes a power of two, the
    length that of a bucket."""
    return (0, (1 << max(rows - 1, 0).bit_length()) - rows), (0, bucket(length) - length)


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def forward_step(
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    *,
    config: ModelConfig,
    mode: AttentionMode,
) -> Float[Array, "B T D"]:
    """Hidden states of padded rows. Positions count the tokens that the mask keeps, so that padding
    may be on either side."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return Transformer(config, params)(tokens, positions, mask, mode=mode).hidden


@functools.partial(jax.jit, static_argnames=("config",))
def logits_step(
    params: Params, hidden: Float[Array, "B T D"], *, config: ModelConfig
) -> Float[Array, "B T V"]:
    """Next-token logits of hidden states."""
    return Transformer(config, params).logits(hidden)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        raise GritError(f"{name} must be [B, T]: pad its rows to one length") from None
