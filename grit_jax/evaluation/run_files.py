"""What a retrieval run writes: each query's scores and ranking, and TREC run files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.evaluation.bootstrap import RESAMPLES, paired_bootstrap
from grit_jax.evaluation.ranking_metrics import trec_order
from grit_jax.evaluation.retrieval_run import RetrievalRun
from grit_jax.evaluation.row_files import open_rows
from grit_jax.runtime.files import write_file, write_jsonl

TAG = "grit_jax"


def write_per_query(path: Path, run: RetrievalRun) -> None:
    """Writes a JSON line for each query:

        {"query": id, "text", "instruction", "domain", "judgements": {id: grade},
         "searches": {name: {"scores": {"ndcg@10": ..., ...}, "ranking": [[id, score], ...]}}}

    Raises:
      GritError: the file cannot be written.
    """
    write_jsonl(path, _per_query(run))


def _per_query(run: RetrievalRun) -> Iterator[dict[str, Any]]:
    task = run.task
    for number, query in enumerate(task.queries):
        yield {
            "query": task.query_ids[number],
            "text": query.text,
            "instruction": query.instruction or "",
            "domain": task.domains[number],
            "judgements": task.judgements[number],
            "searches": {
                name: {
                    "scores": ranked.scores[number],
                    "ranking": [
                        [id, float(value)]
                        for id, value in zip(ranked.ids[number], ranked.values[number], strict=True)
                    ],
                }
                for name, ranked in run.searches.items()
            },
        }


def compare_runs(
    run: RetrievalRun, path: Path, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Compares a run with the per-query file of another one, by the paired bootstrap
    (`bootstrap.paired_bootstrap`) over the queries that both have.

    Returns:
      `{"file", "queries", "only_this", "only_other", "resamples", "seed",
      "searches": {name: {"ndcg@10": {"this", "other", "difference", "low", "high", "p"}}}}`.

    Raises:
      GritError: a file of another form, no query, search or score in common, or a query whose
        judgements differ.
    """
    others = _read_per_query(path)
    task = run.task
    shared = [i for i, id in enumerate(task.query_ids) if id in others]
    if not shared:
        raise GritError(f"{path}: no query of this run is in it")
    for i in shared:
        if others[task.query_ids[i]]["judgements"] != task.judgements[i]:
            raise GritError(
                f"{path}: the judgements of query {task.query_ids[i]!r} differ from this run's;"
                " compare runs of one task"
            )
    searches: dict[str, Any] = {}
    for name, ranked in run.searches.items():
        theirs = [others[task.query_ids[i]]["searches"].get(name) for i in shared]
        if None in theirs:
            continue
        names = [key for key in ranked.scores[0] if all(key in t["scores"] for t in theirs)]
        if not names:
            continue
        this = np.array([[ranked.scores[i][key] for key in names] for i in shared])
        other = np.array([[t["scores"][key] for key in names] for t in theirs])
        compared = paired_bootstrap(this, other, resamples=resamples, seed=seed)
        searches[name] = {
            key: vars(comparison) for key, comparison in zip(names, compared, strict=True)
        }
    if not searches:
        raise GritError(f"{path}: has no search and score of this run")
    return {
        "file": str(path),
        "queries": len(shared),
        "only_this": len(task.query_ids) - len(shared),
        "only_other": len(others) - len(shared),
        "resamples": resamples,
        "seed": seed,
        "searches": searches,
    }


def _read_per_query(path: Path) -> dict[str, Mapping[str, Any]]:
    rows = open_rows([path])
    queries: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        try:
            searches = {
                name: {"scores": {key: float(v) for key, v in of["scores"].items()}}
                for name, of in row["searches"].items()
            }
            queries[row["query"]] = {"judgements": row["judgements"], "searches": searches}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise GritError(
                f"{rows.where(number)}: not a line of a file that --per-query writes"
            ) from None
    return queries


def write_trec_runs(folder: Path, run: RetrievalRun) -> None:
    """Writes `NAME.trec` for each search: lines of `query Q0 document rank score tag`.

    trec_eval orders documents by their scores, and equal ones by id. Where that would change a
    ranking (reranked candidates before others; documents without ids), the scores are
    `number of documents - rank` instead.

    Raises:
      GritError: an id with white space, which the format cannot hold, or a file that cannot be
        written.
    """
    task = run.task
    for id in [*task.query_ids, *{d for r in run.searches.values() for ids in r.ids for d in ids}]:
        if len(id.split()) != 1 or id != id.strip():
            raise GritError(f"the id {id!r} has white space, which a TREC run file cannot hold")
    for name, ranked in run.searches.items():
        with write_file(folder / f"{name}.trec") as file:
            for query, ids, values in zip(task.query_ids, ranked.ids, ranked.values, strict=True):
                for rank, (id, score) in enumerate(
                    zip(ids, _trec_scores(ids, values), strict=True), start=1
                ):
                    line = f"{query} Q0 {id} {rank} {score} {TAG}-{name}\n"
                    file.write(line.encode("utf-8"))


def _trec_scores(ids: Sequence[str], values: np.ndarray) -> list[str]:
    """Scores by which trec_eval keeps the order."""
    if trec_order(ids, values).tolist() == list(range(len(ids))):
        return [str(np.float32(value)) for value in values]
    return [str(len(ids) - rank) for rank in range(len(ids))]
