"""The judge's log-odds against reranking, whose probabilities are tested against a dense pass."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.index import Index, build_index
from grit_jax.rag.judge import Judge
from grit_jax.rag.question_batch import RetrievedDocument
from grit_jax.rag.rerank import relevance, relevance_prompts


def test_pairs_are_judged_from_records_or_from_text(tiny_model, sentences, tmp_path, monkeypatch):
    texts = sentences[:3]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tiny_model, tmp_path / "c.jsonl", tmp_path / "i", quiet=True)
    index = Index.open(tmp_path / "i", tiny_model)
    monkeypatch.setattr("grit_jax.rag.judge.QUESTIONS_TOGETHER", 2)
    judge = Judge(tiny_model, index)
    stored = [
        RetrievedDocument(line["id"], index.text(row), row=row, key=line["key"])
        for row, line in enumerate(index.documents[i] for i in range(3))
    ]
    given = RetrievedDocument("", sentences[7])
    pairs = [("river?", stored[0]), ("engine?", stored[1]), ("river?", given), ("e", stored[2])]
    odds = judge.log_odds(pairs)
    generator = RagGenerator(tiny_model, index.max_length)
    expected = [
        float(relevance(generator, relevance_prompts(q, [d.text], generator.records([d.text])))[0])
        for q, d in pairs
    ]
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(expected, abs=1e-5)
    assert judge.computed == 1 and len(judge.log_odds([])) == 0
