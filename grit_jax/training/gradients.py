"""The gradient of the joint loss: in one backward pass, or in several that need less memory and add
up to it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grit_jax.models.transformer import Params
from grit_jax.training.fused import fused_gradient
from grit_jax.training.joint import (
    LanguagePass,
    Parts,
    Sides,
    StepConfig,
    cached_pass,
    can_fuse,
    embed_passages,
    embed_queries,
    embedding_losses,
    generative_pass,
    in_chunks,
    joint_loss,
    language_losses,
)
from grit_jax.training.language import token_weights
from grit_jax.types import Batch, EmbeddingBatch

Gradient = tuple[tuple[Float[Array, ""], Parts], Params]  # as jax.value_and_grad gives it


def joint_gradient(params: Params, batch: Batch, config: StepConfig) -> Gradient:
    """The joint loss with its parts, and its gradient.

    `config.backward`: "joint" is one backward pass over all losses, in which embedding rows and
    generative rows go through the layers together where they have one length (`joint.can_fuse`);
    "separate" takes them one after the other (language, cached, then contrastive: `gritlm:
    gritlm/training/gradcache_trainer.py:549-550`), so that only one of them has its activations in
    memory; "split" beside it takes the passages' and then the queries' side of the contrastive
    loss, the other held fixed (`gritlm: gritlm/training/gradcache_trainer.py`, split_emb). Rows of
    the language losses taken in chunks have their gradients added up as they come, without a second
    forward pass.
    """
    shares = _shares(batch, config)
    if not shares:
        raise ValueError("a batch without any part has no gradient")
    found = [_gradient(params, share, config) for share in shares]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, _named(a, b), _named(b, a)), found)


def _shares(batch: Batch, config: StepConfig) -> list[Batch]:
    """The parts of a batch that share a backward pass."""
    fused = _fused_in_chunks(batch, config)
    alone = [
        Batch(**{kind: part})
        for kind, apart in (
            ("generative", config.generative_chunk and not fused),
            ("cached", config.cached_chunk or fused),
        )
        if (part := getattr(batch, kind)) is not None and (apart or config.backward != "joint")
    ]
    taken = {
        field.name
        for share in alone
        for field in dataclasses.fields(share)
        if getattr(share, field.name)
    }
    rest = dataclasses.replace(batch, **{kind: None for kind in taken})
    return alone + ([rest] if jax.tree.leaves(rest) else [])


def _fused_in_chunks(batch: Batch, config: StepConfig) -> bool:
    """Whether chunks of embedding rows and of generative rows go through the layers together."""
    chunked = config.embedding_chunk or config.generative_chunk
    return bool(chunked) and not config.model.num_experts and can_fuse(batch, config)


def _gradient(params: Params, batch: Batch, config: StepConfig) -> Gradient:
    if batch.embedding is None:
        if batch.cached is None and config.generative_chunk:
            return _accumulated(params, batch, config, config.generative_chunk)
        if batch.generative is None and config.cached_chunk:
            return _accumulated(params, batch, config, config.cached_chunk)
    elif config.backward == "split":
        return _split(params, batch.embedding, config)
    elif _fused_in_chunks(batch, config):
        return fused_gradient(params, batch, config)
    gradient = lambda: jax.value_and_grad(joint_loss, has_aux=True)(params, batch, config)
    return gradient() if config.backward == "joint" else schedule_separately(gradient, batch)


def schedule_separately(function: Callable[[], Any], rows: Any) -> Any:
    """What `function` gives, computed in one go: nothing inside has its memory beside anything
    outside.

    A branch of a condition (that there is a row at all) is the unit that the compiler schedules
    whole. An optimization barrier is none: on a CPU it is gone before the schedule is made.
    """
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))
    some = functools.reduce(jnp.logical_or, [jnp.any(x != 0) for x in jax.tree.leaves(rows)])
    return jax.lax.cond(some, function, nothing)


def _split(params: Params, batch: EmbeddingBatch, config: StepConfig) -> Gradient:
    """The contrastive gradient side by side: the passages' with the queries as constants, and the
    reverse."""
    if not batch.query_rows:
        raise ValueError("a split backward pass needs queries and passages in rows of their own")
    queries = embed_queries(params, batch, config)

    def of_passages(params: Params) -> tuple[Any, Any]:
        passages = embed_passages(params, batch, config)
        total, parts = embedding_losses(Sides(queries, passages), batch, config)
        return total, (parts, passages)

    first = schedule_separately(
        lambda: jax.value_and_grad(of_passages, has_aux=True)(params), batch.rows
    )
    (total, (parts, passages)), gradient = first

    def of_queries(params: Params) -> jax.Array:
        return embedding_losses(
            Sides(embed_queries(params, batch, config), passages), batch, config
        )[0]

    return (total, parts), jax.tree.map(
        jnp.add, gradient, schedule_separately(lambda: jax.grad(of_queries)(params), batch.rows)
    )


def _accumulated(params: Params, batch: Batch, config: StepConfig, chunk: int) -> Gradient:
    """A language loss and its gradient, summed over chunks of rows: the numbers of the whole batch.

    Tokens get their weights from the whole batch first, so that the sum is the unchunked loss,
    groups of a mixed loss included, however the chunks cut through them. Routers are balanced over
    the whole batch, too: how often each expert is chosen is counted in a pass of its own, and the
    rest of that loss is a sum over tokens.
    """
    run: Callable[..., LanguagePass]
    if batch.cached is not None:
        name, run, text = "loss_cached", cached_pass, batch.cached.text
        whole = lambda text: dataclasses.replace(batch.cached, text=text)
    else:
        assert batch.generative is not None
        name, run, text = "loss_gen", generative_pass, batch.generative
        whole = lambda text: text
    if text.targets.shape[0] <= chunk:
        return jax.value_and_grad(joint_loss, has_aux=True)(params, batch, config)
    # A token loss over one sequence is the plain weighted sum.
    rows = whole(dataclasses.replace(text, targets=token_weights(text, config.loss), sequences=1))
    summed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, generative="token"))
    tokens = jnp.maximum((text.rows.segments > 0).sum(), 1)
    text_of = lambda part: part.text if batch.cached is not None else part

    def of_chunk(params: Params, part: Any) -> LanguagePass:
        found = run(params, part, summed)
        if found.router is not None:  # means over the chunk's tokens -> its share in those over all
            share = (text_of(part).rows.segments > 0).sum() / tokens
            found.router = jax.tree.map(lambda mean: mean * share, found.router)
        return found

    def loss(params: Params, part: Any, chosen: jax.Array | None) -> tuple[Float[Array, ""], Parts]:
        found = of_chunk(params, part)
        if found.router is not None:
            found.router = dataclasses.replace(found.router, chosen=chosen)
        return language_losses({name: found}, config)

    chunks = in_chunks(rows, chunk)
    chosen = None
    if config.model.num_experts:
        chosen = jax.lax.map(lambda part: of_chunk(params, part).router.chosen, chunks).sum(axis=0)
    gradient = lambda part: jax.value_and_grad(loss, has_aux=True)(params, part, chosen)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], chunks)),
    )
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), zero, chunks
    )[0]


def _named(result: Gradient, other: Gradient) -> Gradient:
    """`result` with zeros for the parts that only `other` has."""
    (total, parts), gradient = result
    return (total, {**dict.fromkeys(other[0][1], jnp.zeros(())), **parts}), gradient
