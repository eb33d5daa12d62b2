"""The joint gradient in chunks: each chunk passes rows of both losses through the layers together.

First all texts are embedded without gradients, and the contrastive loss is differentiated with
respect to their representations only. Then each chunk of rows is run again with gradients: those of
embedding rows start from the representations' gradients (GradCache, arXiv 2101.06983), those of
generative rows from their share of the language loss. Since both kinds share one pass, weights that
are sharded over devices are gathered once for each chunk, not once for each loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grit_jax.models.transformer import Params
from grit_jax.training.joint import (
    embed_in_chunks,
    embedding_losses,
    fused_pass,
    generative_pass,
    language_losses,
    pick_sides,
)
from grit_jax.training.language import token_weights
from grit_jax.training.step_config import StepConfig, in_chunks
from grit_jax.types import Batch


def fused_gradient(params: Params, batch: Batch, config: StepConfig) -> Any:
    """The loss, its parts and its gradient, as `jax.value_and_grad` returns them.

    For batches that `gradient_plan.can_fuse` accepts, without a mixture of experts (whose routers
    are balanced over the whole batch). If one kind has more chunks than the other, the rest of them
    run alone.
    """
    embed, text = batch.embedding, batch.generative
    assert embed is not None and text is not None
    vectors = embed_in_chunks(params, embed.rows, embed.pool, embed.segments_per_row, config)
    contrastive = lambda vectors: embedding_losses(
        pick_sides(vectors, embed, config), embed, config
    )
    (share, parts), pull = jax.value_and_grad(contrastive, has_aux=True)(vectors)

    # Token weights come from the whole batch, so that the language loss is a sum over chunks.
    text = dataclasses.replace(text, targets=token_weights(text, config.loss), sequences=1)
    token_sum = dataclasses.replace(config.loss, generative="token")
    summed = dataclasses.replace(config, embedding_chunk=None, loss=token_sum)
    rows, texts = embed.pool.shape[0], text.targets.shape[0]
    embedding = (
        *in_chunks((embed.rows, embed.pool), min(config.embedding_chunk or rows, rows)),
        pull,
    )
    generative = in_chunks(text, min(config.generative_chunk or texts, texts))
    none = {"loss_gen": jnp.zeros(())}
    if config.loss.generative_distillation:
        none["loss_gen_kl"] = jnp.zeros(())
    pairs = min(len(embedding[1]), len(generative.targets))

    # Beside what is differentiated: the language passes' share of the loss, and their parts.
    def of_embedding(params: Params, part: Any) -> tuple[Any, Any]:
        rows, mask, pull = part
        vectors = embed_in_chunks(params, rows, mask, embed.segments_per_row, summed)
        return (vectors[0] * pull).sum(), (jnp.zeros(()), none)

    def of_generative(params: Params, part: Any) -> tuple[Any, Any]:
        losses = language_losses({"loss_gen": generative_pass(params, part, summed)}, summed)
        return losses[0], losses

    def of_both(params: Params, parts: Any) -> tuple[Any, Any]:
        (rows, mask, pull), part = parts
        vectors, language = fused_pass(params, rows, mask, embed.segments_per_row, part, summed)
        losses = language_losses({"loss_gen": language}, summed)
        return (vectors * pull).sum() + losses[0], losses

    first = lambda tree: jax.tree.map(lambda x: x[:pairs], tree)
    rest = lambda tree: jax.tree.map(lambda x: x[pairs:], tree)
    sums = [_summed(of_both, params, first((embedding, generative)))]
    if len(embedding[1]) > pairs:
        sums.append(_summed(of_embedding, params, rest(embedding)))
    if len(generative.targets) > pairs:
        sums.append(_summed(of_generative, params, rest(generative)))
    (total, named), gradient = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
    return (share + total, parts | named), gradient


def _summed(
    function: Callable[[Params, Any], tuple[Any, Any]], params: Params, chunks: Any
) -> tuple[Any, Params]:
    """Sums over chunks: of the second result of `function`, and of the gradient of the first."""

    def gradient(part: Any) -> tuple[Any, Params]:
        (_, loss), gradient = jax.value_and_grad(function, has_aux=True)(params, part)
        return loss, gradient

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], chunks))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), zero, chunks
    )[0]
