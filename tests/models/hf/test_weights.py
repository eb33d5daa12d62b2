"""Weights in and out: bit-exact round trips, shards, killed writers, and damaged files named in the
error."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from golden_models import GOLDEN, MODELS, as_bytes, raises, read_golden
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from grit_jax.models.hf.directory import (
    load_params,
    read_model_directory,
    save_params,
    write_model_directory,
)
from grit_jax.models.parameters import num_parameters
from grit_jax.models.transformer import parameter_shapes

TOKENIZER = GOLDEN.parents[1] / "text" / "golden" / "mistral"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_directory_round_trip_is_bit_identical(name, dtype, tmp_path):
    """Config, weights, and the bytes of every file of a second export."""
    folder = read_model_directory(GOLDEN / name, dtype)
    write_model_directory(
        tmp_path / "one", folder.config, folder.params, dtype=dtype, max_shard_bytes=40_000
    )
    again = read_model_directory(tmp_path / "one", dtype)
    assert again.config == folder.config and as_bytes(again.params) == as_bytes(folder.params)
    write_model_directory(
        tmp_path / "two", again.config, again.params, dtype=dtype, max_shard_bytes=40_000
    )
    first, second = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in ("one", "two")
    )
    assert first == second and len([p for p in first if p.suffix == ".safetensors"]) > 1


@pytest.mark.parametrize("name", MODELS)
def test_import_export_import_is_bit_identical(name, tmp_path):
    folder = read_golden(name)
    assert {k: v.shape for k, v in folder.params.items()} == parameter_shapes(folder.config)
    save_params(tmp_path, folder.params, folder.config)
    assert as_bytes(load_params(tmp_path, folder.config)) == as_bytes(folder.params)
    ours, theirs = (
        load_file(tmp_path / "model.safetensors"),
        load_file(GOLDEN / name / "model.safetensors"),
    )
    assert as_bytes(ours) == as_bytes(theirs)  # names, too
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_place_sees_each_weight_once():
    config, seen = read_golden("qwen3").config, []
    params = load_params(
        GOLDEN / "qwen3", config, place=lambda name, array: seen.append(name) or array.shape
    )
    assert params == parameter_shapes(config) and seen == list(params)


def test_other_names_that_real_checkpoints_have(tmp_path):
    """No `model.` prefix, stored rotary frequencies, the tied head stored again; half precision."""
    folder = read_golden("qwen2")
    tensors = load_file(GOLDEN / "qwen2" / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    bare["lm_head.weight"] = bare["embed_tokens.weight"]
    save_file(bare, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_bytes(load_params(tmp_path, folder.config)) == as_bytes(folder.params)
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    half = load_params(tmp_path, folder.config)
    np.testing.assert_array_equal(
        half["up"], folder.params["up"].astype(np.float16).astype(np.float32)
    )


def test_the_text_part_of_a_multimodal_checkpoint(tmp_path):
    """Gemma 3: nested `text_config`, other prefixes, and an image part that is named and left
    alone."""
    folder = read_golden("gemma3")
    tensors = load_file(GOLDEN / "gemma3" / "model.safetensors")
    config = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    nested = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": config,
        "eos_token_id": [9, 8],
        "vision_config": {"hidden_size": 8},
    }
    (tmp_path / "config.json").write_text(json.dumps(nested))
    for prefix in ("language_model.model.", "model.language_model."):
        inner = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
        save_file(
            inner | {"vision_tower.patch.weight": np.ones((2, 2), np.float32)},
            tmp_path / "model.safetensors",
        )
        with pytest.warns(UserWarning, match="multimodal.*1 tensors"):
            again = read_model_directory(tmp_path)
        assert again.config == folder.config and as_bytes(again.params) == as_bytes(folder.params)
    assert again.settings.stop_token_ids == (9, 8)


def test_experts_that_are_missing_are_named(tmp_path):
    folder = read_golden("mixtral")
    tensors = load_file(GOLDEN / "mixtral" / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
    with raises("model.safetensors", name, "missing"):
        load_params(tmp_path, folder.config)
    save_file(tensors | {name: tensors[name].T.copy()}, tmp_path / "model.safetensors")
    with raises("model.safetensors", name, r"\[32, 24\]", r"\[24, 32\]"):
        load_params(tmp_path, folder.config)


# The kernel's own account of this program alone: `ru_maxrss` begins with what the process that
# started it held.
MEMORY = """
import os, re, sys
import numpy as np
from grit_jax.models.hf.directory import read_model_directory

folder, where = sys.argv[1:]
status = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
place = None
if where == "import":
    from grit_jax.cli.main import main

    main(["import", folder + "/small", folder + "/first"])  # what is there however large the model
if where == "device":
    import jax
    jax.device_put(np.zeros(1)).block_until_ready()
    place = lambda name, array: jax.device_put(array)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is what there is now
before = status("VmRSS")
if where == "import":
    main(["import", folder + "/large", folder + "/second"])
    total = os.path.getsize(folder + "/second/model.safetensors")
else:
    found = read_model_directory(folder + "/large", place=place)
    total = sum(np.asarray(value).nbytes for value in found.params.values())
print(status("VmHWM") - before, total)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it"
)
@pytest.mark.parametrize("where", ["host", "device", "import"])
def test_reading_takes_the_model_and_little_more(tmp_path, where):
    """Peak memory of a process that reads 88 MB in seven shards, or imports them (`grit import`):
    the model and at most 1.2 times the largest shard."""
    config = dataclasses.replace(
        read_golden("llama").config,
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=1536,
        num_hidden_layers=6,
        vocab_size=2048,
    )
    small = dataclasses.replace(
        config, hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=1024
    )
    rng = np.random.default_rng(0)
    for name, sizes in (("small", small), ("large", config)):
        params = {
            key: rng.random(shape, np.float32) for key, shape in parameter_shapes(sizes).items()
        }
        write_model_directory(tmp_path / name, sizes, params, max_shard_bytes=14_000_000)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, tmp_path / name)
    shards = [path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors")]
    assert len(shards) > 5
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), where],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used, total = map(int, done.stdout.split()[-2:])
    assert (
        4 * num_parameters(config) <= total < 4 * num_parameters(config) + 20_000
        and total > 80_000_000
    )
    assert 0.9 * total < used < total + 1.2 * max(shards)


def test_unused_tensors_are_reported(tmp_path):
    folder = read_golden("qwen2")
    tensors = load_file(GOLDEN / "qwen2" / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
    tensors["lm_head.weight"] = (
        tensors["model.embed_tokens.weight"] + 1
    )  # tied, and yet another matrix
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.warns(
        UserWarning, match="2 tensors .*lm_head.weight, model.layers.2.mlp.up_proj.weight"
    ):
        load_params(tmp_path, folder.config)
