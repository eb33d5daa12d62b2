"""Configurations: YAML and overrides, strictly; errors name the file, the key and the nearest known
one."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import yaml

from grit_jax.config import ConfigError, dump_yaml, load_config, to_dict
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


PATHS = ("data.embedding", "data.weights", "name")


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
        ("", {"steps": "many"}, ["command line: steps: expected an integer, got 'many'"]),
        ("steps:", {}, ["run.yaml: key 'steps' has no value"]),
        ("optimizer:", {}, ["run.yaml: key 'optimizer' has no value"]),
        (
            "optimizer: {kind: sgd}",
            {},
            ["run.yaml: optimizer.kind: expected one of adamw, muon, got 'sgd'"],
        ),
        ("optimizer: fast", {}, ["'optimizer' expects a mapping"]),
        ("model: {num_attention_heads: 5}", {}, [r"run.yaml: model.num_attention_heads \(5\)"]),
        (
            "model: {hidden_size: big}",
            {},
            ["run.yaml: model.hidden_size: expected an integer, got 'big'"],
        ),
        ("name: [1]", {}, [r"run.yaml: name: expected a string, got \[1\]"]),
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


def test_the_home_folder_is_expanded_everywhere(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    path = write("data: {embedding: [~/a.jsonl, 'tfds:~/set'], weights: {~/a.jsonl: 2.0}}")
    config = load_config(Config, path, {"name": "~/out"}, paths=PATHS)
    assert config.data.embedding == ["/home/ada/a.jsonl", "tfds:/home/ada/set"]
    assert config.data.weights == {"/home/ada/a.jsonl": 2.0} and config.name == "/home/ada/out"
    typed = {"data.embedding": "[~/b.jsonl]", "name": "a~/b"}
    config = load_config(Config, path, typed, paths=PATHS)
    assert config.data.embedding == ["/home/ada/b.jsonl"] and config.name == "a~/b"
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_config(Config, f"~/{path.name}", paths=PATHS).data.weights == {
        str(path.parent / "a.jsonl"): 2.0
    }


@pytest.mark.parametrize("moved", [False, True])
def test_a_dumped_file_works_from_anywhere_and_moves_with_its_folder(tmp_path, monkeypatch, moved):
    run, new = tmp_path / "run", tmp_path / "new"
    run.mkdir()
    monkeypatch.chdir(tmp_path)
    data = Data(["run/a.jsonl", "tfds:run/set", "b/*.jsonl", "/c.jsonl"], {"run/a.jsonl": 2.0})
    config = Config(name="run", data=data)
    (run / "config.yaml").write_text(dump_yaml(config, paths=PATHS, folder=Path("run")))
    assert yaml.safe_load((run / "config.yaml").read_text())["name"] == "."
    monkeypatch.chdir("/")
    if moved:
        run.rename(new)
        run = new
    config = load_config(Config, run / "config.yaml", paths=PATHS)
    assert config.name == str(run)
    assert config.data.embedding == [
        f"{run}/a.jsonl",
        f"tfds:{run}/set",
        f"{tmp_path}/b/*.jsonl",
        "/c.jsonl",
    ]
    assert config.data.weights == {f"{run}/a.jsonl": 2.0}


def test_a_typed_text_is_a_text(write):
    """YAML would make a number or a date of it."""
    for text in ("2024", "2024-05-01", "1e3", "0x10", "yes"):
        assert load_config(Config, None, {"name": text}).name == text
    assert load_config(Config, None, {"name": "'null'"}).name == "null"
    with pytest.raises(GritError, match="name: expected a string, got 2024; put it in quotes"):
        load_config(Config, write("name: 2024"))


def test_an_error_has_its_place_in_parts(write):
    path = write("optimizer: {betas: [0.9, high]}")
    with pytest.raises(ConfigError, match=r"optimizer.betas\[1\]: expected a number") as caught:
        load_config(Config, path)
    assert caught.value.source == str(path) and caught.value.key == ("optimizer", "betas", "[1]")
    assert caught.value.problem == "expected a number, got 'high'"
    with pytest.raises(ConfigError) as caught:
        load_config(Config, path, {"optimizer.betas": "[0.9]"})
    assert str(caught.value) == "command line: optimizer.betas: expected 2 entries, got 1"


@pytest.mark.parametrize("value", ["true", "1.5", "'1.5'", "[1]", "{a: 1}", "~"])
def test_what_is_no_integer(write, value):
    with pytest.raises(GritError, match="steps"):
        load_config(Config, write(f"steps: {value}"))


@pytest.mark.parametrize("value", ["1", "'no'", "0"])
def test_what_is_not_true_or_false(write, value):
    with pytest.raises(GritError, match="resume: expected true or false, got"):
        load_config(Config, write(f"resume: {value}"))


def test_a_key_that_stands_twice(write):
    with pytest.raises(GritError, match=r"run.yaml:3: .*'steps', first used in line 1"):
        load_config(Config, write("steps: 1\nname: a\nsteps: 2"))


def test_dump_and_load_again(write):
    config = Config(
        steps=3, optimizer=Optimizer(2e-5, "muon"), model=ModelConfig(qk_norm=True, vocab_size=99)
    )
    text = dump_yaml(config, "grit train run.yaml")
    assert text.startswith("# grit train run.yaml\n")
    assert load_config(Config, write(text)) == config
    assert yaml.safe_load(text) == to_dict(config)
