"""What a run starts from: its tokenizer, its model, and how they are checked against each other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from grit_jax.errors import GritError
from grit_jax.models.lora import LoraConfig
from grit_jax.models.projection import PROJECTION
from grit_jax.run_config import ModelSection, RunConfig, TokenizerSection
from grit_jax.run_model import (
    check_shape,
    load_model,
    load_tokenizer,
    model_shape,
    projection_width,
    public_model,
)
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.state import init_state
from grit_jax.types import AttentionMode


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> Path:
    """The directory of a trained model."""
    directory = tmp_path_factory.mktemp("base") / "model"
    tiny_model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
    )
    return path


def dense(name: str) -> dict[str, np.ndarray]:
    """A linear map from 48 to 12 dimensions, by its name among a model's weights."""
    return {name: np.zeros((48, 12)), f"{name}_bias": np.zeros(12)}


def run(section: ModelSection, **sections) -> RunConfig:
    return RunConfig(section, "out", **sections)


def test_a_tokenizer_of_its_own_comes_before_the_models(base, sentences, tiny_tokenizer, tmp_path):
    output, section = RunFolder(tmp_path / "out"), ModelSection(path=str(base))
    assert load_tokenizer(run(section), output).vocab_size == tiny_tokenizer.vocab_size
    texts = write_texts(tmp_path / "texts.jsonl", sentences)
    trained = TokenizerSection(train_on=[str(texts)], vocab_size=390)
    tokenizer = load_tokenizer(run(section, tokenizer=trained), output)
    assert tokenizer.vocab_size <= 390 < tiny_tokenizer.vocab_size
    given = TokenizerSection(path=str(base), train_on=["not there"])
    tokenizer = load_tokenizer(run(section, tokenizer=given), output)
    text = "Amber river"
    assert tokenizer.encode(text) == tiny_tokenizer.encode(text)


def test_a_resumed_run_reads_the_tokenizer_that_it_trained(tiny_config, sentences, tmp_path):
    """Also when the texts have changed since: other ids would be another model."""
    texts = write_texts(tmp_path / "texts.jsonl", sentences)
    section = TokenizerSection(train_on=[str(texts)], vocab_size=400)
    config, output = run(ModelSection(shape=tiny_config), tokenizer=section), RunFolder(tmp_path)
    first = load_tokenizer(config, output).encode(sentences[0])
    write_texts(texts, [text[::-1] for text in sentences])
    assert load_tokenizer(config, output).encode(sentences[0]) == first
    shutil.rmtree(tmp_path / "tokenizer")
    assert load_tokenizer(config, output).encode(sentences[0]) != first


def test_a_run_needs_a_tokenizer_from_somewhere(tiny_config, tmp_path):
    with pytest.raises(GritError, match=r"tokenizer: set tokenizer.path, or tokenizer.train_on"):
        load_tokenizer(run(ModelSection(shape=tiny_config)), RunFolder(tmp_path))


def test_a_shape_is_known_without_the_weights(base, tiny_config, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    section = ModelSection(path=str(tmp_path / "model"))
    shape = model_shape(section)
    assert (shape.num_hidden_layers, shape.hidden_size) == (3, 48)
    with pytest.raises(GritError, match="model.safetensors"):
        load_model(run(section), load_tokenizer(run(section), RunFolder(tmp_path)), None)
    assert model_shape(ModelSection(shape=tiny_config)) is tiny_config
    assert model_shape(ModelSection(preset="mistral_7b")).num_hidden_layers == 32


def test_a_shape_beside_the_path_must_be_that_of_the_model(base):
    wrong = {"vocab_size": 480, "hidden_size": 128, "num_hidden_layers": 2}
    shape = dataclasses.replace(model_shape(ModelSection(path=str(base))), **wrong)
    with pytest.raises(GritError, match=r"model.shape.\w+ is .*, but the model at .*model has"):
        model_shape(ModelSection(path=str(base), shape=shape))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": 4}, "model.shape.num_hidden_layers is 4, but the model at x has 3"),
        ({"rope_theta": 5.0}, "model.shape.rope_theta is 5.0, but the model at x has 10000.0"),
        ({"tie_word_embeddings": True}, "model.shape.tie_word_embeddings is True, .* has False"),
        ({"rope_theta": 10000.0 * (1 + 1e-7)}, None),  # as 32 bits round it in a GGUF file
        ({"rope_theta": 10000.1}, "model.shape.rope_theta is 10000.1, but"),
        # What is no part of the weights' meaning: how it is computed, and the tokenizer's ids.
        ({"dtype": "bfloat16", "remat": "none", "scan_layers": False}, None),
        ({"initializer_range": 1.0, "bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 9}, None),
    ],
)
def test_which_parts_of_a_shape_must_be_the_models(tiny_config, change, message):
    loaded = dataclasses.replace(tiny_config, rope_theta=10000.0)
    section = ModelSection(path="x", shape=dataclasses.replace(loaded, **change))
    if message is None:
        check_shape(section, loaded)
    else:
        with pytest.raises(GritError, match=message):
            check_shape(section, loaded)


def test_random_weights_take_the_ids_of_the_tokenizer(tiny_config, tiny_tokenizer, mesh, tmp_path):
    shape = dataclasses.replace(tiny_config, bos_token_id=400, eos_token_id=401, pad_token_id=402)
    section = ModelSection(shape=shape, dtype="float32", remat="none", projection=12)
    loaded = load_model(run(section), tiny_tokenizer, mesh)
    assert (loaded.params, loaded.projection, loaded.base) == (None, 12, None)
    tiny_tokenizer.save(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    found = loaded.config
    assert found.bos_token_id == ids["<s>"] and found.eos_token_id == ids["</s>"]
    assert found.pad_token_id == ids["<pad>"]
    assert (loaded.config.remat, loaded.config.scan_layers) == ("none", True)


def test_the_weights_of_a_path_are_those_of_its_file(base, tiny_tokenizer, mesh):
    section = ModelSection(path=str(base), dtype="bfloat16", scan_layers=False)
    loaded = load_model(run(section), tiny_tokenizer, mesh)
    stored = load_file(base / "model.safetensors")
    np.testing.assert_array_equal(loaded.params["embed"], stored["model.embed_tokens.weight"])
    assert all(weight.dtype == np.float32 for weight in loaded.params.values())
    assert sum(w.size for w in loaded.params.values()) == sum(w.size for w in stored.values())
    assert (loaded.config.dtype, loaded.config.scan_layers) == ("bfloat16", False)
    assert loaded.projection is None and loaded.base is None


def test_adapters_know_their_base(base, tiny_model, tiny_tokenizer, mesh):
    config = run(ModelSection(path=str(base)), lora=LoraConfig(rank=4, alpha=8, base="full"))
    loaded = load_model(config, tiny_tokenizer, mesh)
    assert (loaded.base.model, loaded.base.weights) == (str(base), tiny_model.weights_hash)
    assert loaded.base.lora["rank"] == 4 and loaded.base.lora["base"] == "full"


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    base, tiny_config, tiny_tokenizer, mesh, tmp_path
):
    small = ModelSection(shape=dataclasses.replace(tiny_config, vocab_size=100))
    wanted = rf"set model.shape.vocab_size to {tiny_tokenizer.vocab_size} or more"
    with pytest.raises(GritError, match=wanted):
        load_model(run(small), tiny_tokenizer, mesh)
    shutil.copytree(base, tmp_path / "model")
    hf = json.loads((base / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(hf | {"vocab_size": 100}))
    with pytest.raises(GritError, match="the model's vocabulary has 100 ids, the tokenizer's"):
        load_model(run(ModelSection(path=str(tmp_path / "model"))), tiny_tokenizer, mesh)


@pytest.mark.parametrize(
    "params, configured, width",
    [
        (None, None, None),
        (None, 12, 12),
        ({}, 12, 12),
        (dense(PROJECTION), None, 12),
        (dense(PROJECTION), 12, 12),
        # Dense modules with an activation are trained as they are; there is no new head.
        (dense("embedding_dense_0_tanh"), None, None),
    ],
)
def test_the_width_of_a_projection(params, configured, width):
    assert projection_width(ModelSection(path="x", projection=configured), params) == width


@pytest.mark.parametrize("name", [PROJECTION, "embedding_dense_0_tanh"])
def test_a_projection_of_another_width_is_refused_by_key(name):
    section = ModelSection(path="there", projection=8)
    with pytest.raises(GritError, match=r"model.projection is 8, .* of there has 12 dimensions"):
        projection_width(section, dense(name))


@pytest.mark.parametrize(
    "code, embedding, generation",
    [
        ("bbcc", AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL),
        ("cbbc", AttentionMode.PREFIX, AttentionMode.PREFIX),
        ("cccc", AttentionMode.CAUSAL, AttentionMode.CAUSAL),
    ],
)
def test_the_public_model_computes_as_the_configuration_says(
    code, embedding, generation, tiny_model, tiny_tokenizer, mesh
):
    section = ModelSection(shape=tiny_model.config, attention=code, pooling="lasttoken")
    config = run(section, tokenizer=TokenizerSection(chat="qwen"))
    state = init_state(
        tiny_model.config, optax.sgd(0.1), jax.random.key(0), mesh, params=tiny_model.params
    )
    model = public_model(config, tiny_model.config, tiny_tokenizer, mesh)(state)
    assert (model.mode, model.generation_mode) == (embedding, generation)
    assert model.pooling == "lasttoken" and model.chat.user.startswith("<|im_start|>")
    np.testing.assert_array_equal(model.params["embed"], tiny_model.params["embed"])
