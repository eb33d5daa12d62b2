"""Directories that sentence-transformers saves give its vectors here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_models import (  # noqa: E402
    PROMPTS,
    TEXTS,
    backbone,
    embedding_gemma,
    sentence_model,
)

from grit_jax import GritLM  # noqa: E402
from grit_jax.errors import GritError  # noqa: E402
from grit_jax.inference.model import ModelOptions  # noqa: E402

pytestmark = pytest.mark.peers
Identity, Tanh, GELU = torch.nn.Identity, torch.nn.Tanh, torch.nn.GELU


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {
        "gemma": backbone(root / "gemma", "gemma", use_bidirectional_attention=True),
        "causal gemma": backbone(root / "causal", "gemma"),
        "qwen": backbone(root / "qwen", "qwen", tie_word_embeddings=True),
        "headless": backbone(root / "headless", "qwen", tie_word_embeddings=False),
        "bidirectional": backbone(root / "bidirectional", "qwen", is_causal=False),
        "llama3": backbone(root / "llama3", "llama3", tie_word_embeddings=True),
    }


def equal(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_embedding_gemma(tmp_path):
    theirs = embedding_gemma(tmp_path)
    theirs.save(str(tmp_path / "saved"))
    ours = GritLM.from_pretrained(tmp_path / "saved")
    equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    assert ours.prompts == PROMPTS
    for name, prompt in PROMPTS.items():
        equal(ours.encode(TEXTS, prompt), theirs.encode(TEXTS, prompt_name=name))
    equal(ours.encode(TEXTS, max_length=9), cut(theirs, 9).encode(TEXTS))
    # Ours of it opens equal on both sides.
    theirs.max_seq_length = 256
    ours.save_pretrained(tmp_path / "ours")
    again = GritLM.from_pretrained(tmp_path / "ours")
    equal(again.encode(TEXTS), ours.encode(TEXTS))
    opened = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    equal(opened.encode(TEXTS), theirs.encode(TEXTS))
    equal(opened.encode_query(TEXTS), theirs.encode_query(TEXTS))
    assert again.prompts == PROMPTS


def cut(model, length):
    model.max_seq_length = length
    return model


# The prompt's tokens are the same with and without a text behind it.
LINES = {"query": "Find it:\n", "document": "Represent it:\n"}
CASES = [
    ("qwen", "lasttoken", {}),
    ("qwen", "mean", {"dense": [(16, True, Tanh)]}),
    ("qwen", "mean", {"dense": [(16, True, Identity), (20, False, GELU), (7, True, Tanh)]}),
    ("headless", "weightedmean", {}),
    ("bidirectional", "cls", {}),
    ("bidirectional", "mean", {"normalize": False}),
    ("causal gemma", "mean", {"prompts": PROMPTS, "default_prompt_name": "query"}),
    (
        "gemma",
        "mean",
        {"prompts": LINES, "default_prompt_name": "document", "include_prompt": False},
    ),
    ("llama3", "lasttoken", {"prompts": LINES, "include_prompt": False}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "pooling", "options"), CASES)
def test_layouts(backbones, tmp_path, model, pooling, options):
    theirs = sentence_model(backbones[model], pooling, **options)
    theirs.tokenizer.pad_token = theirs.tokenizer.pad_token or theirs.tokenizer.eos_token
    theirs.save(str(tmp_path))
    ours = GritLM.from_pretrained(tmp_path)
    expected = theirs.encode(TEXTS)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    equal(ours.encode(TEXTS), expected)
    if options.get("prompts"):
        equal(ours.encode(TEXTS, ours.prompts["query"]), theirs.encode(TEXTS, prompt_name="query"))
    assert [ours.generate("a", max_new_tokens=2)]


@pytest.mark.parametrize("kind", ["both", "begin"])
def test_a_tokenizer_that_adds_an_end(backbones, tmp_path, kind):
    """EmbeddingGemma's and Qwen3-Embedding's tokenizers put an end of sequence behind a text."""
    model = tmp_path / "model"
    shutil.copytree(backbones["gemma"], model)
    if kind == "both":
        file = json.loads((model / "tokenizer.json").read_text())
        processor = file["post_processor"]
        processor["single"].append({"SpecialToken": {"id": "<eos>", "type_id": 0}})
        processor["special_tokens"]["<eos>"] = {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}
        (model / "tokenizer.json").write_text(json.dumps(file))
    theirs = sentence_model(model, "lasttoken", prompts=PROMPTS, default_prompt_name="query")
    theirs.save(str(tmp_path / "saved"))
    ids = theirs.tokenize(["a"])["input_ids"][0].tolist()
    assert (ids[-1] == 1) == (kind == "both") and ids[0] == 2
    ours = GritLM.from_pretrained(tmp_path / "saved")
    equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    ours.save_pretrained(tmp_path / "ours")
    equal(GritLM.from_pretrained(tmp_path / "ours").encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_our_export_saved_again_by_sentence_transformers(tiny_model, tmp_path, pooling, mode):
    from grit_jax.types import AttentionMode

    ours = GritLM(
        tiny_model.config,
        tiny_model.params,
        tiny_model.tokenizer,
        tiny_model.chat,
        ModelOptions(pooling, AttentionMode(mode)),
    )
    ours.save_pretrained(tmp_path / "ours")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    theirs.save(str(tmp_path / "again"))
    with pytest.warns(UserWarning, match="saved without the head that predicts tokens"):
        again = GritLM.from_pretrained(tmp_path / "again")
    assert again.chat == ours.chat and again.mode is ours.mode and again.pooling == pooling
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    np.testing.assert_array_equal(again.encode(TEXTS, "Find"), ours.encode(TEXTS, "Find"))


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", ("mean", "max")])
def test_poolings_that_are_refused(backbones, tmp_path, pooling):
    theirs = sentence_model(backbones["qwen"], pooling)
    theirs.save(str(tmp_path))
    name = " \\+ ".join(pooling) if isinstance(pooling, tuple) else pooling
    with pytest.raises(
        GritError, match=f"1_Pooling/config.json: pooling '{name}' is not supported"
    ):
        GritLM.from_pretrained(tmp_path)
