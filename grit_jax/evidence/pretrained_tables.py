"""The tables of `grit evidence --base MODEL`, for `table.md` and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.evidence.answers import KS, KVS, READING, AnswerCase
from grit_jax.evidence.joint import table
from grit_jax.evidence.paired import COVERAGE
from grit_jax.rag.generator import DOCUMENT_CACHES

SPREAD = (
    f"± is one standard error over rows. Differences are paired by row; their interval holds"
    f" {COVERAGE} % of bootstrap resamples. An outcome is *within* a limit or *beyond* it where the"
    " whole interval is, else *not decided* by so few rows."
)

TRAINED = "Adapters, trained from the base with equal steps on the same examples in the same order."


def markdown(report: Mapping[str, Any]) -> str:
    """All parts that a report holds, and what was run."""
    blocks = [f"# Evidence on {report['base']}"]
    if "documents" in report:
        blocks += ["## Caches beside reading, over one and several documents"]
        blocks += _documents(report["documents"])
    if "codecs" in report:
        blocks += ["## Compressed records", *_codecs(report["codecs"])]
    if "prompts" in report:
        blocks += ["## Instructions and examples in prompts", *_prompts(report["prompts"])]
    if "joint" in report:
        blocks += ["## Both losses together beside each alone", *_joint(report["joint"])]
    if "cached" in report:
        blocks += ["## Caches with and without self-distillation", *_cached(report["cached"])]
    commands = "\n".join(report["commands"])
    blocks += [SPREAD, f"Made by:\n\n```bash\n{commands}\n```"]
    return "\n\n".join(blocks) + "\n"


def cost_table(costs: Sequence[Mapping[str, Any]], lost: str = "points lost") -> str:
    """Differences with their intervals, limits and outcomes."""
    rows = [["comparison", lost, f"{COVERAGE} % interval", "limit", "outcome"]]
    rows.append(["---", "---:", "---:", "---:", "---"])
    for cost in costs:
        limit, outcome = cost.get("limit"), cost.get("outcome")
        rows.append(
            [
                cost["claim"],
                _signed(cost["mean"], cost["standard_error"]),
                _interval(cost),
                "" if limit is None else f"{limit:g}",
                outcome or "",
            ]
        )
    return table(rows)


def document_table(scores: Mapping[str, Mapping[str, float]], ks: Sequence[int] = KS) -> str:
    """Match of every layout, a column for each number of documents and order."""
    columns = [
        (k, order) for k in ks for order in ("forward", "reversed") if k > 1 or order[0] == "f"
    ]
    head = [f"k = {k}" + (", reversed" if order == "reversed" else "") for k, order in columns]
    rows = [["layout", *head], ["---", *["---:"] * len(head)]]
    for mode in (*READING, *DOCUMENT_CACHES):
        name = f"{mode} (no cache)" if mode in READING else mode
        keys = [AnswerCase(mode, k, order).key for k, order in columns]
        rows.append([name, *(_match(scores[key]) if key in scores else "" for key in keys)])
    return table(rows)


def _documents(part: Mapping[str, Any]) -> list[str]:
    scores = part["scores"]
    return [
        f"Match x 100 of {part['model']}; each question has its own document and those that BM25"
        " finds first beside it. Reversed: the same documents in the opposite order.",
        document_table(scores),
        f"Closed book: {_match(scores[AnswerCase('none', 0).key])}. {_questions(part)}",
        cost_table(part["costs"]),
    ]


def _codecs(part: Mapping[str, Any]) -> list[str]:
    scores = part["scores"]
    rows = [["layout", *KVS], ["---", *["---:"] * len(KVS)]]
    for mode in DOCUMENT_CACHES:
        rows.append([mode, *(_match(scores[AnswerCase(mode, kv=kv).key]) for kv in KVS)])
    return [
        f"Match x 100 of {part['model']} over one document.",
        table(rows),
        _questions(part),
        cost_table(part["costs"]),
    ]


def _joint(part: Mapping[str, Any]) -> list[str]:
    kinds = list(part["texts"])
    rows = [["model", "steps", "nDCG@10 x 100", *(f"perplexity, {kind}" for kind in kinds)]]
    rows.append(["---", *["---:"] * (2 + len(kinds))])
    for name, model in part["models"].items():
        steps = str(model["training"][0]["steps"]) if model["training"] else ""
        perplexities = [f"{model['perplexity'][kind]:.3f}" for kind in kinds]
        rows.append([name, steps, f"{100 * model['ndcg@10']:.1f}", *perplexities])
    texts = " and ".join(
        f"{part['texts'][kind]} of {part['texts_all'][kind]} held-out texts ({kind})"
        for kind in kinds
    )
    return [
        f"{TRAINED} {_seeds(part)}; {part['queries']} of {part['queries_all']} held-out queries,"
        f" {texts}.",
        table(rows),
        cost_table(part["costs"], "lost"),
    ]


def _cached(part: Mapping[str, Any]) -> list[str]:
    blocks = [
        f"{TRAINED} *distilled* has the divergence from the model that reads the documents in its"
        f" loss, *undistilled* has not. {_seeds(part)}; {_questions(part)} Match x 100:"
    ]
    for name, model in part["models"].items():
        blocks += [
            f"*{name}*, {model['training'][0]['steps']} steps:",
            document_table(model["scores"]),
        ]
    blocks += [
        "Points lost without self-distillation, beside with it:",
        cost_table(part["costs"]),
        "What caches cost each model:",
    ]
    for name, model in part["models"].items():
        blocks += [f"*{name}*:", cost_table(model["costs"])]
    return blocks


def _seeds(part: Mapping[str, Any]) -> str:
    count = len(part["seeds"])
    return f"Means over {count} seeds" if count > 1 else "One seed"


def _prompts(part: Mapping[str, Any]) -> list[str]:
    search, answers = part["search"], part["answers"]
    rows = [["instruction of the query", "nDCG@10 x 100", "points lost", "interval"]]
    rows.append(["---", "---:", "---:", "---:"])
    for name, variant in search["variants"].items():
        cells = _cost_cells(name, variant["cost"])
        rows.append(
            [
                f"{name}: {variant['instruction']}",
                _percent(variant["ndcg@10"], variant["standard_error"]),
                *cells,
            ]
        )
    blocks = [
        f"Search by {part['model']}, {search['queries']} of {search['queries_all']} held-out"
        " queries; passages have no instruction:",
        table(rows),
    ]
    rows = [["layout", "sentence after the question", "match x 100", "points lost", "interval"]]
    rows.append(["---", "---", "---:", "---:", "---:"])
    for mode, variants in answers["variants"].items():
        for name, variant in variants.items():
            shown = f": {variant['instruction']}" if variant["instruction"] else ""
            label = name if variant["examples"] else name + shown
            rows.append([mode, label, _match(variant), *_cost_cells(name, variant["cost"])])
    blocks += [
        "Answers over one document; examples are turns of the conversation, each with its own"
        " document, after the trained sentence:",
        table(rows),
        _questions(answers),
    ]
    return blocks


def _cost_cells(name: str, cost: Mapping[str, Any]) -> list[str]:
    if name == "trained":
        return ["", ""]
    return [_signed(cost["mean"], cost["standard_error"]), _interval(cost)]


def _questions(part: Mapping[str, Any]) -> str:
    return f"{part['questions']} of {part['questions_all']} held-out questions."


def _match(score: Mapping[str, float]) -> str:
    return _percent(score["match"], score["standard_error"])


def _percent(mean: float, error: float) -> str:
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def _signed(mean: float, error: float) -> str:
    return f"{mean:+.1f} ± {error:.1f}"


def _interval(cost: Mapping[str, Any]) -> str:
    return f"{cost['low']:+.1f} to {cost['high']:+.1f}"
