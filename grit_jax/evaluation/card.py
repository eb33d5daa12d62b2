"""An evaluation card: the figures of several `grit eval` runs, the command that made each, and what
the GRIT paper reports of GritLM-7B."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax import __version__
from grit_jax.errors import GritError
from grit_jax.evaluation import paper
from grit_jax.runtime.files import read_json, write_json

RECORD_VERSION = 1
FRACTION = "%"  # shown as a percentage; the value is a fraction
SEARCHES = {
    "model": "dense",
    "bm25": "BM25",
    "hybrid": "hybrid",
}


@dataclasses.dataclass(frozen=True)
class EvalRecord:
    """What one run of `grit eval KIND` found.

    Attributes:
      model: directory, hub id or URL.
      command: the command line. date: when it ended, UTC.
      result: what `--json` printed.
    """

    kind: str
    model: str
    command: str
    date: str
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a card.

    Attributes:
      data: what it was measured on. unit: FRACTION, or "" for a plain number.
      run: the number of the record that it comes from, from 1.
      paper, paper_data: the same measure of GritLM-7B as the paper reports it, as a percentage, and
        what that was measured on; None and "" where there is none.
    """

    kind: str
    model: str
    data: str
    name: str
    value: float
    unit: str
    run: int
    paper: float | None = None
    paper_data: str = ""

    @property
    def shown(self) -> str:
        """The value as text."""
        return f"{100 * self.value:.2f}" if self.unit == FRACTION else f"{self.value:.3f}"


def write_record(
    path: Path, kind: str, model: str, command: str, result: Mapping[str, Any]
) -> None:
    """Writes the record of a run.

    Raises:
      GritError: the file cannot be written, or a number is not finite.
    """
    write_json(
        path,
        {
            "grit_eval": RECORD_VERSION,
            "kind": kind,
            "model": model,
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": __version__,
            "result": dict(result),
        },
    )


def read_record(path: Path) -> EvalRecord:
    """Reads a record.

    Raises:
      GritError: the file cannot be read, or is no record of this version.
    """
    content = read_json(path)
    if content.get("grit_eval") != RECORD_VERSION:
        raise GritError(
            f"{path}: not a record of grit eval; make one with grit eval KIND ... --record {path}"
        )
    names = ("kind", "model", "command", "date", "result")
    if missing := [name for name in names if name not in content]:
        raise GritError(f"{path}: the record has no {missing[0]!r}")
    for name in names:
        expected = dict if name == "result" else str
        if not isinstance(content[name], expected):
            raise GritError(f"{path}: the record is damaged ({name!r}); make it again")
    return EvalRecord(*(content[name] for name in names))


def make_card(records: Sequence[EvalRecord]) -> dict[str, Any]:
    """The card as JSON: `{"version", "models", "figures": [{"kind", "model", "data", "name",
    "value", "unit", "run", "paper", "paper_data"}], "runs": [{"kind", "model", "command", "date"}],
    "paper": {"model", "source", "figures"}}`.

    Raises:
      GritError: a record without a figure.
    """
    listed: list[Figure] = []
    for run, record in enumerate(records, start=1):
        try:
            of_record = list(figures(record, run))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GritError(
                f"run {run} (grit eval {record.kind}): its record is damaged"
                f" ({type(error).__name__}: {error}); make it again"
            ) from None
        if not of_record:
            raise GritError(f"run {run} (grit eval {record.kind}): its record has no score")
        listed += of_record
    return {
        "version": RECORD_VERSION,
        "models": list(dict.fromkeys(record.model for record in records)),
        "figures": [{**dataclasses.asdict(figure), "shown": figure.shown} for figure in listed],
        "runs": [
            {"kind": r.kind, "model": r.model, "command": r.command, "date": r.date}
            for r in records
        ],
        "paper": {
            "model": paper.MODEL,
            "source": paper.SOURCE,
            "figures": [dataclasses.asdict(figure) for figure in paper.FIGURES],
        },
    }


def figures(record: EvalRecord, run: int = 1) -> Iterator[Figure]:
    """The main figures of a record."""
    make = {
        "retrieval": _retrieval,
        "perplexity": _perplexity,
        "rag": _rag,
        "lm": _lm,
        "mteb": _mteb,
    }.get(record.kind)
    if make is None:
        raise GritError(f"a record of grit eval {record.kind}, which a card has no figures of")
    for data, name, value, unit, key in make(record.result):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        known = paper.BY_KEY.get(key)
        yield Figure(
            record.kind,
            record.model,
            data,
            name,
            float(value),
            unit,
            run,
            known.value if known is not None else None,
            known.data if known is not None else "",
        )


_Row = tuple[str, str, Any, str, str]  # data, name, value, unit, key of the paper's figure


def _retrieval(result: Mapping[str, Any]) -> Iterator[_Row]:
    task = result.get("task", {})
    data = (
        f"{task.get('name', '')}, {task.get('queries')} queries, {task.get('documents')} documents"
    )
    columns = [(label, result[name]) for name, label in SEARCHES.items() if name in result]
    columns += [
        (f"{SEARCHES[name]}, reranked", scores)
        for name, scores in result.get("reranked_by_search", {}).items()
    ]
    for label, scores in columns:
        key = {"dense": "retrieval", "dense, reranked": "rerank"}.get(label, "")
        yield data, f"nDCG@10, {label}", scores.get("ndcg@10"), FRACTION, key
        yield data, f"recall@10, {label}", scores.get("recall@10"), FRACTION, ""
    if every := (result.get("instructions") or {}).get("all"):
        name = f"{result['instructions']['metric']} lost by another domain's instruction"
        yield data, name, every["cost"], FRACTION, ""


def _perplexity(result: Mapping[str, Any]) -> Iterator[_Row]:
    yield "answers of a held-out file", "perplexity", result.get("perplexity"), "", ""


def _rag(result: Mapping[str, Any]) -> Iterator[_Row]:
    rows = result.get("rows")
    if isinstance(rows, list):  # of several --k, --kv or --positions
        for row in rows:
            about = ", ".join(f"{n} {row[n]}" for n in ("k", "kv", "positions") if row.get(n))
            yield (
                f"questions file, {about}" if about else "questions file",
                *_match(row["mode"], row),
            )
        return
    for mode, scores in result.items():
        if isinstance(scores, Mapping):
            yield "questions file", *_match(mode, scores)


def _match(mode: str, scores: Mapping[str, Any]) -> tuple[str, Any, str, str]:
    return f"match, layout {mode}", scores.get("match"), FRACTION, f"rag {mode}"


def _lm(result: Mapping[str, Any]) -> Iterator[_Row]:
    tasks = {**result.get("results", {}), **result.get("groups", {})}
    for task, scores in tasks.items():
        for name, value in scores.items():
            metric, _, filter_name = name.partition(",")
            if name == "alias" or metric.endswith("_stderr") or not filter_name:
                continue
            label = metric if filter_name == "none" else f"{metric} ({filter_name})"
            # Perplexities, bits per byte and counts are no fractions.
            is_share = isinstance(value, float) and 0 <= value <= 1
            is_share = is_share and "perplexity" not in metric and "bits" not in metric
            unit = FRACTION if is_share else ""
            yield task, label, value, unit, f"lm {task.removeprefix('grit_')}"


def _mteb(result: Mapping[str, Any]) -> Iterator[_Row]:
    for task in result.get("tasks") or []:
        yield task["task"], task["metric"], task["score"], FRACTION, ""
    for kind, value in (result.get("by_type") or {}).items():
        yield "mean of these tasks", kind, value, FRACTION, f"mteb {kind}"
    if len(result.get("tasks") or []) > 1:
        yield "mean of these tasks", "all", result.get("mean"), FRACTION, "mteb mean"
