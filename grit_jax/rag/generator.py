"""Answers to questions over given documents, in a RAG layout. Finding the documents is done
elsewhere (`answer.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.inference.decode import Generation, Timings
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord, Positions
from grit_jax.inference.sampling import Sampling
from grit_jax.text.length import MAX_LENGTH, length_limit
from grit_jax.text.rag_layouts import CACHED_MODES, RagMode, compose

# Layouts that read documents from records, and those that read the question from one.
DOCUMENT_CACHES: tuple[RagMode, ...] = ("doc", "query-doc", "doc-query")
QUERY_CACHES: tuple[RagMode, ...] = ("query", "query-doc", "doc-query")
SHORT_ANSWER = Sampling(max_new_tokens=16)  # the original's


@dataclasses.dataclass(frozen=True)
class RagPrompt:
    """One question in one layout.

    Attributes:
      documents: `{title} {text}` each, best first, in the order in which they are read; none in the
        layout `none`.
      records: the documents' records in the same order, if the layout is one of `DOCUMENT_CACHES`.
      query: the question's record, if the layout is one of `QUERY_CACHES`.
      history: the turns before the question, `[user, assistant, ...]`.
    """

    mode: RagMode
    question: str
    documents: tuple[str, ...] = ()
    records: tuple[KVRecord, ...] = ()
    query: KVRecord | None = None
    history: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DocumentsRead:
    """What a prompt holds of its documents. The context may be too short for all of them.

    Attributes:
      documents: how many of them are read, from the first on.
      tokens: tokens that are read of the only document left, where its end is cut off to make it
        fit; None: documents are read as they are.
    """

    documents: int
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """What is read before an answer: records, then token ids, and what they hold of the
    documents."""

    ids: list[int]
    records: tuple[KVRecord, ...]
    read: DocumentsRead


@dataclasses.dataclass
class RagAnswers:
    """Answers in the order of the prompts.

    Attributes:
      answers: decoded and stripped. tokens: their ids.
      read: what was read of each prompt's documents.
      timings: of all prompts together.
    """

    answers: list[str]
    tokens: list[list[int]]
    read: list[DocumentsRead]
    timings: Timings


class RagGenerator:
    """Answers questions over given documents with one model.

    Args:
      max_length: tokens of a document, `<s><|embed|>\n` included, in every layout: a prompt shows
        what a record holds. At most the model's context.
      int8_records: how records are kept on the device during decoding (see `decode.generate`);
        None: as int8 if they are compressed in the store, else as they are.
      positions: "colliding" places records as the original does (see `records.Positions`), for
        comparison.
    """

    def __init__(
        self,
        model: GritLM,
        max_length: int = MAX_LENGTH,
        int8_records: bool | None = None,
        positions: Positions = "running",
    ):
        self.model, self.int8_records, self.positions = model, int8_records, positions
        self.context = model.config.context_length
        self.max_length = length_limit(max_length, self.context)
        self._tags = model.encoder.format([""], max_length=self.max_length).prompt

    def records(self, texts: Sequence[str], max_length: int | None = None) -> list[KVRecord]:
        """The records of documents or questions, from one encoding pass; `max_length` tokens of
        each, tags included, as those of the generator by default."""
        formatted = self.model.encoder.format(texts, max_length=max_length or self.max_length)
        records = self.model.encoder.encode_ids(formatted.ids, return_cache=True).caches
        assert records is not None
        return records

    def continuations(self, prompts: Sequence[RagPrompt]) -> list[list[int]]:
        """Token ids of what is read after the records, long documents cut as their records are.

        Raises:
          GritError: a layout that needs documents has none.
        """
        return [self._ids(parts, self._room) for parts in self._parts(prompts)]

    def fitted(self, prompt: RagPrompt, new_tokens: int) -> FittedPrompt:
        """What is read before the answer to one prompt, for an engine; see `generate`.

        Raises:
          GritError: as `generate`.
        """
        prompt, ids, read = self._fit(prompt, self._parts([prompt])[0], new_tokens)
        return FittedPrompt(ids, _records(prompt), read)

    def generate(
        self, prompts: Sequence[RagPrompt], sampling: Sampling = SHORT_ANSWER
    ) -> RagAnswers:
        """Generates the answers to all prompts together.

        A prompt that is longer than the model's context reads fewer of its documents, the last ones
        being left out first, or less of the only one left (`RagAnswers.read`).

        Raises:
          GritError: a layout without the documents that it needs, or a question that does not fit
            the context even without documents.
          ValueError: a prompt without the records that its layout reads.
        """
        generated, read = self._generate(prompts, sampling)
        answers = [self.model.tokenizer.decode(tokens).strip() for tokens in generated.tokens]
        return RagAnswers(answers, generated.tokens, read, generated.timings)

    def first_logits(self, prompts: Sequence[RagPrompt]) -> Float[np.ndarray, "P V"]:
        """The logits of the first token of each answer; prompts are fitted as by `generate`.

        Raises:
          GritError, ValueError: as `generate`.
        """
        if not prompts:
            return np.zeros((0, self.model.config.vocab_size), np.float32)
        generated, _ = self._generate(prompts, Sampling(max_new_tokens=1), return_logits=True)
        assert generated.logits is not None
        return generated.logits[:, 0]

    def _generate(
        self, prompts: Sequence[RagPrompt], sampling: Sampling, return_logits: bool = False
    ) -> tuple[Generation, list[DocumentsRead]]:
        """Continues prompts that are fitted to the context, and what is read of their documents."""
        fitted = [
            self._fit(prompt, parts, sampling.max_new_tokens)
            for prompt, parts in zip(prompts, self._parts(prompts), strict=True)
        ]
        records = [_records(prompt) for prompt, _, _ in fitted]
        int8 = self.int8_records
        if int8 is None:
            int8 = any(record.codec is not None for row in records for record in row)
        generated = self.model.generate_ids(
            [ids for _, ids, _ in fitted],
            records=records,
            sampling=sampling,
            return_logits=return_logits,
            int8_records=int8,
            positions=self.positions,
        )
        return generated, [read for _, _, read in fitted]

    @property
    def _room(self) -> int:
        """Tokens of a document without its tags."""
        return self.max_length - self._tags

    def _parts(self, prompts: Sequence[RagPrompt]) -> list[list[tuple[list[int], bool]]]:
        """Token ids of the parts of each continuation, and whether a part is a document."""
        layouts = [
            compose(p.mode, p.question, p.documents, self.model.chat, p.history) for p in prompts
        ]
        encoded = self.model.tokenizer.encode_parts([layout.continuation for layout in layouts])
        return [
            [(ids, part.is_document) for part, ids in zip(layout.continuation, parts, strict=True)]
            for layout, parts in zip(layouts, encoded, strict=True)
        ]

    @staticmethod
    def _ids(parts: Sequence[tuple[list[int], bool]], room: int) -> list[int]:
        return [i for ids, is_document in parts for i in (ids[:room] if is_document else ids)]

    def _fit(
        self, prompt: RagPrompt, parts: list[tuple[list[int], bool]], new_tokens: int
    ) -> tuple[RagPrompt, list[int], DocumentsRead]:
        """A prompt with as much of its documents as the context holds, its continuation, and how
        much that is."""
        count = len(prompt.documents)
        ids = self._ids(parts, self._room)
        excess = self._excess(prompt, ids, new_tokens)
        while excess > 0 and len(prompt.documents) > 1:
            documents, records = prompt.documents[:-1], prompt.records[: len(prompt.documents) - 1]
            prompt = dataclasses.replace(prompt, documents=documents, records=records)
            [parts] = self._parts([prompt])
            ids = self._ids(parts, self._room)
            excess = self._excess(prompt, ids, new_tokens)
        if excess <= 0:
            return prompt, ids, DocumentsRead(len(prompt.documents))
        cached = prompt.mode in DOCUMENT_CACHES
        length = (
            len(prompt.records[0].tokens)
            if cached
            else sum(len(part[: self._room]) for part, is_document in parts if is_document)
        )
        kept = length - excess
        if kept <= (self._tags if cached else 0):
            raise GritError(
                f"question {prompt.question!r:.60}: with the template and {new_tokens} new tokens"
                f" it does not fit the model's context of {self.context} tokens"
                f"{', even without documents' if count else ''}; shorten the question or the answer"
                " (--max-new-tokens)"
            )
        if cached:
            [record] = self.records(prompt.documents, max_length=kept)
            prompt = dataclasses.replace(prompt, records=(record,))
        else:
            ids = self._ids(parts, kept)
        return prompt, ids, DocumentsRead(1, kept)

    def _excess(self, prompt: RagPrompt, ids: Sequence[int], new_tokens: int) -> int:
        """Tokens beyond the context of a prompt with its answer."""
        cached = sum(len(record.tokens) for record in _records(prompt))
        return cached + len(ids) + new_tokens - self.context


def _records(prompt: RagPrompt) -> tuple[KVRecord, ...]:
    """The records of a layout in the order in which they are read."""
    if prompt.mode not in CACHED_MODES:
        return ()
    if prompt.mode in DOCUMENT_CACHES and len(prompt.records) != len(prompt.documents):
        raise ValueError(f"{len(prompt.documents)} documents, {len(prompt.records)} records")
    if prompt.mode in QUERY_CACHES and prompt.query is None:
        raise ValueError(f"layout {prompt.mode} needs the question's record")
    query = (prompt.query,) if prompt.query is not None else ()
    if prompt.mode == "doc":
        return prompt.records
    if prompt.mode == "query":
        return query
    return query + prompt.records if prompt.mode == "query-doc" else prompt.records + query
