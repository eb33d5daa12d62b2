"""The evaluation that a training run makes of its held-out files."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from grit_jax.evaluation.held_out import make_evaluation
from grit_jax.run_config import TrainSection


@pytest.fixture
def files(tmp_path, sentences):
    """Queries that are their own passages, and texts to predict."""
    rows = {
        "embedding": [
            {"query": text, "pos": [text], "neg": [sentences[60 + i]]}
            for i, text in enumerate(sentences[:5])
        ],
        "generative": [{"text": text} for text in sentences[:6]],
    }
    for kind, lines in rows.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {kind: str(tmp_path / f"{kind}.jsonl") for kind in rows}


def test_scores_of_the_state_that_is_given(tiny_model, files):
    """Weights of 0 predict every token alike: the perplexity is the size of the vocabulary."""
    section = TrainSection(eval_embedding=files["embedding"], eval_generative=files["generative"])
    uniform = type(tiny_model)(
        tiny_model.config,
        jax.tree.map(jnp.zeros_like, tiny_model.params),
        tiny_model.tokenizer,
        tiny_model.chat,
    )
    models = {"trained": tiny_model, "uniform": uniform}
    evaluate = make_evaluation(section, models.__getitem__)
    scores = evaluate("trained")
    assert scores["eval_recall@1"] == scores["eval_recall@10"] == scores["eval_ndcg@10"] == 1.0
    vocabulary = tiny_model.config.vocab_size
    assert scores["eval_perplexity"] != pytest.approx(vocabulary, rel=1e-3)
    retrieval_only = make_evaluation(TrainSection(eval_embedding=files["embedding"]), models.get)
    assert retrieval_only("trained").keys() == scores.keys() - {"eval_perplexity"}
    language_only = make_evaluation(TrainSection(eval_generative=files["generative"]), models.get)
    assert language_only("uniform") == {"eval_perplexity": pytest.approx(vocabulary, rel=1e-5)}


def test_without_held_out_files_there_is_none():
    assert make_evaluation(TrainSection(), lambda state: pytest.fail("not called")) is None
