"""The gradient of the joint loss: in one backward pass, or in several that need less memory and add up to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grit_jax.models.transformer import Params
from grit_jax.training.joint import (
    Parts,
    Sides,
    StepConfig,
    embed_passages,
    embed_queries,
    embedding_losses,
    in_chunks,
    joint_loss,
)
from grit_jax.training.language import token_weights
from grit_jax.types import Batch, EmbeddingBatch

Gradient = tuple[tuple[Float[Array, ""], Parts], Params]  # as jax.value_and_grad gives it


def joint_gradient(params: Params, batch: Batch, config: StepConfig) -> Gradient:
    """The joint loss with its parts, and its gradient.

    `config.backward`: "joint" is one backward pass over all losses; "separate" takes them one after the other
    (language, cached, then contrastive: `gritlm: gritlm/training/gradcache_trainer.py:549-550`), so that only one
    of them has its activations in memory; "split" beside it takes the passages' and then the queries' side of
    the contrastive loss, the other held fixed (`gritlm: gritlm/training/gradcache_trainer.py`, split_emb). Rows of
    the language losses taken in chunks have their gradients added up as they come, without a second forward pass.
    """
    result: Gradient | None = None
    for share in _shares(batch, config):
        if result is not None:
            # A backward pass starts when the one before is done, or the compiler might hold both in memory.
            params, result = jax.lax.optimization_barrier((params, result))
        found = _gradient(params, share, config)
        result = found if result is None else jax.tree.map(jnp.add, _named(result, found), _named(found, result))
    if result is None:
        raise ValueError("a batch without any part has no gradient")
    return result


def _shares(batch: Batch, config: StepConfig) -> list[Batch]:
    """The parts of a batch that share a backward pass."""
    alone = [
        Batch(**{kind: part})
        for kind, chunk in (("generative", config.generative_chunk), ("cached", config.cached_chunk))
        if (part := getattr(batch, kind)) is not None and (chunk or config.backward != "joint")
    ]
    taken = {field.name for share in alone for field in dataclasses.fields(share) if getattr(share, field.name)}
    rest = dataclasses.replace(batch, **{kind: None for kind in taken})
    return alone + ([rest] if jax.tree.leaves(rest) else [])


def _gradient(params: Params, batch: Batch, config: StepConfig) -> Gradient:
    if batch.embedding is None:
        if batch.cached is None and config.generative_chunk:
            return _accumulated(params, batch, config, config.generative_chunk)
        if batch.generative is None and config.cached_chunk:
            return _accumulated(params, batch, config, config.cached_chunk)
    elif config.backward == "split":
        return _split(params, batch.embedding, config)
    return jax.value_and_grad(joint_loss, has_aux=True)(params, batch, config)


def _split(params: Params, batch: EmbeddingBatch, config: StepConfig) -> Gradient:
    """The contrastive gradient side by side: the passages' with the queries as constants, and the reverse."""
    if not batch.query_rows:
        raise ValueError("a split backward pass needs queries and passages in rows of their own")
    queries = embed_queries(params, batch, config)

    def of_passages(params: Params) -> tuple[Any, Any]:
        passages = embed_passages(params, batch, config)
        total, parts = embedding_losses(Sides(queries, passages), batch, config)
        return total, (parts, passages)

    (total, (parts, passages)), gradient = jax.value_and_grad(of_passages, has_aux=True)(params)
    params, passages, gradient = jax.lax.optimization_barrier((params, passages, gradient))

    def of_queries(params: Params) -> jax.Array:
        return embedding_losses(Sides(embed_queries(params, batch, config), passages), batch, config)[0]

    return (total, parts), jax.tree.map(jnp.add, gradient, jax.grad(of_queries)(params))


def _accumulated(params: Params, batch: Batch, config: StepConfig, chunk: int) -> Gradient:
    """A language loss and its gradient, summed over chunks of rows.

    Tokens get their weights from the whole batch first, so that the sum is the unchunked loss, groups of a mixed
    loss included, however the chunks cut through them.
    """
    if batch.cached is not None:
        text = batch.cached.text
        whole = lambda text: Batch(cached=dataclasses.replace(batch.cached, text=text))
    else:
        assert batch.generative is not None
        text = batch.generative
        whole = lambda text: Batch(generative=text)
    if text.targets.shape[0] <= chunk:
        return jax.value_and_grad(joint_loss, has_aux=True)(params, batch, config)
    # A token loss over one sequence is the plain weighted sum.
    rows = whole(dataclasses.replace(text, targets=token_weights(text, config.loss), sequences=1))
    summed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, generative="token"))

    def of_chunk(part: Batch) -> Gradient:
        return jax.value_and_grad(joint_loss, has_aux=True)(params, part, summed)

    def add(total: Gradient, part: Batch) -> tuple[Gradient, None]:
        return jax.tree.map(jnp.add, total, of_chunk(part)), None

    chunks = in_chunks(rows, chunk)
    shapes = jax.eval_shape(of_chunk, jax.tree.map(lambda x: x[0], chunks))
    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), chunks)[0]


def _named(result: Gradient, other: Gradient) -> Gradient:
    """`result` with zeros for the parts that only `other` has."""
    (total, parts), gradient = result
    return (total, {**dict.fromkeys(other[0][1], jnp.zeros(())), **parts}), gradient
