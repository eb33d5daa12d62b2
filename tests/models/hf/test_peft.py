"""An adapter directory against the merged model, with PEFT's own rule: `W + alpha / r * B A`."""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from golden_models import GOLDEN, raises, read_golden
from safetensors.numpy import load_file

from grit_jax.models.hf.directory import DirectorySettings, save_params
from grit_jax.models.hf.peft import AdapterBase, read_adapter, write_adapter
from grit_jax.models.hf.sentence_transformers import modules_for_prompt
from grit_jax.models.lora import LoraConfig, adapter_shapes, attach
from grit_jax.models.parameters import parameter_shapes
from grit_jax.models.projection import PROJECTION, PROJECTION_BIAS
from grit_jax.types import AttentionMode

BASE = AdapterBase("the/base", "12ab")
SETTINGS = DirectorySettings(
    pooling="lasttoken",
    generation_mode=AttentionMode.PREFIX,
    chat_format="qwen",
    sentence=modules_for_prompt("lasttoken", "<|embed|>"),
)
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets=("q_proj", "o_proj", "down_proj"))


def random_adapters(config, lora):
    rng = np.random.default_rng(0)
    shapes = adapter_shapes(lora, parameter_shapes(config))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_base_and_adapter_files_add_up_to_the_merged_model(name, tmp_path):
    model = read_golden(name)
    adapters = random_adapters(model.config, LORA)
    write_adapter(tmp_path, model.config, LORA, adapters, BASE, SETTINGS)
    save_params(tmp_path / "merged", attach(model.params, adapters, LORA), model.config)
    base = load_file(GOLDEN / name / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    factors = load_file(tmp_path / "adapter_model.safetensors")
    adapted = set()
    for key in (key for key in factors if ".lora_A." in key):
        weight = key.removeprefix("base_model.model.").replace(".lora_A", "")
        a, b = (factors[key].astype(np.float64), factors[key.replace(".lora_A", ".lora_B")])
        expected = base[weight] + 2.0 * b.astype(np.float64) @ a
        np.testing.assert_allclose(merged[weight], expected, rtol=1e-5, atol=1e-5)
        adapted.add(weight)
    assert len(factors) == 2 * len(adapted) == 2 * 3 * model.config.num_hidden_layers
    for weight in merged.keys() - adapted:
        np.testing.assert_array_equal(merged[weight], base[weight])


def test_the_settings_are_peft_s(tmp_path):
    config = read_golden("llama").config
    adapters = random_adapters(config, LORA)
    write_adapter(tmp_path, config, LORA, adapters, BASE, SETTINGS)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "the/base"
    assert settings["target_modules"] == ["q_proj", "o_proj", "down_proj"]
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 6.0, 0.1)
    assert not (tmp_path / "2_Dense").exists()  # no projection was trained


def test_adapters_of_single_experts_are_refused(tmp_path):
    config = read_golden("mixtral").config
    lora = LoraConfig(rank=2)
    adapters = random_adapters(config, lora)
    assert any(name.startswith("expert_") for name in adapters)
    with raises("no adapters for single experts", "q_proj, k_proj, v_proj, o_proj"):
        write_adapter(tmp_path, config, lora, adapters, BASE, SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_written_is_read_again(dtype, tmp_path):
    config = read_golden("gemma3").config
    adapters = random_adapters(config, LORA)
    rng = np.random.default_rng(1)
    projection = {PROJECTION: (config.hidden_size, 6), PROJECTION_BIAS: (6,)}
    adapters |= {name: rng.normal(size=s).astype(np.float32) for name, s in projection.items()}
    write_adapter(tmp_path, config, LORA, adapters, BASE, SETTINGS, dtype)
    adapter = read_adapter(tmp_path, config)
    assert adapter.lora == dataclasses.replace(LORA, dropout=0.0) and adapter.base == BASE
    assert adapter.params.keys() == adapters.keys()
    for name, value in adapters.items():
        expected = value.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else value
        np.testing.assert_array_equal(adapter.params[name], expected.astype(np.float32))
    assert (adapter.settings.pooling, adapter.settings.chat_format) == ("lasttoken", "qwen")
    assert adapter.settings.generation_mode is AttentionMode.PREFIX
    assert adapter.settings.sentence.default_prompt == "<|embed|>"


def test_adapters_that_cannot_be_merged_are_refused(tmp_path):
    config = read_golden("llama").config
    write_adapter(tmp_path, config, LORA, random_adapters(config, LORA), BASE, SETTINGS)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    for change, words in (
        ({"use_dora": True}, "'use_dora' is True; only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"'modules_to_save' is \['lm_head'\]"),
        ({"target_modules": ["q_proj"]}, "tensors belong to no weight of the base"),
        ({"target_modules": ["c_attn"]}, "adapter_config.json: lora.targets"),
        ({"r": 5}, "has shape"),
    ):
        path.write_text(json.dumps(settings | change))
        with raises(words):
            read_adapter(tmp_path, config)
    path.write_text(json.dumps({key: value for key, value in settings.items() if key != "r"}))
    with raises("'r' is missing"):
        read_adapter(tmp_path, config)
    path.write_text(json.dumps(settings))
    with raises("has shape"):
        read_adapter(tmp_path, dataclasses.replace(config, hidden_size=2 * config.hidden_size))
    with raises("expert"):
        read_adapter(tmp_path, read_golden("mixtral").config)
