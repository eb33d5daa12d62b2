"""The largest batch that a configuration can make, as shapes: every text as long as its limit
allows."""

from __future__ import annotations

import jax
import numpy as np

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.packing import (
    TokenCached,
    TokenText,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.types import Batch


def abstract_batch(config: DataConfig, needs: BatchNeeds = BatchNeeds()) -> Batch:
    """A `Batch` of shapes and dtypes, packed by the functions that pack a run's batches; no data is
    read.

    Raises:
      GritError: every batch size is 0.
    """
    config.check_trains()
    limits = config.limits()
    ids = lambda length: range(length)  # which ids they are is no matter
    text = lambda length: TokenText(ids(length), np.ones(length, bool))
    embedding = generative = cached = None
    if config.embedding_batch:
        queries = [ids(limits.query)] * config.embedding_batch
        passages = [ids(limits.passage)] * (
            len(queries) * (config.positives_per_query + config.group_size - 1)
        )
        embedding = embedding_batch(
            queries,
            passages,
            [0] * (len(queries) + len(passages)),
            row_length=config.row_length or max(limits.query, limits.passage),
            row_multiple=config.row_multiple,
            positives=config.positives_per_query,
            separate=needs.separate_sides,
            blocks=needs.sample_blocks,
            scores=[0.0] * len(passages) if needs.teacher_scores else None,
        )
    if config.generative_batch:
        generative = generative_batch(
            [text(limits.generative)] * config.generative_batch,
            row_length=config.generative_row_length or limits.generative,
            row_multiple=config.row_multiple,
            prefix=needs.prefix_generation,
        )
    if config.cached_batch:
        cached = cached_batch(
            [TokenCached([ids(limits.cached_pieces)], text(limits.cached_text))]
            * config.cached_batch,
            pieces_row_length=limits.cached_pieces,
            row_length=limits.cached_text,
            row_multiple=config.row_multiple,
            blocks=needs.sample_blocks,
            prefix=needs.prefix_generation,
        )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), Batch(embedding, generative, cached)
    )
