"""The quickstart: its folder, its configurations, and (slow) a small one run twice and killed
once."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import yaml

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.pydocs import corpus
from grit_jax.quickstart import configs
from grit_jax.quickstart import run as quickstart
from grit_jax.text.rag_layouts import MODES
from grit_jax.train import RunConfig, read_run_config

BASE = Path(quickstart.__file__).parent / "base_model"


def test_the_shipped_base_is_small_and_of_the_announced_shape():
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 8_000_000
    config = json.loads((BASE / "config.json").read_text())
    shape = configs.SHAPE
    for key in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ):
        assert config[key] == getattr(shape, key), key


def test_a_folder_of_another_seed_is_refused(tmp_path):
    quickstart._claim(tmp_path, {"seed": 0, "from_scratch": False})
    quickstart._claim(tmp_path, {"seed": 0, "from_scratch": False})
    with pytest.raises(GritError, match="--seed 0"):
        quickstart._claim(tmp_path, {"seed": 1, "from_scratch": False})
    (tmp_path / "file").write_text("")
    with pytest.raises(GritError, match="another --out"):
        quickstart._claim(tmp_path / "file", {"seed": 0, "from_scratch": False})


@pytest.mark.parametrize("make", [configs.joint_config, configs.base_config])
def test_its_configurations_survive_yaml_with_relative_paths(make, tmp_path):
    config = make(3)
    text = quickstart.dump_yaml(config, "grit train train.yaml")
    assert text.startswith("# grit train")
    tree = yaml.safe_load(text)
    assert {"model", "tokenizer", "data", "train", "optimizer", "mesh", "output"} <= tree.keys()
    (tmp_path / "train.yaml").write_text(text)
    read = read_run_config(tmp_path / "train.yaml")
    assert isinstance(read, RunConfig) and read.train.seed == 3
    assert all(Path(name).is_relative_to(tmp_path) for name in read.data.cached)
    assert isinstance(read.model.shape, ModelConfig | None)


def small(monkeypatch):
    """The same job on 400 documents and a few steps."""
    joint = configs.joint_config

    def short(seed):
        config = joint(seed)
        train = dataclasses.replace(config.train, steps=4, checkpoint_every=2)
        data = dataclasses.replace(
            config.data, embedding_batch=8, generative_batch=4, cached_batch=4
        )
        return dataclasses.replace(config, train=train, data=data)

    monkeypatch.setattr(quickstart, "joint_config", short)
    monkeypatch.setattr(
        corpus,
        "write_corpus",
        functools.partial(corpus.write_corpus, max_documents=400, progress=False),
    )


def without_clock(value):
    """A report without what the clock or the folder says."""
    if isinstance(value, dict):
        clock = ("seconds", "timings", "commands")
        return {key: without_clock(item) for key, item in value.items() if key not in clock}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_also_after_an_interruption(tmp_path, monkeypatch):
    small(monkeypatch)
    first = quickstart.run_quickstart(tmp_path / "one", seed=5)
    assert set(first["rag"]) == set(MODES) and set(first["rag"]["doc"]) >= {"match", "seconds"}
    assert {"trained", "untrained", "bm25", "base"} <= first["retrieval"].keys()
    for name in (
        "report.json",
        "report.html",
        "train.yaml",
        "model/config.json",
        "index/index.json",
    ):
        assert (tmp_path / "one" / name).exists(), name

    build_index = quickstart.build_index
    monkeypatch.setattr(
        quickstart, "build_index", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        quickstart.run_quickstart(tmp_path / "two", seed=5)
    assert not (tmp_path / "two" / "report.json").exists()
    monkeypatch.setattr(quickstart, "build_index", build_index)
    second = quickstart.run_quickstart(tmp_path / "two", seed=5)
    assert without_clock(second) == without_clock(first)
    # A finished folder is reported, not redone.
    assert quickstart.run_quickstart(tmp_path / "two", seed=5) == second
