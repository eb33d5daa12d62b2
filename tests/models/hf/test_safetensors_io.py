"""Safetensors files: shards and their index, replaced and killed writers, damaged files named in the
error."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from golden_models import GOLDEN, as_bytes, raises, read_golden
from safetensors.numpy import load_file, save_file

from grit_jax.models.hf import safetensors_io
from grit_jax.models.hf.safetensors_io import Tensor, TensorFiles, write_tensors
from grit_jax.models.hf.weights import load_params, save_params
from grit_jax.models.parameters import num_parameters


def test_shards_and_bfloat16(tmp_path):
    folder = read_golden("mistral")
    on_device = {name: jax.numpy.asarray(value) for name, value in folder.params.items()}
    save_params(tmp_path, on_device, folder.config, "bfloat16", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == [*shards, "model.safetensors.index.json"]
    assert index["metadata"]["total_parameters"] == num_parameters(folder.config)
    assert index["metadata"]["total_size"] == 2 * num_parameters(folder.config)
    assert all((tmp_path / s).stat().st_size < 20_000 + 4_000 for s in shards)
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in folder.params.items()}
    assert as_bytes(load_params(tmp_path, folder.config, "bfloat16")) == as_bytes(rounded)
    wide = load_params(tmp_path, folder.config)
    assert as_bytes(wide) == as_bytes({k: v.astype(np.float32) for k, v in rounded.items()})
    # A bfloat16 checkpoint read as float32 and written back is the same file, byte for byte.
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save_params(tmp_path, wide, folder.config, "bfloat16", max_shard_bytes=20_000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first


def test_an_older_model_leaves_nothing_behind(tmp_path):
    folder = read_golden("qwen2")
    for limit in (10**9, 30_000, 60_000, 10**9):
        save_params(tmp_path, folder.params, folder.config, max_shard_bytes=limit)
        assert as_bytes(load_params(tmp_path, folder.config)) == as_bytes(folder.params)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_killed_writer_leaves_the_older_model(tmp_path):
    folder = read_golden("llama")
    save_params(tmp_path, folder.params, folder.config)
    before = (tmp_path / "model.safetensors").read_bytes()

    class Stop:
        def __getitem__(self, index):
            raise KeyboardInterrupt

    for limit in (10**9, 30_000):
        with pytest.raises(KeyboardInterrupt):
            save_params(
                tmp_path, folder.params | {"up": Stop()}, folder.config, max_shard_bytes=limit
            )
        assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
        assert (tmp_path / "model.safetensors").read_bytes() == before


def test_damaged_or_missing_weights(tmp_path):
    config = read_golden("llama").config
    tensors = load_file(GOLDEN / "llama" / "model.safetensors")
    file = tmp_path / "model.safetensors"
    with raises("no model.safetensors"):
        load_params(tmp_path, config)
    with raises("absent", "no such directory"):
        load_params(tmp_path / "absent", config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with raises("pytorch_model.bin", "refused"):
        load_params(tmp_path, config)

    save_file({k: v for k, v in tensors.items() if k != "model.layers.1.mlp.up_proj.weight"}, file)
    with raises("model.safetensors", "model.layers.1.mlp.up_proj.weight", "missing"):
        load_params(tmp_path, config)
    save_file(tensors | {"model.norm.weight": np.ones(47, np.float32)}, file)
    with raises("model.safetensors", "model.norm.weight", r"\[47\]", r"\[48\]"):
        load_params(tmp_path, config)
    save_file(tensors | {"model.norm.weight": np.ones(48, np.int8)}, file)
    with raises("model.norm.weight", "I8"):
        load_params(tmp_path, config)

    whole = (GOLDEN / "llama" / "model.safetensors").read_bytes()
    for damaged in (whole[:-100], whole[:4], b"", b"not a model at all", b"\xff" * 64):
        file.write_bytes(damaged)
        with raises("model.safetensors", "truncated or not a safetensors file"):
            load_params(tmp_path, config)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with raises("Git LFS pointer"):
        load_params(tmp_path, config)
    with raises("float32, bfloat16", "float16"):
        load_params(tmp_path, config, "float16")


def test_damaged_index(tmp_path):
    folder = read_golden("llama")
    save_params(tmp_path, folder.params, folder.config, max_shard_bytes=30_000)
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text()
    (tmp_path / "model-00002-of-00010.safetensors").unlink(missing_ok=True)
    missing = sorted(set(json.loads(text)["weight_map"].values()))[1]
    (tmp_path / missing).unlink(missing_ok=True)
    with raises("index.json", missing, "missing"):
        load_params(tmp_path, folder.config)
    tree = json.loads(text)
    tree["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(tree))
    with raises("elsewhere", "outside"):
        load_params(tmp_path, folder.config)
    # The index promises a tensor that the shard does not hold.
    save_params(tmp_path, folder.params, folder.config, max_shard_bytes=30_000)
    tree = json.loads(index.read_text())
    tree["weight_map"]["model.norm.weight"] = tree["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(tree))
    with raises("model-00001", "model.norm.weight"):
        load_params(tmp_path, folder.config)
    for broken, words in (("{", "not valid JSON"), ("[]", "JSON object"), ("{}", "weight_map")):
        index.write_text(broken)
        with raises("index.json", words):
            load_params(tmp_path, folder.config)


def test_tensors_that_are_the_same(tmp_path, monkeypatch):
    """Compared by their bytes, a few at a time; dtype and shape count."""
    monkeypatch.setattr(safetensors_io, "COMPARE_BYTES", 8)
    a = np.arange(6, dtype=np.float32)
    last = a.copy()
    last[-1] = -1
    tensors = {"a": a, "b": a.copy(), "last": last, "turned": a.reshape(2, 3)}
    tensors |= {"half": a.astype(np.float16), "zero": np.zeros(1, np.float32)}
    tensors["minus zero"] = -tensors["zero"]
    save_file(tensors, tmp_path / "model.safetensors")
    with TensorFiles(tmp_path) as files:
        assert files.same("a", "b") and files.same("a", "a")
        for other in ("last", "turned", "half"):
            assert not files.same("a", other), other
        assert not files.same("zero", "minus zero")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_tensor_is_read_in_the_dtype_it_is_stored_in(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    save_file({"x": values, "y": values.T.copy()}, tmp_path / "model.safetensors")
    with TensorFiles(tmp_path) as files:
        assert files.names() == ["x", "y"] and "x" in files and "z" not in files
        read = files.read("x", (3, 5))
        np.testing.assert_array_equal(files.read("y", (5, 3)), values.T)
    assert read.dtype == values.dtype and read.flags.writeable
    np.testing.assert_array_equal(read, values)


def test_a_shard_is_full_before_the_next_one_begins(tmp_path):
    """12 bytes each: two fit in 24, and one that is larger than a shard stands alone."""
    small = [Tensor(name, (3,), lambda: np.ones(3)) for name in "abcde"]
    large = Tensor("large", (50,), lambda: np.zeros(50))
    write_tensors(tmp_path, [*small[:3], large, *small[3:]], "float32", 24)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = [sorted(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert shards == [["a", "b"], ["c"], ["large"], ["d", "e"]]
    assert all(
        index[name] == f"model-{i + 1:05d}-of-00004.safetensors"
        for i, names in enumerate(shards)
        for name in names
    )
    with TensorFiles(tmp_path) as files:
        assert files.names() == ["a", "b", "c", "d", "e", "large"]
        np.testing.assert_array_equal(files.read("large", (50,)), np.zeros(50))


def test_a_tensor_of_another_shape_than_announced_is_not_written(tmp_path):
    wrong = Tensor("x", (4,), lambda: np.ones(3))
    with pytest.raises(ValueError, match=r"x has shape \(3,\), expected \(4,\)"):
        write_tensors(tmp_path, [wrong], "float32", 10**9)
    assert not list(tmp_path.iterdir())
