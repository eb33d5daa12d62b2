"""Reranking with the generator: the question goes on from each candidate's record, and the model
says whether the document is relevant.

The prompt is that of the layout `doc` (`text/rag_layouts.py`) with `relevance_question` as its
question, so that nothing of a document is read again, and so that rows of the cached-document
format train it (`data/relevance.py`). A candidate's score is the probability of "yes" where the
answer begins with "yes" or "no", by the first token of each.

`read_relevance` asks the same of documents that have no record: they are read as text before the
question, as a cross-encoder reads its pairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.inference.encoder import PackedTexts
from grit_jax.inference.label_scores import label_rows, label_step
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.row_packing import pack_rows
from grit_jax.rag.generator import RagGenerator, RagPrompt
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.sharding import put_rows, to_host
from grit_jax.text.chat import PromptPart
from grit_jax.text.rag_layouts import READING_MODES, compose
from grit_jax.text.relevance import LABELS, relevance_question
from grit_jax.types import AttentionMode


def relevance_prompts(
    query: str, documents: Sequence[str], records: Sequence[KVRecord]
) -> list[RagPrompt]:
    """A prompt for each candidate, after its record."""
    question = relevance_question(query)
    return [
        RagPrompt("doc", question, (document,), (record,))
        for document, record in zip(documents, records, strict=True)
    ]


def label_tokens(model: GritLM) -> tuple[int, int]:
    """The first token of "yes" and of "no", as an answer begins after the assistant's tag.

    Raises:
      GritError: the tokenizer begins both with the same token.
    """
    tag = PromptPart(model.chat.assistant, is_template=True)
    encoded = model.tokenizer.encode_parts([[tag, PromptPart(label)] for label in LABELS])
    yes, no = (parts[1][0] for parts in encoded)
    if yes == no:
        raise GritError(
            f"rerank: this model's tokenizer begins {' and '.join(map(repr, LABELS))} with the same"
            " token, so that the model cannot be asked"
        )
    return yes, no


def relevance(generator: RagGenerator, prompts: Sequence[RagPrompt]) -> Float[np.ndarray, " P"]:
    """The probability of "yes" against "no" of each prompt.

    Raises:
      GritError: as `RagGenerator.generate`, or labels that begin alike.
    """
    return 1 / (1 + np.exp(-log_odds(generator, prompts)))


def log_odds(generator: RagGenerator, prompts: Sequence[RagPrompt]) -> Float[np.ndarray, " P"]:
    """The logarithm of p("yes") / p("no") of each prompt, in float64.

    Raises:
      GritError: as `relevance`.
    """
    yes, no = label_tokens(generator.model)
    logits = generator.first_logits(prompts).astype(np.float64)
    return logits[:, yes] - logits[:, no]


class DocumentTooLong(GritError):
    """A document that does not fit the context beside its query.

    Attributes:
      number: of its pair.
    """

    def __init__(self, number: int, tokens: int, room: int, context: int):
        super().__init__(
            f"documents[{number}]: {tokens} tokens, and with the query {room} fit this model's"
            f" context of {context}"
        )
        self.number = number


@dataclasses.dataclass(frozen=True)
class ReadingPrompts:
    """Token ids of prompts that read a document and judge it, and how many documents were cut."""

    ids: list[list[int]]
    truncated: int


def reading_prompts(
    model: GritLM, pairs: Sequence[tuple[str, str]], most: int | None = None
) -> ReadingPrompts:
    """Prompts that read the document of each pair of query and document as text.

    Args:
      most: tokens kept of each document; 0: as many as fit the context; None: all.

    Raises:
      DocumentTooLong: a document has more tokens than fit, and `most` does not cut it.
    """
    context = model.config.context_length
    rendered = [
        compose(READING_MODES["doc"], relevance_question(query), [text], model.chat).continuation
        for query, text in pairs
    ]
    prompts, truncated = [], 0
    encoded = model.tokenizer.encode_parts(rendered)
    for number, (prompt, parts) in enumerate(zip(rendered, encoded, strict=True)):
        document = next(i for i, part in enumerate(prompt) if part.is_document)
        tokens = len(parts[document])
        room = context - sum(len(ids) for i, ids in enumerate(parts) if i != document)
        kept = tokens if most is None else min(most, room, tokens) if most else min(room, tokens)
        if kept > room or room < 1:
            raise DocumentTooLong(number, tokens, room, context)
        parts[document] = parts[document][:kept]
        truncated += kept < tokens
        prompts.append([i for ids in parts for i in ids])
    return ReadingPrompts(prompts, truncated)


def read_relevance(
    model: GritLM, prompts: Sequence[Sequence[int]], *, progress: bool = False
) -> Float[np.ndarray, " P"]:
    """The probability of "yes" against "no" right after each of `reading_prompts`, which are packed
    into rows as texts to embed are.

    Raises:
      GritError: labels that begin alike, or a prompt whose result is not finite.
    """
    labels = label_tokens(model)
    encoder, mode = model.encoder, model.generation_mode
    texts = PackedTexts(prompts, [0] * len(prompts), np.zeros((0, 0), np.float32), None, None)
    lengths = [len(prompt) for prompt in prompts]
    scores = np.zeros(len(prompts))
    with show_progress(sum(lengths), "rerank", "tokens", quiet=not progress) as bar:
        for batch in pack_rows(lengths, encoder.tokens_in_call(), encoder.row_multiple):
            rows, _ = texts.lay_out(batch, encoder.tokenizer.pad_id)
            if mode is AttentionMode.PREFIX:
                rows = dataclasses.replace(rows, blocks=rows.segments)
            ends = label_rows(batch, texts, [labels] * len(prompts))
            mesh = encoder.mesh
            with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
                if mesh is not None:
                    rows, ends = put_rows((rows, ends), mesh)
                found = label_step(encoder.params, rows, ends, config=encoder.config, mode=mode)
            logprobs = to_host(found).astype(np.float64)
            for row, numbers in enumerate(batch.texts):
                difference = logprobs[row, : len(numbers), 1] - logprobs[row, : len(numbers), 0]
                scores[numbers] = 1 / (1 + np.exp(np.clip(difference, -700, 700)))
                bar.update(sum(lengths[i] for i in numbers))
    if not np.isfinite(scores).all():
        raise GritError(
            "rerank: a probability is not finite; the model's weights or logits are not"
        )
    return scores
