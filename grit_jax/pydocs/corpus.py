"""The files of a corpus: training examples of three kinds, made from documents.

Embedding examples pair a summary, or a question, with its document (`grit_jax.pydocs.passages`).
Generative examples are
documentation to write, and random sequences to copy, which train the look-up (induction heads)
that reading a document needs. Cached examples are questions over documents, made by
`grit_jax.pydocs.questions`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grit_jax.data.formats import titled
from grit_jax.errors import GritError
from grit_jax.pydocs.docstrings import (
    DEFAULT_HELD_OUT_PACKAGES,
    DEFAULT_PACKAGES,
    read_packages,
)
from grit_jax.pydocs.documents import (
    MAX_CHARACTERS,
    Document,
    clip,
    split_documents,
)
from grit_jax.pydocs.passages import (
    QUESTION_EMBEDDINGS,
    judged_rows,
    question_rows,
    summary_rows,
)
from grit_jax.pydocs.questions import (
    Question,
    RandomNames,
    best_constant,
    questions_about,
    randomised,
)
from grit_jax.runtime.files import read_json, write_json, write_jsonl
from grit_jax.runtime.progress import say
from grit_jax.text.answer_matching import normalise_answer

__all__ = [
    "MAX_CHARACTERS",
    "CorpusSummary",
    "best_constant",
    "write_corpus",
]

WRITE, EXPLAIN = "Write the documentation of `{}`.", "What does `{}` do?"
RECITE = "Repeat the documentation of `{}` from its beginning."

MAX_SHARE = 0.02  # of the held-out questions: the most that may have the same answer
MAX_TRAIN_SHARE = 0.02
MAX_KIND_SHARE = 1 / 3  # of the training questions: the most that may be of one kind
HELD_OUT_QUESTIONS = 450
QUESTIONS_PER_DOCUMENT = 2
RECITED_CHARACTERS = 160  # of the document's beginning that a reciting example asks for
COPYING_SHARE = 0.6  # copying examples per training document


@dataclasses.dataclass(frozen=True)
class CorpusOptions:
    """What a corpus is made of.

    Attributes:
      packages: those whose documentation is read; `python` is the standard library.
      held_out_packages: those that are held out whole. None of their text is trained on.
      path: the folders to search for packages, by default `sys.path`.
      documents: at most that many documents, a subset chosen by a hash of their names.
      documents_per_package: at most that many of each package, chosen in the same way.
      characters: of a document; the rest of a longer one is left out.
      questions: asked of a training document.
      sentences: questions are answered in sentences, not by the span alone.
    """

    packages: Sequence[str] = DEFAULT_PACKAGES
    held_out_packages: Sequence[str] = DEFAULT_HELD_OUT_PACKAGES
    path: Sequence[str] | None = None
    documents: int | None = None
    documents_per_package: int | None = None
    characters: int = MAX_CHARACTERS
    questions: int = 3
    sentences: bool = False


@dataclasses.dataclass(frozen=True)
class CorpusSummary:
    """Counts of a written corpus.

    Attributes:
      documents: documents read; `train`, `held_out`, `held_out_in_packages` and `dropped`
        (duplicates) are their split.
      packages: documents of each package, the most first.
      rows: lines of each file.
      skipped_files: source files that do not parse.
      missing_packages: packages that are not installed.
      best_constant: the single answer that scores best on the held-out questions, and its score.
    """

    documents: int
    train: int
    held_out: int
    held_out_in_packages: int
    dropped: int
    packages: dict[str, int]
    rows: dict[str, int]
    skipped_files: int
    missing_packages: tuple[str, ...]
    best_constant: tuple[str, float]


def write_corpus(
    out: Path, seed: int, options: CorpusOptions = CorpusOptions(), *, progress: bool = True
) -> CorpusSummary:
    """Writes
    `out/train/{embedding_summary,embedding_question,generative,copying,rag,recite,relevance,
    documents}.jsonl`,
    `out/heldout/{embedding,generative,rag,documents}.jsonl` and, of packages that are held out
    whole, the same four files in `out/heldout_packages`. The same seed and packages give the same
    bytes.

    Args:
      progress: show a progress bar on a terminal.

    Raises:
      ValueError: too few documents for a corpus.
      GritError: a file cannot be written.
    """
    names = tuple(dict.fromkeys([*options.packages, *options.held_out_packages]))
    read = read_packages(names, path=options.path, progress=progress)
    documents = _chosen(read.documents, options)
    splits = split_documents(documents, options.held_out_packages)
    if not splits.train or not splits.heldout:
        raise ValueError(
            f"{len(documents)} documents in {', '.join(options.packages)} are too few for a corpus:"
            f" {len(splits.train)} to train on and {len(splits.heldout)} held out"
            + (f"; not installed: {', '.join(read.missing)}" if read.missing else "")
        )
    out = Path(out)
    real = _real_questions(splits.train, seed, options.questions)
    random_names = RandomNames(_vocabulary(splits.train))
    heldout_rag = heldout_questions(splits.heldout, seed)
    summaries = functools.cache(lambda: summary_rows(splits.train))
    questions = functools.cache(lambda: question_rows(splits.train, real))
    lines = lambda asked: [question.row(sentence=options.sentences) for question in asked]
    files: dict[str, Callable[[], list[dict]]] = {
        "train/embedding_summary": summaries,
        "train/embedding_question": questions,
        "train/generative": lambda: [
            *documentation_rows(splits.train),
            *explanation_rows(splits.train),
        ],
        "train/copying": lambda: copying_rows(splits.train, random_names, seed),
        "train/rag": lambda: lines(
            training_questions(splits.train, real, random_names, seed, options.questions)
        ),
        "train/recite": lambda: reciting_rows(splits.train, random_names, seed),
        "train/relevance": lambda: judged_rows([*summaries(), *questions()], seed),
        "train/documents": lambda: document_lines(splits.train),
        "heldout/embedding": lambda: summary_rows(splits.heldout, known=splits.train),
        "heldout/generative": lambda: documentation_rows(splits.heldout),
        "heldout/rag": lambda: lines(heldout_rag),
        "heldout/documents": lambda: document_lines(splits.heldout),
    }
    if splits.packages:
        files |= {
            "heldout_packages/embedding": lambda: summary_rows(splits.packages, splits.train),
            "heldout_packages/generative": lambda: documentation_rows(splits.packages),
            "heldout_packages/rag": lambda: lines(heldout_questions(splits.packages, seed)),
            "heldout_packages/documents": lambda: document_lines(splits.packages),
        }
    rows = {}
    for name, make in tqdm(
        files.items(), desc="writing the corpus", unit="file", disable=None if progress else True
    ):
        of_file = list(make())
        if not name.endswith("documents"):
            random.Random(f"{seed} {name}").shuffle(of_file)
        path = out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows[name] = write_jsonl(path, of_file)
    return CorpusSummary(
        len(documents),
        len(splits.train),
        len(splits.heldout),
        len(splits.packages),
        len(splits.dropped),
        dict(Counter(d.package for d in documents).most_common()),
        rows,
        len(read.skipped),
        tuple(read.missing),
        best_constant([q.row() for q in heldout_rag]),
    )


def _chosen(documents: Sequence[Document], options: CorpusOptions) -> list[Document]:
    """The documents that the options keep, in order; at most an eleventh of a number of them are of
    packages that are held out whole."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.package, []).append(document)
    some = [d for group in groups.values() for d in _subset(group, options.documents_per_package)]
    whole = [d for d in some if d.package in options.held_out_packages]
    others = [d for d in some if d.package not in options.held_out_packages]
    count = options.documents
    if count is not None:
        whole = _subset(whole, count // 11)
        count -= len(whole)
    kept = [*_subset(others, count), *whole]
    return [
        dataclasses.replace(d, max_characters=options.characters)
        for d in sorted(kept, key=lambda d: d.id)
    ]


def _subset(documents: Sequence[Document], count: int | None) -> list[Document]:
    order = lambda d: hashlib.sha256(f"subset {d.id}".encode()).digest()
    return sorted(documents, key=order)[:count]


def document_lines(documents: Sequence[Document]) -> list[dict]:
    """The lines of a `grit index` corpus."""
    return [{"id": d.id, "title": d.id, "text": d.text} for d in documents]


# ---- generative ----------------------------------------------------------------------------------


def documentation_rows(documents: Sequence[Document]) -> list[dict]:
    """Generative examples: write a document, given its name."""
    return [{"text": [WRITE.format(d.id), d.text]} for d in documents]


def explanation_rows(documents: Sequence[Document]) -> list[dict]:
    """Generative examples: say in one sentence what the documented object does."""
    return [
        {"text": [EXPLAIN.format(d.id), d.summary]}
        for d in documents
        if 15 <= len(d.summary) <= 250
    ]


def copying_rows(documents: Sequence[Document], random_names: RandomNames, seed: int) -> list[dict]:
    """Generative examples that repeat unpredictable text: the fastest way to train induction
    heads."""
    rows = []
    for index in range(int(len(documents) * COPYING_SHARE)):
        generator = random.Random(f"{seed} copying {index}")
        kind = index % 3
        if kind == 0:  # a span of real text, again after something else
            tokens = generator.choice(documents).text.split()
            start = generator.randrange(max(1, len(tokens) - 10))
            span = " ".join(tokens[start : start + generator.randint(8, 30)])
            other = " ".join(random_names.word(generator) for _ in range(generator.randint(0, 8)))
            text = " ".join(filter(None, (span, other, span)))
        elif kind == 1:  # a random sequence, two or three times
            makers = (random_names.word, random_names.name, random_names.value)
            span = " ".join(
                generator.choice(makers)(generator) for _ in range(generator.randint(5, 16))
            )
            text = "\n".join([span] * generator.choice((2, 2, 3)))
        else:  # names and values, asked again in another order
            pairs = [
                f"{random_names.name(generator)}={random_names.value(generator)}"
                for _ in range(generator.randint(3, 9))
            ]
            text = ", ".join(pairs) + "\n" + ", ".join(generator.sample(pairs, len(pairs)))
        rows.append({"text": text})
    return rows


def _vocabulary(documents: Sequence[Document]) -> list[str]:
    """Words that several training documents use, sorted."""
    count = Counter(w for d in documents for w in set(re.findall(r"\b[a-z]{3,8}\b", d.text)))
    return sorted(w for w, n in count.items() if 3 <= n <= len(documents) // 20 + 3)


# ---- answers over documents ----------------------------------------------------------------------


def _real_questions(
    documents: Sequence[Document], seed: int, variants: int
) -> dict[str, list[Question]]:
    """Questions about unaltered documents by document id, the rarer kinds first: few documents say
    what is raised, nearly all what they are for."""
    asked = {}
    for document in documents:
        generator = random.Random(f"{seed} asked {document.id}")
        asked[document.id] = list(questions_about(document, generator).values())
    count = Counter(question.kind for questions in asked.values() for question in questions)
    return {
        name: sorted(questions, key=lambda q: count[q.kind])[: max(variants, QUESTION_EMBEDDINGS)]
        for name, questions in asked.items()
    }


def training_questions(
    documents: Sequence[Document],
    real: dict[str, list[Question]],
    random_names: RandomNames,
    seed: int,
    variants: int,
) -> list[Question]:
    """Questions of cached examples: up to `variants` for a document, about half of them over
    randomised documents, and none of the kinds more often than `MAX_KIND_SHARE`."""
    result: list[Question] = []
    count = Counter(question.kind for questions in real.values() for question in questions)
    for document in documents:
        generator = random.Random(f"{seed} answers {document.id}")
        unaltered = variants // 2 + (variants % 2 and generator.random() < 0.5)
        chosen = real.get(document.id, [])[:unaltered]
        for _ in range(variants - len(chosen)):
            altered = randomised(document, random_names, generator)
            if candidates := questions_about(altered, generator).values():
                asked = Counter(question.kind for question in chosen)
                chosen.append(min(candidates, key=lambda q: (asked[q.kind], count[q.kind])))
        result += chosen
    random.Random(f"{seed} kinds").shuffle(result)
    result = balanced(result, MAX_KIND_SHARE)
    return capped(result, int(MAX_TRAIN_SHARE * len(result)))


def reciting_rows(
    documents: Sequence[Document], random_names: RandomNames, seed: int
) -> list[dict]:
    """Cached examples whose answer is the beginning of the document itself, half of them over
    randomised documents. Every token of such an answer trains reading the document; the answer of a
    question has only a few."""
    rows = []
    for index, document in enumerate(documents):
        generator = random.Random(f"{seed} recites {document.id}")
        shown = randomised(document, random_names, generator) if index % 2 else document
        answer = clip(shown.text, RECITED_CHARACTERS)
        rows.append(
            {
                "docs": [titled(shown.id, shown.text)],
                "text": [RECITE.format(shown.id), answer],
            }
        )
    return rows


def heldout_questions(documents: Sequence[Document], seed: int) -> list[Question]:
    """Up to `HELD_OUT_QUESTIONS` questions about unaltered documents.

    The kinds are as evenly distributed as the documents allow, a document has at most
    `QUESTIONS_PER_DOCUMENT` questions, and no answer is right for more than `MAX_SHARE` of them.
    """
    by_kind: dict[str, list[Question]] = {}
    for document in documents:
        for kind, question in questions_about(
            document, random.Random(f"{seed} held out {document.id}")
        ).items():
            by_kind.setdefault(kind, []).append(question)
    for kind, of_kind in by_kind.items():
        random.Random(f"{seed} held out {kind}").shuffle(of_kind)
    chosen: list[Question] = []
    used: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    cap = int(MAX_SHARE * HELD_OUT_QUESTIONS)
    # The kinds take turns, so that the rarest kind is exhausted first.
    while by_kind and len(chosen) < HELD_OUT_QUESTIONS:
        for kind in sorted(by_kind):
            while by_kind[kind]:
                question = by_kind[kind].pop()
                key = normalise_answer(question.answer)
                if used[question.id] < QUESTIONS_PER_DOCUMENT and answers[key] < cap:
                    chosen.append(question)
                    used[question.id] += 1
                    answers[key] += 1
                    break
            else:
                del by_kind[kind]
    chosen = chosen[:HELD_OUT_QUESTIONS]
    while chosen:  # too few questions, or a long answer that contains others
        constant, score = best_constant([q.row() for q in chosen])
        if score * len(chosen) <= max(1, MAX_SHARE * len(chosen)):
            break
        del chosen[max(i for i, q in enumerate(chosen) if normalise_answer(q.answer) in constant)]
    return chosen


def balanced(asked: Sequence[Question], share: float) -> list[Question]:
    """The first questions of each kind, as many that no kind has more than `share` of them; all
    where there are too few kinds for that."""
    count = Counter(question.kind for question in asked)
    limit = max(count.values(), default=0)
    while limit > 1 and limit > share * sum(min(n, limit) for n in count.values()):
        limit -= 1
    if limit <= 1:
        return list(asked)
    seen: Counter[str] = Counter()
    kept = []
    for question in asked:
        seen[question.kind] += 1
        if seen[question.kind] <= limit:
            kept.append(question)
    return kept


def capped(asked: Sequence[Question], limit: int) -> list[Question]:
    """`asked` with at most `limit` questions of the same answer."""
    seen: Counter[str] = Counter()
    kept = []
    for question in asked:
        key = normalise_answer(question.answer)
        seen[key] += 1
        if seen[key] <= max(limit, 1):
            kept.append(question)
    return kept


def prepare_corpus(
    data: Path, seed: int, options: CorpusOptions = CorpusOptions()
) -> dict[str, Any]:
    """Writes the corpus unless it exists, and returns its counts for the report."""
    done = data / "corpus.json"
    if not done.exists():
        say("reading the documentation of the Python packages installed here")
        try:
            summary = write_corpus(data, seed, options)
        except ValueError as error:
            raise GritError(
                f"the documentation of the installed packages is too little to train on: {error}"
            ) from None
        counts = dataclasses.asdict(summary)
        del counts["best_constant"]
        write_json(done, counts)
    return read_json(done)
