"""The contrastive loss over the global batch with its options, and distillation.

Queries and passages stay sharded over the devices; passages are gathered block by block, so that
the Q x P similarities never exist at once (see `models.losses.cross_entropy`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grit_jax.errors import GritError
from grit_jax.models.losses import cross_entropy
from grit_jax.models.pooling import normalize
from grit_jax.runtime.progress import say
from grit_jax.sharding import constrain
from grit_jax.training.losses import LossConfig

# From the numbers of a block's candidates to a mask `[n, m]`: True where a candidate is not a
# negative of the anchor. None: all are.
Exclude = Callable[[jax.Array], "jax.Array | None"]


def contrastive_loss(
    queries: Float[Array, "Q D"],
    passages: Float[Array, "P D"],
    config: LossConfig,
    *,
    positives: int = 1,
    present: Bool[Array, " P"] | None = None,
    texts: Int[Array, " P"] | None = None,
) -> Float[Array, ""]:
    """InfoNCE over the global batch (`gritlm: gritlm/training/model.py:36-47`), averaged over
    queries.

    Representations must be normalised. Query `i` has the passages `i * (P // Q) ...`, its
    `positives` first; every other passage of the batch is a negative. With several positives, each
    makes a pair with the query, the other positives are left out of its negatives, and the query's
    loss is the mean over its pairs. `LossConfig` describes the options (symmetric, false negatives,
    duplicates, Matryoshka). The rules for false negatives are those of sentence-transformers'
    CachedGISTEmbedLoss, applied to the similarity of the whole vectors.

    Args:
      present: False where a query has fewer passages than the others; such a place is ignored.
      texts: equal numbers for equal texts; needed by `mask_duplicates`.

    Raises:
      GritError: a Matryoshka dimension beyond the vectors'.
    """
    Q, P = queries.shape[0], passages.shape[0]
    group = P // Q
    query_of = np.repeat(np.arange(Q), positives)  # the number of each pair's query
    positive_of = query_of * group + np.tile(np.arange(positives), Q)  # and of its positive
    if config.mask_duplicates and texts is None:
        raise ValueError("mask_duplicates needs the passages' `texts`")
    # Equal for equal texts, -1 where there is no passage; and those of each query's positives.
    text_ids = jnp.zeros(P, jnp.int32) if texts is None else jnp.asarray(texts)
    text_ids = text_ids if present is None else jnp.where(present, text_ids, -1)
    own = (
        [text_ids.reshape(Q, group)[:, k] for k in range(positives)]
        if config.mask_duplicates
        else []
    )
    exists = jnp.ones(P, bool) if present is None else jnp.asarray(present)

    def not_negatives(passage: jax.Array) -> jax.Array | None:
        masks = [text_ids[passage][None, :] == ids[query_of][:, None] for ids in own]
        if positives > 1:
            masks.append(
                (passage % group < positives)[None, :] & (passage // group == query_of[:, None])
            )
        if present is not None:
            masks.append(~exists[passage][None, :])
        return _any(masks)

    def not_other_queries(query: jax.Array) -> jax.Array | None:
        return _any([ids[query][None, :] == text_ids[positive_of][:, None] for ids in own])

    queries, passages = (constrain(x, ("rows", None)) for x in (queries, passages))
    anchors = queries if positives == 1 else jnp.repeat(queries, positives, axis=0)
    targets = passages.reshape(Q, group, -1)[:, :positives].reshape(anchors.shape)
    losses = _directed_losses(anchors, targets, passages, positive_of, not_negatives, config)
    if config.symmetric:
        reverse = _directed_losses(targets, anchors, queries, query_of, not_other_queries, config)
        losses = (losses + reverse) / 2
    if present is None:
        return losses.mean()
    counts = exists[positive_of].astype(jnp.float32).reshape(Q, positives)
    return (
        losses.reshape(Q, positives) * counts / jnp.maximum(counts.sum(1, keepdims=True), 1.0)
    ).sum() / Q


def distillation_loss(
    queries: Float[Array, "Q D"],
    passages: Float[Array, "P D"],
    scores: Float[Array, " P"],
    config: LossConfig,
    *,
    present: Bool[Array, " P"] | None = None,
) -> Float[Array, ""]:
    """KL(teacher, student) over the passages of each query, averaged over queries (arXiv
    2010.11386).

    The teacher is `softmax(scores / distillation_temperature)`, the student the softmax of the
    cosines over `temperature`. With Matryoshka dimensions it is a weighted sum, as in the
    contrastive loss.
    """
    Q, P = queries.shape[0], passages.shape[0]
    grouped = lambda x: x.reshape(Q, P // Q)
    exists = jnp.ones((Q, P // Q), bool) if present is None else grouped(present)
    softmax_of = lambda x: jax.nn.log_softmax(jnp.where(exists, x, -jnp.inf), axis=-1)
    teacher = softmax_of(grouped(scores) / config.distillation_temperature)
    total = jnp.zeros((), jnp.float32)
    for dim, weight in matryoshka_views(config, queries.shape[-1]):
        q, p = _view(queries, dim), _view(passages, dim)
        cosines = jnp.einsum(
            "qd,qgd->qg", q, p.reshape(Q, P // Q, dim), precision=jax.lax.Precision.HIGHEST
        )
        difference = jnp.where(exists, teacher - softmax_of(cosines / config.temperature), 0.0)
        total += weight * (jnp.exp(teacher) * difference).sum(axis=-1).mean()
    return total


def matryoshka_views(config: LossConfig, width: int) -> list[tuple[int, float]]:
    """The dimensions at which the embedding loss is computed, with their weights.

    Raises:
      GritError: a dimension is larger than the vectors' width.
    """
    dims = config.matryoshka_dims or [width]
    if max(dims) > width:
        raise GritError(
            f"train.loss.matryoshka_dims: {max(dims)} is more than the {width} dimensions of the"
            " vectors; leave it out"
        )
    return list(zip(dims, config.matryoshka_weights or [1.0] * len(dims), strict=True))


def check_dimensions(config: LossConfig, width: int) -> None:
    """Checks the Matryoshka dimensions before a run: raises as `matryoshka_views`, and warns if the
    whole vector is not among them."""
    dims = [dim for dim, _ in matryoshka_views(config, width)]
    if width not in dims:
        say(
            f"warning: train.loss.matryoshka_dims ({', '.join(map(str, dims))}) leave out the"
            f" vectors' own {width}: the whole vector is not trained"
        )


def _directed_losses(
    anchors: Float[Array, "n D"],
    targets: Float[Array, "n D"],
    candidates: Float[Array, "m D"],
    target: np.ndarray,
    exclude: Exclude,
    config: LossConfig,
) -> Float[Array, " n"]:
    """Cross-entropy of each anchor's target among the candidates.

    Args:
      targets, target: the targets' vectors, and their numbers among the candidates.
      exclude: masks candidates that are not negatives of an anchor.
    """
    views = matryoshka_views(config, anchors.shape[-1])
    anchor_views = [_view(anchors, dim) for dim, _ in views]
    limit = None
    if config.false_negatives != "none":
        limit = jax.lax.stop_gradient(_highest_similarity(anchors, targets, config))

    def scores(
        anchor_views: list[jax.Array], part: jax.Array, candidate: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        own = candidate == target[:, None]
        masks = [exclude(candidate)]
        if limit is not None:
            masks.append(_cosines(anchors, part) > limit[:, None])
        excluded = _any([mask for mask in masks if mask is not None])
        similarities = [
            _cosines(a, _view(part, dim)) / config.temperature
            for a, (dim, _) in zip(anchor_views, views, strict=True)
        ]
        if excluded is not None:  # the target itself is never excluded
            similarities = [jnp.where(excluded & ~own, -jnp.inf, x) for x in similarities]
        return similarities, own

    losses = cross_entropy(
        scores,
        anchor_views,
        candidates,
        config.similarity_block,
        row_axes=("rows",),
        axes=("rows", None),
    )
    return functools.reduce(
        jnp.add, [weight * loss for (_, weight), loss in zip(views, losses, strict=True)]
    )


def _highest_similarity(
    anchors: Float[Array, "n D"], targets: Float[Array, "n D"], config: LossConfig
) -> Array:
    """The similarity above which a candidate counts as a false negative (sentence-transformers:
    losses/cached_gist_embed.py)."""
    positive = jnp.einsum("nd,nd->n", anchors, targets, precision=jax.lax.Precision.HIGHEST)
    size = jnp.abs(positive) if config.false_negatives == "relative" else 1.0
    return positive - config.false_negative_margin * size


def _view(x: Float[Array, "n D"], dim: int) -> Float[Array, "n d"]:
    """The first `dim` dimensions, normalised anew if that is not all of them."""
    return x if dim == x.shape[-1] else normalize(x[:, :dim])


def _cosines(a: Float[Array, "n D"], b: Float[Array, "m D"]) -> Float[Array, "n m"]:
    # At temperature 0.02 a similarity rounded to bfloat16 would be off by a tenth of a logit.
    return jnp.einsum(
        "nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _any(masks: list[jax.Array]) -> jax.Array | None:
    """The union of the masks; None if there are none."""
    return functools.reduce(jnp.logical_or, masks) if masks else None
