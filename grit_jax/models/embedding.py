"""From packed rows to the vectors of their texts: the one function that training, encoding and
evaluation share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from grit_jax.models.pooling import PoolingMethod, text_vectors
from grit_jax.models.transformer import Transformer
from grit_jax.types import KV, AttentionMode, Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class RowVectors:
    """The unit vector of each segment of packed rows, and the keys (unrotated) and values of every
    token if they were asked for."""

    vectors: Float[Array, "B M d"]
    kv: KV | None


def embed_rows(
    model: Transformer,
    projection: Mapping[str, Any],
    rows: Rows,
    mask: Bool[Array, "B T"],
    *,
    mode: AttentionMode,
    pooling: PoolingMethod,
    segments_per_row: int,
    return_kv: bool = False,
) -> RowVectors:
    """One normalised float32 vector for each segment of packed rows; the vocabulary is not touched.

    Args:
      projection: weights by name, among them those of the projection where the model has one.
      mask: the tokens that mean pooling averages (instruction and tags excluded).
      segments_per_row: `M`, at least the highest segment number; absent segments give zeros.
    """
    output = model(
        rows.tokens,
        rows.positions,
        rows.segments,
        mode=mode,
        blocks=rows.blocks,
        return_kv=return_kv,
    )
    vectors = text_vectors(
        projection, output.hidden, rows.segments, mask, segments_per_row, pooling
    )
    return RowVectors(vectors, output.kv)
