"""Encoding, indexing, answering and generation on eight simulated devices equal those on one."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from cli_world import write_lines

from grit_jax.inference.model import GritLM
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.sharding import MeshConfig, make_mesh

MESHES = {
    "tensor 2 x fsdp 4": MeshConfig(data=1, fsdp=4, tensor=2),
    "data 8": MeshConfig(data=8, fsdp=1),
}


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def on_devices(directory):
    """From the name of a mesh to the model on it, opened once."""
    return functools.cache(
        lambda name: GritLM.from_pretrained(directory, mesh=make_mesh(MESHES[name]))
    )


def bytes_by_device(model):
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(model.params):
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return list(held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_no_device_holds_all_weights(dtype, directory):
    whole = bytes_by_device(GritLM.from_pretrained(directory, dtype))
    assert whole[0] > 0 and not any(whole[1:])
    mesh = make_mesh(MESHES["tensor 2 x fsdp 4"])
    split = bytes_by_device(GritLM.from_pretrained(directory, dtype, mesh=mesh))
    # Norms and the scales of inputs are whole; this model is small enough that they count.
    assert max(split) < whole[0] / 4 and len(set(split)) == 1
    copies = GritLM.from_pretrained(directory, dtype, mesh=make_mesh(MESHES["data 8"]))
    assert bytes_by_device(copies) == [whole[0]] * 8


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_encode_and_decode_as_one(mesh, on_devices, tiny_model, sentences):
    many = on_devices(mesh)
    texts = sentences[:11]  # not a multiple of eight
    one, other = (m.encode(texts, return_cache=True) for m in (tiny_model, many))
    np.testing.assert_allclose(other.vectors, one.vectors, atol=1e-5)
    for own, cache in zip(one.caches, other.caches, strict=True):
        np.testing.assert_allclose(cache.k, own.k, atol=1e-4)
        np.testing.assert_allclose(cache.v, own.v, atol=1e-4)
    prompts = tiny_model.prompt_ids(texts[:3])
    records = [[one.caches[0]], [], [one.caches[1], one.caches[2]]]
    a, b = (
        m.generate_ids(prompts, records=records, return_logits=True) for m in (tiny_model, many)
    )
    assert a.tokens == b.tokens
    np.testing.assert_allclose(b.logits, a.logits, atol=1e-3)
    logits = (m([[1, 2, 3]]).logits for m in (tiny_model, many))
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert tiny_model.weights_hash == many.weights_hash


@pytest.mark.parametrize(
    "mesh", ["tensor 2 x fsdp 4", pytest.param("data 8", marks=pytest.mark.slow)]
)
def test_eight_devices_index_and_answer_as_one(mesh, on_devices, tiny_model, sentences, tmp_path):
    many = on_devices(mesh)
    corpus = write_lines(
        tmp_path / "corpus.jsonl",
        *({"id": f"d{i}", "text": t} for i, t in enumerate(sentences[:9])),
    )
    folders = {"one": tiny_model, "many": many}
    for name, model in folders.items():
        build_index(model, corpus, tmp_path / name, IndexOptions(kv="native"))
    # Either index serves either model.
    opened = [Index.open(tmp_path / name, many) for name in folders]
    own = Index.open(tmp_path / "one", tiny_model)
    assert list(opened[0].documents) == list(opened[1].documents)
    np.testing.assert_allclose(opened[1].vectors, own.vectors, atol=1e-5)
    for mode in ("doc-then-query", "query-doc"):
        ask = lambda model, index, mode=mode: Asker(model, index).ask(
            sentences[2], mode=mode, k=2, max_new_tokens=6
        )[0]
        expected = ask(tiny_model, own)
        for index in opened:
            answer = ask(many, index)
            assert answer.answer == expected.answer
            assert [d["id"] for d in answer.documents] == [d["id"] for d in expected.documents]
            scores = ([d["score"] for d in a.documents] for a in (answer, expected))
            np.testing.assert_allclose(*scores, atol=1e-5)
