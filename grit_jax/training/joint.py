"""The joint loss of a batch: contrastive, language, cached-document and preference, as a function
of the weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models.cache import cache_from
from grit_jax.models.embedding import embed_rows
from grit_jax.models.losses import distilled_losses, token_losses
from grit_jax.models.moe import router_aux_loss
from grit_jax.models.pooling import text_vectors
from grit_jax.models.transformer import Params, Transformer
from grit_jax.training.contrastive import contrastive_loss, distillation_loss
from grit_jax.training.gather_vectors import gather_vectors
from grit_jax.training.interleave import deinterleave, interleave, joined_rows, num_blocks
from grit_jax.training.language import (
    LanguagePass,
    Parts,
    language_loss,
    read_rows,
    states_at,
    target_columns,
    token_weights,
)
from grit_jax.training.preference import preference_pass
from grit_jax.training.step_config import StepConfig, in_chunks
from grit_jax.types import (
    Batch,
    CachedBatch,
    EmbeddingBatch,
    GenerativeBatch,
    ModelOutput,
    Rows,
)

# `gradient` -> the sides that get no gradient.
FIXED = {"both": (), "query": ("passages",), "passage": ("queries",)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Sides:
    """Normalised representations of a batch's queries and passages."""

    queries: Float[Array, "Q d"]
    passages: Float[Array, "P d"]


def embed_in_chunks(
    params: Params,
    rows: Rows,
    mask: Bool[Array, "B T"],
    segments_per_row: int,
    config: StepConfig,
) -> Float[Array, "n c M d"]:
    """One normalised vector for each segment of packed rows, in `n` chunks of `c` rows (empty rows
    at the end).

    With `embedding_chunk`, rows are encoded in chunks under `jax.checkpoint`: only the vectors of a
    chunk are kept, and its activations are recomputed in the backward pass (GradCache, arXiv
    2101.06983, as one map). Without it, all rows are one chunk.
    """

    def encode(part: tuple[Rows, Bool[Array, "b T"]]) -> Float[Array, "b M d"]:
        return embed_rows(
            Transformer(config.model, config.weights_of(params)),
            params,
            *part,
            mode=config.embedding_mode,
            pooling=config.pooling,
            segments_per_row=segments_per_row,
        ).vectors

    count = mask.shape[0]
    chunk = config.embedding_chunk or count
    if chunk >= count:
        return encode((rows, mask))[None]
    return jax.lax.map(jax.checkpoint(encode), in_chunks((rows, mask), chunk))


def embed_queries(params: Params, batch: EmbeddingBatch, config: StepConfig) -> Float[Array, "Q d"]:
    """The queries' representations from rows of their own."""
    rows, mask = jax.tree.map(lambda x: x[: batch.query_rows], (batch.rows, batch.pool))
    return gather_vectors(
        embed_in_chunks(params, rows, mask, batch.segments_per_row, config), batch.queries
    )


def embed_passages(
    params: Params, batch: EmbeddingBatch, config: StepConfig
) -> Float[Array, "P d"]:
    """The passages' representations from rows of their own."""
    rows, mask = jax.tree.map(lambda x: x[batch.query_rows :], (batch.rows, batch.pool))
    vectors = embed_in_chunks(params, rows, mask, batch.segments_per_row, config)
    return gather_vectors(vectors, batch.passages - batch.query_rows * batch.segments_per_row)


def embed_sides(params: Params, batch: EmbeddingBatch, config: StepConfig) -> Sides:
    """Queries and passages; a side that `config.gradient` leaves out is a constant.

    Where the sides have rows of their own, the constant one leaves nothing behind for a backward
    pass.
    """
    if batch.query_rows:
        fixed = FIXED[config.gradient]
        constant = jax.lax.stop_gradient(params)
        take = lambda side: constant if side in fixed else params
        return Sides(
            embed_queries(take("queries"), batch, config),
            embed_passages(take("passages"), batch, config),
        )
    return pick_sides(
        embed_in_chunks(params, batch.rows, batch.pool, batch.segments_per_row, config),
        batch,
        config,
    )


def pick_sides(
    vectors: Float[Array, "n c M d"], batch: EmbeddingBatch, config: StepConfig
) -> Sides:
    """Queries and passages among the representations of all segments, the fixed side as a
    constant."""
    sides = Sides(gather_vectors(vectors, batch.queries), gather_vectors(vectors, batch.passages))
    fixed = FIXED[config.gradient]
    return dataclasses.replace(
        sides, **{side: jax.lax.stop_gradient(getattr(sides, side)) for side in fixed}
    )


def embedding_losses(
    sides: Sides, batch: EmbeddingBatch, config: StepConfig
) -> tuple[Float[Array, ""], Parts]:
    """The embedding side's share of the loss, and its parts; negatives are all passages of the
    global batch."""
    parts = {
        "loss_emb": contrastive_loss(
            sides.queries,
            sides.passages,
            config.loss,
            positives=batch.positives,
            present=batch.present,
            texts=batch.texts,
        )
    }
    total = parts["loss_emb"]
    if config.loss.distillation_factor:
        if batch.scores is None:
            raise ValueError("distillation needs the batch's `scores`")
        parts["loss_distill"] = distillation_loss(
            sides.queries, sides.passages, batch.scores, config.loss, present=batch.present
        )
        total += config.loss.distillation_factor * parts["loss_distill"]
    scale = config.loss.emb_grad_scale
    return (
        total if scale == 1.0 else scale * total + jax.lax.stop_gradient((1 - scale) * total)
    ), parts


@dataclasses.dataclass
class Teacher:
    """A teacher's hidden states.

    Attributes:
      columns: for each target of the student's rows, the state that predicts the same token; -1
        where none is to be compared.
      language: weight of the language loss on the targets that are compared.
    """

    hidden: Float[Array, "B U D"]
    columns: Int[Array, "B T"]
    language: float = 1.0


def generative_pass(params: Params, batch: GenerativeBatch, config: StepConfig) -> LanguagePass:
    """Language loss of packed sequences, and with `generative_distillation` their divergence from
    the base model."""
    model = Transformer(config.model, config.weights_of(params))
    out = read_rows(model, batch.rows, config)
    return _language_pass(model, out, batch, config, _base_teacher(params, batch, config))


def _language_pass(
    model: Transformer,
    out: ModelOutput,
    text: GenerativeBatch,
    config: StepConfig,
    teacher: Teacher | None,
) -> LanguagePass:
    """The losses of packed sequences from their hidden states."""
    cap, block = config.model.final_logit_softcapping, config.loss.logits_block
    tokens, weights = text.rows.tokens, model.params()
    if teacher is None:
        losses = token_losses(out.hidden, tokens, weights, softcap=cap, block=block)
        return LanguagePass(language_loss(losses, text, config.loss), out.router)
    here = target_columns(text)
    at = lambda x: jnp.take_along_axis(x, here, axis=1)
    columns = at(teacher.columns)
    both = distilled_losses(
        states_at(out.hidden, here - 1),
        states_at(teacher.hidden, columns),
        at(tokens),
        weights,
        softcap=cap,
        block=block,
    )
    share, taught = at(token_weights(text, config.loss)), columns >= 0
    divergence = jnp.where(taught, both.divergence, 0.0)
    nll = jnp.where(taught, teacher.language * both.nll, both.nll)
    return LanguagePass((nll * share).sum(), out.router, (divergence * share).sum())


def _base_teacher(params: Params, batch: GenerativeBatch, config: StepConfig) -> Teacher | None:
    """The base model over the same rows."""
    if not config.loss.generative_distillation:
        return None
    if batch.distilled is None or config.base_weights_of is None:
        raise ValueError("generative_distillation needs a base, and the batch's `distilled`")
    model = Transformer(config.model, config.base_weights_of(jax.lax.stop_gradient(params)))
    before = jnp.arange(batch.targets.shape[1]) - 1
    columns = jnp.where(batch.distilled, before, -1)
    hidden = read_rows(model, batch.rows, config).hidden
    return Teacher(hidden, columns, config.loss.distilled_language)


def fused_pass(
    params: Params,
    rows: Rows,
    mask: jax.Array,
    segments_per_row: int,
    batch: GenerativeBatch,
    config: StepConfig,
) -> tuple[Float[Array, "B M d"], LanguagePass]:
    """The representations of embedding rows and the language loss of generative rows, from one
    forward pass.

    Both kinds go through the layers together and part only inside attention. Rows of one length.
    """
    model = Transformer(config.model, config.weights_of(params))
    kinds = rows.tokens.shape[0], batch.targets.shape[0]
    both, n = joined_rows(rows, batch.rows), num_blocks(*kinds)
    out = model(
        both.tokens,
        both.positions,
        both.segments,
        blocks=both.blocks,
        mode=((config.embedding_mode, kinds[0] // n), (config.generation_mode, kinds[1] // n)),
        routed=interleave(jnp.zeros_like(rows.segments), batch.rows.segments),
    )
    embedded, written = deinterleave(out.hidden, *kinds)
    vectors = text_vectors(params, embedded, rows.segments, mask, segments_per_row, config.pooling)
    out = dataclasses.replace(out, hidden=written)
    teacher = _base_teacher(params, batch, config)
    return vectors, _language_pass(model, out, batch, config, teacher)


def cached_pass(params: Params, batch: CachedBatch, config: StepConfig) -> LanguagePass:
    """Language loss of answers over cached documents, with gradients through the documents' caches.

    The same two passes as in serving: the cached texts as they are embedded, blind to each other,
    then the text on their cache. With `cached_distillation`, the divergence from a teacher that
    reads the documents as text, too.
    """
    model, texts = Transformer(config.model, config.weights_of(params)), batch.cached_texts
    kv = model(
        texts.tokens,
        texts.positions,
        texts.segments,
        mode=config.embedding_mode,
        blocks=texts.blocks,
        return_kv=True,
    ).kv
    cache = cache_from(kv, batch.cached_positions, batch.cached_owner, config.model)
    out = read_rows(model, batch.text.rows, config, cache)
    teacher = _reading_teacher(params, batch, config)
    return _language_pass(model, out, batch.text, config, teacher)


def _reading_teacher(params: Params, batch: CachedBatch, config: StepConfig) -> Teacher | None:
    """The model itself, over the documents as text; no gradient reaches the weights."""
    if not config.loss.cached_distillation:
        return None
    if batch.teacher is None:
        raise ValueError("cached_distillation needs the batch's `teacher`")
    weights_of = config.teacher_weights_of or config.weights_of
    model = Transformer(config.model, weights_of(jax.lax.stop_gradient(params)))
    hidden = read_rows(model, batch.teacher.rows, config).hidden
    return Teacher(hidden, batch.teacher.columns)


def language_losses(
    passes: dict[str, LanguagePass], config: StepConfig
) -> tuple[Float[Array, ""], Parts]:
    """The share of the language passes (`loss_gen`, `loss_cached`, `loss_preference`) in the loss,
    and their parts; their divergences from a teacher are `loss_gen_kl` and `loss_cached_kl`.

    A mixture of experts adds `router_aux_loss_coef` times the load-balancing loss of each pass,
    outside of the factors; the embedding pass has none (`gritlm:
    scripts/modeling_mixtral_gritlm.py:1413-1430`).
    """
    factors = {
        "loss_gen": config.loss.generative_factor,
        "loss_cached": config.loss.cached_factor,
        "loss_preference": config.loss.preference_factor,
    }
    parts = {name: language.loss for name, language in passes.items()}
    total = sum((factors[name] * loss for name, loss in parts.items()), jnp.zeros((), jnp.float32))
    for name, factor in (
        ("loss_gen", config.loss.generative_distillation),
        ("loss_cached", config.loss.cached_distillation),
    ):
        if name in passes and (divergence := passes[name].divergence) is not None:
            parts[f"{name}_kl"] = divergence
            total += factor * divergence
    routers = [
        router_aux_loss(language.router, config.model.num_experts)
        for language in passes.values()
        if language.router
    ]
    if routers:
        parts["loss_router"] = sum(routers, jnp.zeros(()))
        total += config.model.router_aux_loss_coef * parts["loss_router"]
    for language in passes.values():
        parts |= language.metrics
    return total, parts


def joint_loss(
    params: Params, batch: Batch, config: StepConfig, *, fused: bool = False
) -> tuple[Float[Array, ""], Parts]:
    """`contrastive + factor * language + factor * cached + factor * preference` (and the shares of
    teachers and of the routers), and the parts by name.

    Args:
      fused: embedding rows and generative rows go through the layers together (see `fused_pass`).
    """
    embedding, passes = batch.embedding, {}
    sides = None
    if fused and embedding is not None and batch.generative is not None:
        vectors, passes["loss_gen"] = fused_pass(
            params,
            embedding.rows,
            embedding.pool,
            embedding.segments_per_row,
            batch.generative,
            config,
        )
        sides = pick_sides(vectors[None], embedding, config)
    elif batch.generative is not None:
        passes["loss_gen"] = generative_pass(params, batch.generative, config)
    if batch.cached is not None:
        passes["loss_cached"] = cached_pass(params, batch.cached, config)
    if batch.preference is not None:
        passes["loss_preference"] = preference_pass(params, batch.preference, config)
    total, parts = language_losses(passes, config)
    if embedding is not None:
        sides = sides or embed_sides(params, embedding, config)
        share, named = embedding_losses(sides, embedding, config)
        total, parts = share + total, named | parts
    return total, parts
