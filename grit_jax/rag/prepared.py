"""Questions over an index, prepared for an engine that generates the answers."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.row_packing import batch_shapes
from grit_jax.rag.answer import Asker, AskTimings, _Search
from grit_jax.rag.engine_judge import EngineJudge
from grit_jax.rag.generator import DOCUMENT_CACHES, DocumentsRead, RagPrompt
from grit_jax.rag.index import Index
from grit_jax.rag.question_batch import CacheUse, RetrievedDocument
from grit_jax.rag.record_format import RecordError, StreamedRecord
from grit_jax.rag.rerank import relevance_question
from grit_jax.rag.route_costs import load_costs
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.text.rag_layouts import CONVERSATION_MODES, MODES

LONGEST_QUESTION = 256  # tokens, of those that `warm_up` prepares for
MOST_DOCUMENTS = 16  # of a search, the same; the exact search has a program for each power of two


@dataclasses.dataclass(frozen=True)
class PreparedQuestion:
    """What is read before an answer.

    Attributes:
      ids: token ids, after the records.
      records: of documents and question, in the order of reading.
      cached_tokens: tokens of those records that were in the index.
      documents: `{"id", "score"}` of each document that is read, best first.
      mode: the layout.
      cache: how the documents are read, as in `Answer`.
      warnings: what is read differently than asked for, and why.
      texts: of the documents, `{title} {text}`.
      lines: of the documents in the index (`indexed_documents.py`).
      timings: seconds of `encode_query`, `search` and `load`.
    """

    ids: list[int]
    records: tuple[KVRecord, ...]
    cached_tokens: int
    documents: list[dict[str, Any]]
    mode: str
    cache: CacheUse
    warnings: list[str]
    texts: list[str]
    lines: list[dict[str, Any]]
    timings: dict[str, float]


@dataclasses.dataclass(frozen=True)
class JudgedDocuments:
    """Documents by their relevance to a query.

    Attributes:
      documents: the most relevant first; the score is the probability that it is relevant.
      places: of each document, by id, in the order in which they were named or found.
      lines: of the documents in the index, by id.
      tokens: read for all of them, `cached_tokens` of them from the index's records.
      warnings: what is read differently than asked for, and why.
    """

    documents: list[RetrievedDocument]
    places: dict[str, int]
    lines: dict[str, dict[str, Any]]
    tokens: int
    cached_tokens: int
    warnings: list[str]


class Preparer(Asker):
    """Finds the documents of questions and loads their records; may be called from many threads.

    Args:
      context: tokens of records, prompt and answer together, at most the model's context.
      judge: the engine that reranks, in whose slots candidates are judged among its other requests;
        None: a runner of its own for each question.
    """

    def __init__(self, model: GritLM, index: Index, context: int, judge: EngineJudge | None = None):
        super().__init__(model, index)
        self._judge = judge
        self._generator.context = min(context, model.config.context_length)
        self._measuring = threading.Lock()

    @property
    def measured(self) -> bool:
        """Whether mode `auto` knows what the layouts cost."""
        return self._costs is not None

    def measure(self) -> None:
        """Loads (or measures) what the layouts cost, for mode `auto`; done once."""
        with self._measuring:
            if self._costs is None and self.index:  # of an empty one nothing is read
                self._costs = load_costs(self.model, self.index)

    def warm_up(self) -> None:
        """Compiles what questions need before the engine reads them: their records, and a search.
        Longer questions, more documents and filters compile theirs when they first come."""
        assert self.index is not None
        lengths = [n for rows, n in batch_shapes(LONGEST_QUESTION, LONGEST_QUESTION) if rows == 1]
        # `auto` may record the question while it is encoded; other layouts want its vector alone.
        for return_cache in (False, True) if self.index.kv != "none" else (False,):
            for length in lengths:
                self.model.encoder.encode_ids([[0] * length], return_cache=return_cache)
        self.warm_up_search()

    def warm_up_search(self) -> None:
        """Brings the vectors to the devices, and compiles what searches them."""
        assert self.index is not None
        query = np.zeros((1, self.index.manifest.dim), np.float32)
        for power in range(MOST_DOCUMENTS.bit_length()):
            self.index.search(query, 1 << power)

    def prepare(
        self,
        question: str,
        mode: str = "auto",
        k: int = 1,
        *,
        retrieval: Retrieval = Retrieval(),
        instruction: str = "",
        turns: Sequence[str] = (),
        new_tokens: int,
        user: str = "",
    ) -> PreparedQuestion:
        """Finds documents for a question and loads what its layout reads; arguments as of
        `Asker.ask`.

        Args:
          question: what documents are searched for, and what is read if there are no turns.
          turns: the conversation that is answered, `[user, assistant, ..., user]`. Only layouts of
            `CONVERSATION_MODES` read one.
          new_tokens: of the answer, for which the context keeps room.
          user: who asks; users take turns where candidates are judged.

        Raises:
          GritError: as `Asker.ask`, or a layout that does not read conversations.
        """
        if mode not in (*MODES, "auto"):
            raise GritError(f"unknown mode '{mode}'; known: {', '.join((*MODES, 'auto'))}")
        if not question.strip():
            raise GritError("the question is empty")
        if turns and mode not in (*CONVERSATION_MODES, "auto"):
            raise GritError(
                f"mode '{mode}' reads one question; for a conversation, or with a system message,"
                f" use auto or one of {', '.join(CONVERSATION_MODES)}"
            )
        if mode == "auto":
            self.measure()
        search = _Search(k, instruction, retrieval, tuple(turns), user)
        timings = AskTimings()
        batch = self._retrieve([question], mode, search, None, timings)
        with timings.stage("load"):
            records = self._records(batch)
            while True:
                try:
                    # In one piece a short record is inserted by one call (`record_loader`).
                    for text, record in records.items():
                        if isinstance(record, StreamedRecord):
                            records[text] = record.whole()
                    break
                except RecordError as error:
                    self._replace(error, batch, records)
        fitted = self._generator.fitted(batch.prompts(records)[0], new_tokens)
        self._limit_documents(batch, 0, fitted.read, new_tokens)
        return PreparedQuestion(
            fitted.ids,
            fitted.records,
            self._stored_tokens(batch.modes[0], fitted.records, fitted.read, batch.warnings[0]),
            [document.shown() for document in batch.documents[0]],
            batch.modes[0],
            batch.cache_use(0, records),
            batch.warnings[0],
            [document.text for document in batch.documents[0]],
            self._lines(batch.documents[0]),
            {name: timings.share(1)[name] for name in ("encode_query", "search", "load")},
        )

    def judge(
        self,
        query: str,
        ids: Sequence[str] | None = None,
        *,
        retrieval: Retrieval = Retrieval(),
        instruction: str = "",
        most_tokens: int,
        user: str = "",
    ) -> JudgedDocuments:
        """Reranks documents from their records (`rag/rerank.py`).

        Args:
          ids: of the documents; None: the `retrieval.rerank` candidates of a search.
          most_tokens: that may be read in all.
          user: as of `prepare`.

        Raises:
          GritError: an unknown id, too many tokens, or as `Asker.ask`.
        """
        index = self.index
        assert index is not None
        warnings: list[str] = []
        if ids is not None:
            rows = [index.row_of(id) for id in ids]
            candidates = [self._candidate(row, None) for row in rows]
        else:
            search = _Search(
                retrieval.rerank, instruction, dataclasses.replace(retrieval, rerank=0)
            )
            batch = self._retrieve([query], "doc", search, None, AskTimings())
            candidates = batch.documents[0]
        cached = sum(document.tokens for document in candidates)
        [asked] = self._generator.continuations(
            [RagPrompt("doc", relevance_question(query), ("",))]
        )
        tokens = cached + len(asked) * len(candidates)
        if tokens > most_tokens:
            raise GritError(
                f"{len(candidates)} documents: {tokens} tokens with the query of each, and a"
                f" request may have {most_tokens}"
            )
        judged = self._reranked(query, candidates, warnings, user) if candidates else []
        computed = not self._stored or any("its cache is computed" in w for w in warnings)
        return JudgedDocuments(
            judged,
            {document.id: place for place, document in enumerate(candidates)},
            {document.id: line for document, line in zip(judged, self._lines(judged), strict=True)},
            tokens,
            0 if computed else cached,
            warnings,
        )

    def _relevance(self, prompts: Sequence[RagPrompt], user: str) -> np.ndarray:
        if self._judge is None:
            return super()._relevance(prompts, user)
        return self._judge.relevance(self._generator, prompts, user)

    def _candidate(self, row: int, score: float | None) -> RetrievedDocument:
        assert self.index is not None
        line = self.index.documents[row]
        text = self.index.text(row)
        return RetrievedDocument(line["id"], text, score, row, line["key"], line["tokens"])

    def _lines(self, documents: Sequence[RetrievedDocument]) -> list[dict[str, Any]]:
        assert self.index is not None
        return [self.index.documents[d.row] for d in documents if d.row is not None]

    def _stored_tokens(
        self,
        mode: str,
        records: Sequence[KVRecord],
        read: DocumentsRead,
        warnings: Sequence[str],
    ) -> int:
        """Tokens of the documents' records, where all of them came from the index: one that had to
        be computed has a warning, and one that was cut is computed again."""
        if mode not in DOCUMENT_CACHES or not self._stored or read.tokens is not None:
            return 0
        if any("its cache is computed" in warning for warning in warnings):
            return 0
        documents = records[1:] if mode == "query-doc" else records[: read.documents]
        return sum(len(record.tokens) for record in documents)
