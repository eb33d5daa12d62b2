"""A LoRA run as a whole: small checkpoints that know their base, exact resume, a merged model at
the end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tiny_models import config_for
from training_run import break_off, trace, write_examples

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.models.lora import MATRICES
from grit_jax.models.transformer import init_params
from grit_jax.run_model import load_model, load_tokenizer
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.text.chat import GRIT
from grit_jax.train import export_checkpoint, read_run_config, train
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.frozen_base import load_base
from grit_jax.training.state import init_state, make_optimizer, make_schedule

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences, tiny_tokenizer) -> Path:
    """A base model and a configuration for both losses, paths relative to it."""
    root = tmp_path_factory.mktemp("lora")
    config = config_for(tiny_tokenizer, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    GritLM(config, params, tiny_tokenizer, tiny_tokenizer.format(GRIT)).save_pretrained(
        root / "base"
    )
    write_examples(root, sentences)
    run = {
        "model": {"path": "base", "dtype": "float32", "remat": "none", "projection": 12},
        "lora": {"rank": 4, "alpha": 8, "base": "int4"},
        "data": {
            "embedding": ["embedding.jsonl"],
            "generative": ["generative.jsonl"],
            "embedding_batch": 6,
            "generative_batch": 4,
            "query_max_length": 64,
            "passage_max_length": 64,
            "generative_max_length": 160,
        },
        "train": {"steps": STEPS, "checkpoint_every": 2, "eval_embedding": "embedding.jsonl"},
        "optimizer": {"lr": 1e-2},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "whole",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(run))
    return root


def read(folder, **overrides):
    return read_run_config(
        folder / "config.yaml", {key.replace("__", "."): value for key, value in overrides.items()}
    )


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return train(read(folder)).output


def restored(config, output):
    """The state of the newest checkpoint."""
    mesh = make_mesh(MeshConfig())
    model = load_model(config, load_tokenizer(config, RunFolder(output)), mesh)
    checkpoints = Checkpoints(output / "checkpoints", every=1)
    checkpoints.base = model.base
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, STEPS))
    like = init_state(
        model.config,
        optimizer,
        jax.random.key(0),
        mesh,
        model.params,
        model.projection,
        config.lora,
    )
    return model.config, checkpoints.restore(checkpoints.latest(), like, None)


def test_the_model_at_the_end_is_a_plain_one_that_computes_the_same(folder, whole, sentences):
    config = read(folder)
    merged = GritLM.from_pretrained(whole / "model")
    assert all(isinstance(weight, jax.Array) for weight in merged.params.values())
    model_config, state = restored(config, whole)
    adapted = GritLM(model_config, state.weights(config.lora), merged.tokenizer, merged.chat)
    ids = np.asarray([merged.prompt_ids([sentences[3]])[0][:12]])
    for mode in ("causal", "bidirectional"):
        found, expected = merged(ids, mode=mode).logits, adapted(ids, mode=mode).logits
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    base = GritLM.from_pretrained(folder / "base")
    assert np.abs(base(ids).logits - merged(ids).logits).max() > 0.01
    np.testing.assert_array_equal(base.params["embed"], merged.params["embed"])
    assert (
        trace(whole)[-1]["eval_ndcg@10"] > 0
    )  # evaluated with adapters and quantised base as they are


def test_export_writes_the_same_model(whole, tmp_path):
    assert export_checkpoint(whole, tmp_path / "out") == STEPS
    one, two = (
        load_file(whole / "model" / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_export_writes_the_adapters_alone_for_peft(folder, whole, tmp_path):
    assert export_checkpoint(whole, tmp_path / "out", adapter=True) == STEPS
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1."
    assert len(tensors) == 2 * 7 * 2
    assert tensors[prefix + "self_attn.k_proj.lora_A.weight"].shape == (
        4,
        64,
    )  # [rank, in], [out, rank]
    assert tensors[prefix + "mlp.down_proj.lora_B.weight"].shape == (64, 4)
    # The trained projection is beside them, as in the model's own directory.
    projection, expected = (
        load_file(d / "2_Dense" / "model.safetensors") for d in (tmp_path / "out", whole / "model")
    )
    assert projection.keys() == {"linear.weight", "linear.bias"}
    for name, value in projection.items():
        np.testing.assert_array_equal(value, expected[name])
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json"):
        assert (tmp_path / "out" / name).read_text() == (whole / "model" / name).read_text()
    # Readable by whom the umask lets.
    (tmp_path / "plain").write_text("")
    for path in (tmp_path / "out").rglob("*.*"):
        if path.is_file():
            assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (about["peft_type"], about["r"], about["lora_alpha"]) == ("LORA", 4, 8)
    assert about["base_model_name_or_path"] == str(folder / "base")
    # Base and adapters by NumPy are the merged model, up to what four bits lose of the base.
    base, merged = (load_file(d / "model.safetensors") for d in (folder / "base", whole / "model"))
    name = "self_attn.k_proj"
    added = (
        2.0 * tensors[f"{prefix}{name}.lora_B.weight"] @ tensors[f"{prefix}{name}.lora_A.weight"]
    )
    rest = merged[f"model.layers.1.{name}.weight"] - added
    lost = rest - base[f"model.layers.1.{name}.weight"]
    assert 0.08 < np.linalg.norm(lost) / np.linalg.norm(rest) < 0.1 and np.linalg.norm(added) > 0.01


def test_a_run_without_lora_has_no_adapters_to_export(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {preset: qwen3_0_6b}\noutput: here\n")
    with pytest.raises(
        GritError, match="trained without lora, so there are no adapters; leave --adapter out"
    ):
        export_checkpoint(tmp_path, tmp_path / "out", adapter=True)


def test_a_checkpoint_holds_adapters_and_moments_and_not_the_base(folder, whole):
    config = read(folder)
    _, state = restored(config, whole)
    metadata = Checkpoints(whole / "checkpoints", every=1)._checkpointer.checkpointables_metadata(
        STEPS
    )
    stored = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(metadata.metadata["state"]))
    adapters = sum(value.size for value in state.params.values())
    assert 3 * adapters <= stored <= 3 * adapters + 4  # and a few counters
    assert set(metadata.custom_metadata["base"]) == {"model", "weights", "lora"}


@pytest.mark.slow
@pytest.mark.parametrize("broken_at", [1, 3])
def test_an_interrupted_run_ends_with_the_identical_trace(folder, whole, broken_at):
    config = read(folder, output=str(folder / f"broken{broken_at}"))
    break_off(config, broken_at)
    assert trace(train(config).output) == trace(whole)


@pytest.fixture(scope="module")
def half(folder) -> Path:
    """A run of two steps, to be gone on from."""
    return train(
        read(folder, output=str(folder / "half"), train__steps="2", train__eval_embedding="null")
    ).output


@pytest.mark.slow
def test_another_base_is_refused_by_name(folder, half, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        GritError,
        match=r"half.checkpoints: .* step 2 .* adapters to .*base \(.*other has other weights",
    ):
        train(read(folder, output=str(half), model__path=str(tmp_path / "other")))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lora__base": "int8"}, "lora.base int4, this configuration has int8"),
        ({"lora__alpha": "16"}, "lora.alpha 8.0, this configuration has 16.0"),
        (
            {"optimizer__name": "adafactor"},
            "the state of adamw with float32 moments, .* has adafactor; set optimizer.name",
        ),
        ({"lora": "null"}, "holds adapters .* trains all weights"),
        ({"lora__rank": "2"}, "lora.rank 4, this configuration has 2"),
        (
            {"lora__targets": "[q_proj, o_proj]"},
            r"lora.targets \[.*\], this configuration has \[\"o_proj\", \"q_proj\"\]",
        ),
    ],
)
@pytest.mark.slow
def test_other_adapters_are_refused(folder, half, change, words):
    with pytest.raises(GritError, match=words):
        train(read(folder, output=str(half), **change))


@pytest.mark.parametrize("precision", ["full", "int8", "int4"])
def test_a_base_is_read_to_the_same_bits_on_any_mesh_and_known_by_its_hash(folder, precision):
    config = read(folder)
    base = GritLM.from_pretrained(folder / "base")
    lora = dataclasses.replace(config.lora, base=precision)
    both = [
        load_base(folder / "base", base.config, lora, make_mesh(mesh, devices))
        for mesh, devices in (
            (MeshConfig(1, 1, 1), jax.devices()[:1]),
            (MeshConfig(2, 2, 2), jax.devices()[:8]),
        )
    ]
    for one, two in zip(*(jax.tree.leaves(params) for params, _ in both), strict=True):
        np.testing.assert_array_equal(one, two)
    assert both[0][1] == both[1][1] == base.weights_hash
    for name, weight in both[0][0].items():
        assert isinstance(weight, jax.Array) == (precision == "full" or name not in MATRICES), name
