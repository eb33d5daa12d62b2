"""The contrastive loss over the global batch and its options, and distillation; never more of Q x P than a block."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grit_jax.models.pooling import normalize
from grit_jax.progress import say
from grit_jax.training.losses import LossConfig, in_blocks
from grit_jax.types import GritError

# Numbers of a block's queries (in the other direction: passages) -> the candidates that are none of their negatives.
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
    """InfoNCE over the global batch (`gritlm: gritlm/training/model.py:36-47`), averaged over queries.

    Representations come normalised. Query `i` has the passages `i * (P // Q) ...`, its `positives` first; every other
    passage of the batch is a negative. Of several positives each makes a pair with the query, the others left out
    of its negatives, and the query's loss is the mean over its pairs. What `config` beside says (symmetric,
    false negatives, duplicates, Matryoshka) is described there; the rules for false negatives are those of
    sentence-transformers' CachedGISTEmbedLoss, by the similarity of the whole vectors.

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
    first = np.arange(P) % group < positives
    if config.mask_duplicates and texts is None:
        raise ValueError("mask_duplicates needs the passages' `texts`")
    # Numbers of the passages' texts, and of each query's positives; an empty place has none.
    kinds = jnp.zeros(P, jnp.int32) if texts is None else jnp.asarray(texts)
    kinds = kinds if present is None else jnp.where(present, kinds, -1)
    own = [kinds.reshape(Q, group)[:, k] for k in range(positives)] if config.mask_duplicates else []

    def not_negatives(query: jax.Array) -> jax.Array | None:
        masks = [kinds[None, :] == kind[query][:, None] for kind in own]
        if positives > 1:
            masks.append(first[None, :] & (np.arange(P) // group == query[:, None]))
        if present is not None:
            masks.append(~present[None, :])
        return _any(masks)

    def not_other_queries(passage: jax.Array) -> jax.Array | None:
        return _any([kind[None, :] == kinds[passage][:, None] for kind in own])

    anchors = queries if positives == 1 else jnp.repeat(queries, positives, axis=0)
    losses = _directed_losses(anchors, passages, place, number, not_negatives, config)
    if config.symmetric:
        back = _directed_losses(passages[place], queries, number, place, not_other_queries, config)
        losses = (losses + back) / 2
    if present is None:
        return losses.mean()
    there = present[place].astype(jnp.float32).reshape(Q, positives)
    return (losses.reshape(Q, positives) * there / jnp.maximum(there.sum(1, keepdims=True), 1.0)).sum() / Q


def distillation_loss(
    queries: Float[Array, "Q D"],
    passages: Float[Array, "P D"],
    scores: Float[Array, " P"],
    config: LossConfig,
    *,
    present: Bool[Array, " P"] | None = None,
) -> Float[Array, ""]:
    """KL(teacher, student) over the passages of each query, averaged over queries (arXiv 2010.11386).

    The teacher is `softmax(scores / distillation_temperature)`, the student the softmax of the cosines over
    `temperature`. With Matryoshka dimensions, their weighted sum as in the contrastive loss.
    """
    Q, P = queries.shape[0], passages.shape[0]
    grouped = lambda x: x.reshape(Q, P // Q)
    there = jnp.ones((Q, P // Q), bool) if present is None else grouped(present)
    softmax_of = lambda x: jax.nn.log_softmax(jnp.where(there, x, -jnp.inf), axis=-1)
    teacher = softmax_of(grouped(scores) / config.distillation_temperature)
    total = jnp.zeros((), jnp.float32)
    for dim, weight in matryoshka_views(config, queries.shape[-1]):
        q, p = _view(queries, dim), _view(passages, dim)
        cosines = jnp.einsum("qd,qgd->qg", q, p.reshape(Q, P // Q, dim), precision=jax.lax.Precision.HIGHEST)
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
            f"train.loss.matryoshka_dims: {max(dims)} is more than the {width} dimensions of the vectors; leave it out"
        )
    return list(zip(dims, config.matryoshka_weights or [1.0] * len(dims), strict=True))


def check_dimensions(config: LossConfig, width: int) -> None:
    """Looks at the Matryoshka dimensions before a run: GritError as `matryoshka_views`, a warning where the whole
    vector is not among them."""
    dims = [dim for dim, _ in matryoshka_views(config, width)]
    if width not in dims:
        say(
            f"warning: train.loss.matryoshka_dims ({', '.join(map(str, dims))}) leave out the vectors' own {width}: "
            "the whole vector is not trained"
        )


def _directed_losses(
    anchors: Float[Array, "n D"],
    candidates: Float[Array, "m D"],
    target: np.ndarray,
    about: np.ndarray,
    exclude: Exclude,
    config: LossConfig,
) -> Float[Array, " n"]:
    """Cross-entropy of each anchor's target among the candidates, less those that are none of its negatives."""
    views = matryoshka_views(config, anchors.shape[-1])
    among = [_view(candidates, dim) for dim, _ in views]

    def block_losses(args) -> Float[Array, " b"]:
        target, about, whole, *vectors = args
        masks = [exclude(about)]
        if config.false_negatives != "none":
            masks.append(_too_similar(_cosines(whole, candidates), target, config))
        none = _any([mask for mask in masks if mask is not None])
        if none is not None:  # the target itself always counts
            none &= jnp.arange(candidates.shape[0]) != target[:, None]
        total = jnp.zeros(target.shape, jnp.float32)
        for (_, weight), a, c in zip(views, vectors, among, strict=True):
            scores = _cosines(a, c) / config.temperature
            if none is not None:
                scores = jnp.where(none, -jnp.inf, scores)
            loss = jax.nn.logsumexp(scores, axis=-1) - _at(scores, target)
            total += loss if weight == 1.0 else weight * loss
        return total

    vectors = (_view(anchors, dim) for dim, _ in views)
    arrays = (jnp.asarray(target), jnp.asarray(about), anchors, *vectors)
    return in_blocks(block_losses, arrays, config.similarity_block)


def _too_similar(cosines: Float[Array, "b m"], target: Int[Array, " b"], config: LossConfig) -> Bool[Array, "b m"]:
    """Candidates too similar to be negatives (sentence-transformers: losses/cached_gist_embed.py)."""
    positive = _at(cosines, target)
    margin = config.false_negative_margin * (jnp.abs(positive) if config.false_negatives == "relative" else 1.0)
    return cosines > (positive - margin)[:, None]


def _view(x: Float[Array, "n D"], dim: int) -> Float[Array, "n d"]:
    """The first dimensions, normalised anew where that is not all of them."""
    return x if dim == x.shape[-1] else normalize(x[:, :dim])


def _cosines(a: Float[Array, "n D"], b: Float[Array, "m D"]) -> Float[Array, "n m"]:
    # The highest precision: at temperature 0.02 a similarity rounded to bfloat16 is off by a tenth of a logit.
    return jnp.einsum("nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _at(scores: Float[Array, "n m"], target: Int[Array, " n"]) -> Float[Array, " n"]:
    return jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]


def _any(masks: list[jax.Array]) -> jax.Array | None:
    """Their union; None of none."""
    return functools.reduce(jnp.logical_or, masks) if masks else None
