"""The contrastive loss over the global batch and its options, and distillation; never more of Q x P
than a block.

Queries and passages stay spread over the devices; passages are gathered block by block (see
`models.losses.cross_entropy`).
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

# Numbers of a block's candidates -> those of them that are none of an anchor's negatives, for each
# anchor.
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

    Representations come normalised. Query `i` has the passages `i * (P // Q) ...`, its `positives`
    first; every other passage of the batch is a negative. Of several positives each makes a pair
    with the query, the others left out of its negatives, and the query's loss is the mean over its
    pairs. What `config` beside says (symmetric, false negatives, duplicates, Matryoshka) is
    described there; the rules for false negatives are those of sentence-transformers'
    CachedGISTEmbedLoss, by the similarity of the whole vectors.

    Args:
      present: False where a query has fewer passages than the others; such a place counts nowhere.
      texts: equal numbers for equal texts; needed by `mask_duplicates`.

    Raises:
      GritError: a Matryoshka dimension beyond the vectors'.
    """
    Q, P = queries.shape[0], passages.shape[0]
    group = P // Q
    number = np.repeat(np.arange(Q), positives)  # the query of each pair
    place = number * group + np.tile(np.arange(positives), Q)  # and its positive
    if config.mask_duplicates and texts is None:
        raise ValueError("mask_duplicates needs the passages' `texts`")
    # Numbers of the passages' texts, and of each query's positives; an empty place has none.
    kinds = jnp.zeros(P, jnp.int32) if texts is None else jnp.asarray(texts)
    kinds = kinds if present is None else jnp.where(present, kinds, -1)
    own = (
        [kinds.reshape(Q, group)[:, k] for k in range(positives)] if config.mask_duplicates else []
    )
    there = jnp.ones(P, bool) if present is None else jnp.asarray(present)

    def not_negatives(passage: jax.Array) -> jax.Array | None:
        masks = [kinds[passage][None, :] == kind[number][:, None] for kind in own]
        if positives > 1:
            masks.append(
                (passage % group < positives)[None, :] & (passage // group == number[:, None])
            )
        if present is not None:
            masks.append(~there[passage][None, :])
        return _any(masks)

    def not_other_queries(query: jax.Array) -> jax.Array | None:
        return _any([kind[query][None, :] == kinds[place][:, None] for kind in own])

    queries, passages = (constrain(x, ("rows", None)) for x in (queries, passages))
    anchors = queries if positives == 1 else jnp.repeat(queries, positives, axis=0)
    mine = passages.reshape(Q, group, -1)[:, :positives].reshape(anchors.shape)
    losses = _directed_losses(anchors, mine, passages, place, not_negatives, config)
    if config.symmetric:
        back = _directed_losses(mine, anchors, queries, number, not_other_queries, config)
        losses = (losses + back) / 2
    if present is None:
        return losses.mean()
    counts = there[place].astype(jnp.float32).reshape(Q, positives)
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
    cosines over `temperature`. With Matryoshka dimensions, their weighted sum as in the contrastive
    loss.
    """
    Q, P = queries.shape[0], passages.shape[0]
    grouped = lambda x: x.reshape(Q, P // Q)
    there = jnp.ones((Q, P // Q), bool) if present is None else grouped(present)
    softmax_of = lambda x: jax.nn.log_softmax(jnp.where(there, x, -jnp.inf), axis=-1)
    teacher = softmax_of(grouped(scores) / config.distillation_temperature)
    total = jnp.zeros((), jnp.float32)
    for dim, weight in matryoshka_views(config, queries.shape[-1]):
        q, p = _view(queries, dim), _view(passages, dim)
        cosines = jnp.einsum(
            "qd,qgd->qg", q, p.reshape(Q, P // Q, dim), precision=jax.lax.Precision.HIGHEST
        )
        difference = jnp.where(there, teacher - softmax_of(cosines / config.temperature), 0.0)
        total += weight * (jnp.exp(teacher) * difference).sum(axis=-1).mean()
    return total


def matryoshka_views(config: LossConfig, width: int) -> list[tuple[int, float]]:
    """The dimensions that the embedding loss is taken at, with their weights.

    Raises:
      GritError: one of them is more than the vectors have.
    """
    dims = config.matryoshka_dims or [width]
    if max(dims) > width:
        raise GritError(
            f"train.loss.matryoshka_dims: {max(dims)} is more than the {width} dimensions of the"
            " vectors; leave it out"
        )
    return list(zip(dims, config.matryoshka_weights or [1.0] * len(dims), strict=True))


def check_dimensions(config: LossConfig, width: int) -> None:
    """Looks at the Matryoshka dimensions before a run: GritError as `matryoshka_views`, a warning
    where the whole vector is not among them."""
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
    """Cross-entropy of each anchor's target among the candidates, less those that are none of its
    negatives.

    Args:
      targets, target: the targets themselves, and their numbers among the candidates.
    """
    views = matryoshka_views(config, anchors.shape[-1])
    lines = [_view(anchors, dim) for dim, _ in views]
    limit = None
    if config.false_negatives != "none":
        limit = jax.lax.stop_gradient(_highest_similarity(anchors, targets, config))

    def scores(
        lines: list[jax.Array], part: jax.Array, candidate: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        own = candidate == target[:, None]
        masks = [exclude(candidate)]
        if limit is not None:
            masks.append(_cosines(anchors, part) > limit[:, None])
        none = _any([mask for mask in masks if mask is not None])
        found = [
            _cosines(a, _view(part, dim)) / config.temperature
            for a, (dim, _) in zip(lines, views, strict=True)
        ]
        if none is not None:  # the target itself always counts
            found = [jnp.where(none & ~own, -jnp.inf, x) for x in found]
        return found, own

    losses = cross_entropy(
        scores, lines, candidates, config.similarity_block, row_axes=("rows",), axes=("rows", None)
    )
    return functools.reduce(
        jnp.add, [weight * loss for (_, weight), loss in zip(views, losses, strict=True)]
    )


def _highest_similarity(
    anchors: Float[Array, "n D"], targets: Float[Array, "n D"], config: LossConfig
) -> Array:
    """Of a negative: above it, it is too similar to be one (sentence-transformers:
    losses/cached_gist_embed.py)."""
    positive = jnp.einsum("nd,nd->n", anchors, targets, precision=jax.lax.Precision.HIGHEST)
    size = jnp.abs(positive) if config.false_negatives == "relative" else 1.0
    return positive - config.false_negative_margin * size


def _view(x: Float[Array, "n D"], dim: int) -> Float[Array, "n d"]:
    """The first dimensions, normalised anew where that is not all of them."""
    return x if dim == x.shape[-1] else normalize(x[:, :dim])


def _cosines(a: Float[Array, "n D"], b: Float[Array, "m D"]) -> Float[Array, "n m"]:
    # The highest precision: at temperature 0.02 a similarity rounded to bfloat16 is off by a tenth
    # of a logit.
    return jnp.einsum(
        "nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _any(masks: list[jax.Array]) -> jax.Array | None:
    """Their union; None of none."""
    return functools.reduce(jnp.logical_or, masks) if masks else None
