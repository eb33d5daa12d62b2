"""Nothing that a folder of somebody else's holds is ever run: pickles, modules that a config names,
tags of YAML.

Each payload makes a file when it is run; the first test sees that it does.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_world import good_files, run

from grit_jax.inference.model import GritLM
from grit_jax.rag.index import build_index

VERBS = (
    "encode m --input texts.txt --output x.npy",
    "generate m --prompt a --max-new-tokens 1",
    "import m x",
    "train run.yaml --output x --model.shape null --model.path m --train.steps 1",
)


class Payload:
    """What a pickle runs when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def world(tmp_path_factory, sentences, tiny_model) -> Path:
    """Good files, a good model and a good index."""
    folder = tmp_path_factory.mktemp("payloads")
    tiny_model.save_pretrained(folder / "model")
    good_files(folder, sentences)
    build_index(tiny_model, folder / "corpus.jsonl", folder / "index", quiet=True)
    return folder


@pytest.fixture(autouse=True)
def marker(world, monkeypatch):
    """The file that no command may make. Every test has a copy `m` of the model to spoil."""
    monkeypatch.chdir(world)
    shutil.copytree("model", "m")
    yield world / "marker"
    ran = (world / "marker").exists()
    for path in map(Path, ("m", "x", "spoiled")):
        shutil.rmtree(path, ignore_errors=True)
    for path in map(Path, ("x.npy", "evil.yaml")):
        path.unlink(missing_ok=True)
    assert not ran, "the payload was run"


def write_module(path: Path, marker: Path) -> None:
    path.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")


def tagged(marker: Path) -> str:
    """YAML that a loader of any object makes a folder of."""
    return f"!!python/object/apply:os.mkdir [{str(marker)!r}]"


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(capsys, command: str, words: str) -> None:
    said = run(capsys, command)
    assert said.status == 2 and words in said.err, said


def test_the_payloads_would_run(marker):
    write_module(Path("m/evil.py"), marker)
    spec = importlib.util.spec_from_file_location("evil", "m/evil.py")
    for load in (
        lambda: spec.loader.exec_module(importlib.util.module_from_spec(spec)),
        lambda: pickle.loads(pickle.dumps(Payload(marker))),
        lambda: yaml.unsafe_load(tagged(marker)),
    ):
        load()
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


@pytest.mark.parametrize("command", VERBS)
def test_pickled_weights_are_refused(capsys, marker, command):
    Path("m/model.safetensors").unlink()
    Path("m/pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    refused(capsys, command, "m: only pickled weights there (pytorch_model.bin), refused")
    Path("m/model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    refused(capsys, command, "m/model.safetensors: truncated or not a safetensors file")


def test_a_pickled_tokenizer_is_refused(capsys, marker):
    for name in ("tokenizer.json", "tokenizer.model"):
        Path("m/tokenizer.json").unlink()
        Path("m", name).write_bytes(pickle.dumps(Payload(marker)))
        refused(capsys, VERBS[0], f"m/{name}: ")
        shutil.copy("model/tokenizer.json", "m/tokenizer.json")


def test_pickles_and_code_beside_a_good_model_are_left_alone(capsys, marker, sentences):
    """A config may name classes of its own (`auto_map`); what is read of it is the architecture
    that it calls itself."""
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "1_Pooling/pytorch_model.bin",
    ):
        Path("m", name).write_bytes(pickle.dumps(Payload(marker)))
    for name in ("evil.py", "modeling_mistral.py", "custom_generate.py", "setup.py"):
        write_module(Path("m", name), marker)
    classes = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Model", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        change(Path("m", name), auto_map=classes, trust_remote_code=True)
    change(Path("m/sentence_bert_config.json"), model_args={"trust_remote_code": True})
    for command in VERBS[:3]:
        said = run(capsys, command)
        assert said.status == 0, said
    # Nor is any of it handed on.
    assert run(capsys, "import m spoiled").status == 0
    assert not [
        path for path in Path("spoiled").rglob("*") if path.suffix in (".py", ".bin", ".pt")
    ]
    assert not any("auto_map" in path.read_text() for path in Path("spoiled").rglob("*.json"))
    vectors = [GritLM.from_pretrained(name).encode(sentences[:3]) for name in ("model", "spoiled")]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize("command", VERBS)
def test_an_architecture_that_only_its_own_code_knows_is_refused(capsys, marker, command):
    write_module(Path("m/evil.py"), marker)
    own = {"AutoModelForCausalLM": "evil.Model"}
    change(
        Path("m/config.json"), auto_map=own, model_type="evil", architectures=["EvilForCausalLM"]
    )
    refused(capsys, command, "architecture 'EvilForCausalLM' is not supported")


def test_an_index_of_pickles_is_refused(capsys, marker):
    shutil.copytree("index", "spoiled")
    vectors = np.empty(np.load("index/vectors.npy").shape[0], object)
    vectors[:] = [Payload(marker)] * len(vectors)
    np.save("spoiled/vectors.npy", vectors, allow_pickle=True)
    refused(capsys, "ask model --index spoiled river", "spoiled/vectors.npy: ")
    Path("spoiled/vectors.npy").write_bytes(pickle.dumps(Payload(marker)))
    refused(capsys, "ask model --index spoiled river", "spoiled/vectors.npy: ")


def test_yaml_makes_no_objects(capsys, marker):
    Path("evil.yaml").write_text(f"output: {tagged(marker)}\n")
    refused(capsys, "train evil.yaml", "evil.yaml:1: not valid YAML")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:coroutine"
)  # Orbax leaves the other reads where they are when one fails
def test_a_checkpoint_of_pickles_is_refused(capsys, marker):
    """A file of each kind in turn, then all of them: a run is not exported by running what is
    there."""
    assert run(capsys, "train run.yaml --output x --train.steps 1").status == 0
    files = [path for path in Path("x/checkpoints").rglob("*") if path.is_file()]
    kinds = {
        path.name if path.name[0] in "_." or path.suffix else path.parent.name: path
        for path in files
    }
    assert len(kinds) > 4
    for path in kinds.values():
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Payload(marker)))
        assert run(capsys, "export x spoiled").status in (0, 2) and not marker.exists(), path
        shutil.rmtree("spoiled", ignore_errors=True)
        path.write_bytes(whole)
    for path in files:
        path.write_bytes(pickle.dumps(Payload(marker)))
    refused(capsys, "export x spoiled", "x/checkpoints")
