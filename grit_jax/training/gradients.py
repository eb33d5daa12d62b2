"""The gradient of the joint loss: in one backward pass, or as the sum of several that need less
memory."""

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
from grit_jax.training.gradient_plan import BackwardPass, gradient_plan
from grit_jax.training.joint import (
    Sides,
    cached_pass,
    embed_passages,
    embed_queries,
    embedding_losses,
    generative_pass,
    joint_loss,
    language_losses,
)
from grit_jax.training.language import LanguagePass, Parts, token_weights
from grit_jax.training.preference import kto_reference_point, preference_pass
from grit_jax.training.step_config import StepConfig, in_chunks
from grit_jax.types import Batch, EmbeddingBatch, PreferenceBatch

Gradient = tuple[tuple[Float[Array, ""], Parts], Params]  # as jax.value_and_grad returns it


def joint_gradient(params: Params, batch: Batch, config: StepConfig) -> Gradient:
    """The joint loss with its parts, and its gradient: the sum over the passes of `gradient_plan`.

    Rows of a language loss that are taken in chunks have their gradients added up as they come,
    without a second forward pass.

    Raises:
      ValueError: a batch without any part.
    """
    passes = gradient_plan(batch, config).passes
    if not passes:
        raise ValueError("a batch without any part has no gradient")
    gradients = [_pass_gradient(params, batch, config, backward) for backward in passes]
    return functools.reduce(
        lambda a, b: jax.tree.map(jnp.add, _with_parts_of(a, b), _with_parts_of(b, a)), gradients
    )


def _pass_gradient(
    params: Params, batch: Batch, config: StepConfig, backward: BackwardPass
) -> Gradient:
    """One backward pass of the plan."""
    part = Batch(**{loss: getattr(batch, loss) for loss in backward.losses})
    if backward.split:
        assert part.embedding is not None
        return _split(params, part.embedding, config)
    if backward.fused and (config.embedding_chunk or config.generative_chunk):
        return fused_gradient(params, part, config)
    if backward.accumulated:
        return _accumulated(params, part, config, backward.accumulated)
    loss = functools.partial(joint_loss, fused=backward.fused)
    gradient = lambda: jax.value_and_grad(loss, has_aux=True)(params, part, config)
    return schedule_separately(gradient, part) if backward.alone else gradient()


def schedule_separately(function: Callable[[], Any], rows: Any) -> Any:
    """The result of `function`, scheduled as one unit: its memory is never beside that of anything
    outside.

    The compiler schedules a branch of a condition (here: that there is a row at all) as a whole. An
    optimization barrier does not do it: on a CPU it is gone before the schedule is made.
    """
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))
    some = functools.reduce(jnp.logical_or, [jnp.any(x != 0) for x in jax.tree.leaves(rows)])
    return jax.lax.cond(some, function, nothing)


def _split(params: Params, batch: EmbeddingBatch, config: StepConfig) -> Gradient:
    """The contrastive gradient by the passages with the queries as constants, then the reverse."""
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
    rest of that loss is a sum over tokens. A preference loss is a sum over answers (or pairs, which
    share a row) once its reference point is known, which is computed first.
    """
    run: Callable[..., LanguagePass]
    rows: Any
    metrics: Parts = {}
    text_of = lambda part: part
    # A token loss over one sequence is the plain weighted sum.
    weighted = lambda text: dataclasses.replace(
        text, targets=token_weights(text, config.loss), sequences=1
    )
    summed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, generative="token"))
    if (preference := batch.preference) is not None:
        name, text, rows = "loss_preference", preference.text, preference.text
        point = None
        if preference.mismatched is not None:
            point = kto_reference_point(params, preference.mismatched, config)
            metrics["preference_kl"] = point
        # The chunks add up, and the point is no sum: it is a metric of the whole.
        run = lambda params, part, config: preference_pass(
            params, PreferenceBatch(part, preference.desirable), config, point
        )
    elif batch.cached is not None:
        name, run, text = "loss_cached", cached_pass, batch.cached.text
        rows = dataclasses.replace(batch.cached, text=weighted(text))
        text_of = lambda part: part.text
    else:
        assert batch.generative is not None
        name, run, text = "loss_gen", generative_pass, batch.generative
        rows = weighted(text)
    tokens = jnp.maximum((text.rows.segments > 0).sum(), 1)

    def of_chunk(params: Params, part: Any) -> LanguagePass:
        result = run(params, part, summed)
        result.metrics = {key: x for key, x in result.metrics.items() if key not in metrics}
        if result.router is not None:  # means over the chunk -> its share in the means over all
            share = (text_of(part).rows.segments > 0).sum() / tokens
            result.router = jax.tree.map(lambda mean: mean * share, result.router)
        return result

    def loss(params: Params, part: Any, chosen: jax.Array | None) -> tuple[Float[Array, ""], Parts]:
        result = of_chunk(params, part)
        if result.router is not None:
            result.router = dataclasses.replace(result.router, chosen=chosen)
        return language_losses({name: result}, config)

    chunks = in_chunks(rows, chunk)
    chosen = None
    if config.model.num_experts:
        chosen = jax.lax.map(lambda part: of_chunk(params, part).router.chosen, chunks).sum(axis=0)
    gradient = lambda part: jax.value_and_grad(loss, has_aux=True)(params, part, chosen)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], chunks)),
    )
    (total, parts), summed_gradient = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), zero, chunks
    )[0]
    return (total, parts | metrics), summed_gradient


def _with_parts_of(result: Gradient, other: Gradient) -> Gradient:
    """`result` with zeros for the parts that only `other` has."""
    (total, parts), gradient = result
    return (total, {**dict.fromkeys(other[0][1], jnp.zeros(())), **parts}), gradient
