"""Does training both tasks together cost either of them?

From one base model three models are trained for each seed, with the same steps on the same examples
in the same order: `unified` on both losses, `embedding` on the contrastive loss alone, `generative`
on the language loss alone. A step of the unified model holds the embedding batch and the generative
batch that the single-task models see at that step, so each task gets equal data (the paper's
single-task models have the unified one's batch sizes, too: arXiv 2402.09906). Every model is scored
on both held-out files.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from grit_jax.evidence.recipes import JOINT_MODELS

# What joint training may cost for the claim to hold: a point of nDCG@10, and one percent of the
# perplexity.
MARGINS = {"ndcg@10": 0.01, "perplexity": 0.01}
# Each task's score, and the model trained for that task alone.
SINGLE = {"ndcg@10": "embedding", "perplexity": "generative"}
SCORES = {"ndcg@10": "eval_ndcg@10", "recall@10": "eval_recall@10", "perplexity": "eval_perplexity"}


def spread(values: list[float]) -> dict[str, float]:
    """Mean and range over seeds."""
    return {"mean": fmean(values), "min": min(values), "max": max(values)}


def compare(scores: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What joint training costs each task, seed by seed.

    Args:
      scores: by model, one dictionary per seed, the same seeds in the same order.

    Returns:
      `summary` {model: {score: mean, min, max}}; `differences` {score: twin (the single-task
      model), per_seed (single-task minus unified), cost_per_seed (positive where joint training is
      worse: a fraction of nDCG, or of the single-task model's perplexity), cost (its mean, min,
      max), margin, holds}; `holds`: of both.
    """
    summary = {
        name: {key: spread([row[key] for row in rows]) for key in SCORES}
        for name, rows in scores.items()
    }
    differences: dict[str, Any] = {}
    for key, name in SINGLE.items():
        pairs = [
            (alone[key], joint[key])
            for alone, joint in zip(scores[name], scores["unified"], strict=True)
        ]
        # A higher nDCG is better, a lower perplexity.
        costs = [
            joint / alone - 1 if key == "perplexity" else alone - joint for alone, joint in pairs
        ]
        differences[key] = {
            "twin": name,
            "per_seed": [alone - joint for alone, joint in pairs],
            "cost_per_seed": costs,
            "cost": spread(costs),
            "margin": MARGINS[key],
            "holds": fmean(costs) <= MARGINS[key],
        }
    return {
        "summary": summary,
        "differences": differences,
        "holds": all(d["holds"] for d in differences.values()),
    }


def verdict(joint: dict[str, Any]) -> str:
    """Whether the claim holds, in plain words."""
    seeds = len(joint["differences"]["ndcg@10"]["per_seed"])
    count = f"{seeds} seeds" if seeds > 1 else "one seed"
    head = (
        "The claim holds: joint training costs neither task more than the margin (mean of"
        f" {count})."
        if joint["holds"]
        else f"The claim does not hold (mean of {count})."
    )
    return " ".join(
        [head, *(_cost(key, difference) for key, difference in joint["differences"].items())]
    )


def _cost(key: str, difference: dict[str, Any]) -> str:
    """What joint training does to one task, in a sentence or two."""
    what, unit = (
        ("Finding", " points of nDCG@10") if key == "ndcg@10" else ("Writing", "% of perplexity")
    )
    cost, margin, costs = difference["cost"], difference["margin"], difference["cost_per_seed"]
    amount = lambda value: f"{100 * value:+.2f}"
    sentence = (
        f"{what} {'loses' if cost['mean'] > 0 else 'gains'} {100 * abs(cost['mean']):.2f}{unit}"
    )
    if len(costs) > 1:
        within = sum(value <= margin for value in costs)
        by_seed = f"cost by seed {amount(cost['min'])} to {amount(cost['max'])}"
        sentence += f" ({by_seed}, within the margin in {within} of {len(costs)})"
    sentence += f"; the margin is {100 * margin:g}{'%' if key == 'perplexity' else ' point'}."
    if cost["max"] - cost["min"] > margin:
        sentence += " The seeds differ by more than that; more seeds would tell more."
    return sentence


def markdown(report: dict[str, Any]) -> str:
    """The tables and their conclusion."""
    joint, seeds = report["joint"], report["seeds"]
    shown = {"ndcg@10": lambda v: f"{100 * v:.2f}", "perplexity": lambda v: f"{v:.3f}"}

    def cell(values: dict[str, float], form: Callable[[float], str]) -> str:
        wide = f" ({form(values['min'])} to {form(values['max'])})" if len(seeds) > 1 else ""
        return form(values["mean"]) + wide

    rows = [["model", "trained on", "steps", "nDCG@10 x 100", "perplexity"], ["---"] * 5]
    rows.append(
        [
            "base",
            "language",
            str(joint["base"]["steps"]),
            *(f(joint["base"][k]) for k, f in shown.items()),
        ]
    )
    losses = {
        "unified": "both losses",
        "embedding": "contrastive loss alone",
        "generative": "language loss alone",
    }
    for name in JOINT_MODELS:
        scores = [cell(joint["summary"][name][key], form) for key, form in shown.items()]
        rows.append([name, losses[name], str(joint["twins"][name][0]["steps"]), *scores])
    paired = [
        ["single-task model - unified", *(f"seed {seed}" for seed in seeds), "mean"],
        ["---"] * (len(seeds) + 2),
    ]
    for key, label in (
        ("ndcg@10", "nDCG@10, points (embedding)"),
        ("perplexity", "perplexity (generative)"),
    ):
        values = joint["differences"][key]["per_seed"]
        form = (lambda v: f"{100 * v:+.2f}") if key == "ndcg@10" else (lambda v: f"{v:+.3f}")
        paired.append([label, *map(form, [*values, fmean(values)])])
    over = (
        f"Means{' and ranges' if len(seeds) > 1 else ''} over {len(seeds)}"
        f" seed{'s' * (len(seeds) > 1)}"
    )
    documents = f"{report['corpus']['held_out']} held-out documents"
    return "\n\n".join([table(rows), table(paired), f"{over}, on {documents}.", verdict(joint)])


def table(rows: list[list[str]]) -> str:
    """Rows of cells in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
