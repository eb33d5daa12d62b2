"""The shapes of the largest batch that a configuration can produce: every text as long as its limit
allows."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.packing import (
    CachedPacking,
    EmbeddingPacking,
    GenerativePacking,
    cached_batch,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.preference import preference_batch
from grit_jax.data.token_texts import TokenCached, TokenText
from grit_jax.types import Batch


def abstract_batch(config: DataConfig, needs: BatchNeeds = BatchNeeds()) -> Batch:
    """A `Batch` of `jax.ShapeDtypeStruct`, packed by the functions that pack a run's batches. No
    data is read.

    Raises:
      GritError: every batch size is 0.
    """
    config.check_trains()
    limits = config.limits()
    ids = lambda length: range(length)  # the values do not matter
    text = lambda length: TokenText(ids(length), np.ones(length, bool))
    embedding = generative = cached = preference = None
    if config.embedding_batch:
        queries = [ids(limits.query)] * config.embedding_batch
        passages = [ids(limits.passage)] * (
            len(queries) * (config.positives_per_query + config.group_size - 1)
        )
        packing = EmbeddingPacking(
            config.row_length or max(limits.query, limits.passage),
            config.row_multiple,
            positives=config.positives_per_query,
            separate=needs.separate_sides,
            blocks=needs.sample_blocks,
        )
        scores = [0.0] * len(passages) if needs.teacher_scores else None
        prompt_lengths = [0] * (len(queries) + len(passages))
        embedding = embedding_batch(queries, passages, prompt_lengths, packing, scores)
    if config.generative_batch:
        generative = generative_batch(
            [text(limits.generative)] * config.generative_batch,
            GenerativePacking(
                config.generative_row_length or limits.generative,
                config.row_multiple,
                prefix=needs.prefix_generation,
            ),
            [True] * config.generative_batch if needs.base_teacher else None,
        )
    if config.cached_batch:
        example = TokenCached([ids(limits.cached_row)], text(limits.continuation_row))
        if needs.teacher_rows:
            # Student and teacher predict equally many tokens.
            count = min(limits.continuation_row, limits.teacher_row) - 1
            answer = lambda length: TokenText(ids(length), np.arange(length) >= length - count)
            example = dataclasses.replace(
                example, text=answer(limits.continuation_row), teacher=answer(limits.teacher_row)
            )
        cached = cached_batch(
            [example] * config.cached_batch,
            CachedPacking(
                limits.cached_row,
                limits.continuation_row,
                config.row_multiple,
                blocks=needs.sample_blocks,
                prefix=needs.prefix_generation,
                teacher_row_length=limits.teacher_row if needs.teacher_rows else None,
            ),
        )
    if config.preference_batch:
        # The chosen and the rejected answers of DPO; the answers and the mismatched texts of KTO.
        labels = np.ones(config.preference_batch, bool) if needs.preference == "kto" else None
        preference = preference_batch(
            [text(limits.preference)] * (2 * config.preference_batch),
            labels,
            GenerativePacking(
                config.preference_row(needs.preference),
                config.row_multiple,
                prefix=needs.prefix_generation,
            ),
        )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        Batch(embedding, generative, cached, preference),
    )
