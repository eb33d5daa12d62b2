"""A table of RAG scores over layouts, numbers of documents, compressions and positions of caches.

If a row has fewer documents than asked for, distractors are added (`data/distractors.py`).
Documents' records are compressed by the codec that `grit index` would use, calibrated on the same
corpus, and decompressed on the device in the pass that reads them. A question's record is computed
when the question is asked and is not compressed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grit_jax.data.distractors import Distractors, corpus_texts
from grit_jax.data.formats import CachedExample
from grit_jax.errors import GritError
from grit_jax.evaluation.rag import (
    WINDOW,
    AnswerSettings,
    LengthCount,
    from_index,
    from_rows,
    means,
    read_questions,
    row_documents,
    score_answers,
)
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import Positions
from grit_jax.rag.build import calibrated
from grit_jax.rag.codecs.codecs import KINDS
from grit_jax.rag.generator import DOCUMENT_CACHES, RagGenerator
from grit_jax.rag.record_format import NATIVE
from grit_jax.runtime.files import write_json, write_text
from grit_jax.runtime.progress import progress
from grit_jax.text.rag_layouts import CACHED_MODES, MODES, RagMode

if TYPE_CHECKING:
    from grit_jax.inference.records import Codec
    from grit_jax.rag.index import Index

PLACEMENTS: tuple[Positions, ...] = ("running", "colliding")


@dataclasses.dataclass(frozen=True)
class RagVariant:
    """One setting of the table. A value that has no effect on the layout is None: `k` without
    documents, `kv` without documents' records, `positions` with fewer than two records."""

    mode: RagMode
    k: int | None
    kv: str | None
    positions: Positions | None


@dataclasses.dataclass(frozen=True)
class RagSweep:
    """The values that a table combines.

    Attributes:
      modes: layouts.
      ks: numbers of documents.
      kvs: compressions of records (`codecs.KINDS`).
      placements: positions of several records beside each other.
    """

    modes: Sequence[RagMode] = MODES
    ks: Sequence[int] = (1,)
    kvs: Sequence[str] = (NATIVE,)
    placements: Sequence[Positions] = ("running",)

    def check(self) -> None:
        """Raises GritError for an unknown name."""
        for name, values, known in (
            ("mode", self.modes, MODES),
            ("--kv", self.kvs, KINDS),
            ("--positions", self.placements, PLACEMENTS),
        ):
            for value in values:
                if value not in known:
                    raise GritError(f"rag: unknown {name} '{value}'; known: {', '.join(known)}")

    def variants(self, own: int = 1) -> list[RagVariant]:
        """The distinct variants, ordered by layout, number of documents, compression, placement.

        Args:
          own: the largest number of documents that a row has itself.
        """
        variants: dict[RagVariant, None] = {}
        for mode in self.modes:
            for k in self.ks if mode != "none" else [None]:
                for kv in self.kvs if mode in DOCUMENT_CACHES else [None]:
                    documents = max(k or 0, own)
                    records = {"doc": documents, "query": 1}.get(mode, documents + 1)
                    several = mode in CACHED_MODES and records > 1
                    for positions in self.placements if several else [None]:
                        variants[RagVariant(mode, k, kv, positions)] = None
        return list(variants)


@dataclasses.dataclass
class RagTable:
    """Scores of each variant and question, `[questions, 5]`, as in `score_answers`."""

    scores: dict[RagVariant, np.ndarray]
    corpus: int | None  # number of documents that distractors are chosen from; None: no distractors
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """`{mode, k, kv, positions, match, exact_match, f1, seconds, truncated}` of each variant.

        Scores are those of `evaluate_rag`; `truncated` is the number of questions whose documents
        were truncated or left out.
        """
        return [
            {**dataclasses.asdict(variant), **_scores_and_count(scores)}
            for variant, scores in self.scores.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON."""
        questions = len(next(iter(self.scores.values())))
        return {
            "questions": questions,
            "corpus": self.corpus,
            "seed": self.seed,
            "rows": self.rows(),
        }

    def by_mode(self) -> dict[str, dict[str, float]]:
        """`{mode: scores}` as in `rows`, for tables with one variant per layout."""
        return {variant.mode: _scores_and_count(scores) for variant, scores in self.scores.items()}

    def markdown(self) -> str:
        """The table as Markdown."""
        head = ["layout", "k", "kv", "positions", "match", "exact", "F1", "seconds"]
        rows = [head, ["---"] * 4 + ["---:"] * 4]
        for variant, scores in self.scores.items():
            names = [
                str(value) if value is not None else "" for value in dataclasses.astuple(variant)
            ]
            match, exact, f1, seconds = means(scores).values()
            rows.append([*names, f"{match:.3f}", f"{exact:.3f}", f"{f1:.3f}", f"{seconds:.4f}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        pad = lambda i, cell: cell.rjust(widths[i]) if i > 3 else cell.ljust(widths[i])
        lines = [f"| {' | '.join(pad(*cell) for cell in enumerate(row))} |" for row in rows]
        questions = len(next(iter(self.scores.values())))
        note = f"{questions} questions"
        if self.corpus is not None:
            note += (
                f"; over more documents than their own, those of {self.corpus} that BM25 finds"
                f" first, the own ones at random places (seed {self.seed})"
            )
        return "\n".join(lines) + f"\n\n{note}.\n"

    def write(self, folder: Path) -> None:
        """Writes `table.md` and `rag.json`."""
        write_text(folder / "table.md", self.markdown())
        write_json(folder / "rag.json", self.to_dict())


def _scores_and_count(scores: np.ndarray) -> dict[str, float]:
    return {**means(scores), "truncated": int(scores[:, -1].sum())}


def evaluate_table(
    model: GritLM,
    examples: str | Path | Iterable[CachedExample],
    sweep: RagSweep = RagSweep(),
    *,
    corpus: str | Path | Sequence[str] | None = None,
    index: Index | None = None,
    seed: int = 0,
    settings: AnswerSettings = AnswerSettings(),
    quiet: bool = False,
) -> RagTable:
    """Scores of every variant of a sweep.

    Args:
      examples: as in `evaluate_rag`. A row with more documents than a `k` keeps them all.
      corpus: the documents that distractors are chosen from and codecs are calibrated on: JSONL of
        `{"id", "title"?, "text"}`, or texts. None: the documents of all rows.
      index: retrieve `k` documents from it instead, and read its records.
      seed: of the random places of the rows' own documents among the distractors.

    Raises:
      GritError: an unreadable file, a bad line, no example, too few documents, an unknown mode or
        compression, or an index together with compressions, placements or a corpus.
    """
    sweep.check()
    rows = read_questions(examples)
    if index is not None:
        defaults = RagSweep(sweep.modes, sweep.ks)
        if corpus is not None or (list(sweep.kvs), list(sweep.placements)) != (
            list(defaults.kvs),
            list(defaults.placements),
        ):
            raise GritError(
                "--kv, --positions and --corpus apply to the rows' own documents only; leave them"
                " out with --index, whose records are read as they are stored"
            )
        return _over_index(model, rows, sweep, index, settings, quiet)
    if corpus is None:
        texts = list(dict.fromkeys(text for row in rows for text in row.docs))
    else:
        texts = corpus_texts(corpus) if isinstance(corpus, (str, Path)) else list(corpus)
    own = [len(row.docs) for row in rows]
    distract = max(sweep.ks) > min(own) and set(sweep.modes) != {"none"}
    scores = _over_rows(
        model,
        rows,
        sweep.variants(max(own)),
        _codecs(model, sweep, texts, settings.max_length),
        Distractors(texts, seed) if distract else None,
        settings,
        quiet,
    )
    return RagTable(scores, len(texts) if distract else None, seed)


def _codecs(
    model: GritLM, sweep: RagSweep, texts: Sequence[str], max_length: int
) -> dict[str, Codec | None]:
    """Compression -> its codec, calibrated on the texts; None for uncompressed records."""
    if not set(sweep.modes) & set(DOCUMENT_CACHES):
        return {}
    return {
        kv: None
        if kv == NATIVE
        else calibrated(kv, model, len(texts), texts.__getitem__, max_length)
        for kv in sweep.kvs
    }


def _over_rows(
    model: GritLM,
    rows: Sequence[CachedExample],
    variants: Sequence[RagVariant],
    codecs: dict[str, Codec | None],
    distractors: Distractors | None,
    settings: AnswerSettings,
    quiet: bool,
) -> dict[RagVariant, np.ndarray]:
    """Scores of answers over the rows' own documents, mixed with distractors.

    Processes one number of documents and one compression at a time, so that few records are in
    memory.
    """
    parts: dict[RagVariant, list[np.ndarray]] = {variant: [] for variant in variants}
    lengths = LengthCount()
    with progress(len(rows) * len(variants), "rag", "answers", quiet=quiet) as bar:
        for k in dict.fromkeys(variant.k for variant in variants):
            size = max(WINDOW // (k or 1), 1)
            for start in range(0, len(rows), size):
                window = rows[start : start + size]
                if distractors is not None and k is not None:
                    window = [distractors.among(row, k) for row in window]
                for kv in dict.fromkeys(variant.kv for variant in variants if variant.k == k):
                    documents = row_documents(
                        RagGenerator(model, settings.max_length),
                        window,
                        codecs[kv] if kv is not None else None,
                        records=kv is not None,
                    )
                    if k is not None:  # else no layout reads documents
                        lengths.add(documents)
                    for variant in variants:
                        if (variant.k, variant.kv) != (k, kv):
                            continue
                        generator = RagGenerator(
                            model, settings.max_length, positions=variant.positions or "running"
                        )
                        answer = from_rows(generator, window, documents, settings.max_new_tokens)
                        parts[variant].append(score_answers(window, variant.mode, answer, bar))
    lengths.warn()
    return {variant: np.concatenate(scores) for variant, scores in parts.items()}


def _over_index(
    model: GritLM,
    rows: Sequence[CachedExample],
    sweep: RagSweep,
    index: Index,
    settings: AnswerSettings,
    quiet: bool,
) -> RagTable:
    """The table of answers over documents retrieved from an index."""
    variants = RagSweep(sweep.modes, sweep.ks, [index.kv]).variants()
    scores: dict[RagVariant, np.ndarray] = {}
    with progress(len(rows) * len(variants), "rag", "answers", quiet=quiet) as bar:
        for variant in variants:
            answer = from_index(model, index, rows, variant.k or 1, settings)
            scores[variant] = score_answers(rows, variant.mode, answer, bar)
    return RagTable(scores, None, 0)
