"""Every shipped configuration: read, and its training step traced from shapes alone."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.parameters import num_parameters
from grit_jax.plan.abstract_step import abstract_step
from grit_jax.run_config import read_run_config
from grit_jax.run_model import check_shape

CONFIGS = Path(__file__).parents[2] / "configs"
LOSSES = {"embedding": "loss_emb", "generative": "loss_gen", "cached": "loss_cached"}


def size(tree) -> int:
    """Bytes of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_configuration_traces(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# grit train {path.relative_to(CONFIGS.parent)}")
    config = read_run_config(path)
    abstract = abstract_step(config)
    state, metrics = jax.eval_shape(abstract.step, abstract.state, abstract.batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract.state
    )
    expected = {name for kind, name in LOSSES.items() if getattr(config.data, f"{kind}_batch")}
    assert expected <= metrics.keys() and {"loss", "grad_norm", "lr"} <= metrics.keys()


@pytest.mark.parametrize(
    "name, batches, kind, factor, group, scale",
    [
        ("gritlm_7b", (2048, 256), "mixed", 1.0, 32, 1 / 8),
        ("gritlm_8x7b", (256, 256), "token", 0.003, None, 1 / 256),
    ],
)
def test_the_published_hyper_parameters(name, batches, kind, factor, group, scale):
    """`gritlm: scripts/training/train_gritlm_7b.sh` and `train_gritlm_8x7b.sh`."""
    config = read_run_config(CONFIGS / f"{name}.yaml")
    data, train, loss, optimizer = config.data, config.train, config.train.loss, config.optimizer
    assert (data.embedding_batch, data.generative_batch, data.group_size) == (*batches, 2)
    assert (data.query_max_length, data.passage_max_length, data.generative_max_length) == (
        256,
        2048,
        2048,
    )
    assert (train.steps, train.seed, loss.temperature, config.model.pooling) == (
        1253,
        42,
        0.02,
        "mean",
    )
    assert (loss.generative, loss.generative_factor, loss.mix_group_size, loss.emb_grad_scale) == (
        kind,
        factor,
        group,
        scale,
    )
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_fraction) == (2e-5, "linear", 0.03)
    assert (
        optimizer.b1,
        optimizer.b2,
        optimizer.eps,
        optimizer.weight_decay,
        optimizer.clip_norm,
    ) == (0.9, 0.999, 1e-8, 0, 1)
    assert (
        num_parameters(config.model.known_shape)
        == {"gritlm_7b": 7_241_732_096, "gritlm_8x7b": 46_702_792_704}[name]
    )
    assert config.model.known_shape.router_aux_loss_coef == 0.02 or name == "gritlm_7b"


PUBLISHED = {  # the config.json of each, what matters of it
    "gritlm_7b": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gritlm_8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02,
        "output_router_logits": False,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen3_0_6b_lora": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_are_those_of_the_published_models(name):
    section = read_run_config(CONFIGS / f"{name}.yaml").model
    check_shape(section, config_from_hf(PUBLISHED[name], "config.json"))
    assert section.known_shape.architecture == PUBLISHED[name]["model_type"]
    with pytest.raises(
        GritError, match=r"model.preset \w+: num_hidden_layers is .*, but the model at .* has 3"
    ):
        check_shape(
            section, config_from_hf(PUBLISHED[name] | {"num_hidden_layers": 3}, "config.json")
        )


def test_qlora_of_seven_billion_weights_fits_a_small_accelerator():
    config = read_run_config(CONFIGS / "gritlm_7b.yaml", {"lora": "{base: int4}"})
    state = abstract_step(config).state
    full = abstract_step(read_run_config(CONFIGS / "gritlm_7b.yaml")).state
    assert size(full.params) == 4 * num_parameters(config.model.known_shape)
    assert (
        4.0e9 < size(state.frozen) < 4.2e9
    )  # 4.13 bits a weight of the layers; the tables in bfloat16
    adapters = sum(leaf.size for leaf in state.params.values())
    assert adapters == 41_943_040  # 0.6% of the weights
    assert size(state.opt_state) <= 8 * adapters + 100 and size(full.opt_state) > 100 * size(
        state.opt_state
    )


def test_a_model_that_is_not_here_and_has_no_shape(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {path: some/model}\ndata: {}\noutput: out\n")
    with pytest.raises(
        GritError, match="model.path: some/model is not a directory; name the model by model.preset"
    ):
        abstract_step(read_run_config(tmp_path / "run.yaml"))


def test_a_configuration_that_trains_on_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {preset: gemma3_270m}\noutput: out\n")
    with pytest.raises(
        GritError,
        match="^data: every batch size is 0; set data.embedding_batch, data.generative_batch, data.cached_batch or data.preference_batch$",
    ):
        abstract_step(read_run_config(tmp_path / "run.yaml"))


def test_a_packaged_model_is_here(tmp_path, monkeypatch):
    packaged_model = pytest.importorskip("packaged_model", reason="needs the extra 'gguf'")
    site = packaged_model.write_package(tmp_path / "site")
    packaged_model.install(monkeypatch, site, tmp_path / "adapters", tmp_path / "cache")
    (tmp_path / "run.yaml").write_text(
        "model: {path: smollm2}\ndata: {generative: [a], generative_batch: 8}\noutput: out\n"
    )
    assert abstract_step(read_run_config(tmp_path / "run.yaml")).model.hidden_size == 32
