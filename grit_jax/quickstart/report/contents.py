"""What a report holds: the structure of report.json, filled by `quickstart/run.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from grit_jax.errors import GritError
from grit_jax.quickstart.settings import QuickstartSettings
from grit_jax.runtime.files import read_json
from grit_jax.runtime.json_dataclass import from_json

T = TypeVar("T")
FORMAT = 1  # of report.json; another number is a report that this version cannot read


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents by their use, and the rows of each file made of them."""

    documents: int
    train: int
    held_out: int
    dropped: int
    rows: dict[str, int]
    skipped_files: int
    missing_packages: list[str]
    held_out_in_packages: int = 0
    packages: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Model:
    """The trained model's size."""

    parameters: int
    layers: int
    hidden: int
    vocab: int
    initialised_from: Literal["base", "scratch"]


@dataclasses.dataclass(frozen=True)
class Training:
    """The joint training in numbers; `tokens` counts all rows of all steps."""

    steps: int
    seconds: float
    tokens: int
    loss_first: float
    loss_last: float


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Fractions by metric (`recall@1`, `recall@10`, `ndcg@10`) of each system: the trained model,
    the base it started from, a random initialisation, BM25, and the trained model fused with BM25
    (empty in reports that earlier versions wrote)."""

    trained: dict[str, float]
    base: dict[str, float]
    untrained: dict[str, float]
    bm25: dict[str, float]
    queries: int
    pool: int
    hybrid: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Language:
    """Perplexity on held-out text: of a random initialisation, the trained model and its base."""

    perplexity_before: float
    perplexity_after: float
    perplexity_base: float


@dataclasses.dataclass(frozen=True)
class RagScores:
    """Scores of one RAG mode as fractions, and seconds per question."""

    match: float
    exact_match: float
    f1: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class BestConstant:
    """The one answer that scores best when it is given to every question."""

    answer: str
    match: float


@dataclasses.dataclass(frozen=True)
class SampleDocument:
    """A document that search found, and its similarity to the question."""

    id: str
    score: float
    text: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """A held-out question, its gold answer, and the answer of each mode."""

    question: str
    gold: str
    document: SampleDocument
    answers: dict[str, str]


class AnswersReport(Protocol):
    """What the reports of both quickstarts have: answers, an index, samples, commands."""

    @property
    def rag(self) -> dict[str, RagScores]: ...
    @property
    def rag_retrieved(self) -> dict[str, RagScores]: ...
    @property
    def rag_questions(self) -> int: ...
    @property
    def best_constant(self) -> BestConstant: ...
    @property
    def index(self) -> dict[str, Any]: ...
    @property
    def samples(self) -> list[Sample]: ...
    @property
    def commands(self) -> list[str]: ...
    @property
    def timings(self) -> dict[str, float]: ...
    @property
    def seconds(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a quickstart measured.

    Attributes:
      format: `FORMAT`.
      version: of the package that ran it.
      rag: scores by mode with the right document given.
      rag_retrieved: the same with the document that search found; `none` has no document.
      index: what `grit index --json` prints.
      commands: what was run, as shell commands.
      timings: seconds by stage.
      seconds: of the whole run.
    """

    format: int
    version: str
    seed: int
    settings: QuickstartSettings
    corpus: Corpus
    model: Model
    training: Training
    retrieval: Retrieval
    language: Language
    rag: dict[str, RagScores]
    rag_retrieved: dict[str, RagScores]
    rag_questions: int
    best_constant: BestConstant
    index: dict[str, Any]
    samples: list[Sample]
    commands: list[str]
    timings: dict[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The contents of report.json."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads a report.json.

        Raises:
          GritError: it is not JSON, or another version of the package wrote it.
        """
        return read_report(cls, path)


def read_report(cls: type[T], path: Path) -> T:
    """Reads a report.json as `cls`; see `Report.read`."""
    tree = read_json(path)
    if tree.get("format") != FORMAT:
        raise GritError(
            f"{path}: written by another version of grit_jax ({tree.get('version', 'unknown')});"
            " remove the folder or choose another --out"
        )
    return from_json(cls, tree, str(path))
