"""Published shapes have the published numbers of parameters, and survive their own config.json."""

import jax
import jax.numpy as jnp
import pytest

from grit_jax.config import dump_yaml, load_config
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.write_config import config_to_hf
from grit_jax.models.parameters import num_parameters, parameter_shapes
from grit_jax.models.presets import PRESETS, preset
from grit_jax.models.transformer import Transformer
from grit_jax.types import AttentionMode

# Numbers of parameters as the publishers' own checkpoints have them; of Gemma 3 4B, its text part.
PUBLISHED = {
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "llama2_7b": 6_738_415_616,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "smollm2_135m": 134_515_008,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_30b_a3b": 30_532_122_624,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
}


def test_every_preset_is_counted():
    assert PRESETS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_shapes(name):
    config = preset(name)
    assert num_parameters(config) == PUBLISHED[name]
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize("name", ["mixtral_8x7b", "gemma3_4b"])
def test_a_pass_at_full_size_in_the_abstract(name):
    config = preset(name)
    shapes = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in parameter_shapes(config).items()}
    marks = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def run(params, tokens):
        model = Transformer(config, params)
        out = model(tokens, tokens, tokens, mode=AttentionMode.BIDIRECTIONAL, return_kv=True)
        return out, model.logits(out.hidden[:, -1])

    out, logits = jax.eval_shape(run, shapes, marks)
    assert out.hidden.shape == (2, 256, config.hidden_size) and logits.shape == (
        2,
        config.vocab_size,
    )
    assert out.kv.k.shape == (
        config.num_hidden_layers,
        2,
        config.num_key_value_heads,
        config.head_dim,
        256,
    )


@pytest.mark.parametrize("name", ["llama3_1_8b", "qwen3_30b_a3b", "gemma3_4b"])
def test_a_preset_survives_yaml(name, tmp_path):
    (tmp_path / "model.yaml").write_text(dump_yaml(preset(name)))
    assert load_config(ModelConfig, tmp_path / "model.yaml") == preset(name)
    with pytest.raises(GritError, match="rope_scaling.factors.*rope_scaling.factor'"):
        load_config(ModelConfig, None, {"rope_scaling.factors": "3"})


def test_unknown_names():
    with pytest.raises(GritError, match="gpt.*known: mistral_7b"):
        preset("gpt")
