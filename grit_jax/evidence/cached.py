"""Do answers over cached documents need training for it?

From one model that reads documents in its prompt and has never seen a cache (`reader`) two twins
are trained for each seed, with the same steps on the same documents, questions and answers in the
same order: `trained` reads them in all layouts, cached ones included, `untrained` only as plain
RAG, in both orders. Both embed and write beside it, as GRIT does, so that documents' caches are
those of a trained embedding pass in either. The paper reused caches untrained (arXiv 2402.09906:
doc-query caching fell below no RAG) and left the training to future work.

Scored by match over held-out documents, in every layout; where targets speak of plain RAG, the
better of its orders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.evaluation.rag_table import PLACEMENTS, evaluate_table
from grit_jax.evidence.configs import CACHED_TWINS, PLAIN
from grit_jax.evidence.joint import spread, table
from grit_jax.inference.model import GritLM
from grit_jax.quickstart.configs import ANSWER_TOKENS
from grit_jax.rag.reading import DOCUMENT_CACHES
from grit_jax.runtime.files import read_json, write_json
from grit_jax.runtime.progress import say
from grit_jax.text.rag_layouts import MODES, RagMode

KS = (1, 3, 5)
KVS = ("int8", "int4", "pca2")
# What is scored: layouts, numbers of documents, compressions, placements.
SWEEPS: tuple[
    tuple[tuple[RagMode, ...], tuple[int, ...], tuple[str, ...], tuple[Any, ...]], ...
] = (
    (MODES, KS, ("native",), PLACEMENTS),
    (DOCUMENT_CACHES, (1,), KVS, ("running",)),
)
SCORED = "rag.json"  # in a twin's folder
# By the place of the question, each uncached layout before the cached ones that keep its order.
ORDERS = {
    "question first": ("query-then-doc", "query", "query-doc"),
    "document first": ("doc-then-query", "doc", "doc-query"),
}
# What caching, compression and distractors may cost the trained twin, in points of match.
CACHING = {"doc": 1.0, "query-doc": 2.0, "doc-query": 2.0}
COMPRESSION = {"int8": 0.5, "int4": 1.0}
DISTRACTORS = 2.0
LEAST_GAIN = (
    10.0  # points of plain RAG over the closed book, without which costs near 0 say nothing
)


def score(folder: Path, held_out: Path) -> list[dict[str, Any]]:
    """A twin's scores, one row a case (see `evaluation.rag_table`) with `hits`: a digit a question,
    1 where it matched.

    Sweeps that are in the folder already are not done again.

    Raises:
      GritError: a file that is damaged.
    """
    path = folder / SCORED
    done = read_json(path) if path.exists() else {"sweeps": 0, "rows": []}
    try:
        sweeps, rows = int(done["sweeps"]), list(done["rows"])
    except (KeyError, TypeError, ValueError):
        raise GritError(f"{path}: damaged; remove it to score that model again") from None
    if sweeps < len(SWEEPS):
        say(f"scoring {folder}")
        model = GritLM.from_pretrained(folder / "model")
        for number, (modes, ks, kvs, placements) in enumerate(SWEEPS[sweeps:], sweeps + 1):
            found = evaluate_table(
                model,
                held_out / "rag.jsonl",
                modes,
                ks,
                kvs,
                placements,
                corpus=held_out / "documents.jsonl",
                max_new_tokens=ANSWER_TOKENS,
            )
            hits = (
                "".join(str(int(one)) for one in scores[:, 0]) for scores in found.scores.values()
            )
            rows += [
                {**row, "hits": digits} for row, digits in zip(found.rows(), hits, strict=True)
            ]
            write_json(path, {"sweeps": number, "rows": rows})
    return rows


def commands(folder: Path, held_out: Path) -> list[str]:
    """`score` as a person would type it."""
    files = f"--input {held_out / 'rag.jsonl'} --corpus {held_out / 'documents.jsonl'}"
    return [
        f"grit eval rag {folder / 'model'} {files} --modes {' '.join(modes)} --k"
        f" {','.join(map(str, ks))} --kv {','.join(kvs)} --positions {','.join(placements)}"
        f" --max-new-tokens {ANSWER_TOKENS}"
        for modes, ks, kvs, placements in SWEEPS
    ]


# ---- arithmetic ----------------------------------------------------------------------------------


class Matches:
    """Whether each question matched, by twin and case: `of(...)` is `[seeds, questions]`."""

    def __init__(self, found: dict[str, list[dict[str, Any]]]):
        self._hits = {
            twin: [
                {_case(row): np.array(list(row["hits"]), np.float64) for row in run["rows"]}
                for run in runs
            ]
            for twin, runs in found.items()
        }

    def of(
        self, twin: str, mode: str, k: int = 1, kv: str = "native", positions: str = "running"
    ) -> np.ndarray:
        """Hits of a case; what makes no difference to its layout may be said all the same."""
        for case in (
            (mode, k, kv, positions),
            (mode, k, kv, None),
            (mode, k, None, positions),
            (mode, k, None, None),
            (mode, None, None, None),
        ):
            if case in self._hits[twin][0]:
                return np.stack([run[case] for run in self._hits[twin]])
        raise KeyError((mode, k, kv, positions))


def _case(row: dict[str, Any]) -> tuple:
    return row["mode"], row["k"], row["kv"], row["positions"]


def cost(reference: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """What is lost from one case to another, in points of match.

    Args:
      reference, measured: hits `[seeds, questions]` of the same questions.

    Returns:
      `mean`, `per_seed`, and `standard_error` of the mean over questions (paired: differences of
      the same question, averaged over the seeds).
    """
    lost = 100 * (reference - measured)
    by_question = lost.mean(axis=0)
    error = by_question.std(ddof=1) / np.sqrt(len(by_question)) if len(by_question) > 1 else 0.0
    return {
        "mean": float(lost.mean()),
        "per_seed": lost.mean(axis=1).tolist(),
        "standard_error": float(error),
    }


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Scores and targets.

    Args:
      found: by twin, a run a seed: `rows` of `score`, and what else is to be told of it.

    Returns:
      `twins` (the runs, their rows without `hits`), `targets` [{claim, reference, measured, limit,
      trained, untrained (costs, see `cost`), holds}], `gain` (points of plain RAG over the closed
      book, trained twin), `holds`: all targets, of a model that reads at all.
    """
    matches = Matches(found)
    targets: list[dict[str, Any]] = []

    def target(
        claim: str, limit: float, reference: dict[str, Any], measured: dict[str, Any]
    ) -> None:
        costs = {}
        for twin in CACHED_TWINS:
            best = (
                reference
                if reference["mode"] != "plain"
                else {**reference, "mode": _better(matches, twin, 1)}
            )
            costs[twin] = {
                **cost(matches.of(twin, **best), matches.of(twin, **measured)),
                "reference": best["mode"],
            }
        holds = costs["trained"]["mean"] <= limit
        targets.append(
            {"claim": claim, "measured": measured, "limit": limit, **costs, "holds": holds}
        )

    for mode, limit in CACHING.items():
        target(f"{mode} beside plain RAG", limit, {"mode": "plain"}, {"mode": mode})
    for mode in DOCUMENT_CACHES:
        for kv, limit in COMPRESSION.items():
            target(f"{mode}: {kv} beside native", limit, {"mode": mode}, {"mode": mode, "kv": kv})
    for mode in DOCUMENT_CACHES:
        target(f"{mode}: k = 5 beside k = 1", DISTRACTORS, {"mode": mode}, {"mode": mode, "k": 5})
    runs = {
        twin: [
            {
                **run,
                "rows": [
                    {key: value for key, value in row.items() if key != "hits"}
                    for row in run["rows"]
                ],
            }
            for run in of_seeds
        ]
        for twin, of_seeds in found.items()
    }
    summary = {
        twin: {mode: spread(matches.of(twin, mode).mean(axis=1).tolist()) for mode in MODES}
        for twin in CACHED_TWINS
    }
    plain = matches.of("trained", _better(matches, "trained", 1))
    gain = 100 * float(plain.mean() - matches.of("trained", "none").mean())
    return {
        "twins": runs,
        "summary": summary,
        "targets": targets,
        "gain": gain,
        "holds": gain >= LEAST_GAIN and all(one["holds"] for one in targets),
        "tables": _tables(matches),
    }


def _better(matches: Matches, twin: str, k: int) -> str:
    """The order in which plain RAG does better."""
    return max(PLAIN, key=lambda mode: matches.of(twin, mode, k).mean())


# ---- words ---------------------------------------------------------------------------------------


def _tables(matches: Matches) -> list[str]:
    """Layouts, placements, compressions and numbers of documents, each twin's match in percent."""
    cell = lambda twin, *case, **how: f"{100 * matches.of(twin, *case, **how).mean():.1f}"
    layouts = [["order", "layout", *CACHED_TWINS], ["---", "---", "---:", "---:"]]
    layouts.append(["closed book", "none", *(cell(twin, "none") for twin in CACHED_TWINS)])
    for order, modes in ORDERS.items():
        for mode in modes:
            name = f"{mode} (no cache)" if mode in PLAIN else mode
            layouts.append([order, name, *(cell(twin, mode) for twin in CACHED_TWINS)])
    placed = [["layout", "k", *(f"{twin}, {how}" for twin in CACHED_TWINS for how in PLACEMENTS)]]
    placed.append(["---", "---", *["---:"] * 4])
    for mode in DOCUMENT_CACHES:
        for k in KS[1:] if mode == "doc" else KS:
            cells = (
                cell(twin, mode, k, positions=how) for twin in CACHED_TWINS for how in PLACEMENTS
            )
            placed.append([mode, str(k), *cells])
    kinds = ("native", *KVS)
    packed = [["layout", *(f"{twin}, {kv}" for twin in CACHED_TWINS for kv in kinds)]]
    packed.append(["---", *["---:"] * 2 * len(kinds)])
    for mode in DOCUMENT_CACHES:
        packed.append([mode, *(cell(twin, mode, kv=kv) for twin in CACHED_TWINS for kv in kinds)])
    several = [["layout", *(f"{twin}, k = {k}" for twin in CACHED_TWINS for k in KS)]]
    several.append(["---", *["---:"] * 2 * len(KS)])
    for mode in (mode for modes in ORDERS.values() for mode in modes):
        several.append([mode, *(cell(twin, mode, k) for twin in CACHED_TWINS for k in KS)])
    return [table(rows) for rows in (layouts, placed, packed, several)]


TITLES = (
    "Match x 100, one document, native caches, positions that run on:",
    "Positions that run on beside colliding ones (each record's from 0, as in the original):",
    "Compressed records:",
    "Several documents, the right one at a random place among distractors:",
)


def markdown(report: dict[str, Any]) -> str:
    """The tables and what follows from them."""
    found, seeds = report["cached"], len(report["seeds"])
    questions = found["twins"]["trained"][0].get("questions")
    head = ["target (at most so many points lost)", "limit", *CACHED_TWINS, "verdict for trained"]
    rows = [head, ["---", "---:", "---:", "---:", "---"]]
    for one in found["targets"]:
        lost = [
            f"{one[twin]['mean']:+.1f} (s.e. {one[twin]['standard_error']:.1f})"
            for twin in CACHED_TWINS
        ]
        said = "holds" if one["holds"] else f"missed by {one['trained']['mean'] - one['limit']:.1f}"
        rows.append([one["claim"], f"{one['limit']:g}", *lost, said])
    over = f"Means over {seeds} seeds" if seeds > 1 else "One seed"
    over += f", {questions} held-out questions." if questions else "."
    blocks = [
        part for title, one in zip(TITLES, found["tables"], strict=True) for part in (title, one)
    ]
    title = "Targets (points lost; what is below 0 was gained):"
    return "\n\n".join([*blocks, title, table(rows), over, verdict(found)])


def verdict(found: dict[str, Any]) -> str:
    """Which targets hold, in plain words."""
    missed = [one["claim"] for one in found["targets"] if not one["holds"]]
    kept = len(found["targets"]) - len(missed)
    model = "hold for the model that was trained in the cached layouts"
    said = f"All {kept} targets {model}."
    if missed:
        said = f"{kept} of {len(found['targets'])} targets {model}; missed: {'; '.join(missed)}."
    if found["gain"] < LEAST_GAIN:
        said += (
            f" But plain RAG gains only {found['gain']:.1f} points over the closed book: this model"
            " hardly reads, and its targets say nothing."
        )
    return said
