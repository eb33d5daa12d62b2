"""Instructions of queries: one for each domain, examples after them (few-shot), and what a wrong
instruction costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.formats import LineError, Text, check_unicode, parse_json
from grit_jax.data.lines import JsonlFile, read_examples
from grit_jax.errors import GritError
from grit_jax.evaluation.bootstrap import RESAMPLES, paired_bootstrap
from grit_jax.evaluation.retrieval_data import RetrievalTask
from grit_jax.text.few_shot import Example, few_shot_instruction

NO_INSTRUCTION = "(none)"  # the table's name for queries without one


@dataclasses.dataclass(frozen=True)
class Shots:
    """Examples that follow the instructions of queries.

    Attributes:
      examples: by domain; those under "" are for every domain that has none of its own.
      shot_format: a key of `few_shot.SHOT_FORMATS`.
    """

    examples: Mapping[str, Sequence[Example]]
    shot_format: str = "retrieval"

    def after(self, instruction: str, domain: str = "") -> str:
        """The instruction with the examples of a domain."""
        examples = self.examples.get(domain, self.examples.get("", ()))
        return few_shot_instruction(instruction, examples, self.shot_format)


def read_shots(path: Path, count: int, shot_format: str = "retrieval") -> Shots:
    """The first `count` examples of an embedding file, each row's query with its first `pos`; the
    first `count` of each domain, if rows name their `"domain"`.

    Raises:
      GritError: as `read_examples`, or fewer rows than `count`.
    """
    rows = read_examples(path, "embedding")
    examples: dict[str, list[Example]] = {}
    for i in range(len(rows)):
        domain = json.loads(rows.line(i)).get("domain") or ""
        if not isinstance(domain, str):
            raise LineError(rows.where(i), f'"domain" must be a string, got {domain!r:.40}')
        row = rows[i]
        examples.setdefault(domain, []).append((row.query.text, row.positives[0].text))
    for domain, of_domain in examples.items():
        if len(of_domain) < count:
            raise GritError(
                f"{path}: --shots {count}, and there are {len(of_domain)} examples"
                + (f" of the domain {domain!r}" if domain else "")
            )
    return Shots({domain: of[:count] for domain, of in examples.items()}, shot_format)


def read_instructions(path: Path) -> dict[str, str]:
    """Instructions by name. A line is `{"name": ..., "instruction": ...}`, or the name, a tab and
    the instruction; `default` names the one for queries of other domains.

    Raises:
      GritError: a file that cannot be read, a line of another form, or a name that two lines share.
    """
    lines = JsonlFile(path)
    instructions: dict[str, str] = {}
    for index, line in enumerate(lines):
        place = lines.where(index)
        if line.lstrip().startswith(b"{"):
            row = parse_json(line, place)
            name, instruction = row.get("name"), row.get("instruction")
        else:
            try:
                name, _, instruction = line.decode("utf-8").strip("\r\n").partition("\t")
            except UnicodeDecodeError:
                raise LineError(place, "not UTF-8 text") from None
        if not (isinstance(name, str) and isinstance(instruction, str)) or not (
            name.strip() and instruction.strip()
        ):
            raise LineError(
                place,
                'expected {"name": ..., "instruction": ...}, or a name, a tab and an instruction',
            )
        check_unicode(name, place, "the name")
        check_unicode(instruction, place, "the instruction")
        if name in instructions:
            raise LineError(place, f"the name {name!r} is that of an earlier line")
        instructions[name] = instruction
    return instructions


def own_instruction(instructions: Mapping[str, str], domain: str) -> str | None:
    """The name of a domain's instruction: its own, `default`, or None where there is neither."""
    return next((name for name in (domain, "default") if name in instructions), None)


def with_instructions(
    task: RetrievalTask,
    instruction: str | None = None,
    instructions: Mapping[str, str] | None = None,
    shots: Shots | None = None,
) -> RetrievalTask:
    """A task whose queries have other instructions.

    Args:
      instruction: of every query; None: each keeps its own.
      instructions: by domain, before `instruction`.
      shots: examples that follow every instruction.

    Raises:
      GritError: there are `shots`, and a query has no instruction that they could follow.
    """
    queries = []
    for query, domain in zip(task.queries, task.domains, strict=True):
        own = query.instruction if instruction is None else instruction
        name = own_instruction(instructions or {}, domain)
        if name is not None:
            assert instructions is not None
            own = instructions[name]
        if shots is not None:
            if not (own or "").strip():
                raise GritError(
                    f"--shots: the query {query.text!r:.60} has no instruction, which examples"
                    " follow; give one by --instruction or --instructions"
                )
            own = shots.after(own or "", domain)
        queries.append(Text(own, query.text))
    return dataclasses.replace(task, queries=queries)


def instruction_variants(
    task: RetrievalTask, instructions: Mapping[str, str], shots: Shots | None = None
) -> dict[str, list[Text]]:
    """All queries with each of the instructions, and without any (NO_INSTRUCTION). Examples are
    those of the query's domain."""
    after = lambda instruction, domain: (
        shots.after(instruction, domain) if shots is not None else instruction
    )
    variants = {
        name: [
            Text(after(instruction, domain), query.text)
            for query, domain in zip(task.queries, task.domains, strict=True)
        ]
        for name, instruction in instructions.items()
    }
    variants[NO_INSTRUCTION] = [Text(None, query.text) for query in task.queries]
    return variants


def instruction_table(
    task: RetrievalTask,
    instructions: Mapping[str, str],
    scores: Mapping[str, Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores by instruction and domain, and the cost of the wrong instruction.

    A domain's cost is the mean score of its queries with their own instruction, less their mean
    with the other domains' instructions. The others are the instructions whose names are domains of
    the task. Queries whose domain has no instruction of its own have no cost.

    Args:
      scores: of each query, by the name of the instruction (`instruction_variants`).

    Returns:
      `{"domains": {domain: {"queries", "own", "scores": {instruction: mean}, "right", "wrong",
      "cost", "worst"}}, "all": {"queries", "right", "wrong", "cost", "low", "high", "p"}}`; `all`
      with the 95% interval and the p-value of the paired bootstrap. `wrong`, `cost` and `worst` are
      None, and so is `all`, where there is no other instruction.
    """
    of_domain: dict[str, list[int]] = {}
    for query, domain in enumerate(task.domains):
        of_domain.setdefault(domain, []).append(query)
    domains: dict[str, Any] = {}
    right: list[float] = []
    wrong: list[float] = []
    for domain, numbers in of_domain.items():
        means = {name: float(np.mean([of[i] for i in numbers])) for name, of in scores.items()}
        own = domain if domain in instructions else None
        others = [name for name in instructions if name in of_domain and name != domain]
        row: dict[str, Any] = {
            "queries": len(numbers),
            "own": own,
            "scores": means,
            "right": means[own] if own is not None else None,
            **dict.fromkeys(("wrong", "cost", "worst")),
        }
        if own is not None and others:
            with_others = [[scores[name][i] for name in others] for i in numbers]
            row["wrong"] = float(np.mean(with_others))
            row["cost"] = row["right"] - row["wrong"]
            row["worst"] = min(others, key=means.__getitem__)
            right += [scores[own][i] for i in numbers]
            wrong += np.mean(with_others, axis=1).tolist()
        domains[domain] = row
    result: dict[str, Any] = {"domains": domains, "all": None}
    if right:
        [compared] = paired_bootstrap(
            np.array(right)[:, None], np.array(wrong)[:, None], resamples=resamples, seed=seed
        )
        result["all"] = {
            "queries": len(right),
            "right": compared.this,
            "wrong": compared.other,
            "cost": compared.difference,
            "low": compared.low,
            "high": compared.high,
            "p": compared.p,
        }
    return result
