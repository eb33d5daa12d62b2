"""What mteb's tasks are embedded for: GRIT's instructions, mteb's own, a file's, or none.

Queries get the instruction, and so do all texts of tasks that do not tell queries from documents
(classification, clustering, pairs). Documents get none, except where the paper's own script or mteb
gives them one and is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from grit_jax.errors import GritError

TABLE = Path(__file__).with_name("mteb_instructions.json")
BENCHMARK = "MTEB(eng, v2)"
PROMPTS = ("grit", "paper", "mteb", "none")  # `--prompts`, beside a file
# The paper's instructions for all tasks of a type.
BY_TYPE = {
    "STS": "Retrieve semantically similar text.",
    "Summarization": "Given a news summary, retrieve other semantically similar summaries",
}
Source = Literal["grit", "mteb", "file", "none"]


@dataclasses.dataclass(frozen=True)
class TaskInstruction:
    """The instruction of a task.

    Attributes:
      task, type: mteb's name and kind of the task.
      query: of queries, and of texts that are neither queries nor documents; "": none.
      document: of documents.
      source: whose sentence it is.
      like: the task of the paper's that it is taken from, where that has another name.
    """

    task: str
    type: str
    query: str
    document: str = ""
    source: Source = "grit"
    like: str = ""

    def of(self, is_document: bool) -> str:
        """The instruction of a text."""
        return self.document if is_document else self.query

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class TaskPrompt:
    """What mteb knows of a task: its name, its type, the prompt of its metadata (a string for all
    texts, or one for each of `query` and `document`), and the sentence of its kind."""

    name: str
    type: str
    prompt: str | Mapping[str, str] | None = None
    fallback: str = ""


@functools.cache
def grit_table() -> dict[str, dict[str, TaskInstruction]]:
    """The instructions of the paper: of the 41 tasks of `BENCHMARK`, and of others.

    `document` is what the paper's script gives to documents: a sentence in reranking, else none.
    """
    sections = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        section: {
            name: TaskInstruction(
                name,
                entry["type"],
                entry["instruction"],
                entry.get("document", ""),
                like=entry.get("like", ""),
            )
            for name, entry in sections[section].items()
        }
        for section in (BENCHMARK, "others")
    }


def grit_instruction(task: TaskPrompt) -> TaskInstruction:
    """The paper's instruction for a task; for one that the paper does not have, the prompt of its
    metadata, or else the paper's sentence for all tasks of its type. Documents have none.

    >>> grit_instruction(TaskPrompt("FEVERHardNegatives", "Retrieval")).query
    'Given a claim, retrieve documents that support or refute the claim'
    """
    table = grit_table()
    known = table[BENCHMARK].get(task.name) or table["others"].get(task.name)
    if known is not None:
        return dataclasses.replace(known, document="")
    prompt = task.prompt
    query = prompt.get("query", "") if isinstance(prompt, Mapping) else prompt or ""
    if not query and task.type in BY_TYPE:
        return TaskInstruction(task.name, task.type, BY_TYPE[task.type])
    return TaskInstruction(task.name, task.type, query, source="mteb" if query else "none")


def instruction_for(
    task: TaskPrompt, prompts: str = "grit", file: Mapping[str, TaskInstruction] | None = None
) -> TaskInstruction:
    """The instruction of a task.

    Args:
      prompts: `grit`: see `grit_instruction`. `paper`: the same, and what the paper's script gives
        to the documents of reranking tasks. `mteb`: as mteb instructs a model that brings no
        prompts, which gives documents the sentence of the task's kind where the task has none.
        `none`: none.
      file: of these tasks instead (`read_instructions`).
    """
    if file is not None and task.name in file:
        return dataclasses.replace(file[task.name], type=task.type)
    if prompts == "none":
        return TaskInstruction(task.name, task.type, "", source="none")
    if prompts == "mteb":
        if isinstance(task.prompt, Mapping):
            query, document = (task.prompt.get(kind, "") for kind in ("query", "document"))
        else:
            query = document = task.prompt or task.fallback
        return TaskInstruction(task.name, task.type, query, document, source="mteb")
    found = grit_instruction(task)
    if prompts == "paper":
        table = grit_table()
        known = table[BENCHMARK].get(task.name) or table["others"].get(task.name)
        found = known or found
    return found


def read_instructions(path: Path) -> dict[str, TaskInstruction]:
    """Instructions of a JSON file: by task a sentence, or `{"query", "document"}`.

    Raises:
      GritError: no such file, no JSON object, or a value that is neither.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GritError(
            f"{path}: {error.strerror}; --prompts is {', '.join(PROMPTS)} or a JSON file"
        ) from None
    except ValueError as error:
        raise GritError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise GritError(f"{path}: expected an object of tasks and their instructions")
    table = {}
    for name, value in values.items():
        parts = {"query": value} if isinstance(value, str) else value
        if (
            not isinstance(parts, dict)
            or not parts.keys() <= {"query", "document"}
            or not all(isinstance(text, str) for text in parts.values())
        ):
            raise GritError(
                f"{path}: {name}: expected a sentence or an object with query and document, got"
                f" {value!r:.80}"
            )
        table[name] = TaskInstruction(
            name, "", parts.get("query", ""), parts.get("document", ""), source="file"
        )
    return table


def instruction_lines(instructions: Sequence[TaskInstruction]) -> str:
    """A line for each task: its name, its type, the instruction of queries, and that of documents
    where there is one."""
    width = max((len(i.task) for i in instructions), default=0)
    kind = max((len(i.type) for i in instructions), default=0)
    lines = []
    for i in instructions:
        document = f"  [documents: {i.document}]" if i.document else ""
        lines.append(f"{i.task:{width}s}  {i.type:{kind}s}  {i.query or '(none)'}{document}")
    return "\n".join(lines)
