"""Ask: retrieve documents, load their records, and answer on top of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.index import Index
from grit_jax.rag.reading import DOCUMENT_CACHES, QUERY_CACHES, Reader, Reading
from grit_jax.rag.record_format import RecordError
from grit_jax.rag.route_costs import costs_of
from grit_jax.rag.router import RouteCosts, route
from grit_jax.runtime.progress import say
from grit_jax.text.length import MAX_LENGTH
from grit_jax.text.rag_layouts import MODES, RagMode

QUESTIONS_TOGETHER = 64  # whose documents' records are in memory at a time


@dataclasses.dataclass
class AskTimings:
    """Seconds by stage. Of questions asked together each gets its share of the whole.

    `load` is from the store's files to the device, and whatever of records had to be computed.
    """

    encode_query: float = 0.0
    search: float = 0.0
    load: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block."""
        began = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - began)

    def share(self, questions: int) -> dict[str, float]:
        """Seconds a question."""
        return {
            name: round(value / questions, 6) for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass
class Answer:
    """An answer, the documents it was read from (`{"id", "score"}`, best first), the layout used,
    seconds by stage, and how many tokens were generated (without the end of sequence)."""

    answer: str
    documents: list[dict[str, Any]]
    mode: str
    timings: dict[str, float]
    warnings: list[str]
    new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grit ask`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class _Document:
    """A document to read. `row` is its place in the index, None where the caller gave its text;
    `key` and `tokens` are those of its record."""

    id: str
    text: str
    score: float | None = None
    row: int | None = None
    key: str = ""
    tokens: int = 0


@dataclasses.dataclass
class _Asked:
    """Questions with what was found for them."""

    questions: list[str]
    documents: list[list[_Document]]
    queries: list[KVRecord] | None
    modes: list[RagMode]


class Asker:
    """Answers questions with one model, over an index or over documents given with each question.

    Args:
      max_length: tokens of a document and of a query's record; an index brings its own.
    """

    def __init__(self, model: GritLM, index: Index | None = None, *, max_length: int = MAX_LENGTH):
        self.model, self.index = model, index
        self._reader = Reader(model, index.max_length if index is not None else max_length)
        self._costs: RouteCosts | None = None
        self._warned: set[str] = set()

    def ask(
        self,
        questions: str | Sequence[str],
        mode: str = "auto",
        k: int = 1,
        *,
        instruction: str = "",
        documents: Sequence[Sequence[str]] | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """One answer a question, in their order; greedy unless `sampling` says otherwise.

        Args:
          mode: one of the seven layouts, or `auto`: the quickest way of using the documents for
            each question.
          k: documents retrieved for each question.
          instruction: of the search query. Without one, the pass that embeds the query leaves the
            record that the query-caching layouts read; with one they need a second pass, because
            that record carries none.
          documents: texts to read for each question, in this order, instead of retrieving any.
          sampling: how to decode, `max_new_tokens` included.

        Raises:
          GritError: an unknown mode, an empty question, no documents to use, more than the model
            can read.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        if mode not in (*MODES, "auto"):
            raise GritError(f"unknown mode '{mode}'; known: {', '.join((*MODES, 'auto'))}")
        if k < 1:
            raise GritError(f"k: expected at least 1, got {k}")
        for question in questions:
            if not question.strip():
                raise GritError("the question is empty")
        if documents is not None and len(documents) != len(questions):
            raise GritError(f"{len(questions)} questions, but documents for {len(documents)}")
        if documents is None and self.index is None and mode != "none":
            raise GritError(
                f"mode '{mode}' needs an index or documents; use 'none' to answer without"
            )
        if mode == "auto" and documents is None and self._costs is None:
            assert self.index is not None
            self._costs = costs_of(
                self.model, self.index
            )  # before any clock runs: it may have to measure them
        how = sampling or Sampling(max_new_tokens=max_new_tokens)
        answers: list[Answer] = []
        for start in range(0, len(questions), QUESTIONS_TOGETHER):
            stop = start + QUESTIONS_TOGETHER
            given = documents[start:stop] if documents is not None else None
            answers += self._ask(questions[start:stop], mode, k, instruction, given, how)
        return answers

    def _ask(
        self,
        questions: list[str],
        mode: str,
        k: int,
        instruction: str,
        given: Sequence[Sequence[str]] | None,
        how: Sampling,
    ) -> list[Answer]:
        timings, warnings = AskTimings(), [[] for _ in questions]
        with timings.stage("total"):
            asked = self._retrieve(questions, mode, k, instruction, given, timings)
            with timings.stage("load"):
                records = self._records(asked, warnings)
            while True:
                try:
                    read = self._reader.read(_readings(asked, records), how)
                    break
                except RecordError as error:  # in a layer that came after the first ones
                    with timings.stage("load"):
                        self._replace(error, asked, records, warnings)
        for name in ("load", "prefill", "decode"):
            setattr(timings, name, getattr(timings, name) + getattr(read.timings, name))
        share = timings.share(len(questions))
        return [
            Answer(
                text,
                [_shown(document) for document in asked.documents[i]],
                asked.modes[i],
                dict(share),
                warnings[i],
                len(read.tokens[i]),
            )
            for i, text in enumerate(read.answers)
        ]

    def _retrieve(
        self,
        questions: list[str],
        mode: str,
        k: int,
        instruction: str,
        given: Sequence[Sequence[str]] | None,
        timings: AskTimings,
    ) -> _Asked:
        """Documents, the queries' records where a layout may read them, and the layout of each
        question."""
        if mode == "none":
            return _Asked(questions, [[] for _ in questions], None, ["none"] * len(questions))
        searching = given is None
        vectors, queries = None, None
        with timings.stage("encode_query"):
            # `auto` may choose a layout that reads the query's record, and gets it from this pass.
            recording = (
                mode == "auto"
                and searching
                and not instruction
                and self._worth_recording(questions)
            )
            if mode in QUERY_CACHES or recording:
                encoded = self.model.encoder.encode(
                    questions, max_length=self._reader.max_length, return_cache=True
                )
                vectors, queries = encoded.vectors, encoded.caches
            if searching and (vectors is None or instruction):
                vectors = self.model.encode(questions, instruction, self._reader.max_length)
        with timings.stage("search"):
            if given is not None:
                found = [
                    [_Document(str(i), text) for i, text in enumerate(texts)] for texts in given
                ]
            else:
                assert vectors is not None
                found = self._search(vectors, k)
        modes: list[RagMode] = [mode] * len(questions)  # type: ignore[list-item]
        if mode == "auto":
            modes = [
                self._route(q, d, queries is not None)
                for q, d in zip(questions, found, strict=True)
            ]
            missing = any(chosen in QUERY_CACHES for chosen in modes) and queries is None
            if missing:
                with timings.stage("encode_query"):
                    queries = self._reader.records(questions)
        return _Asked(questions, found, queries, modes)

    def _search(self, vectors: np.ndarray, k: int) -> list[list[_Document]]:
        index = self.index
        assert index is not None
        result = index.search(vectors, k)
        found = []
        for rows, scores in zip(result.rows.tolist(), result.scores.tolist(), strict=True):
            lines = [index.documents[row] for row in rows]
            found.append(
                [
                    _Document(line["id"], index.text(row), score, row, line["key"], line["tokens"])
                    for row, score, line in zip(rows, scores, lines, strict=True)
                ]
            )
        return found

    def _route(self, question: str, documents: Sequence[_Document], recorded: bool) -> RagMode:
        if not documents:
            return "none"
        if any(document.row is None for document in documents):
            return (  # texts without records: nothing is saved by encoding them first
                "doc-then-query"
            )
        assert self._costs is not None
        return route(
            self._count(question),
            [document.tokens for document in documents],
            self._costs,
            documents_stored=self._stored,
            query_recorded=recorded,
        ).mode

    def _worth_recording(self, questions: Sequence[str]) -> bool:
        assert self._costs is not None
        return any(self._costs.worth_recording(self._count(question)) for question in questions)

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer.encode(text))

    @property
    def _stored(self) -> bool:
        return self.index is not None and self.index.kv != "none"

    def _records(self, asked: _Asked, warnings: list[list[str]]) -> dict[str, KVRecord]:
        """Records by text, for all questions whose layout reads them; those that cannot be used are
        computed."""
        users: dict[str, list[int]] = {}
        wanted: dict[str, _Document] = {}
        for i, (mode, found) in enumerate(zip(asked.modes, asked.documents, strict=True)):
            for document in found if mode in DOCUMENT_CACHES else ():
                users.setdefault(document.text, []).append(i)
                wanted[document.text] = document
        records: dict[str, KVRecord] = {}
        stored = [d for d in wanted.values() if d.row is not None and self._stored]
        for document, record in zip(stored, self._fetch(stored), strict=True):
            if isinstance(record, GritError):
                self._warn(f"{record}; its cache is computed anew", users[document.text], warnings)
            else:
                records[document.text] = record
        missing = [d for text, d in wanted.items() if text not in records]
        if any(d.row is not None for d in missing) and not self._stored:
            assert self.index is not None
            everyone = sorted({i for d in missing for i in users[d.text]})
            self._warn(
                f"{self.index.path}: this index has no caches (--kv none), they are computed for"
                " each question",
                everyone,
                warnings,
            )
        if missing:
            texts = [d.text for d in missing]
            records |= dict(zip(texts, self._reader.records(texts), strict=True))
        return records

    def _replace(
        self,
        error: RecordError,
        asked: _Asked,
        records: dict[str, KVRecord],
        warnings: list[list[str]],
    ) -> None:
        """Computes the record that turned out to be unusable."""
        users = [
            i for i, found in enumerate(asked.documents) if any(d.key == error.key for d in found)
        ]
        text = next(d.text for i in users for d in asked.documents[i] if d.key == error.key)
        self._warn(f"{error}; its cache is computed anew", users, warnings)
        records[text] = self._reader.records([text])[0]

    def _fetch(self, documents: Sequence[_Document]) -> Sequence[KVRecord | GritError]:
        """Records from the store, long ones still on their way, or what is wrong with each."""
        if not documents:
            return []
        assert self.index is not None
        names = [f"document {document.id!r}" for document in documents]
        try:
            return self.index.store.stream([document.key for document in documents], names)
        except GritError as error:  # the store itself
            return [GritError(f"{name}: {error}") for name in names]

    def _warn(self, message: str, questions: Sequence[int], warnings: list[list[str]]) -> None:
        for i in dict.fromkeys(questions):
            warnings[i].append(message)
        if message not in self._warned:
            self._warned.add(message)
            say(f"warning: {message}")


def _readings(asked: _Asked, records: dict[str, KVRecord]) -> list[Reading]:
    """What is to be read for each question."""
    return [
        Reading(
            mode,
            question,
            tuple(document.text for document in found),
            tuple(records[document.text] for document in found) if mode in DOCUMENT_CACHES else (),
            asked.queries[i] if asked.queries is not None and mode in QUERY_CACHES else None,
        )
        for i, (question, found, mode) in enumerate(
            zip(asked.questions, asked.documents, asked.modes, strict=True)
        )
    ]


def _shown(document: _Document) -> dict[str, Any]:
    score = None if document.score is None else round(document.score, 6)
    return {"id": document.id, "score": score}
