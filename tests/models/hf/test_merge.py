"""A base and an adapter as one directory, by PEFT's own rule: `W + alpha / r * B A`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden_models import raises
from safetensors.numpy import load_file

from grit_jax.inference.model import GritLM
from grit_jax.models.hf.directory import DirectorySettings
from grit_jax.models.hf.merge import write_merged
from grit_jax.models.hf.peft import AdapterBase, write_adapter
from grit_jax.models.hf.sentence_transformers import modules_for_prompt
from grit_jax.models.lora import LoraConfig, adapter_shapes
from grit_jax.models.parameters import parameter_shapes

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj"))


@pytest.fixture()
def folders(tiny_model, tmp_path):
    """Of a base and of an adapter to it with random factors."""
    tiny_model.save_pretrained(tmp_path / "base")
    rng = np.random.default_rng(0)
    shapes = adapter_shapes(LORA, parameter_shapes(tiny_model.config))
    factors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    settings = DirectorySettings("lasttoken", sentence=modules_for_prompt("lasttoken", "<|embed|>"))
    base = AdapterBase("the/base", "12ab")
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", tiny_model.config, LORA, factors, base, settings)
    return tmp_path / "base", tmp_path / "adapter"


def test_weights_and_settings(folders, tiny_model, tmp_path):
    base, adapter = folders
    merged = write_merged(base, adapter, tmp_path / "out")
    assert merged.base_weights == tiny_model.weights_hash and merged.adapter.base.weights == "12ab"
    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "out"))
    factors = load_file(adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    adapted = 0
    for name, value in before.items():
        key = "base_model.model." + name.removesuffix("weight")
        if (a := factors.get(key + "lora_A.weight")) is not None:
            b = factors[key + "lora_B.weight"].astype(np.float64)
            value, adapted = value + 2.0 * b @ a, adapted + 1
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5)
    assert adapted == 2 * tiny_model.config.num_hidden_layers
    model = GritLM.from_pretrained(tmp_path / "out")
    assert model.pooling == "lasttoken" and model.chat == tiny_model.chat
    assert model.stop_ids == tiny_model.stop_ids


def test_an_unknown_format_is_named(folders, tmp_path):
    base, adapter = folders
    settings = json.loads((adapter / "grit.json").read_text())
    (adapter / "grit.json").write_text(json.dumps(settings | {"chat_format": "later"}))
    with raises("chat format 'later' is unknown; known: grit"):
        write_merged(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
