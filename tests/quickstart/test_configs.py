"""The training configurations of the quickstart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from grit_jax.models.config import ModelConfig
from grit_jax.quickstart import configs
from grit_jax.quickstart import run as quickstart
from grit_jax.text.rag_layouts import MODES
from grit_jax.train import RunConfig, read_run_config

BASE = Path(quickstart.__file__).parent / "base_model"
CONFIGS = Path(__file__).parents[2] / "configs"


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


def test_all_three_losses_are_trained_from_the_shipped_base():
    config = configs.joint_config(7)
    assert (config.train.seed, config.train.steps, config.model.path) == (7, configs.STEPS, "base")
    assert configs.joint_config(7, 9).train.steps == 9
    data = config.data
    assert data.embedding_batch and data.generative_batch and data.cached_batch
    assert set(data.layouts) == set(MODES) - {"none"}
    held_out = {config.train.eval_embedding, config.train.eval_generative}
    trained = {*data.embedding, *data.generative, *data.cached}
    assert held_out and not held_out & trained
    assert {Path(name).parent.name for name in held_out} == {"heldout"}


def test_the_base_from_scratch_is_a_shorter_warm_up_of_the_shipped_one():
    """But for its length, it differs from the YAML in the kind of the language loss and in what
    belongs to an embedding side, which neither has."""
    shipped = read_run_config(CONFIGS / "quickstart_base_warmup.yaml")
    made = configs.base_config(0)
    assert made.model == shipped.model and made.model.shape == configs.SHAPE
    names = lambda files: [Path(name).name for name in files]
    for side in ("generative", "cached"):
        assert names(getattr(made.data, side)) == names(getattr(shipped.data, side))
    assert not made.data.embedding and not shipped.data.embedding
    different = {
        field.name
        for field in dataclasses.fields(made.data)
        if getattr(made.data, field.name) != getattr(shipped.data, field.name)
    }
    assert different == {"generative", "cached", "passage_max_length", "row_length"}
    assert made.train.steps < shipped.train.steps
    assert made.optimizer.lr == shipped.optimizer.lr


def test_every_text_of_a_row_fits_it():
    """Lengths in tokens; a row of cached documents takes the longest of them."""
    for data in (configs.joint_config(0).data, configs.base_config(0).data):
        assert max(data.query_max_length, data.passage_max_length) <= data.row_length
        assert data.generative_max_length <= data.generative_row_length
        assert data.document_max_length <= data.pieces_row_length
