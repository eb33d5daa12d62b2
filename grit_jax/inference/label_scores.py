"""Log-probabilities of label tokens right after prompts: how the generator judges.

Prompts are packed into rows as texts to embed are; the logits exist at the last token of each only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.inference.encoder import PackedTexts
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, RowBatch
from grit_jax.models.adapter_stack import choose
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Params, Transformer
from grit_jax.types import AttentionMode, Rows

FEWEST_LABELS = 2  # smallest bucket


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LabelRows:
    """Where the prompts of packed rows end, and the labels of each; 0 where there is none."""

    ends: Int[Array, "B M"]
    labels: Int[Array, "B M n"]


def label_rows(batch: RowBatch, texts: PackedTexts, labels: Sequence[Sequence[int]]) -> LabelRows:
    """Host arrays, in shapes from buckets.

    Args:
      labels: of each text.
    """
    most = max(map(len, labels))
    n = max(FEWEST_LABELS, 1 << (most - 1).bit_length())
    M = batch.length // TOKENS_PER_SEGMENT
    ends, ids = np.zeros((batch.rows, M), np.int32), np.zeros((batch.rows, M, n), np.int32)
    for row, numbers in enumerate(batch.texts):
        for segment, (i, _, stop) in enumerate(texts.spans(numbers)):
            ends[row, segment] = stop - 1
            ids[row, segment, : len(labels[i])] = labels[i]
    return LabelRows(ends, ids)


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def label_step(
    params: Params, rows: Rows, labels: LabelRows, *, config: ModelConfig, mode: AttentionMode
) -> Float[Array, "B M n"]:
    """The log-probability of each label as the token after its prompt, among all tokens."""
    model = Transformer(config, choose(params, rows.adapters))
    out = model(rows.tokens, rows.positions, rows.segments, mode=mode, blocks=rows.blocks)
    last = jnp.take_along_axis(out.hidden, labels.ends[:, :, None], axis=1)

    def one_row(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, ids = pair
        logits = model.logits(hidden).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, ids, axis=-1)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    return jax.lax.map(one_row, (last, labels.labels))
