"""A MADE-UP report for the tests of the report page: no number in it was measured."""

from __future__ import annotations

import math
from typing import Any

from grit_jax.quickstart.report import FORMAT, Report
from grit_jax.runtime.json_dataclass import from_json

MODES = ("none", "query-then-doc", "doc-then-query", "query", "doc", "query-doc", "doc-query")
HOSTILE = (
    "<script>alert('x')</script> & `back` \"quotes\" \N{ROCKET} \x1b[31m \x00 \ud800"
    " </style></title>" + "w" * 300
)


def made_up_report() -> Report:
    """A complete report."""
    return from_json(Report, made_up_json(), "made up")


def made_up_json() -> dict[str, Any]:
    """What its report.json holds."""
    match = dict(zip(MODES, (0.018, 0.842, 0.871, 0.811, 0.853, 0.764, 0.789), strict=True))
    seconds = dict(zip(MODES, (0.031, 0.062, 0.058, 0.064, 0.036, 0.037, 0.035), strict=True))
    rag = {
        m: {
            "match": match[m],
            "seconds": seconds[m],
            "exact_match": match[m] * 0.95,
            "f1": min(match[m] * 1.04, 1),
        }
        for m in MODES
    }
    return {
        "format": FORMAT,
        "version": "0.0.0-fixture",
        "seed": 0,
        "settings": {"seed": 0, "from_scratch": False, "documents": None, "steps": None},
        "corpus": {
            "documents": 9012,
            "train": 8103,
            "held_out": 909,
            "dropped": 12,
            "rows": {"train/documents": 8103, "heldout/documents": 909},
            "skipped_files": 0,
            "missing_packages": [],
            "held_out_in_packages": 320,
            "packages": {"python": 5000, "numpy": 4012},
        },
        "model": {
            "parameters": 1312768,
            "layers": 4,
            "hidden": 128,
            "vocab": 2048,
            "initialised_from": "base",
        },
        "training": {
            "steps": 600,
            "seconds": 431.2,
            "tokens": 9876543,
            "loss_first": 11.93,
            "loss_last": 4.21,
        },
        "retrieval": {
            "trained": {"recall@1": 0.412, "recall@10": 0.718, "ndcg@10": 0.561},
            "base": {"recall@1": 0.171, "recall@10": 0.402, "ndcg@10": 0.279},
            "untrained": {"recall@1": 0.008, "recall@10": 0.051, "ndcg@10": 0.026},
            "bm25": {"recall@1": 0.437, "recall@10": 0.662, "ndcg@10": 0.549},
            "hybrid": {"recall@1": 0.501, "recall@10": 0.783, "ndcg@10": 0.627},
            "pool": 2496,
            "queries": 500,
        },
        "language": {
            "perplexity_before": 2143.7,
            "perplexity_after": 21.84,
            "perplexity_base": 38.02,
        },
        "rag": rag,
        "rag_retrieved": {m: {**rag[m], "match": rag[m]["match"] * 0.82} for m in MODES[1:]},
        "rag_questions": 450,
        "best_constant": {"answer": "dtype", "match": 0.022},
        "index": {
            "documents": 909,
            "seconds": 14.2,
            "bytes_kv": 312_000_000,
            "bytes_vectors": 465_408,
            "bytes_per_token_per_layer": 1024,
        },
        "samples": [
            _sample(
                "`jax.random.weibull_min`: which parameter comes next after `concentration`?",
                "shape",
                "jax.random.weibull_min",
                "jax.random.weibull_min weibull_min(key, scale, concentration, shape=(),"
                " dtype=None)\nSample from a Weibull distribution.\nThe values are distributed"
                " according to the probability density function:\n.. math::\nf(x;\\sigma,c)"
                " \\propto x^{c - 1} \\exp(-(x / \\sigma)^c)",
                {"none": "dtype", "query-doc": "scale"},
            ),
            _sample(
                'Continue the documentation of `xmlrpc.client.getparser`: "the fastest available'
                ' parser,"',
                "and attach it",
                "xmlrpc.client.getparser",
                "xmlrpc.client.getparser getparser(use_datetime=False, use_builtin_types=False)\n"
                "getparser() -> parser, unmarshaller\n"
                "Create an instance of the fastest available parser, and attach it\n"
                "to an unmarshalling object. Return both objects.",
                {"none": "the parser to the", "doc-query": "and attach the object to it"},
            ),
            _sample(
                "What is the default value of `order` in `numpy.zeros_like`?",
                "'K'",
                "numpy.ones_like",
                "numpy.ones_like ones_like(a, dtype=None, order='C', subok=True)\n"
                "Return an array of ones <with> the same shape & type.",
                {m: "'C'" for m in MODES} | {"none": ""},
            ),
        ],
        "commands": [
            "grit train runs/quickstart/train.yaml",
            (
                "grit eval retrieval runs/quickstart/model --data"
                " runs/quickstart/data/heldout/embedding.jsonl"
            ),
            (
                "grit index runs/quickstart/model --input"
                " runs/quickstart/data/heldout/documents.jsonl --output runs/quickstart/index --kv"
                " native"
            ),
            (
                "grit ask runs/quickstart/model --index runs/quickstart/index "
                "'What is the default of `axis` in `numpy.sum`?' --mode doc"
            ),
        ],
        "timings": {
            "corpus": 41.3,
            "tokenizer": 6.2,
            "training": 431.2,
            "evaluation": 38.8,
            "index": 14.2,
            "answers": 52.1,
        },
        "seconds": 583.8,
    }


def _sample(
    question: str, gold: str, name: str, text: str, other: dict[str, str]
) -> dict[str, Any]:
    return {
        "question": question,
        "gold": gold,
        "document": {"id": name, "text": text, "score": 0.8312},
        "answers": {m: other.get(m, gold) for m in MODES},
    }


def made_up_metrics(steps: int = 600) -> list[dict[str, Any]]:
    """Falling losses with a wobble."""

    def wobble(step: int, k: int) -> float:
        return (
            0.35
            * math.sin(step * 12.9898 * k)
            * math.sin(step * 78.233)
            * (0.3 + math.exp(-step / 200))
        )

    return [
        {
            "step": s,
            "loss": 1.0,
            "lr": 1e-3,
            "tokens_per_s": 23456.7,
            "loss_emb": 1.1 + 2.6 * math.exp(-s / 120) + wobble(s, 1),
            "loss_gen": 3.1 + 1.1 * math.exp(-s / 160) + 0.5 * wobble(s, 2),
            "loss_cached": 0.5 + 3.4 / (1 + math.exp((s - 220) / 40)) + 0.8 * wobble(s, 3),
        }
        for s in range(steps)
    ]


def made_up_hostile_report() -> Report:
    """Markup, quotes, control characters, emoji and very long words wherever a report holds
    text."""
    report = made_up_json()
    report["version"] = HOSTILE
    report["best_constant"]["answer"] = HOSTILE
    report["samples"].append(
        _sample(HOSTILE, "& `back`", HOSTILE, HOSTILE, {"none": HOSTILE, "doc": "</td></table>"})
    )
    report["commands"].append(f"grit ask '{HOSTILE}'")
    report["timings"][HOSTILE] = 1.0
    return from_json(Report, report, "made up")
