"""One table of answers over documents: every layout, numbers of documents, compressions and
placements of caches.

For more documents than a row has of its own, distractors join them (`data/distractors.py`).
Documents' records go through the codec that `grit index` would write them with, calibrated on the
same corpus, and are expanded on the device in the pass that reads them; a question's record is made
at the question and stays plain.
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
    document_records,
    from_index,
    from_rows,
    means,
    read_questions,
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
class Case:
    """One way to answer. What makes no difference to a layout is None: `k` without documents, `kv`
    without documents' records, `positions` with one record or none."""

    mode: RagMode
    k: int | None
    kv: str | None
    positions: Positions | None


@dataclasses.dataclass
class RagTable:
    """Match, exact match, F1 and seconds of each case and question, `[questions, 4]`."""

    scores: dict[Case, np.ndarray]
    corpus: int | None  # documents that distractors come from
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """`{mode, k, kv, positions, match, exact_match, f1, seconds}` of each case, as
        `evaluate_rag` has them."""
        return [{**dataclasses.asdict(case), **means(found)} for case, found in self.scores.items()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        questions = len(next(iter(self.scores.values())))
        return {
            "questions": questions,
            "corpus": self.corpus,
            "seed": self.seed,
            "rows": self.rows(),
        }

    def by_mode(self) -> dict[str, dict[str, float]]:
        """`{mode: scores}`, where each layout has one case."""
        return {case.mode: means(found) for case, found in self.scores.items()}

    def markdown(self) -> str:
        """The table for a person."""
        head = ["layout", "k", "kv", "positions", "match", "exact", "F1", "seconds"]
        rows = [head, ["---"] * 4 + ["---:"] * 4]
        for case, found in self.scores.items():
            names = [str(value) if value is not None else "" for value in dataclasses.astuple(case)]
            match, exact, f1, seconds = means(found).values()
            rows.append([*names, f"{match:.3f}", f"{exact:.3f}", f"{f1:.3f}", f"{seconds:.4f}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        pad = lambda i, cell: cell.rjust(widths[i]) if i > 3 else cell.ljust(widths[i])
        lines = [f"| {' | '.join(pad(*cell) for cell in enumerate(row))} |" for row in rows]
        questions = len(next(iter(self.scores.values())))
        said = f"{questions} questions"
        if self.corpus is not None:
            said += (
                f"; over more documents than their own, those of {self.corpus} that BM25 finds"
                f" first, the own ones at random places (seed {self.seed})"
            )
        return "\n".join(lines) + f"\n\n{said}.\n"

    def write(self, folder: Path) -> None:
        """`table.md` and `rag.json`."""
        write_text(folder / "table.md", self.markdown())
        write_json(folder / "rag.json", self.to_dict())


def cases(
    modes: Sequence[RagMode],
    ks: Sequence[int],
    kvs: Sequence[str],
    placements: Sequence[Positions],
    own: int = 1,
) -> list[Case]:
    """What is different among all combinations, in the order of the table: by layout, number of
    documents, compression, placement; `own` are the most documents that a row brings itself."""
    found: dict[Case, None] = {}
    for mode in modes:
        for k in ks if mode != "none" else [None]:
            for kv in kvs if mode in DOCUMENT_CACHES else [None]:
                documents = max(k or 0, own)
                several = (
                    mode in CACHED_MODES
                    and {"doc": documents, "query": 1}.get(mode, documents + 1) > 1
                )
                for positions in placements if several else [None]:
                    found[Case(mode, k, kv, positions)] = None
    return list(found)


def evaluate_table(
    model: GritLM,
    examples: str | Path | Iterable[CachedExample],
    modes: Sequence[RagMode] = MODES,
    ks: Sequence[int] = (1,),
    kvs: Sequence[str] = (NATIVE,),
    placements: Sequence[Positions] = ("running",),
    *,
    corpus: str | Path | Sequence[str] | None = None,
    index: Index | None = None,
    seed: int = 0,
    instruction: str = "",
    max_new_tokens: int = 16,
    max_length: int = 512,
    quiet: bool = False,
) -> RagTable:
    """Scores of every different case; greedy.

    Args:
      examples: as for `evaluate_rag`. A row with more documents than a `k` keeps them all.
      kvs: of `compress.KINDS`.
      corpus: what distractors come from and codecs are calibrated on: JSONL of `{"id", "title"?,
        "text"}`, or texts; None: the documents of all rows.
      index: `k` documents are retrieved from here instead, and read from its records.
      seed: of the places of the rows' own documents.
      instruction: of the search query.
      max_length: tokens of a document (an index brings its own).

    Raises:
      GritError: an unreadable file, a bad line, no example, too few documents, an unknown mode or
        compression, an index together with compressions, placements or a corpus.
    """
    for name, value, known in (
        ("mode", modes, MODES),
        ("--kv", kvs, KINDS),
        ("--positions", placements, PLACEMENTS),
    ):
        for one in value:
            if one not in known:
                raise GritError(f"rag: unknown {name} '{one}'; known: {', '.join(known)}")
    rows = read_questions(examples)
    if index is not None:
        if corpus is not None or list(kvs) != [NATIVE] or list(placements) != ["running"]:
            raise GritError(
                "--kv, --positions and --corpus are for the rows' own documents; with --index its"
                " records are read as they are"
            )
        return _over_index(model, rows, modes, ks, index, instruction, max_new_tokens, quiet)
    if corpus is None:
        texts = list(dict.fromkeys(text for row in rows for text in row.docs))
    else:
        texts = corpus_texts(corpus) if isinstance(corpus, (str, Path)) else list(corpus)
    own = [len(row.docs) for row in rows]
    wanted = cases(modes, ks, kvs, placements, max(own))
    found: dict[Case, list[np.ndarray]] = {case: [] for case in wanted}
    read = set(modes) & set(DOCUMENT_CACHES)
    codecs: dict[str, Codec | None] = {
        kv: (
            None
            if kv == NATIVE
            else calibrated(kv, model, len(texts), texts.__getitem__, max_length)
        )
        for kv in (kvs if read else ())
    }
    more = max(ks) > min(own) and set(modes) != {"none"}
    distractors = Distractors(texts, seed) if more else None
    with progress(len(rows) * len(wanted), "rag", "answers", quiet=quiet) as bar:
        # One number of documents and one compression at a time, so that few records are in memory.
        for k in dict.fromkeys(case.k for case in wanted):
            window = max(WINDOW // (k or 1), 1)
            for start in range(0, len(rows), window):
                part = rows[start : start + window]
                if distractors is not None and k is not None:
                    part = [distractors.among(row, k) for row in part]
                for kv in dict.fromkeys(case.kv for case in wanted if case.k == k):
                    records = (
                        document_records(model, part, max_length, codecs[kv])
                        if kv is not None
                        else {}
                    )
                    for case in wanted:
                        if (case.k, case.kv) == (k, kv):
                            generator = RagGenerator(
                                model, max_length, positions=case.positions or "running"
                            )
                            answer = from_rows(generator, part, records, max_new_tokens)
                            found[case].append(score_answers(part, case.mode, answer, bar))
    scores = {case: np.concatenate(parts) for case, parts in found.items()}
    return RagTable(scores, len(texts) if more else None, seed)


def _over_index(
    model: GritLM,
    rows: Sequence[CachedExample],
    modes: Sequence[RagMode],
    ks: Sequence[int],
    index: Index,
    instruction: str,
    max_new_tokens: int,
    quiet: bool,
) -> RagTable:
    """Answers over what an index finds, read from its records."""
    wanted = cases(modes, ks, [index.kv], ["running"])
    scores: dict[Case, np.ndarray] = {}
    with progress(len(rows) * len(wanted), "rag", "answers", quiet=quiet) as bar:
        for case in wanted:
            answer = from_index(model, index, rows, max_new_tokens, case.k or 1, instruction)
            scores[case] = score_answers(rows, case.mode, answer, bar)
    return RagTable(scores, None, 0)
