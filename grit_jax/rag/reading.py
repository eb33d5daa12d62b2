"""Reading: from questions with their documents, in a layout, to answers. Finding documents is done
elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grit_jax.errors import GritError
from grit_jax.inference.decode import Timings
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord, Positions, is_packed
from grit_jax.inference.sampling import Sampling
from grit_jax.text.length import MAX_LENGTH, length_limit
from grit_jax.text.rag_layouts import CACHED_MODES, RagMode, compose

DOCUMENT_CACHES: tuple[RagMode, ...] = (
    "doc",
    "query-doc",
    "doc-query",
)  # layouts that read documents from records
SHORT = Sampling(max_new_tokens=16)  # the original's answers
QUERY_CACHES: tuple[RagMode, ...] = (
    "query",
    "query-doc",
    "doc-query",
)  # layouts that read the query from a record


@dataclasses.dataclass(frozen=True)
class Reading:
    """One question in one layout.

    Attributes:
      documents: `{title} {text}` each, in the order in which they are read; none in the layout
        `none`.
      records: the documents' records in the same order, where the layout is one of
        `DOCUMENT_CACHES`.
      query: the query's record, where the layout is one of `QUERY_CACHES`.
    """

    mode: RagMode
    question: str
    documents: tuple[str, ...] = ()
    records: tuple[KVRecord, ...] = ()
    query: KVRecord | None = None


@dataclasses.dataclass
class Readings:
    """Answers in the order of the readings, decoded and stripped; `timings` are those of all of
    them together."""

    answers: list[str]
    tokens: list[list[int]]
    timings: Timings


class Reader:
    """Answers questions over given documents with one model.

    Args:
      max_length: tokens of a document, `<s><|embed|>\n` included, in every layout: what a record
        holds is also what a prompt shows.
      int8_records: how records lie on the device while an answer is decoded (see
        `decode.generate`); None: as int8 where they are compressed in the store, else as they are.
      positions: "colliding" places records as the original does (see `records.Positions`),
        to compare with.
    """

    def __init__(
        self,
        model: GritLM,
        max_length: int = MAX_LENGTH,
        int8_records: bool | None = None,
        positions: Positions = "running",
    ):
        self.model, self.int8_records, self.positions = model, int8_records, positions
        self.max_length = max_length = length_limit(max_length, model.config.context_length)
        self._room = max_length - model.encoder.format([""], max_length=max_length).prompt

    def records(self, texts: Sequence[str]) -> list[KVRecord]:
        """The records of documents or queries, from one encoding pass."""
        caches = self.model.encoder.encode(
            texts, max_length=self.max_length, return_cache=True
        ).caches
        assert caches is not None
        return caches

    def prompts(self, readings: Sequence[Reading]) -> list[list[int]]:
        """Token ids of the continuations, long documents cut as their records are.

        Raises:
          GritError: a layout that needs documents has none.
        """
        layouts = [compose(r.mode, r.question, r.documents, self.model.chat) for r in readings]
        encoded = self.model.tokenizer.encode_parts([layout.continuation for layout in layouts])
        return [
            [
                i
                for piece, ids in zip(layout.continuation, parts, strict=True)
                for i in (ids[: self._room] if piece.is_document else ids)
            ]
            for layout, parts in zip(layouts, encoded, strict=True)
        ]

    def read(self, readings: Sequence[Reading], sampling: Sampling = SHORT) -> Readings:
        """Generates the answers, all readings together.

        Raises:
          GritError: a layout without the documents it needs, or one longer than the model can read.
          ValueError: a reading without the records that its layout reads.
        """
        prompts = self.prompts(readings)
        pieces = [_pieces(reading) for reading in readings]
        longest = self.model.config.context_length
        for reading, prompt, row in zip(readings, prompts, pieces, strict=True):
            length = len(prompt) + sum(len(piece.tokens) for piece in row) + sampling.max_new_tokens
            if length > longest:
                raise GritError(
                    f"question {reading.question!r:.60}: with {len(reading.documents)} documents"
                    f" and {sampling.max_new_tokens} new tokens this is {length} tokens, the model"
                    f" reads {longest}; ask for fewer documents (--k) or a shorter answer"
                )
        int8 = self.int8_records
        if int8 is None:
            int8 = any(is_packed(piece) for row in pieces for piece in row)
        found = self.model.generate_ids(
            prompts, records=pieces, sampling=sampling, int8_records=int8, positions=self.positions
        )
        answers = [self.model.tokenizer.decode(tokens).strip() for tokens in found.tokens]
        return Readings(answers, found.tokens, found.timings)


def _pieces(reading: Reading) -> tuple[KVRecord, ...]:
    """The records of a layout in the order in which they are read."""
    if reading.mode not in CACHED_MODES:
        return ()
    if reading.mode in DOCUMENT_CACHES and len(reading.records) != len(reading.documents):
        raise ValueError(f"{len(reading.documents)} documents, {len(reading.records)} records")
    if reading.mode in QUERY_CACHES and reading.query is None:
        raise ValueError(f"layout {reading.mode} needs the query's record")
    query = (reading.query,) if reading.query is not None else ()
    if reading.mode == "doc":
        return reading.records
    if reading.mode == "query":
        return query
    return query + reading.records if reading.mode == "query-doc" else reading.records + query
