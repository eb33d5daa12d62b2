"""Configurations: YAML and overrides, strictly; errors name the file, the key and the nearest known
one."""

import dataclasses
from typing import Literal

import pytest
import yaml

from grit_jax.config import dump_yaml, load_config, to_dict
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    kind: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Data:
    embedding: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    name: str | None = None
    resume: bool = True
    optimizer: Optimizer = Optimizer()
    data: Data = dataclasses.field(default_factory=Data)
    model: ModelConfig | None = None


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults():
    assert load_config(Config, None) == Config()


def test_yaml_and_overrides(write):
    path = write(
        "steps: 20\noptimizer: {learning_rate: 2e-5}\n"
        "model: {hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2}\n"
    )
    config = load_config(
        Config, path, {"optimizer.kind": "muon", "steps": "30", "model.sliding_window": "128"}
    )
    assert (config.steps, config.optimizer.kind, config.optimizer.learning_rate) == (
        30,
        "muon",
        2e-5,
    )
    assert (config.model.head_dim, config.model.sliding_window) == (16, 128)
    assert config.model.vocab_size == ModelConfig().vocab_size  # what is not said stays
    # Values as typed: null, booleans, lists, scientific notation without a point.
    config = load_config(
        Config, path, {"name": "null", "resume": "false", "optimizer.betas": "[0.8, 0.9]"}
    )
    assert (config.name, config.resume, tuple(config.optimizer.betas)) == (None, False, (0.8, 0.9))
    assert (
        load_config(Config, None, {"optimizer.learning_rate": "3e-4"}).optimizer.learning_rate
        == 3e-4
    )
    assert load_config(Config, None, {"steps": 7}).steps == 7


def test_an_override_keeps_its_neighbours(write):
    path = write("optimizer: {learning_rate: 0.5, kind: muon}")
    assert load_config(Config, path, {"optimizer.learning_rate": "0.25"}).optimizer == Optimizer(
        0.25, "muon"
    )


@pytest.mark.parametrize(
    "text, overrides, words",
    [
        ("stepss: 1", {}, ["run.yaml", "unknown key 'stepss'", "did you mean 'steps'"]),
        (
            "optimizer: {learning_rat: 1}",
            {},
            ["'optimizer.learning_rat'", "did you mean 'optimizer.learning_rate'"],
        ),
        (
            "",
            {"optimizer.kindd": "adamw"},
            ["command line", "'optimizer.kindd'", "did you mean 'optimizer.kind'"],
        ),
        ("zzzz: 1", {}, ["'zzzz'", "known: .*steps"]),
        (
            "optimizer: {zzzz: 1}",
            {},
            ["'optimizer.zzzz'", "known in 'optimizer': betas, kind, learning_rate"],
        ),
        ("steps: many", {}, ["run.yaml", "steps", "many"]),
        ("", {"steps": "1.5"}, ["steps"]),
        ("", {"steps": "[1"}, ["command line", "steps"]),
        ("", {"steps": "many"}, ["command line: steps: expected a whole number, found 'many'"]),
        ("steps:", {}, ["run.yaml: key 'steps' has no value"]),
        ("optimizer:", {}, ["run.yaml: key 'optimizer' has no value"]),
        (
            "optimizer: {kind: sgd}",
            {},
            ["run.yaml: optimizer.kind: expected one of adamw, muon, found 'sgd'"],
        ),
        ("optimizer: fast", {}, ["'optimizer' expects a mapping"]),
        ("model: {num_attention_heads: 5}", {}, [r"run.yaml: model.num_attention_heads \(5\)"]),
        (
            "model: {hidden_size: big}",
            {},
            ["run.yaml: model.hidden_size: expected a whole number, found 'big'"],
        ),
        ("name: [1]", {}, [r"run.yaml: name: expected a text, found '\[1\]'"]),
        ("steps: [1", {}, ["run.yaml:", "not valid YAML"]),
        ("- steps", {}, ["run.yaml", "expected a mapping"]),
    ],
)
def test_errors_name_the_place(write, text, overrides, words):
    text = text or "steps: 1"
    with pytest.raises(GritError, match="(?s)" + ".*".join(words)) as caught:
        load_config(Config, write(text), overrides)
    assert "\n" not in str(caught.value)  # one line on a terminal


def test_no_such_file(tmp_path):
    with pytest.raises(GritError, match="absent.yaml: no such file"):
        load_config(Config, tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GritError, match="binary.yaml: cannot be read"):
        load_config(Config, tmp_path / "binary.yaml")


def test_file_names_are_relative_to_their_file(write, tmp_path):
    path = write(
        "data:\n  embedding: [a.jsonl, 'b/*.jsonl', 'tfds:set', /c/d.jsonl]\n  weights: {a.jsonl:"
        " 2.0}\n"
    )
    keys = ("data.embedding", "data.weights", "name")
    config = load_config(Config, path, {"name": "here"}, paths=keys)
    assert config.data.embedding == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b/*.jsonl"),
        f"tfds:{tmp_path / 'set'}",
        "/c/d.jsonl",
    ]
    assert config.data.weights == {str(tmp_path / "a.jsonl"): 2.0}
    assert config.name == "here"  # the command line's are relative to the working directory


def test_dump_and_load_again(write):
    config = Config(
        steps=3, optimizer=Optimizer(2e-5, "muon"), model=ModelConfig(qk_norm=True, vocab_size=99)
    )
    text = dump_yaml(config, "grit train run.yaml")
    assert text.startswith("# grit train run.yaml\n")
    assert load_config(Config, write(text)) == config
    assert yaml.safe_load(text) == to_dict(config)
