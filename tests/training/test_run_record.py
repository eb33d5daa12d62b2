"""What a checkpoint says of its run, and what of that may change when the run goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from grit_jax.errors import GritError
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.training import run_record
from grit_jax.training.run_record import (
    Input,
    RunRecord,
    check_inputs,
    check_settings,
    describe_file,
    describe_weights,
    is_about_batches,
)

SETTINGS = {
    "model.pooling": "mean",
    "model.shape.hidden_size": 32,
    "model.shape.initializer_range": 0.02,
    "tokenizer.chat": "grit",
    "data.embedding_batch": 8,
    "data.workers": 2,
    "train.seed": 0,
    "optimizer.lr": 1e-3,
    "mesh.fsdp": 8,
    "lora": None,
}
INPUTS = {
    "data.embedding[0]": Input("pairs.jsonl", "100 lines", "aa"),
    "tokenizer": Input("base", "480 ids", "tt"),
    "train.eval_embedding": Input("held.jsonl", "9 lines", "ee"),
}
BEFORE = RunRecord(SETTINGS, INPUTS)


def test_a_record_returns_from_json_and_an_unknown_one_is_none():
    assert RunRecord.from_json(json.loads(json.dumps(BEFORE.to_json()))) == BEFORE
    assert RunRecord.from_json(BEFORE.to_json() | {"version": 99}) is None
    assert RunRecord.from_json({"version": 1, "settings": {}, "inputs": {"a": 1}}) is None


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, []),
        ({"data.embedding_batch": 16}, ["data.embedding_batch 8 -> 16"]),
        ({"train.seed": 1}, ["train.seed 0 -> 1"]),
        ({"optimizer.lr": 2e-3}, ["optimizer.lr 0.001 -> 0.002"]),
        ({"model.shape.initializer_range": 0.1}, ["model.shape.initializer_range 0.02 -> 0.1"]),
        ({"mesh.fsdp": 4, "data.workers": 8}, []),
        ({"data.new_key": True}, ["data.new_key unset -> true"]),
    ],
)
def test_settings_that_may_change(change, said):
    assert check_settings(BEFORE, SETTINGS | change, "step 3") == said


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.pooling": "cls"}, "^step 3 was made with model.pooling mean, .* has cls: "),
        ({"model.shape.hidden_size": 64}, "model.shape.hidden_size 32, .* has 64"),
        ({"tokenizer.chat": "llama3"}, "set it back, or train into another output"),
        ({"model.projection": 12}, "model.projection unset, .* 12"),
        ({"lora.rank": 8}, "holds all weights, this configuration trains adapters"),
    ],
)
def test_settings_that_make_another_model(change, message):
    with pytest.raises(GritError, match=message):
        check_settings(BEFORE, SETTINGS | change, "step 3")


def test_inputs_that_may_change_and_a_tokenizer_that_may_not():
    check = lambda change: check_inputs(BEFORE, {**INPUTS, **change}, "step 3")
    assert check({}) == []
    assert check({"data.embedding[0]": Input("moved/pairs.jsonl", "100 lines", "aa")}) == []
    assert check({"data.embedding[0]": Input("p.jsonl", "99 lines", "bb")}) == [
        "data.embedding[0] p.jsonl: 100 lines -> 99 lines, other content"
    ]
    assert check({"data.embedding[0]": Input("p.jsonl", "100 lines", "bb")}) == [
        "data.embedding[0] p.jsonl: 100 lines as before, other content"
    ]
    assert check({"data.embedding[0]": Input("p.jsonl", "100 lines, 9 used", "aa")}) == [
        "data.embedding[0] p.jsonl: 100 lines -> 100 lines, 9 used"
    ]
    assert check({"data.cached[0]": Input("c.jsonl", "1 lines", "c")}) == [
        "data.cached[0] c.jsonl is new"
    ]
    assert check_inputs(BEFORE, {"tokenizer": INPUTS["tokenizer"]}, "") == [
        "data.embedding[0] is gone",
        "train.eval_embedding is gone",
    ]
    with pytest.raises(GritError, match="step 3 was made with another tokenizer .480 ids, content"):
        check({"tokenizer": Input("base", "480 ids", "uu")})


def test_a_reference_model_may_not_change():
    """It is in no checkpoint: the weights at `model.path`, or those that the seed draws."""
    settings = SETTINGS | {"data.preference_batch": 8}
    drawn = RunRecord(settings, INPUTS)
    with pytest.raises(GritError, match="step 3 was made with train.seed 0, which drew"):
        check_settings(drawn, settings | {"train.seed": 1}, "step 3")
    weights = Input("base", "9 bytes of weights", "ww")
    loaded = RunRecord(settings, INPUTS | {"model.path": weights})
    assert check_settings(loaded, settings | {"train.seed": 1}, "") == ["train.seed 0 -> 1"]
    other = INPUTS | {"model.path": Input("other", "9 bytes of weights", "oo")}
    with pytest.raises(GritError, match="whose reference model was base .* other is another one"):
        check_inputs(loaded, other, "step 3")
    assert check_inputs(RunRecord(SETTINGS, loaded.inputs), other, "step 3") == [
        "model.path other: 9 bytes of weights as before, other content"
    ]


@pytest.mark.parametrize(
    "change, about",
    [
        ("data.embedding[0] p.jsonl: 100 lines -> 99 lines, other content", True),
        ("data.embedding_batch 8 -> 16", True),
        ("train.seed 0 -> 1", True),
        ("train.eval_embedding h.jsonl: 1 lines -> 2 lines, other content", False),
        ("optimizer.lr 0.001 -> 0.002", False),
    ],
)
def test_which_changes_make_other_batches(change, about):
    assert is_about_batches(change) is about


@pytest.mark.parametrize("whole", [1 << 26, 16], ids=["whole files", "samples of each tensor"])
def test_weights_are_known_by_what_is_in_them(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(run_record, "WHOLE_FILE", whole)
    (tmp_path / "config.json").write_text('{"a": 1}')
    tensors = {
        "x": np.arange(30000, dtype=np.float32).reshape(300, 100),
        "y": np.zeros(3, np.float32),
    }

    def digest() -> str:
        save_file(tensors, tmp_path / "model.safetensors")
        return describe_weights(tmp_path, "base").digest

    first = digest()
    assert digest() == first
    tensors["y"][2] = 1
    second = digest()
    tensors["x"] = tensors["x"] + 1
    third = digest()
    (tmp_path / "config.json").write_text('{"a": 2}')
    assert len({first, second, third, digest()}) == 4
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    if whole == 16:
        with pytest.raises(GritError, match="model.safetensors: not a readable safetensors file"):
            describe_weights(tmp_path, "base")


def test_a_held_out_file_is_parsed_to_its_end(tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(GritError, match="held.jsonl:2"):
        describe_file(tmp_path / "held.jsonl", "generative")
    with pytest.raises(GritError, match="nowhere.jsonl: no such file"):
        describe_file(tmp_path / "nowhere.jsonl", "generative")


def test_a_tokenizer_is_known_by_its_file(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path)
    read = lambda: Tokenizer.from_pretrained(tmp_path)
    assert read().digest == read().digest
    ids = read().encode("river")
    file = tmp_path / "tokenizer.json"
    tree, first = json.loads(file.read_text()), read().digest
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, dict):
        a, b = list(vocabulary)[-2:]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    else:
        vocabulary[-1][1] -= 1
    file.write_text(json.dumps(tree))
    assert read().digest != first and len(ids) > 0
