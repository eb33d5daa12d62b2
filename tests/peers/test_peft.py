"""Adapters against PEFT on the same numbers: one training step, and an exported adapter directory
opened by it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.inference.model import GritLM
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.directory import DirectorySettings  # noqa: E402
from grit_jax.models.hf.peft import AdapterBase, write_adapter  # noqa: E402
from grit_jax.models.lora import LoraConfig, attach
from grit_jax.models.transformer import init_params
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.text.chat import GRIT
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.types import Batch, GenerativeBatch, Rows

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
LR = 1e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_tokenizer):
    """A small model's directory and the model."""
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        dtype="float32",
        remat="none",
        initializer_range=0.2,
        architecture="llama",
    )
    model = GritLM(
        config, init_params(config, jax.random.key(0)), tiny_tokenizer, tiny_tokenizer.format(GRIT)
    )
    model.save_pretrained(folder := tmp_path_factory.mktemp("peft") / "base")
    return folder, model


@pytest.fixture(scope="module")
def tokens(base):
    return np.random.default_rng(0).integers(3, base[1].config.vocab_size, (4, 12)).astype(np.int32)


def theirs(folder, adapters):
    """PEFT's model with our new adapters in it, its own initialisation overwritten."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        lora_dropout=0.0,
        target_modules=list(LORA.targets),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, config)
    ours = {
        "q": "query",
        "k": "key",
        "v": "value",
        "o": "attention_out",
        "gate": "gate",
        "up": "up",
        "down": "down",
    }
    factors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, kind = (
                int(name.split("layers.")[1].split(".")[0]),
                name.split("_proj")[0].rpartition(".")[2],
            )
            factor = "_lora_a" if "lora_A" in name else "_lora_b"
            factors[(ours[kind] + factor, layer)] = parameter
            parameter.data = torch.from_numpy(
                np.array(adapters[ours[kind] + factor][layer]).T.copy()
            )
    assert len(factors) == 2 * 7 * 2
    return model, factors


def test_one_training_step_is_that_of_peft_and_torch(base, tokens):
    folder, model = base
    config = dataclasses.replace(model.config, remat="none")
    settings = OptimizerConfig(
        lr=LR, schedule="constant", warmup_fraction=0.0, clip_norm=0.5, weight_decay=0.0
    )
    schedule = make_schedule(settings, 3)
    optimizer = make_optimizer(settings, schedule)
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = init_state(
            config,
            optimizer,
            jax.random.key(1),
            mesh,
            dict(model.params),
            lora=LORA,
        )
        rng = np.random.default_rng(1)  # B not 0, or A would have no gradient
        state = dataclasses.replace(
            state,
            params={
                name: jax.numpy.asarray(rng.normal(size=a.shape) * 0.1, np.float32)
                if name.endswith("_b")
                else a
                for name, a in state.params.items()
            },
        )
        peer, factors = theirs(folder, state.params)
        rows = Rows(tokens, np.tile(np.arange(12, dtype=np.int32), (4, 1)), np.ones_like(tokens))
        targets = np.ones(tokens.shape, np.float32)
        targets[:, 0] = 0
        batch = Batch(
            generative=GenerativeBatch(rows, targets, np.repeat(np.arange(4)[:, None], 12, 1), 4)
        )
        step = make_step(StepConfig(config, LossConfig(), lora=LORA), optimizer, schedule)
        state, metrics = step(jax.tree.map(jax.numpy.array, state), batch)

    torch_optimizer = torch.optim.AdamW(factors.values(), lr=LR, weight_decay=0.0, eps=1e-8)
    ids = torch.from_numpy(tokens.astype(np.int64))
    loss = peer(input_ids=ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(factors.values(), 0.5)
    torch_optimizer.step()
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-4)
    moments = {
        "mu": 0.1,
        "nu": 0.001,
    }  # of the first step: 1 - b1 times the gradient, 1 - b2 times its square
    adam = next(
        s
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    )
    for (name, layer), parameter in factors.items():
        gradient = parameter.grad.numpy().T
        np.testing.assert_allclose(
            adam.mu[name][layer] / moments["mu"], gradient, rtol=1e-3, atol=2e-6, err_msg=name
        )
        # Adam divides by the gradient's size: where that is next to nothing, the step is noise in
        # both.
        clear = np.abs(gradient) > 1e-4
        assert clear.mean() > 0.5
        np.testing.assert_allclose(
            np.asarray(state.params[name][layer])[clear],
            parameter.detach().numpy().T[clear],
            atol=1e-5,
            err_msg=name,
        )


def test_peft_opens_an_exported_adapter(base, tokens, tmp_path):
    folder, model = base
    rng = np.random.default_rng(2)
    with jax.set_mesh(mesh := make_mesh(MeshConfig(1, 1), jax.devices()[:1])):
        state = init_state(
            model.config,
            make_optimizer(OptimizerConfig(), lambda step: 0.0),
            jax.random.key(1),
            mesh,
            dict(model.params),
            lora=LORA,
        )
    adapters = {
        name: np.asarray(rng.normal(size=a.shape) * 0.1, np.float32)
        for name, a in state.params.items()
    }
    write_adapter(
        tmp_path, model.config, LORA, adapters, AdapterBase(str(folder)), DirectorySettings()
    )
    peer = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = peer(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    adapted = GritLM(
        model.config, attach(model.params, adapters, LORA), model.tokenizer, model.chat
    )
    np.testing.assert_allclose(adapted(tokens).logits, expected, atol=2e-4)
    assert np.abs(model(tokens).logits - expected).max() > 0.1
