"""What a pretrained model is scored on: as much of the held-out files as two cores do in minutes.

A model of 135 million parameters reads some 300 tokens a second there, so the files are cut. How
much of each is used is counted, and stands in the report.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grit_jax.data.formats import titled
from grit_jax.runtime.files import write_jsonl

# Lines of each file that are scored; the lines of a file are in a random order.
QUERIES = 100
PACKAGE_QUERIES = 80
LANGUAGE_TEXTS = 60
QUESTIONS = 32
DOCUMENTS = 160  # in the index, those that the questions are about among them


@dataclasses.dataclass(frozen=True)
class Part:
    """A file that is scored: its first `used` lines of `all`."""

    path: Path
    used: int
    all: int


@dataclasses.dataclass(frozen=True)
class ScoredFiles:
    """The files of `write_scored`; `packages` is None if no package was held out whole."""

    names: Part
    packages: Part | None
    language: Part
    questions: Part
    documents: Part


def write_scored(data: Path, out: Path) -> ScoredFiles:
    """Writes the parts of the held-out files of a corpus that are scored into `out`.

    Args:
      data: the folder of a corpus.
    """
    held_out = data / "heldout"

    def part(source: Path, name: str, count: int) -> Part:
        rows = _rows(source)
        return _write(out / f"{name}.jsonl", rows[:count], len(rows))

    questions = part(held_out / "rag.jsonl", "questions", QUESTIONS)
    packages = data / "heldout_packages" / "embedding.jsonl"
    return ScoredFiles(
        names=part(held_out / "embedding.jsonl", "names", QUERIES),
        packages=part(packages, "packages", PACKAGE_QUERIES) if packages.exists() else None,
        language=part(held_out / "generative.jsonl", "language", LANGUAGE_TEXTS),
        questions=questions,
        documents=_documents(held_out / "documents.jsonl", questions, out / "documents.jsonl"),
    )


def _documents(source: Path, questions: Part, out: Path) -> Part:
    """The documents that the questions are about, and others up to `DOCUMENTS`, in their order."""
    rows = _rows(source)
    asked = {text for row in _rows(questions.path) for text in row["docs"]}
    about = [titled(row["title"], row["text"]) in asked for row in rows]
    others = max(DOCUMENTS - sum(about), 0)
    # Evenly over the file, which is ordered by name.
    step = max(1, (len(rows) - sum(about)) // max(others, 1))
    extra = [i for i, needed in enumerate(about) if not needed][::step][:others]
    kept = {i for i, needed in enumerate(about) if needed} | set(extra)
    return _write(out, [rows[i] for i in sorted(kept)], len(rows))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: Path, rows: Sequence[dict[str, Any]], total: int) -> Part:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, rows)
    return Part(path, len(rows), total)
