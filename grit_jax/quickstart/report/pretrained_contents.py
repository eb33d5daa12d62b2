"""What the report of `grit quickstart --base MODEL` holds: the structure of its report.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from grit_jax.quickstart.report.contents import (
    BestConstant,
    Corpus,
    RagScores,
    Sample,
    Training,
    read_report,
)
from grit_jax.quickstart.settings import PretrainedSettings


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """The model that was scored.

    Attributes:
      name: what it was opened as.
      base: the model that the shipped adapter was trained on; None if `name` has no adapter.
    """

    name: str
    base: str | None
    parameters: int
    layers: int
    hidden: int
    vocab: int


@dataclasses.dataclass(frozen=True)
class Search:
    """Fractions by metric (`recall@1`, `recall@10`, `ndcg@10`) of three searches in one pool.

    Attributes:
      hybrid: of `dense` and `bm25`, fused (`rag/search/hybrid.py`).
      before: of the model before its training here; None without one.
      queries: number of queries, of `queries_all` in the held-out file; `pool`: of passages.
    """

    dense: dict[str, float]
    bm25: dict[str, float]
    hybrid: dict[str, float]
    before: dict[str, float] | None
    queries: int
    queries_all: int
    pool: int


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity on held-out documentation, all in the model's chat format.

    Attributes:
      base: of the model without its adapter; before: without its training here; None where there
        is neither.
      texts: number of documents to write, of `texts_all` in the held-out file.
    """

    model: float
    base: float | None
    before: float | None
    texts: int
    texts_all: int


@dataclasses.dataclass(frozen=True)
class PretrainedReport:
    """Everything that a quickstart of a pretrained model measured.

    Attributes:
      format, version, rag, rag_retrieved, index, commands, timings, seconds: see `Report`.
      training: of the short training that `--steps` asks for; None without it.
      retrieval: by the way documents were held out: `names` (single names of known packages) and
        `packages` (whole packages).
      rag_questions: number of questions, of `rag_questions_all` in the held-out file.
      documents_all: held-out documents; `index` has some of them.
    """

    format: int
    version: str
    settings: PretrainedSettings
    corpus: Corpus
    model: PretrainedModel
    training: Training | None
    retrieval: dict[str, Search]
    language: Perplexity
    rag: dict[str, RagScores]
    rag_retrieved: dict[str, RagScores]
    rag_questions: int
    rag_questions_all: int
    best_constant: BestConstant
    index: dict[str, Any]
    documents_all: int
    samples: list[Sample]
    commands: list[str]
    timings: dict[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The contents of report.json."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> PretrainedReport:
        """Reads a report.json.

        Raises:
          GritError: it is not JSON, or another version of the package wrote it.
        """
        return read_report(cls, path)
