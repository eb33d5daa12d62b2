"""What the compiled step depends on, and rows in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.transformer import Params
from grit_jax.sharding import constrain
from grit_jax.training.losses import LossConfig
from grit_jax.types import AttentionMode

CHUNKS = ("embedding_chunk", "generative_chunk", "cached_chunk", "preference_chunk")


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What of the run's configuration the compiled step depends on (`train.py` describes its
    keys)."""

    model: ModelConfig
    loss: LossConfig
    pooling: PoolingMethod = "mean"
    embedding_chunk: int | None = None  # rows encoded at a time in the contrastive pass (GradCache)
    generative_chunk: int | None = None  # rows of the language loss taken at a time
    cached_chunk: int | None = None
    preference_chunk: int | None = None
    embedding_mode: AttentionMode = AttentionMode.BIDIRECTIONAL
    generation_mode: AttentionMode = AttentionMode.CAUSAL
    backward: Literal["joint", "separate", "split"] = "joint"
    gradient: Literal["both", "query", "passage"] = "both"
    lora: LoraConfig | None = None
    seed: int = 0  # of the adapters' dropout, with the step
    # From the trained parameters to the model's weights, and to a teacher's, which have no dropout
    # (None: the same).
    weights_of: Callable[[Params], Params] = lambda params: params
    teacher_weights_of: Callable[[Params], Params] | None = None
    # To those of the base without adapters, or to the weights that the run started from.
    base_weights_of: Callable[[Params], Params] | None = None
    matmul_precision: str | None = None  # see `jax.default_matmul_precision`
    fuse: bool | None = None  # see `gradient_plan.can_fuse`


def in_chunks(tree, chunk: int):
    """Arrays `[B, ...]` as `[chunks, chunk, ...]`, empty rows at the end; each chunk spread over
    all devices."""

    def split(x: jax.Array) -> jax.Array:
        pad = [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1)
        parts = jnp.pad(x, pad).reshape(-1, chunk, *x.shape[1:])
        return constrain(parts, (None, "rows") + (None,) * (x.ndim - 1))

    return jax.tree.map(split, tree)
