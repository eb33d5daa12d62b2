"""The joint gradient in chunks: rows of both losses through the layers together, as many as memory
allows.

First all texts are embedded without a gradient, and the contrastive loss is differentiated by their
representations alone. Then each chunk of rows is run once more with a gradient: embedding rows are
drawn by what was found for their representations (GradCache, arXiv 2101.06983), generative rows by
their share of the language loss, and both kinds share one pass. Weights that are split over devices
are so gathered for a chunk and not for a loss.
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
    StepConfig,
    embed_in_chunks,
    embedding_losses,
    fused_pass,
    generative_pass,
    in_chunks,
    pick_sides,
)
from grit_jax.training.language import token_weights
from grit_jax.types import Batch


def fused_gradient(params: Params, batch: Batch, config: StepConfig) -> Any:
    """The loss with its parts and its gradient, as `jax.value_and_grad` gives them.

    For a batch that `gradient_plan.can_fuse` takes, without a mixture of experts (whose routers are
    balanced over the whole batch). Chunks of the kind that has more of them are run alone where the
    other has ended.
    """
    one, text = batch.embedding, batch.generative
    assert one is not None and text is not None
    vectors = embed_in_chunks(params, one.rows, one.pool, one.segments_per_row, config)
    contrastive = lambda vectors: embedding_losses(pick_sides(vectors, one, config), one, config)
    (share, parts), pull = jax.value_and_grad(contrastive, has_aux=True)(vectors)

    # Tokens get their weights from the whole batch, so that the language loss is the sum over
    # chunks.
    text = dataclasses.replace(text, targets=token_weights(text, config.loss), sequences=1)
    token_sum = dataclasses.replace(config.loss, generative="token")
    summed = dataclasses.replace(config, embedding_chunk=None, loss=token_sum)
    rows, texts = one.pool.shape[0], text.targets.shape[0]
    embedding = (*in_chunks((one.rows, one.pool), min(config.embedding_chunk or rows, rows)), pull)
    generative = in_chunks(text, min(config.generative_chunk or texts, texts))
    factor = config.loss.generative_factor
    pairs = min(len(embedding[1]), len(generative.targets))

    def of_embedding(params: Params, part: Any) -> tuple[Any, Any]:
        rows, mask, pull = part
        vectors = embed_in_chunks(params, rows, mask, one.segments_per_row, summed)
        return (vectors[0] * pull).sum(), jnp.zeros(())

    def of_generative(params: Params, part: Any) -> tuple[Any, Any]:
        loss = generative_pass(params, part, summed).loss
        return factor * loss, loss

    def of_both(params: Params, parts: Any) -> tuple[Any, Any]:
        (rows, mask, pull), part = parts
        vectors, language = fused_pass(params, rows, mask, one.segments_per_row, part, summed)
        return (vectors * pull).sum() + factor * language.loss, language.loss

    first = lambda tree: jax.tree.map(lambda x: x[:pairs], tree)
    rest = lambda tree: jax.tree.map(lambda x: x[pairs:], tree)
    sums = [_summed(of_both, params, first((embedding, generative)))]
    if len(embedding[1]) > pairs:
        sums.append(_summed(of_embedding, params, rest(embedding)))
    if len(generative.targets) > pairs:
        sums.append(_summed(of_generative, params, rest(generative)))
    loss, gradient = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
    return (share + factor * loss, parts | {"loss_gen": loss}), gradient


def _summed(
    function: Callable[[Params, Any], tuple[Any, Any]], params: Params, chunks: Any
) -> tuple[Any, Params]:
    """The sums over chunks of what `function` gives beside, and of its gradient."""

    def gradient(part: Any) -> tuple[Any, Params]:
        (_, loss), gradient = jax.value_and_grad(function, has_aux=True)(params, part)
        return loss, gradient

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], chunks))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), zero, chunks
    )[0]
