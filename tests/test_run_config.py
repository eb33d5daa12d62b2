"""The configuration of a run: its keys, their defaults and what they may be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import planned_run
import pytest
import training_run
import yaml

from grit_jax.config import dump_yaml
from grit_jax.data.config import DataConfig
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig
from grit_jax.run_config import (
    ModelSection,
    RunConfig,
    TrainSection,
    batch_needs,
    fit_to_context,
    fit_to_mesh,
    read_run_config,
    settings_of,
    step_config,
)
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.losses import LossConfig


@pytest.fixture
def config(tmp_path) -> Path:
    """The path of a configuration that names files which are not there."""
    return planned_run.write_run(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    """The folder of `config.yaml` with all kinds of data, and of `lora.yaml`, which trains
    adapters of a model."""
    root = training_run.write_run(tmp_path_factory.mktemp("run"), sentences)
    run = yaml.safe_load((root / "config.yaml").read_text())
    run["model"] = {"path": "base", "dtype": "float32", "remat": "none", "projection": 12}
    run["lora"] = {"rank": 4, "alpha": 8, "base": "int4"}
    del run["tokenizer"]
    (root / "lora.yaml").write_text(yaml.safe_dump(run))
    return root


def test_rows_and_chunks_of_a_run_divide_among_its_devices(config, capsys):
    """Those that do not would be computed whole on every device."""

    def fitted(mesh, **keys):
        overrides = {key.replace("__", "."): str(value) for key, value in keys.items()}
        return fit_to_mesh(read_run_config(config, overrides), make_mesh(mesh, jax.devices()[:8]))

    multiples = [(2, MeshConfig()), (12, MeshConfig()), (3, MeshConfig(2, 2, 2))]
    assert [fitted(mesh, data__row_multiple=n).data.row_multiple for n, mesh in multiples] == [
        8,
        24,
        12,
    ]
    assert fitted(MeshConfig()).train.embedding_chunk == 8 and capsys.readouterr().err == ""
    odd = {"train__embedding_chunk": 12, "train__generative_chunk": 2, "train__cached_chunk": 3}
    train = fitted(MeshConfig(2, 2, 2), **odd).train
    assert (train.embedding_chunk, train.generative_chunk, train.cached_chunk) == (12, 4, 4)
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0] == "train.generative_chunk: 4 instead of 2, because rows are split over 4 devices"
        and len(said) == 2
    )


def test_relative_paths_are_relative_to_the_yaml_and_overrides_to_the_working_directory(
    folder, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    config = read_run_config(folder / "config.yaml", {"output": "here"})
    assert config.data.embedding == [str(folder / "embedding.jsonl")] and config.output == "here"


def test_the_configurations_of_these_tests_load(config, folder):
    for path in (config, folder / "config.yaml", folder / "lora.yaml"):
        assert isinstance(read_run_config(path), RunConfig)


def test_every_shipped_configuration_loads():
    for path in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")):
        assert isinstance(read_run_config(path), RunConfig)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.attention": "bccb"}, "model.attention: must be one of bbcc, .*, bc, got 'bccb'"),
        ({"model.projection": 0}, "model.projection: must be at least 1, got 0"),
        ({"train.embedding_chunk": 0}, "train.embedding_chunk: must be at least 1 row"),
        (
            {"train.gradient": "query", "train.backward": "split"},
            "train.backward: split needs train.gradient: both",
        ),
        (
            {"train.gradient": "queries"},
            "train.gradient: expected one of both, query, passage, got 'queries'",
        ),
        ({"train.backward": "twice"}, "train.backward: expected one of joint, separate, split"),
        ({"train.eval_every": -1}, "train.eval_every: must be at least 0"),
        ({"data.positives_per_query": 0}, "data.positives_per_query: must be at least 1"),
        (
            {"train.loss.matryoshka_dims": [4, 4]},
            "train.loss.matryoshka_dims: must be different numbers",
        ),
        (
            {"train.loss.false_negatives": "all"},
            "false_negatives: expected one of none, absolute, relative",
        ),
        (
            {"train.loss.matryoshka_dims": [4.5]},
            "train.loss.matryoshka_dims.*expected an integer",
        ),
    ],
)
def test_nonsense_in_a_configuration(folder, overrides, message):
    texts = {
        key: json.dumps(value) if isinstance(value, list) else str(value)
        for key, value in overrides.items()
    }
    with pytest.raises(GritError, match=message):
        read_run_config(folder / "config.yaml", texts)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lora.targets": "[w1]"}, "lora.targets"),
        ({"lora.rank": "0"}, "lora.rank: must be at least 1"),
        ({"lora.base": "int2"}, "lora.base: expected one of full, int8, int4, got 'int2'"),
        ({"model.preset": "gpt_5"}, "model.preset: must be one of mistral_7b, .*, got 'gpt_5'"),
        ({"lora.rnak": "3"}, "did you mean 'lora.rank'"),
        (
            {"model.path": "null", "model.preset": "qwen3_0_6b"},
            "adapters need a trained model; set model.path",
        ),
    ],
)
def test_a_bad_configuration_is_refused_by_key(folder, change, words):
    with pytest.raises(GritError, match=words):
        read_run_config(folder / "lora.yaml", change)


GENERATIVE = DataConfig(generative=["g.jsonl"], generative_batch=4, generative_max_length=2048)


def test_no_step_is_made_for_such_lengths():
    with pytest.raises(GritError, match="data.generative_max_length"):
        run = RunConfig(model=ModelSection(path="m"), output="x", data=GENERATIVE)
        step_config(run, ModelConfig(max_position_embeddings=512))


def test_a_configuration_says_what_it_lowers_and_its_yaml_repeats_it(capsys, tmp_path):
    data = DataConfig(generative=["g.jsonl"], generative_batch=4)
    run = RunConfig(model=ModelSection(path="m"), output="x", data=data)
    lowered = fit_to_context(run, ModelConfig(max_position_embeddings=512))
    assert "data.generative_max_length: 512 tokens, the model's context" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(dump_yaml(lowered))
    again = read_run_config(tmp_path / "run.yaml")
    assert again.data.generative_max_length == 512 and again.data.query_max_length == 256
    step_config(again, ModelConfig(max_position_embeddings=512))


@pytest.mark.parametrize(
    "data, words",
    [
        (
            {"embedding_batch": 8, "passage_max_length": 258},
            r"data.row_length: must be a multiple of mesh.context \(4\), got 258 tokens",
        ),
        (
            {"generative_batch": 8, "generative_row_length": 2050},
            "data.generative_row_length: must be a multiple .*, got 2050 tokens",
        ),
        (
            {"cached_batch": 8, "pieces_row_length": 2306},
            "data.pieces_row_length: must be a multiple .*, got 2306 tokens",
        ),
        (
            {"cached_batch": 8, "cached_row_length": 2049},
            "data.cached_row_length: must be .*, got 2049 tokens",
        ),
        (
            {"cached_batch": 8, "teacher_row_length": 2049},
            "data.teacher_row_length: must be .*, got 2049 tokens",
        ),
    ],
)
def test_lengths_that_do_not_divide_are_refused_by_key(data, words):
    sources = {kind: ["x.jsonl"] for kind in ("embedding", "generative", "cached")}
    train = TrainSection(loss=LossConfig(cached_distillation=1.0))
    run = RunConfig(ModelSection(path="x"), "out", data=DataConfig(**sources, **data), train=train)
    mesh = make_mesh(MeshConfig(1, 2, 1, context=4), jax.devices()[:8])
    with pytest.raises(GritError, match=words):
        fit_to_mesh(run, mesh)
    even = {key: value if value == 8 else 4096 for key, value in data.items()}
    assert (
        fit_to_mesh(
            dataclasses.replace(run, data=DataConfig(**sources, **even)), mesh
        ).data.row_multiple
        == 8
    )


def test_a_base_teaches_adapters_alone():
    """And its sources are files, which are resolved and stand in no settings."""
    train = TrainSection(loss=LossConfig(generative_distillation=0.5))
    data = DataConfig(generative=["a.jsonl"], distilled=["a.jsonl"])
    model = ModelSection(path="x")
    run = RunConfig(model, "out", data=data, train=train, lora=LoraConfig())
    assert batch_needs(run).base_teacher and not any(
        "data.distilled" in key for key in settings_of(run)
    )
    with pytest.raises(
        ValueError, match="generative_distillation: the teacher is the model without"
    ):
        RunConfig(model, "out", data=data, train=train)
    with pytest.raises(ValueError, match="data.distilled has no effect with"):
        RunConfig(model, "out", data=data, lora=LoraConfig())


def test_preferences_are_checked_with_their_loss():
    model, data = (
        ModelSection(preset="mistral_7b"),
        DataConfig(preference=["p"], preference_batch=4),
    )
    loss = lambda **how: TrainSection(loss=LossConfig(**how))
    run = RunConfig(model, "out", data=data, train=loss(preference="dpo"))
    assert batch_needs(run).preference == "dpo" and run.copies_reference
    assert not any(key == "data.preference" for key in settings_of(run))
    adapters = RunConfig(ModelSection(path="x"), "out", data=data, lora=LoraConfig())
    assert not adapters.copies_reference  # they have their base
    one = dataclasses.replace(data, preference_batch=1)
    with pytest.raises(ValueError, match="preference_batch: must be at least 2 with .*: kto"):
        RunConfig(model, "out", data=one)
    RunConfig(model, "out", data=one, train=loss(preference="dpo"))
    narrow = dataclasses.replace(data, preference_row_length=3000)
    RunConfig(model, "out", data=narrow)
    with pytest.raises(ValueError, match="preference_row_length: must be at least 4096 with"):
        RunConfig(model, "out", data=narrow, train=loss(preference="dpo"))
    with pytest.raises(ValueError, match="preference_batch: is 4, but data.preference names no"):
        DataConfig(preference_batch=4)


def test_settings_name_no_file_and_a_preset_is_its_shape():
    config = RunConfig(ModelSection(preset="mistral_7b"), "/somewhere/run")
    settings = settings_of(config)
    assert "/somewhere" not in json.dumps(settings) and "output" not in settings
    shape = ModelSection(preset="mistral_7b").known_shape
    assert settings == settings_of(RunConfig(ModelSection(shape=shape), "elsewhere"))
    assert settings["train.loss.temperature"] == 0.02 and settings["model.pooling"] == "mean"
    assert settings["model.shape.hidden_size"] == shape.hidden_size
