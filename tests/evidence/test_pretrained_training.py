"""The recipes of the evidence on a pretrained model, and how they are filled in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from evidence_corpus import write_corpus

import grit_jax
from grit_jax.config import build
from grit_jax.data.config import DataConfig
from grit_jax.data.pipeline import JointBatches
from grit_jax.errors import GritError
from grit_jax.evidence import pretrained_training
from grit_jax.evidence.pretrained_run import PretrainedOptions, PretrainedRun
from grit_jax.evidence.pretrained_training import Trainer, training_cost
from grit_jax.evidence.recipes import DISTILLATION_MODELS, JOINT_MODELS, pretrained_recipe
from grit_jax.run_config import RunConfig, read_run_config
from grit_jax.runtime.files import write_jsonl
from grit_jax.train import TrainResult
from grit_jax.training.losses import LossConfig

CONFIGS = Path(grit_jax.__file__).parents[1] / "configs"


def recipe(name: str) -> RunConfig:
    return build(RunConfig, yaml.safe_load(pretrained_recipe(name)), name)


@pytest.fixture
def trainer(tiny_model, sentences, tmp_path, monkeypatch):
    """Of a tiny base, with conversations; the working directory is the output's parent."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "model")
    write_corpus(tmp_path / "data", sentences)
    write_jsonl(tmp_path / "chat.jsonl", [{"text": [text, "Yes."]} for text in sentences[:20]])
    (tmp_path / "x").mkdir()
    options = PretrainedOptions("model", None, Path("data"), chat=Path("chat.jsonl"))
    return Trainer(PretrainedRun(Path("x"), options))


def with_options(trainer: Trainer, **changes) -> Trainer:
    options = dataclasses.replace(trainer.run.options, **changes)
    return Trainer(PretrainedRun(trainer.run.out, options))


def test_they_are_derived_from_the_recipe_of_the_shipped_adapter():
    shipped = read_run_config(CONFIGS / "smollm2_135m_grit.yaml")
    for name in (*JOINT_MODELS, *DISTILLATION_MODELS):
        config = recipe(name)
        assert (config.tokenizer, config.lora) == (shipped.tokenizer, shipped.lora)
        assert config.model == dataclasses.replace(shipped.model, path="smollm2")
        assert config.output == f"seed-0/{name}"
    assert recipe("distilled").train.loss == shipped.train.loss


def test_variants_differ_in_their_losses_alone():
    plain = lambda config: dataclasses.replace(
        config,
        output="",
        data=DataConfig(),
        train=dataclasses.replace(config.train, loss=LossConfig()),
    )
    joint = {name: recipe(name) for name in JOINT_MODELS}
    assert plain(joint["unified"]) == plain(joint["embedding"]) == plain(joint["generative"])
    both = joint["unified"].data
    without = lambda data, *keys: dataclasses.replace(
        data, num_samples={}, **{key: 0 if key.endswith("batch") else [] for key in keys}
    )
    generative = without(both, "embedding", "embedding_batch")
    assert without(joint["generative"].data) == generative
    embedding = without(both, "generative", "distilled", "generative_batch")
    assert without(joint["embedding"].data) == embedding
    distilled, undistilled = map(recipe, DISTILLATION_MODELS)
    assert plain(distilled) == plain(undistilled) and distilled.data == undistilled.data
    assert distilled.train.loss == dataclasses.replace(
        undistilled.train.loss, cached_distillation=1.0
    )
    assert undistilled.train.loss.cached_distillation == 0


def test_variants_see_the_same_examples_in_the_same_order(trainer, tiny_tokenizer):
    trainer._write_several()
    batches = {}
    for name in (*JOINT_MODELS, *DISTILLATION_MODELS):
        data = trainer.config(name).data
        batch = min(data.embedding_batch, 4)  # of the few examples here
        data = dataclasses.replace(data, probe_steps=0, embedding_batch=batch)
        batches[name] = JointBatches(data, tiny_tokenizer, seed=3, num_steps=6)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    for step in (0, 5):
        unified, embedding, generative = (batches[name][step] for name in JOINT_MODELS)
        assert embedding.generative is None and generative.embedding is None
        same(unified.embedding, embedding.embedding)
        same(unified.generative, generative.generative)
        assert batches["distilled"].ids(step) == batches["undistilled"].ids(step)


def test_a_recipe_is_filled_in(trainer, tmp_path):
    config = with_options(trainer, steps=5).config("distilled")
    assert (config.model.path, config.model.preset) == (str(tmp_path / "model"), None)
    assert (config.tokenizer.chat, config.train.steps) == ("grit", 5)
    assert config.data.cached == [str(tmp_path / "x/several.jsonl")]
    assert config.data.distilled == [str(tmp_path / "chat.jsonl")] == config.data.generative[:1]
    documentation = str(tmp_path / "data/train/generative.jsonl")
    assert config.data.generative[1:] == [documentation]
    assert config.data.num_samples[documentation] == 400
    assert config.train.loss.generative_distillation == 3
    alone = with_options(trainer, chat=None).config("distilled")
    assert (alone.data.generative, alone.data.distilled) == ([documentation], [])
    assert alone.train.loss.generative_distillation == 0 and alone.train.steps == 24
    # The packaged base stays what the recipe says, without being opened.
    packaged = with_options(trainer, base="smollm2").config("unified")
    assert (packaged.model, packaged.tokenizer) == (
        recipe("unified").model,
        recipe("unified").tokenizer,
    )


def test_the_configuration_is_written_once_and_run_with_each_seed(trainer, tmp_path, monkeypatch):
    runs = []

    def train(config):
        runs.append(config)
        return TrainResult(config.output, Path(config.output) / "model", 1)

    monkeypatch.setattr(pretrained_training, "train", train)
    folders = [trainer.train("distilled", seed) for seed in (0, 1)]
    assert folders == [tmp_path / f"x/seed-{seed}/distilled" for seed in (0, 1)]
    assert [config.train.seed for config in runs] == [0, 1]
    typed = read_run_config("x/distilled.yaml")
    assert typed == trainer.config("distilled")
    lines = [json.loads(line) for line in Path("x/several.jsonl").read_text().splitlines()]
    assert [len(line["docs"]) for line in lines[:5]] == [1, 1, 2, 3, 5] and len(lines) == 40
    with pytest.raises(GritError, match=r"distilled\.yaml: differs from what this version and"):
        with_options(trainer, steps=9).train("distilled", 0)


def test_the_base_is_scored_as_variants_start_from_it(trainer, tiny_model):
    base = trainer.base()
    assert base.chat.name == "grit" and base.weights_hash == tiny_model.weights_hash
    assert (base.pooling, base.mode) == (tiny_model.pooling, tiny_model.mode)


def test_the_cost_of_a_training(tmp_path):
    lines = [{"step": 0, "tokens": 10, "seconds": 1.25}, {"step": 1, "tokens": 12, "seconds": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_cost(tmp_path) == {"steps": 2, "tokens": 22, "seconds": 3.2}
