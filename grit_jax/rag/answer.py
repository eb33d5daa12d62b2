"""Answers to questions over an index: documents are retrieved, their records loaded and read."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import (
    DOCUMENT_CACHES,
    QUERY_CACHES,
    DocumentsRead,
    RagGenerator,
    RagPrompt,
)
from grit_jax.rag.index import Index
from grit_jax.rag.quality import POINTS, receipt_of
from grit_jax.rag.question_batch import CacheUse, QuestionBatch, RetrievedDocument
from grit_jax.rag.record_format import RecordError
from grit_jax.rag.rerank import relevance
from grit_jax.rag.route_costs import load_costs
from grit_jax.rag.router import ROUTED, RouteCosts, route
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.runtime.progress import say
from grit_jax.text.length import MAX_LENGTH
from grit_jax.text.rag_layouts import CONVERSATION_MODES, MODES, RagMode
from grit_jax.text.relevance import relevance_question

T = TypeVar("T")
WITHOUT = "answered without documents"
QUESTIONS_TOGETHER = 64  # whose documents' records are in memory at a time


@dataclasses.dataclass
class AskTimings:
    """Seconds by stage. Each of several questions asked together gets its share of the whole.

    `load` is from the store's files to the device, and includes computing records that are missing.
    """

    encode_query: float = 0.0
    search: float = 0.0
    rerank: float = 0.0
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
        """Seconds per question."""
        return {
            name: round(value / questions, 6) for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass
class Answer:
    """An answer.

    Attributes:
      documents: the documents that were read (`{"id", "score"}`, best first); of reranked ones the
        score is the probability that they are relevant, and `"search_score"` is the search's.
      mode: the layout that was used.
      cache: how the documents were read: "read" as text; "exact" from one record as it was
        computed, which gives the numbers of encoding the document now; "composed" from records
        that were made apart and read together, or that are compressed.
      timings: seconds by stage.
      warnings: what was read differently than asked for, and why.
      new_tokens: tokens generated, without the end of sequence.
      truncated: whether documents were cut or left out because they did not fit the context.
    """

    answer: str
    documents: list[dict[str, Any]]
    mode: str
    cache: CacheUse
    timings: dict[str, float]
    warnings: list[str]
    new_tokens: int
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grit ask`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Search:
    """How the documents of questions are found; see `Asker.ask`.

    Attributes:
      turns: of the conversation that the one question ends; empty: the question is all.
      user: who asks, where several share an engine.
    """

    k: int
    instruction: str
    retrieval: Retrieval
    turns: tuple[str, ...] = ()
    user: str = ""


class Asker:
    """Answers questions with one model, over an index or over documents given with each question.

    Args:
      max_length: tokens of a document and of a query's record; an index brings its own.
      quality: points that mode `auto` lets a layout lose by the index's receipt (see `quality`).
    """

    def __init__(
        self,
        model: GritLM,
        index: Index | None = None,
        *,
        max_length: int = MAX_LENGTH,
        quality: float = POINTS,
    ):
        self.model, self.index = model, index
        self._generator = RagGenerator(model, index.max_length if index is not None else max_length)
        self._costs: RouteCosts | None = None
        receipt = receipt_of(index) if index is not None else None
        self._routed = [m for m in ROUTED if receipt is None or receipt.allows(m, quality)]
        self._warned: set[str] = set()

    def ask(
        self,
        questions: str | Sequence[str],
        mode: str = "auto",
        k: int = 1,
        *,
        retrieval: Retrieval = Retrieval(),
        instruction: str = "",
        documents: Sequence[Sequence[str]] | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answers questions, in their order; greedily by default.

        Documents that do not fit the model's context are left out, or cut, with a warning.

        Args:
          mode: one of the seven layouts, or `auto`: for each question the quickest layout that uses
            the documents.
          k: documents retrieved for each question; a search by words may find fewer. A question
            for which none is found is answered without, with a warning.
          retrieval: how they are found; by their vectors, unless told.
          instruction: of the search query. Without one, the pass that embeds the query also gives
            the record that the query-caching layouts read; with one they need a second pass,
            because that record has no instruction.
          documents: texts to read for each question, in this order, instead of retrieving any.
          max_new_tokens: of the answer, if there is no `sampling`.
          sampling: how to decode, `max_new_tokens` included.

        Raises:
          GritError: an unknown mode, an empty question, no documents to use, or a question that
            does not fit the model's context.
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
            raise GritError(
                f"documents: expected a list for each of {len(questions)} questions, got"
                f" {len(documents)}"
            )
        if documents is None and self.index is None and mode != "none":
            raise GritError(
                f"mode '{mode}' needs an index or documents; use 'none' to answer without"
            )
        if mode == "auto" and documents is None and self._costs is None and self.index:
            # Before any clock runs: they may have to be measured.
            self._costs = load_costs(self.model, self.index)
        sampling = sampling or Sampling(max_new_tokens=max_new_tokens)
        search = _Search(k, instruction, retrieval)
        answers: list[Answer] = []
        for start in range(0, len(questions), QUESTIONS_TOGETHER):
            stop = start + QUESTIONS_TOGETHER
            given = documents[start:stop] if documents is not None else None
            timings = AskTimings()
            with timings.stage("total"):
                batch = self._retrieve(questions[start:stop], mode, search, given, timings)
                answers += self._answer(batch, sampling, timings)
            share = timings.share(len(batch.questions))
            for answer in answers[start:]:
                answer.timings = dict(share)
        return answers

    def _answer(
        self, batch: QuestionBatch, sampling: Sampling, timings: AskTimings
    ) -> list[Answer]:
        """Loads the records of a batch and generates its answers; they carry no timings yet."""
        with timings.stage("load"):
            records = self._records(batch)
        generate = functools.partial(self._generator.generate, sampling=sampling)
        generated = self._run(generate, batch, records, timings)
        for name in ("load", "prefill", "decode"):
            setattr(timings, name, getattr(timings, name) + getattr(generated.timings, name))
        truncated = [
            read != DocumentsRead(len(documents))
            for read, documents in zip(generated.read, batch.documents, strict=True)
        ]
        for i, read in enumerate(generated.read):
            self._limit_documents(batch, i, read, sampling.max_new_tokens)
        return [
            Answer(
                text,
                [document.shown() for document in batch.documents[i]],
                batch.modes[i],
                batch.cache_use(i, records),
                {},
                batch.warnings[i],
                len(generated.tokens[i]),
                truncated[i],
            )
            for i, text in enumerate(generated.answers)
        ]

    def _run(
        self,
        run: Callable[[list[RagPrompt]], T],
        batch: QuestionBatch,
        records: dict[str, KVRecord],
        timings: AskTimings,
    ) -> T:
        """The result for the prompts of a batch; a record that turns out to be damaged is computed
        anew."""
        while True:
            try:
                return run(batch.prompts(records))
            except RecordError as error:  # in a layer that was read after the first ones
                with timings.stage("load"):
                    self._replace(error, batch, records)

    def _limit_documents(
        self, batch: QuestionBatch, question: int, read: DocumentsRead, new_tokens: int
    ) -> None:
        """Leaves only those documents of a question that were read, and warns about the others."""
        documents = batch.documents[question]
        reason = (
            f"do not fit the model's context of {self._generator.context} tokens beside the"
            f" question and {new_tokens} new tokens"
        )
        if read.documents < len(documents):
            left_out = ", ".join(repr(document.id) for document in documents[read.documents :])
            self._warn(f"left out: documents {left_out} {reason}", [question], batch)
        batch.documents[question] = documents = documents[: read.documents]
        if read.tokens is not None:
            self._warn(
                f"cut: tokens of document {documents[0].id!r} beyond the first {read.tokens}"
                f" {reason}",
                [question],
                batch,
            )

    def _retrieve(
        self,
        questions: list[str],
        mode: RagMode | Literal["auto"],
        search: _Search,
        given: Sequence[Sequence[str]] | None,
        timings: AskTimings,
    ) -> QuestionBatch:
        """Finds the documents of each question, and chooses its layout."""
        warnings: list[list[str]] = [[] for _ in questions]
        turns = [search.turns] if search.turns else None
        if mode == "none":
            return QuestionBatch.without_documents(questions, warnings, turns)
        searching = given is None
        if searching and self.index is not None and not len(self.index):
            batch = QuestionBatch.without_documents(questions, warnings, turns)
            reason = f"{self.index.path}: there is no document in this index; "
            self._warn(reason + WITHOUT, range(len(questions)), batch)
            return batch
        vectors, queries = None, None
        by_vectors = searching and search.retrieval.search != "lexical"
        with timings.stage("encode_query"):
            # `auto` may choose a layout that reads the query's record, which this pass gives.
            recording = (
                mode == "auto"
                and by_vectors
                and not search.instruction
                and not turns
                and self._worth_recording(questions)
            )
            if mode in QUERY_CACHES or recording:
                encoded = self.model.encoder.encode(
                    questions, max_length=self._generator.max_length, return_cache=True
                )
                vectors, queries = encoded.vectors, encoded.caches
            if by_vectors and (vectors is None or search.instruction):
                length = self._generator.max_length
                vectors = self.model.encode(questions, search.instruction, length)
        with timings.stage("search"):
            if given is not None:
                documents = [
                    [RetrievedDocument(str(i), text) for i, text in enumerate(texts)]
                    for texts in given
                ]
            else:
                documents = self._search(questions, vectors if by_vectors else None, search)
        if searching and search.retrieval.rerank:
            with timings.stage("rerank"):
                documents = [
                    self._reranked(question, candidates, warned, search.user)[: search.k]
                    for question, candidates, warned in zip(
                        questions, documents, warnings, strict=True
                    )
                ]
        if searching and (least := search.retrieval.least_score) is not None:
            documents = [[d for d in found if (d.score or 0.0) >= least] for found in documents]
        modes: list[RagMode]
        if mode != "auto":
            modes = [mode if found or not searching else "none" for found in documents]
        else:
            modes = [
                self._route(q, d, queries is not None, search.turns)
                for q, d in zip(questions, documents, strict=True)
            ]
            if queries is None and any(chosen in QUERY_CACHES for chosen in modes):
                with timings.stage("encode_query"):
                    queries = self._generator.records(questions)
        batch = QuestionBatch(questions, documents, queries, modes, warnings, turns)
        without = [i for i, found in enumerate(documents) if not found]
        if without and searching:
            reasons = []
            if search.retrieval.where:
                reasons.append("fulfils the filter")
            if not by_vectors:
                reasons.append("has a word of the question")
            if search.retrieval.least_score is not None:
                reasons.append(f"has a score of {search.retrieval.least_score:g}")
            reason = f"no document {' and '.join(reasons)}"
            self._warn(f"{reason}; {WITHOUT}", without, batch)
        return batch

    def _search(
        self, questions: Sequence[str], vectors: np.ndarray | None, search: _Search
    ) -> list[list[RetrievedDocument]]:
        index = self.index
        assert index is not None
        documents = []
        count = max(search.k, search.retrieval.rerank)
        for hits in index.find(questions, vectors, count, search.retrieval):
            rows, scores = hits.rows.tolist(), hits.scores.tolist()
            lines = [index.documents[row] for row in rows]
            documents.append(
                [
                    RetrievedDocument(
                        line["id"], index.text(row), score, row, line["key"], line["tokens"]
                    )
                    for row, score, line in zip(rows, scores, lines, strict=True)
                ]
            )
        return documents

    def _reranked(
        self, question: str, candidates: list[RetrievedDocument], warnings: list[str], user: str
    ) -> list[RetrievedDocument]:
        """Candidates by the probability that they are relevant; equal ones in their order."""
        count = len(candidates)
        batch = QuestionBatch(
            [relevance_question(question)] * count,
            [[candidate] for candidate in candidates],
            None,
            ["doc"] * count,
            [[] for _ in candidates],
        )
        records = self._records(batch)
        judge = functools.partial(self._relevance, user=user)
        scores = self._run(judge, batch, records, AskTimings()).tolist()
        warnings += dict.fromkeys(warning for warned in batch.warnings for warning in warned)
        reranked = [
            dataclasses.replace(candidate, score=score, search_score=candidate.score)
            for candidate, score in zip(candidates, scores, strict=True)
        ]
        return sorted(reranked, key=lambda document: -(document.score or 0.0))

    def _relevance(self, prompts: Sequence[RagPrompt], user: str) -> np.ndarray:
        return relevance(self._generator, prompts)

    def _route(
        self,
        question: str,
        documents: Sequence[RetrievedDocument],
        recorded: bool,
        turns: Sequence[str],
    ) -> RagMode:
        """The quickest layout for a question, or for the conversation that it ends."""
        if not documents:
            return "none"
        if any(document.row is None for document in documents):
            return (  # texts without records: nothing is saved by encoding them first
                "doc-then-query"
            )
        assert self._costs is not None
        among = [m for m in self._routed if not turns or m in CONVERSATION_MODES]
        return route(
            sum(map(self._count, turns or (question,))),
            [document.tokens for document in documents],
            self._costs,
            documents_stored=self._stored,
            query_recorded=recorded,
            among=among,
        ).mode

    def _worth_recording(self, questions: Sequence[str]) -> bool:
        assert self._costs is not None
        return any(self._costs.worth_recording(self._count(question)) for question in questions)

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer.encode(text))

    @property
    def _stored(self) -> bool:
        return self.index is not None and self.index.kv != "none"

    def _records(self, batch: QuestionBatch) -> dict[str, KVRecord]:
        """Records by text, for all questions whose layout reads them; those that cannot be used are
        computed."""
        questions_of: dict[str, list[int]] = {}
        needed: dict[str, RetrievedDocument] = {}
        for i, (mode, documents) in enumerate(zip(batch.modes, batch.documents, strict=True)):
            for document in documents if mode in DOCUMENT_CACHES else ():
                questions_of.setdefault(document.text, []).append(i)
                needed[document.text] = document
        records: dict[str, KVRecord] = {}
        stored = [d for d in needed.values() if d.row is not None and self._stored]
        for document, record in zip(stored, self._fetch(stored), strict=True):
            if isinstance(record, GritError):
                self._warn(f"{record}; its cache is computed", questions_of[document.text], batch)
            else:
                records[document.text] = record
        missing = [d for text, d in needed.items() if text not in records]
        if any(d.row is not None for d in missing) and not self._stored:
            assert self.index is not None
            questions = sorted({i for d in missing for i in questions_of[d.text]})
            self._warn(
                f"{self.index.path}: this index has no caches (--kv none), they are computed for"
                " each question",
                questions,
                batch,
            )
        if missing:
            texts = [d.text for d in missing]
            records |= dict(zip(texts, self._generator.records(texts), strict=True))
        return records

    def _replace(
        self, error: RecordError, batch: QuestionBatch, records: dict[str, KVRecord]
    ) -> None:
        """Computes the record that turned out to be unusable."""
        questions = [
            i
            for i, documents in enumerate(batch.documents)
            if any(d.key == error.key for d in documents)
        ]
        text = next(d.text for i in questions for d in batch.documents[i] if d.key == error.key)
        self._warn(f"{error}; its cache is computed", questions, batch)
        records[text] = self._generator.records([text])[0]

    def _fetch(self, documents: Sequence[RetrievedDocument]) -> Sequence[KVRecord | GritError]:
        """Records from the store, long ones still being read, or what is wrong with each."""
        if not documents:
            return []
        assert self.index is not None
        names = [f"document {document.id!r}" for document in documents]
        try:
            return self.index.store.stream([document.key for document in documents], names)
        except GritError as error:  # the store itself
            return [GritError(f"{name}: {error}") for name in names]

    def _warn(self, message: str, questions: Sequence[int], batch: QuestionBatch) -> None:
        """Adds a warning to the answers of some questions; stderr gets each message once."""
        for i in dict.fromkeys(questions):
            batch.warnings[i].append(message)
        if message not in self._warned:
            self._warned.add(message)
            say(f"warning: {message}")
