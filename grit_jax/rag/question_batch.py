"""Questions with the documents that were retrieved for them, on their way to the generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from grit_jax.inference.records import KVRecord
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagPrompt
from grit_jax.text.rag_layouts import RagMode

CacheUse: TypeAlias = Literal["exact", "composed", "read"]


@dataclasses.dataclass
class RetrievedDocument:
    """A document to read. `row` is its row in the index, None if the caller gave its text; `key`
    and `tokens` are those of its record."""

    id: str
    text: str
    score: float | None = None
    row: int | None = None
    key: str = ""
    tokens: int = 0
    search_score: float | None = None  # of a document that was reranked

    def shown(self) -> dict[str, Any]:
        """The document in the JSON of an answer."""
        shown = {
            "id": self.id,
            "score": None if self.score is None else round(self.score, 6),
        }
        if self.search_score is not None:
            shown["search_score"] = round(self.search_score, 6)
        return shown


@dataclasses.dataclass
class QuestionBatch:
    """Questions that are answered together, with their documents, the questions' records if a
    layout may read them, and the layout of each.

    Attributes:
      turns: the conversation that each question ends, as it is read (`[user, assistant, ...,
        user]`); None: the questions alone.
    """

    questions: list[str]
    documents: list[list[RetrievedDocument]]
    queries: list[KVRecord] | None
    modes: list[RagMode]
    warnings: list[list[str]]
    turns: list[tuple[str, ...]] | None = None

    @classmethod
    def without_documents(
        cls,
        questions: list[str],
        warnings: list[list[str]],
        turns: list[tuple[str, ...]] | None = None,
    ) -> QuestionBatch:
        """Questions that are answered from what the model knows."""
        count = len(questions)
        return cls(questions, [[] for _ in questions], None, ["none"] * count, warnings, turns)

    def prompts(self, records: Mapping[str, KVRecord]) -> list[RagPrompt]:
        """A prompt for each question; `records` has those of the documents, by text, that the
        layouts read."""
        conversations = self.turns or [(question,) for question in self.questions]
        return [
            RagPrompt(
                mode,
                turns[-1],
                tuple(document.text for document in documents),
                tuple(records[document.text] for document in documents)
                if mode in DOCUMENT_CACHES
                else (),
                self.queries[i] if self.queries is not None and mode in QUERY_CACHES else None,
                turns[:-1],
            )
            for i, (turns, documents, mode) in enumerate(
                zip(conversations, self.documents, self.modes, strict=True)
            )
        ]

    def cache_use(self, question: int, records: Mapping[str, KVRecord]) -> CacheUse:
        """How the documents of a question are read; see `Answer.cache`."""
        mode, documents = self.modes[question], self.documents[question]
        if mode not in DOCUMENT_CACHES or not documents:
            return "read"
        alone = len(documents) == 1 and mode not in QUERY_CACHES
        return "exact" if alone and records[documents[0].text].codec is None else "composed"
