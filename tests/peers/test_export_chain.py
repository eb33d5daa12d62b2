"""From a few steps of training to everybody's numbers: train, `grit export`, and the directory in
transformers, sentence-transformers and gritlm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gritlm = pytest.importorskip("gritlm")
sentence_transformers = pytest.importorskip("sentence_transformers")

from peer_models import open_both  # noqa: E402
from training_run import SHAPE, write_examples  # noqa: E402

from grit_jax.cli.main import main  # noqa: E402
from grit_jax.inference.model import GritLM  # noqa: E402
from grit_jax.train import read_run_config, train  # noqa: E402

pytestmark = pytest.mark.peers

STEPS = 3
INSTRUCTION = "Find the tale that fits"
PROMPT = f"<|user|>\n{INSTRUCTION}\n<|embed|>\n"


@pytest.fixture(scope="module", params=["mean", "lasttoken"])
def run(request, tmp_path_factory, sentences):
    """The folder of a run, and its exported checkpoint."""
    root = tmp_path_factory.mktemp(f"run-{request.param}")
    write_examples(root, sentences, embedding=30, generative=30)
    config = {
        "model": {
            "shape": SHAPE
            | {
                "tie_word_embeddings": False,
                "initializer_range": 0.2,
                "max_position_embeddings": 512,
            },
            "pooling": request.param,
            "dtype": "float32",
            "remat": "none",
        },
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 480},
        "data": {
            "embedding": ["embedding.jsonl"],
            "generative": ["generative.jsonl"],
            "embedding_batch": 4,
            "generative_batch": 4,
            "query_max_length": 64,
            "passage_max_length": 64,
            "generative_max_length": 128,
        },
        "train": {"steps": STEPS, "checkpoint_every": STEPS},
        "optimizer": {"lr": 1e-2},
        "output": "out",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    output = train(read_run_config(root / "config.yaml")).output
    assert main(["export", str(output), str(root / "exported")]) in (0, None)
    return output, root / "exported", request.param


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_the_exported_checkpoint_is_the_trained_model(run):
    output, exported, pooling = run
    mine, trained = GritLM.from_pretrained(exported), GritLM.from_pretrained(output / "model")
    assert mine.weights_hash == trained.weights_hash and mine.pooling == trained.pooling == pooling
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS and lines[0]["loss"] != lines[-1]["loss"]


def test_transformers_computes_its_logits(run, sentences):
    peer = open_both(run[1])
    conversation = [
        {"role": "user", "content": sentences[0]},
        {"role": "assistant", "content": sentences[1]},
    ]
    ids = peer.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)[
        "input_ids"
    ]
    assert ids == [
        i
        for part in peer.ours.tokenizer.encode_parts(
            [peer.ours.chat.render_turns([sentences[0], sentences[1]])]
        )[0]
        for i in part
    ]
    with torch.no_grad():
        logits = peer.model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(peer.ours(np.array([ids])).logits, logits, atol=2e-4, rtol=0)
    assert peer.model.config.is_causal is True


def test_sentence_transformers_and_gritlm_compute_its_vectors(run, sentences):
    _, exported, pooling = run
    mine, texts = GritLM.from_pretrained(exported), sentences[100:112]
    sentence = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
    original = gritlm.GritLM(str(exported), mode="unified", pooling_method=pooling, device="cpu")
    plain, instructed = mine.encode(texts), mine.encode(texts, INSTRUCTION)
    for found, expected in (
        (sentence.encode(texts), plain),
        (sentence.encode(texts, prompt=PROMPT), instructed),
        (original.encode(texts, instruction="<|embed|>\n"), plain),
        (original.encode(texts, instruction=PROMPT), instructed),
    ):
        assert cosines(found, expected).min() > 0.99999
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert cosines(plain, instructed).max() < 0.9999
