"""Documents to batches of token ids, each of which is encoded and committed at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from grit_jax.inference.model import GritLM
from grit_jax.rag.corpus import CorpusDocument

# A batch is committed at once, and the most that a killed process loses. Its records are in memory
# twice.
BATCH_BYTES, LEAST_BATCH, MOST_BATCH = 128 << 20, 4096, 65536  # the last two in tokens
TOKENISED_TOGETHER = 256  # documents


@dataclasses.dataclass
class DocumentBatch:
    """Documents with their token ids; mean pooling starts at `pool_start`. `truncated` are the ids
    of documents that lost their end."""

    documents: list[CorpusDocument]
    ids: list[list[int]]
    pool_start: int
    truncated: set[str]


def document_batches(
    documents: Iterable[CorpusDocument], model: GritLM, max_length: int, tokens: int
) -> Iterator[DocumentBatch]:
    """Documents in the corpus's order, in batches of about `tokens` tokens."""
    batch, size = DocumentBatch([], [], 0, set()), 0
    for group in _groups(documents, TOKENISED_TOGETHER):
        formatted = model.encoder.format(
            [document.content for document in group], max_length=max_length
        )
        batch.pool_start, truncated = formatted.pool_start, set(formatted.truncated)
        for number, (document, ids) in enumerate(zip(group, formatted.ids, strict=True)):
            if batch.ids and size + len(ids) > tokens:
                yield batch
                batch, size = DocumentBatch([], [], formatted.pool_start, set()), 0
            batch.documents.append(document)
            batch.ids.append(ids)
            if number in truncated:
                batch.truncated.add(document.id)
            size += len(ids)
    if batch.ids:
        yield batch


def _groups(documents: Iterable[CorpusDocument], size: int) -> Iterator[list[CorpusDocument]]:
    group: list[CorpusDocument] = []
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def batch_tokens(model: GritLM, records: bool) -> int:
    """Tokens of a batch, by the size of their records; `records`: whether there are any."""
    if not records:
        return MOST_BATCH
    config = model.config
    per_token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.head_dim or 0)
        * (4 if config.dtype == "float32" else 2)
    )
    return min(max(BATCH_BYTES // per_token, LEAST_BATCH), MOST_BATCH)
