"""Checks the numbers of a quickstart's report against the bounds that the README states."""

from __future__ import annotations

import json
import sys
from pathlib import Path

report = json.loads(Path(sys.argv[1]).read_text())
retrieval, language, rag = report["retrieval"], report["language"], report["rag"]
match = {mode: scores["match"] for mode, scores in rag.items()}
plain = max(match["query-then-doc"], match["doc-then-query"])
bounds = {
    "nDCG@10 >= .30": retrieval["trained"]["ndcg@10"] >= 0.30,
    "nDCG@10 >= 5 x untrained": retrieval["trained"]["ndcg@10"]
    >= 5 * retrieval["untrained"]["ndcg@10"],
    "perplexity <= untrained / 10": language["perplexity_after"]
    <= language["perplexity_before"] / 10,
    "closed book <= .05": match["none"] <= 0.05,
    "plain RAG >= .50": plain >= 0.50,
    "doc caching >= .9 plain": match["doc"] >= 0.9 * plain,
    "query-doc >= .8 plain": match["query-doc"] >= 0.8 * plain,
    "doc-query >= .8 plain": match["doc-query"] >= 0.8 * plain,
}
print(json.dumps({"match": match, "retrieval": retrieval, "language": language}, indent=1))
missed = [name for name, held in bounds.items() if not held]
for name in missed:
    print(f"MISSED: {name}")
sys.exit(1 if missed else 0)
