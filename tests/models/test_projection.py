"""The projection head: its first weights, its file, and what is wrong with one."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.models.projection import (
    PROJECTION,
    PROJECTION_BIAS,
    PROJECTION_FOLDER,
    embedding_width,
    init_projection,
)


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a head of 10 dimensions."""
    params = tiny_model.params | init_projection(
        tiny_model.config.hidden_size, 10, jax.random.key(3)
    )
    return GritLM(tiny_model.config, params, tiny_model.tokenizer, tiny_model.chat)


def test_new_weights_are_uniform_as_in_torch():
    """`nn.Linear`: weight and bias between -1/sqrt(in) and 1/sqrt(in)."""
    params = init_projection(64, 300, jax.random.key(0))
    for name, shape in ((PROJECTION, (64, 300)), (PROJECTION_BIAS, (300,))):
        values = np.asarray(params[name])
        assert values.shape == shape and np.abs(values).max() <= 1 / 8
        assert np.abs(values).mean() == pytest.approx(1 / 16, rel=0.1) and abs(values.mean()) < 0.01
    assert embedding_width(params, 64) == 300 and embedding_width({}, 64) == 64


def test_vectors_go_through_it(model, tiny_model, sentences):
    found = model.encode(sentences[:4], "Find it")
    assert found.shape == (4, 10) and model.embedding_width == 10
    pooled = tiny_model.encode(
        sentences[:4], "Find it"
    )  # a projection undoes no length: compare by its own formula
    hidden = []
    formatted = model.encoder.format(sentences[:4], "Find it")
    for ids, vector in zip(formatted.ids, pooled, strict=True):
        states = np.asarray(tiny_model(np.array([ids]), mode="bidirectional").hidden)[
            0, formatted.prompt :
        ]
        np.testing.assert_allclose(
            states.mean(0) / np.linalg.norm(states.mean(0)), vector, atol=1e-5
        )
        hidden.append(states.mean(0))
    expected = np.array(hidden) @ np.asarray(model.params[PROJECTION]) + np.asarray(
        model.params[PROJECTION_BIAS]
    )
    np.testing.assert_allclose(
        found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )
    assert model.weights_hash != tiny_model.weights_hash


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_directory_keeps_it(model, tmp_path, sentences, dtype):
    model.save_pretrained(tmp_path, dtype)
    again = GritLM.from_pretrained(tmp_path)
    for name in (PROJECTION, PROJECTION_BIAS):
        expected = np.asarray(jnp.asarray(model.params[name]).astype(dtype), np.float32)
        np.testing.assert_array_equal(again.params[name], expected)
    if dtype == "float32":
        np.testing.assert_array_equal(again.encode(sentences[:3]), model.encode(sentences[:3]))
    tensors = load_file(tmp_path / PROJECTION_FOLDER / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        "linear.weight": (10, 48),
        "linear.bias": (10,),
    }
    weights = load_file(tmp_path / "model.safetensors")
    assert not any(
        "projection" in name or "linear" in name for name in weights
    )  # transformers would stumble
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert json.loads((tmp_path / "grit.json").read_text())["projection"] == PROJECTION_FOLDER
    assert (
        "1" + generated(model) == "1" + generated(again) or dtype == "bfloat16"
    )  # generation does not see it


def generated(model):
    return model.generate("a river", max_new_tokens=4)[0]


def test_a_damaged_one(model, tmp_path):
    model.save_pretrained(tmp_path)
    folder = tmp_path / PROJECTION_FOLDER
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "linear.weight": tensors["linear.weight"][:, :7].copy()},
        folder / "model.safetensors",
    )
    with pytest.raises(GritError, match=r"'linear.weight' has shape \[10, 7\].*\[10, 48\]"):
        GritLM.from_pretrained(tmp_path)
    save_file({"linear.weight": tensors["linear.weight"]}, folder / "model.safetensors")
    with pytest.raises(GritError, match="tensor 'linear.bias' is missing"):
        GritLM.from_pretrained(tmp_path)
    (folder / "config.json").write_text('{"in_features": 48, "out_features": "ten"}')
    with pytest.raises(GritError, match="'out_features' must be a number of dimensions"):
        GritLM.from_pretrained(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(GritError, match="config.json: no such file"):
        GritLM.from_pretrained(tmp_path)
    grit = json.loads((tmp_path / "grit.json").read_text())
    (tmp_path / "grit.json").write_text(json.dumps({**grit, "projection": "../elsewhere"}))
    with pytest.raises(GritError, match="'projection' must be a folder like 2_Dense"):
        GritLM.from_pretrained(tmp_path)
