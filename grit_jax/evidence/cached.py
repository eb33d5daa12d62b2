"""Do answers over cached documents need training for it?

From one model that reads documents in its prompt and has never seen a cache (`reader`) two models
are trained for each seed, with the same steps on the same documents, questions and answers in the
same order: `trained` reads them in all layouts, cached ones included, `untrained` only as plain
RAG, in both orders. Both also train to embed and to write, as GRIT does, so that documents' caches
come from a trained embedding pass in either. The paper reused caches untrained (arXiv 2402.09906:
doc-query caching fell below no RAG) and left the training to future work.

Scored by match over held-out documents, in every layout. Plain RAG in a target means the better of
its two orders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.evaluation.rag import AnswerSettings
from grit_jax.evaluation.rag_table import PLACEMENTS, RagSweep, evaluate_table
from grit_jax.evidence.joint import spread, table
from grit_jax.evidence.recipes import CACHED_MODELS, PLAIN_LAYOUTS
from grit_jax.inference.model import GritLM
from grit_jax.quickstart.configs import ANSWER_TOKENS
from grit_jax.rag.generator import DOCUMENT_CACHES
from grit_jax.runtime.files import read_json, write_json
from grit_jax.runtime.progress import say
from grit_jax.text.rag_layouts import MODES, RagMode

KS = (1, 3, 5)
KVS = ("int8", "int4", "pca2")
# What is scored: layouts, numbers of documents, compressions, positions.
SWEEPS: tuple[
    tuple[tuple[RagMode, ...], tuple[int, ...], tuple[str, ...], tuple[Any, ...]], ...
] = (
    (MODES, KS, ("native",), PLACEMENTS),
    (DOCUMENT_CACHES, (1,), KVS, ("running",)),
)
SCORED = "rag.json"  # in a model's folder
# Layouts by the place of the question: the uncached one, then the cached ones of the same order.
ORDERS = {
    "question first": ("query-then-doc", "query", "query-doc"),
    "document first": ("doc-then-query", "doc", "doc-query"),
}
# What caching, compression and distractors may cost the trained model, in points of match.
CACHING = {"doc": 1.0, "query-doc": 2.0, "doc-query": 2.0}
COMPRESSION = {"int8": 0.5, "int4": 1.0}
DISTRACTORS = 2.0
# Points that plain RAG must gain over the closed book; without them, costs near 0 mean nothing.
LEAST_GAIN = 10.0


def score(folder: Path, held_out: Path) -> list[dict[str, Any]]:
    """A model's scores: the rows of `evaluation.rag_table`, each with `hits`, a digit per question
    that is 1 where the answer matched.

    Sweeps that are in the folder already are not repeated.

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
            scored = evaluate_table(
                model,
                held_out / "rag.jsonl",
                RagSweep(modes, ks, kvs, placements),
                corpus=held_out / "documents.jsonl",
                settings=AnswerSettings(max_new_tokens=ANSWER_TOKENS),
            )
            hits = (
                "".join(str(int(match)) for match in scores[:, 0])
                for scores in scored.scores.values()
            )
            rows += [
                {**row, "hits": digits} for row, digits in zip(scored.rows(), hits, strict=True)
            ]
            write_json(path, {"sweeps": number, "rows": rows})
    return rows


def commands(folder: Path, held_out: Path) -> list[str]:
    """What `score` does, as shell commands."""
    files = f"--input {held_out / 'rag.jsonl'} --corpus {held_out / 'documents.jsonl'}"
    return [
        f"grit eval rag {folder / 'model'} {files} --modes {' '.join(modes)} --k"
        f" {','.join(map(str, ks))} --kv {','.join(kvs)} --positions {','.join(placements)}"
        f" --max-new-tokens {ANSWER_TOKENS}"
        for modes, ks, kvs, placements in SWEEPS
    ]


# ---- arithmetic ----------------------------------------------------------------------------------


class Matches:
    """Whether each question matched, by model and case: `of(...)` is `[seeds, questions]`."""

    def __init__(self, runs_by_model: dict[str, list[dict[str, Any]]]):
        self._hits = {
            model: [
                {_case(row): np.array(list(row["hits"]), np.float64) for row in run["rows"]}
                for run in runs
            ]
            for model, runs in runs_by_model.items()
        }

    def of(
        self, model: str, mode: str, k: int = 1, kv: str = "native", positions: str = "running"
    ) -> np.ndarray:
        """Hits of a case; arguments that its layout does not use are ignored."""
        for case in (
            (mode, k, kv, positions),
            (mode, k, kv, None),
            (mode, k, None, positions),
            (mode, k, None, None),
            (mode, None, None, None),
        ):
            if case in self._hits[model][0]:
                return np.stack([run[case] for run in self._hits[model]])
        raise KeyError((mode, k, kv, positions))


def _case(row: dict[str, Any]) -> tuple:
    return row["mode"], row["k"], row["kv"], row["positions"]


def cost(reference: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """How many points of match are lost from one case to another.

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


def compare(runs_by_model: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Scores and targets.

    Args:
      runs_by_model: one run per seed: the `rows` of `score`, and more keys to keep.

    Returns:
      `twins` (the runs by model, their rows without `hits`), `targets` [{claim, reference,
      measured, limit, trained, untrained (costs, see `cost`), holds}], `gain` (points of plain RAG
      over the closed book, trained model), `holds`: all targets hold, and the model reads at all.
    """
    matches = Matches(runs_by_model)
    targets: list[dict[str, Any]] = []

    def target(
        claim: str, limit: float, reference: dict[str, Any], measured: dict[str, Any]
    ) -> None:
        costs = {}
        for model in CACHED_MODELS:
            best = (
                reference
                if reference["mode"] != "plain"
                else {**reference, "mode": _better(matches, model, 1)}
            )
            costs[model] = {
                **cost(matches.of(model, **best), matches.of(model, **measured)),
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
        model: [
            {
                **run,
                "rows": [
                    {key: value for key, value in row.items() if key != "hits"}
                    for row in run["rows"]
                ],
            }
            for run in of_seeds
        ]
        for model, of_seeds in runs_by_model.items()
    }
    summary = {
        model: {mode: spread(matches.of(model, mode).mean(axis=1).tolist()) for mode in MODES}
        for model in CACHED_MODELS
    }
    plain = matches.of("trained", _better(matches, "trained", 1))
    gain = 100 * float(plain.mean() - matches.of("trained", "none").mean())
    return {
        "twins": runs,
        "summary": summary,
        "targets": targets,
        "gain": gain,
        "holds": gain >= LEAST_GAIN and all(target["holds"] for target in targets),
        "tables": _tables(matches),
    }


def _better(matches: Matches, model: str, k: int) -> str:
    """The order in which plain RAG scores better."""
    return max(PLAIN_LAYOUTS, key=lambda mode: matches.of(model, mode, k).mean())


# ---- words ---------------------------------------------------------------------------------------


def _tables(matches: Matches) -> list[str]:
    """Match in percent of each model, by layout, position, compression and number of documents."""
    cell = lambda model, *case, **options: f"{100 * matches.of(model, *case, **options).mean():.1f}"
    layouts = [["order", "layout", *CACHED_MODELS], ["---", "---", "---:", "---:"]]
    layouts.append(["closed book", "none", *(cell(model, "none") for model in CACHED_MODELS)])
    for order, modes in ORDERS.items():
        for mode in modes:
            name = f"{mode} (no cache)" if mode in PLAIN_LAYOUTS else mode
            layouts.append([order, name, *(cell(model, mode) for model in CACHED_MODELS)])
    placed = [
        ["layout", "k", *(f"{model}, {name}" for model in CACHED_MODELS for name in PLACEMENTS)]
    ]
    placed.append(["---", "---", *["---:"] * 4])
    for mode in DOCUMENT_CACHES:
        for k in KS[1:] if mode == "doc" else KS:
            cells = (
                cell(model, mode, k, positions=name)
                for model in CACHED_MODELS
                for name in PLACEMENTS
            )
            placed.append([mode, str(k), *cells])
    kinds = ("native", *KVS)
    packed = [["layout", *(f"{model}, {kv}" for model in CACHED_MODELS for kv in kinds)]]
    packed.append(["---", *["---:"] * 2 * len(kinds)])
    for mode in DOCUMENT_CACHES:
        packed.append(
            [mode, *(cell(model, mode, kv=kv) for model in CACHED_MODELS for kv in kinds)]
        )
    several = [["layout", *(f"{model}, k = {k}" for model in CACHED_MODELS for k in KS)]]
    several.append(["---", *["---:"] * 2 * len(KS)])
    for mode in (mode for modes in ORDERS.values() for mode in modes):
        several.append([mode, *(cell(model, mode, k) for model in CACHED_MODELS for k in KS)])
    return [table(rows) for rows in (layouts, placed, packed, several)]


TITLES = (
    "Match x 100, one document, native caches, running positions:",
    "Running positions beside colliding ones (each document from 0, as in the original):",
    "Compressed records:",
    "Several documents, the right one at a random place among distractors:",
)


def markdown(report: dict[str, Any]) -> str:
    """The tables and their conclusion."""
    cached, seeds = report["cached"], len(report["seeds"])
    questions = cached["twins"]["trained"][0].get("questions")
    head = ["target (points lost)", "limit", *CACHED_MODELS, "outcome for trained"]
    rows = [head, ["---", "---:", "---:", "---:", "---"]]
    for target in cached["targets"]:
        lost = [
            f"{target[model]['mean']:+.1f} (s.e. {target[model]['standard_error']:.1f})"
            for model in CACHED_MODELS
        ]
        missed = target["trained"]["mean"] - target["limit"]
        outcome = "holds" if target["holds"] else f"missed by {missed:.1f}"
        rows.append([target["claim"], f"{target['limit']:g}", *lost, outcome])
    over = f"Means over {seeds} seeds" if seeds > 1 else "One seed"
    over += f", {questions} held-out questions." if questions else "."
    blocks = [block for pair in zip(TITLES, cached["tables"], strict=True) for block in pair]
    title = "Targets (points lost; a negative number was gained):"
    return "\n\n".join([*blocks, title, table(rows), over, verdict(cached)])


def verdict(cached: dict[str, Any]) -> str:
    """Which targets hold, in plain words."""
    targets = cached["targets"]
    missed = [target["claim"] for target in targets if not target["holds"]]
    kept = len(targets) - len(missed)
    model = "hold for the model that was trained in the cached layouts"
    sentence = f"All {kept} targets {model}."
    if missed:
        sentence = (
            f"{kept} of {len(cached['targets'])} targets {model}; missed: {'; '.join(missed)}."
        )
    if cached["gain"] < LEAST_GAIN:
        sentence += (
            f" But plain RAG gains only {cached['gain']:.1f} points over the closed book: this"
            " model hardly reads, and its targets say nothing."
        )
    return sentence
