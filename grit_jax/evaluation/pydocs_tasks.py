"""lm-eval tasks from the standard library's documentation: a folder that runs offline, with
lm-eval's own command as well.

Questions are those of the held-out documents that `grit data pydocs` writes. The wrong answers to a
question are right answers to others of its kind (a default value among default values), drawn once
with a seed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.pydocs.questions import PHRASINGS
from grit_jax.runtime.files import write_jsonl, write_text
from grit_jax.text.answer_matching import normalise_answer

FEWSHOT = 16  # questions that are kept as examples, and are not scored

_DATA = '''\
"""Reads the data files beside this file, wherever the folder lies."""

from pathlib import Path

import datasets

FOLDER = Path(__file__).parent


def questions(**metadata):
    files = {split: str(FOLDER / f"{split}.jsonl") for split in ("fewshot", "test")}
    return datasets.load_dataset("json", data_files=files)


def documents(**metadata):
    return datasets.load_dataset("json", data_files={"test": str(FOLDER / "documents.jsonl")})
'''
_QUESTIONS = """\
custom_dataset: !function data.questions
test_split: test
fewshot_split: fewshot
num_fewshot: 0
metadata:
  version: 1.0
"""
_CHOICE = """\
include: _questions
task: {name}
output_type: multiple_choice
doc_to_text: "{prompt}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
_ANSWER = """\
include: _questions
task: {name}
output_type: generate_until
doc_to_text: "{prompt}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 32
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
_TEXT = """\
# Bits per byte of whole documents, each read from its beginning.
task: pydocs_text
custom_dataset: !function data.documents
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{title}} {{text}}"
num_fewshot: 0
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
metadata:
  version: 1.0
"""
_GROUP = """\
# pydocs_choice is asked without the document, the next two with it.
group: pydocs
task: [pydocs_choice, pydocs_choice_open, pydocs_answer, pydocs_text]
metadata:
  version: 1.0
"""
_CLOSED = "Question: {{question}}\\nAnswer:"
_OPEN = "{{document}}\\n\\n" + _CLOSED


@dataclasses.dataclass(frozen=True)
class TaskCounts:
    """What was written: questions that are scored, questions that serve as examples, documents; and
    questions left out, for which there were too few other answers of their kind."""

    questions: int
    examples: int
    documents: int
    left_out: int


def write_tasks(corpus: Path, output: Path, *, choices: int = 4, seed: int = 0) -> TaskCounts:
    """Writes a folder of task files and their data.

    Args:
      corpus: the folder that `grit data pydocs` wrote, or `data` of a quickstart.
      choices: answers to choose from.
      seed: decides the wrong answers, and where the right one stands.

    Raises:
      GritError: no held-out questions there, a line that is none, or too few questions.
    """
    asked = corpus / "heldout" / "rag.jsonl"
    if not asked.is_file():
        raise GritError(
            f"--input {corpus}: there is no heldout/rag.jsonl; expected the folder that grit data"
            " pydocs wrote"
        )
    lines = _read(asked)
    rows = question_rows(lines, choices, seed)
    if len(rows) <= FEWSHOT:
        raise GritError(f"{asked}: {len(rows)} questions are too few for a task")
    documents = [
        {"title": row.get("title", ""), "text": row["text"]}
        for row in _read(corpus / "heldout" / "documents.jsonl")
    ]
    output.mkdir(parents=True, exist_ok=True)
    write_jsonl(output / "fewshot.jsonl", rows[:FEWSHOT])
    write_jsonl(output / "test.jsonl", rows[FEWSHOT:])
    write_jsonl(output / "documents.jsonl", documents)
    files = {
        "data.py": _DATA,
        "_questions": _QUESTIONS,
        "choice.yaml": _CHOICE.format(name="pydocs_choice", prompt=_CLOSED),
        "choice_open.yaml": _CHOICE.format(name="pydocs_choice_open", prompt=_OPEN),
        "answer.yaml": _ANSWER.format(name="pydocs_answer", prompt=_OPEN),
        "text.yaml": _TEXT,
        "pydocs.yaml": _GROUP,
    }
    for name, text in files.items():
        write_text(output / name, text)
    return TaskCounts(len(rows) - FEWSHOT, FEWSHOT, len(documents), len(lines) - len(rows))


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in JsonlFile(path)]


def question_rows(lines: Sequence[dict], choices: int, seed: int) -> list[dict]:
    """Questions with their answers to choose from; those without enough others are left out."""
    pools: dict[str, dict[str, str]] = defaultdict(dict)  # kind: answers by their normalised form
    for line in lines:
        question, answer = line["text"][0], line.get("answer", line["text"][1])
        pools[kind_of(question)].setdefault(normalise_answer(answer), answer)
    rows = []
    for line in lines:
        question, answer = line["text"][0], line.get("answer", line["text"][1])
        kind = kind_of(question)
        others = [a for key, a in sorted(pools[kind].items()) if key != normalise_answer(answer)]
        if len(others) < choices - 1:
            continue
        draw = random.Random(f"{seed} {question}")
        options = draw.sample(others, choices - 1)
        place = draw.randrange(choices)
        options.insert(place, answer)
        rows.append(
            {
                "question": question,
                "document": line["docs"][0],
                "kind": kind,
                "choices": options,
                "answer": place,
            }
        )
    return rows


def kind_of(question: str) -> str:
    """The kind of a question of `grit data pydocs`; "other" for other questions.

    >>> kind_of("What is the default value of `key` in `list.sort`?")
    'default'
    """
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(question)), "other")


def _pattern(phrasings: Sequence[str]) -> re.Pattern[str]:
    blank = lambda text: re.sub(r"\\\{(what|id)\\\}", ".+?", re.escape(text))
    return re.compile("|".join(map(blank, phrasings)))


_KINDS = {kind: _pattern(phrasings) for kind, phrasings in PHRASINGS.items()}
