"""The three kinds of training examples made from documents, and the files of a corpus.

Embedding: a summary finds its document, a question finds the document that answers it. Generative:
documentation is written, and random sequences are copied, which teaches the lookup that reading a
document needs. Answers over cached documents: `grit_jax.pydocs.questions`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grit_jax.data.bm25 import BM25, words
from grit_jax.errors import GritError
from grit_jax.pydocs import docstrings as pydocs
from grit_jax.pydocs.documents import MAX_CHARACTERS, Document, clip, document_string, split
from grit_jax.pydocs.questions import (
    Inventor,
    Question,
    best_constant,
    normalise,
    questions,
    randomised,
)
from grit_jax.runtime.files import read_json, write_json, write_jsonl
from grit_jax.runtime.progress import say

__all__ = [
    "MAX_CHARACTERS",
    "SUMMARY_INSTRUCTION",
    "QUESTION_INSTRUCTION",
    "CorpusSummary",
    "best_constant",
    "write_corpus",
]

SUMMARY_INSTRUCTION = "Find the Python documentation that this sentence describes"
QUESTION_INSTRUCTION = "Find the Python documentation that answers this question"
WRITE, EXPLAIN = "Write the documentation of `{}`.", "What does `{}` do?"
RECITE = "Repeat the documentation of `{}` from its beginning."

MIN_REST = 60  # characters a document must have left when its summary has become the query
NEGATIVES = 4
NEAR_WORDS = (
    0.6  # share of common words from which a document is too close to the positive to be a negative
)
MAX_SHARE = 0.02  # of the held-out questions that may have the same answer
MAX_TRAIN_SHARE = 0.02
HELD_OUT_QUESTIONS = 450
QUESTIONS_PER_DOCUMENT = 2
QUESTION_EMBEDDINGS = 2  # per document and in training, of its real questions
RECITED_CHARACTERS = 160  # of a document that a reciting row asks for
COPYING_SHARE = 0.6  # copying rows per training document


@dataclasses.dataclass(frozen=True)
class CorpusSummary:
    """Counts of a written corpus: documents read, on the two sides, lines of each file, files and
    packages left out."""

    documents: int
    train: int
    held_out: int
    dropped: int
    rows: dict[str, int]
    skipped_files: int
    missing_packages: tuple[str, ...]
    best_constant: tuple[str, float]


def write_corpus(
    out: Path,
    seed: int,
    *,
    rag_variants: int = 3,
    max_documents: int | None = None,
    progress: bool = True,
    packages: Sequence[str] = pydocs.DEFAULT,
) -> CorpusSummary:
    """Writes
    `out/train/{embedding_summary,embedding_question,generative,copying,rag,recite,documents}.jsonl`
    and `out/heldout/{embedding,generative,rag,documents}.jsonl`; the same seed and packages give
    the same bytes.

    `max_documents` takes that many documents, chosen by their names. Raises ValueError where
    nothing can be read.
    """
    reading = pydocs.read(packages, progress=progress)
    documents = reading.documents
    if max_documents is not None:
        chosen = sorted(
            documents, key=lambda d: hashlib.sha256(f"subset {d.id}".encode()).digest()
        )[:max_documents]
        documents = sorted(chosen, key=lambda d: d.id)
    sides = split(documents)
    if not sides.train or not sides.heldout:
        raise ValueError(
            f"{len(documents)} documents in {', '.join(packages)} are too few for a corpus: "
            f"{len(sides.train)} to train on and {len(sides.heldout)} held out"
        )
    out = Path(out)
    real = _real_questions(sides.train, seed, rag_variants)
    inventor = Inventor(_vocabulary(sides.train))
    heldout_rag = heldout_questions(sides.heldout, seed)
    files = {
        "train/embedding_summary": lambda: summary_rows(sides.train),
        "train/embedding_question": lambda: question_rows(sides.train, real),
        "train/generative": lambda: [
            *documentation_rows(sides.train),
            *explanation_rows(sides.train),
        ],
        "train/copying": lambda: copying_rows(sides.train, inventor, seed),
        "train/rag": lambda: training_questions(sides.train, real, inventor, seed, rag_variants),
        "train/recite": lambda: reciting_rows(sides.train, inventor, seed),
        "train/documents": lambda: document_lines(sides.train),
        "heldout/embedding": lambda: summary_rows(sides.heldout, known=sides.train),
        "heldout/generative": lambda: documentation_rows(sides.heldout),
        "heldout/rag": lambda: [q.row() for q in heldout_rag],
        "heldout/documents": lambda: document_lines(sides.heldout),
    }
    rows = {}
    for name, make in tqdm(
        files.items(), desc="writing the corpus", unit="file", disable=None if progress else True
    ):
        lines = make()
        if not name.endswith("documents"):
            random.Random(f"{seed} {name}").shuffle(lines)
        path = out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows[name] = write_jsonl(path, lines)
    return CorpusSummary(
        len(documents),
        len(sides.train),
        len(sides.heldout),
        len(sides.dropped),
        rows,
        len(reading.skipped),
        tuple(reading.missing),
        best_constant([q.row() for q in heldout_rag]),
    )


def document_lines(documents: Sequence[Document]) -> list[dict]:
    """The lines of a `grit index` corpus."""
    return [{"id": d.id, "title": d.id, "text": d.text} for d in documents]


# ---- embedding -----------------------------------------------------------------------------------


class _Negatives:
    """Lexically close documents in the form (whole, or without the summary) in which the positives
    are."""

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.index = BM25(strings)
        self.bags = [frozenset(words(s)) for s in strings]

    def of(self, query: str, positive: int) -> list[str]:
        found, bag = [], self.bags[positive]
        for other in self.index.search(query, NEGATIVES + 9):
            close = len(bag & self.bags[other]) >= NEAR_WORDS * len(bag | self.bags[other])
            if other != positive and not close:
                found.append(self.strings[other])
        return found[:NEGATIVES]


def summary_rows(documents: Sequence[Document], known: Sequence[Document] = ()) -> list[dict]:
    """Rows whose query is the first sentence, none that begins a document of `known`, and whose
    positive is the document without it."""
    seen = {normalise(d.summary) for d in known}
    usable = []
    for document in documents:
        key = normalise(document.summary)
        # A sentence that two documents share has no single right answer.
        if (
            len(document.rest) >= MIN_REST
            and 15 <= len(document.summary) <= 250
            and key not in seen
        ):
            seen.add(key)
            usable.append(document)
    pool = _Negatives([document_string(d.id, d.text_without_summary) for d in usable])
    rows = [_embedding_row(SUMMARY_INSTRUCTION, d.summary, i, pool) for i, d in enumerate(usable)]
    return [row for row in rows if row["neg"]]


def question_rows(documents: Sequence[Document], asked: dict[str, list[Question]]) -> list[dict]:
    """Rows whose query is a question of `asked` (by document id) and whose positive is the whole
    document."""
    pool = _Negatives([document_string(d.id, d.text) for d in documents])
    rows = [
        _embedding_row(QUESTION_INSTRUCTION, question.text, i, pool)
        for i, d in enumerate(documents)
        for question in asked.get(d.id, [])[:QUESTION_EMBEDDINGS]
    ]
    return [row for row in rows if row["neg"]]


def _embedding_row(instruction: str, query: str, positive: int, pool: _Negatives) -> dict:
    return {
        "query": [instruction, query],
        "pos": [["", pool.strings[positive]]],
        "neg": [["", text] for text in pool.of(query, positive)],
    }


# ---- generative ----------------------------------------------------------------------------------


def documentation_rows(documents: Sequence[Document]) -> list[dict]:
    """Rows that write a document from its name."""
    return [{"text": [WRITE.format(d.id), d.text]} for d in documents]


def explanation_rows(documents: Sequence[Document]) -> list[dict]:
    """Rows that say in one sentence what a thing does."""
    return [
        {"text": [EXPLAIN.format(d.id), d.summary]}
        for d in documents
        if 15 <= len(d.summary) <= 250
    ]


def copying_rows(documents: Sequence[Document], inventor: Inventor, seed: int) -> list[dict]:
    """Raw texts that repeat something unpredictable: the quickest lesson in looking back (induction
    heads)."""
    rows = []
    for index in range(int(len(documents) * COPYING_SHARE)):
        generator = random.Random(f"{seed} copying {index}")
        kind = index % 3
        if kind == 0:  # a span of real text, again after something else
            tokens = generator.choice(documents).text.split()
            start = generator.randrange(max(1, len(tokens) - 10))
            span = " ".join(tokens[start : start + generator.randint(8, 30)])
            other = " ".join(inventor.word(generator) for _ in range(generator.randint(0, 8)))
            text = " ".join(filter(None, (span, other, span)))
        elif kind == 1:  # a random sequence, two or three times
            makers = (inventor.word, inventor.name, inventor.value)
            span = " ".join(
                generator.choice(makers)(generator) for _ in range(generator.randint(5, 16))
            )
            text = "\n".join([span] * generator.choice((2, 2, 3)))
        else:  # names and values, asked again in another order
            pairs = [
                f"{inventor.name(generator)}={inventor.value(generator)}"
                for _ in range(generator.randint(3, 9))
            ]
            text = ", ".join(pairs) + "\n" + ", ".join(generator.sample(pairs, len(pairs)))
        rows.append({"text": text})
    return rows


def _vocabulary(documents: Sequence[Document]) -> list[str]:
    """Words that several training documents use, in a fixed order."""
    count = Counter(w for d in documents for w in set(re.findall(r"\b[a-z]{3,8}\b", d.text)))
    return sorted(w for w, n in count.items() if 3 <= n <= len(documents) // 20 + 3)


# ---- answers over documents ----------------------------------------------------------------------


def _real_questions(
    documents: Sequence[Document], seed: int, variants: int
) -> dict[str, list[Question]]:
    """Questions about unaltered documents, the kinds in a random order."""
    asked = {}
    for document in documents:
        generator = random.Random(f"{seed} asked {document.id}")
        found = list(questions(document, generator).values())
        generator.shuffle(found)
        asked[document.id] = found[: max(variants, QUESTION_EMBEDDINGS)]
    return asked


def training_questions(
    documents: Sequence[Document],
    real: dict[str, list[Question]],
    inventor: Inventor,
    seed: int,
    variants: int,
) -> list[dict]:
    """`variants` rows per document where it carries them, about half of them over randomised
    documents."""
    result: list[Question] = []
    for document in documents:
        generator = random.Random(f"{seed} answers {document.id}")
        unaltered = variants // 2 + (variants % 2 and generator.random() < 0.5)
        chosen = real.get(document.id, [])[:unaltered]
        for _ in range(variants - len(chosen)):
            found = list(questions(randomised(document, inventor, generator), generator).values())
            if found:
                chosen.append(generator.choice(found))
        result += chosen
    return [q.row() for q in capped(result, int(MAX_TRAIN_SHARE * len(result)))]


def reciting_rows(documents: Sequence[Document], inventor: Inventor, seed: int) -> list[dict]:
    """Rows whose answer is the beginning of the document itself, half of them randomised: every
    token of the answer is a lesson in reading the document, where a question's answer has only a
    few."""
    rows = []
    for index, document in enumerate(documents):
        generator = random.Random(f"{seed} recites {document.id}")
        shown = randomised(document, inventor, generator) if index % 2 else document
        answer = clip(shown.text, RECITED_CHARACTERS)
        rows.append(
            {
                "docs": [document_string(shown.id, shown.text)],
                "text": [RECITE.format(shown.id), answer],
            }
        )
    return rows


def heldout_questions(documents: Sequence[Document], seed: int) -> list[Question]:
    """Up to `HELD_OUT_QUESTIONS` about unaltered documents, the kinds as even as the documents
    allow, no document asked more than `QUESTIONS_PER_DOCUMENT` times, no answer right for more than
    `MAX_SHARE` of them."""
    by_kind: dict[str, list[Question]] = {}
    for document in documents:
        for kind, question in questions(
            document, random.Random(f"{seed} held out {document.id}")
        ).items():
            by_kind.setdefault(kind, []).append(question)
    for kind, found in by_kind.items():
        random.Random(f"{seed} held out {kind}").shuffle(found)
    chosen: list[Question] = []
    used: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    cap = int(MAX_SHARE * HELD_OUT_QUESTIONS)
    while (
        by_kind and len(chosen) < HELD_OUT_QUESTIONS
    ):  # in turn, so that the rarest kind is used up first
        for kind in sorted(by_kind):
            while by_kind[kind]:
                question = by_kind[kind].pop()
                key = normalise(question.answer)
                if used[question.id] < QUESTIONS_PER_DOCUMENT and answers[key] < cap:
                    chosen.append(question)
                    used[question.id] += 1
                    answers[key] += 1
                    break
            else:
                del by_kind[kind]
    chosen = chosen[:HELD_OUT_QUESTIONS]
    while chosen:  # fewer questions than hoped for, or a long answer that contains others
        constant, score = best_constant([q.row() for q in chosen])
        if score * len(chosen) <= max(1, MAX_SHARE * len(chosen)):
            break
        del chosen[max(i for i, q in enumerate(chosen) if normalise(q.answer) in constant)]
    return chosen


def capped(asked: Sequence[Question], limit: int) -> list[Question]:
    """`asked` without those whose answer has come `limit` times before."""
    seen: Counter[str] = Counter()
    kept = []
    for question in asked:
        key = normalise(question.answer)
        seen[key] += 1
        if seen[key] <= max(limit, 1):
            kept.append(question)
    return kept


def prepare_corpus(data: Path, seed: int, *, max_documents: int | None = None) -> dict[str, Any]:
    """Writes the corpus unless it is there, and returns its numbers for the report.

    `max_documents` is that of `write_corpus`.
    """
    done = data / "corpus.json"
    if not done.exists():
        say("reading the documentation of the Python packages installed here")
        try:
            summary = write_corpus(data, seed, max_documents=max_documents)
        except ValueError as error:
            raise GritError(
                f"the documentation installed here is too little to train on: {error}"
            ) from None
        write_json(
            done,
            {
                "documents": summary.documents,
                "train": summary.train,
                "held_out": summary.held_out,
                "dropped": summary.dropped,
                "rows": summary.rows,
                "skipped_files": summary.skipped_files,
                "missing_packages": list(summary.missing_packages),
            },
        )
    return read_json(done)
