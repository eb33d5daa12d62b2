"""The joint step: contrastive, language and cached-document loss, one gradient, one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from grit_jax.models.cache import cache_from
from grit_jax.models.config import ModelConfig
from grit_jax.models.moe import router_aux_loss
from grit_jax.models.pooling import PoolingMethod, normalize, pool
from grit_jax.models.transformer import Params, Transformer
from grit_jax.training.losses import LossConfig, contrastive_loss, language_loss, token_losses
from grit_jax.training.state import TrainState
from grit_jax.types import AttentionMode, Batch, CachedBatch, EmbeddingBatch, GenerativeBatch, Rows

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What of the run's configuration the compiled step depends on."""

    model: ModelConfig
    loss: LossConfig
    pooling: PoolingMethod = "mean"
    embedding_chunk: int | None = None  # rows encoded at a time in the contrastive pass (GradCache)
    embedding_mode: AttentionMode = BIDIRECTIONAL


def embed_rows(model: Transformer, batch: EmbeddingBatch, config: StepConfig) -> Float[Array, "RG D"]:
    """One normalised vector for each segment of the packed rows, flattened to `row * G + segment - 1`.

    With `embedding_chunk`, rows are encoded in chunks under `jax.checkpoint`: only the vectors of a chunk are
    kept and its activations are recomputed in the backward pass (GradCache, arXiv 2101.06983, as one map).
    """

    def encode(part: tuple[Rows, jax.Array]) -> Float[Array, "r G D"]:
        rows, mask = part
        mode = config.embedding_mode
        hidden = model(rows.tokens, rows.positions, rows.segments, mode=mode, blocks=rows.blocks).hidden
        return normalize(pool(hidden, rows.segments, mask, batch.segments_per_row, config.pooling))

    count = batch.pool.shape[0]
    chunk = config.embedding_chunk or count
    if chunk >= count:
        vectors = encode((batch.rows, batch.pool))
    else:
        pad = -count % chunk
        split = jax.tree.map(
            lambda x: jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, chunk, x.shape[1]), (batch.rows, batch.pool)
        )
        vectors = jax.lax.map(jax.checkpoint(encode), split)
    return vectors.reshape(-1, vectors.shape[-1])[: count * batch.segments_per_row]


def embedding_loss(model: Transformer, batch: EmbeddingBatch, config: StepConfig) -> Float[Array, ""]:
    """Contrastive loss of a packed batch; negatives are all passages of the global batch."""
    vectors = embed_rows(model, batch, config)
    loss = contrastive_loss(
        vectors[batch.queries], vectors[batch.passages],
        temperature=config.loss.temperature, block=config.loss.similarity_block,
    )  # fmt: skip
    scale = config.loss.emb_grad_scale
    return loss if scale == 1.0 else scale * loss + jax.lax.stop_gradient((1 - scale) * loss)


@dataclasses.dataclass
class LanguageLoss:
    """The language loss of a pass, and the load-balancing loss of its routers (None without experts)."""

    loss: Float[Array, ""]
    router: Float[Array, ""] | None


def generative_loss(model: Transformer, batch: GenerativeBatch, config: StepConfig, cache=None) -> LanguageLoss:
    """Losses of packed sequences, after cached documents where there are any."""
    rows = batch.rows
    out = model(rows.tokens, rows.positions, rows.segments, mode=CAUSAL, cache=cache)
    losses = token_losses(model.logits, out.hidden, rows.tokens, block=config.loss.logits_block)
    router = None if out.router is None else router_aux_loss(out.router, config.model.num_experts)
    return LanguageLoss(language_loss(losses, batch, config.loss), router)


def cached_loss(model: Transformer, batch: CachedBatch, config: StepConfig) -> LanguageLoss:
    """Losses of answers over cached documents, with gradients through the documents' caches.

    The same two passes that serve: pieces bidirectionally and blind to each other, then the text on their cache.
    """
    pieces = batch.pieces
    kv = model(pieces.tokens, pieces.positions, pieces.segments, mode=BIDIRECTIONAL, return_kv=True).kv
    cache = cache_from(kv, batch.piece_positions, batch.piece_owner, config.model)
    return generative_loss(model, batch.text, config, cache)


def joint_loss(
    params: Params, batch: Batch, config: StepConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`contrastive + factor * language + factor * cached`, and the parts by name.

    A mixture of experts adds `router_aux_loss_coef` times the load-balancing loss of each language pass, outside of
    the factors; the embedding pass has none (`gritlm: scripts/modeling_mixtral_gritlm.py:1413-1430`).
    """
    model = Transformer(config.model, params)
    parts: dict[str, jax.Array] = {}
    total = jnp.zeros((), jnp.float32)
    routers: list[jax.Array] = []
    if batch.embedding is not None:
        parts["loss_emb"] = embedding_loss(model, batch.embedding, config)
        total += parts["loss_emb"]
    if batch.generative is not None:
        language = generative_loss(model, batch.generative, config)
        parts["loss_gen"] = language.loss
        total += config.loss.generative_factor * language.loss
        routers += [] if language.router is None else [language.router]
    if batch.cached is not None:
        language = cached_loss(model, batch.cached, config)
        parts["loss_cached"] = language.loss
        total += config.loss.cached_factor * language.loss
        routers += [] if language.router is None else [language.router]
    if routers:
        parts["loss_router"] = sum(routers, jnp.zeros(()))
        total += config.model.router_aux_loss_coef * parts["loss_router"]
    return total, parts


def make_step(
    config: StepConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, batch) -> (state, metrics)`; the state's buffers are donated.

    Shardings are those of the arrays handed in (see `training.state`); metrics are scalars: `loss`, its parts,
    `grad_norm` (before clipping) and `lr`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss, parts), grads = jax.value_and_grad(joint_loss, has_aux=True)(state.params, batch, config)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **parts, "grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
