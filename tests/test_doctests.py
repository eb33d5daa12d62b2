"""The examples in docstrings, run in a folder with a model, an index and a configuration."""

from __future__ import annotations

import doctest
import importlib
import json
from pathlib import Path

import pytest

import grit_jax
from grit_jax import GritLM
from grit_jax.rag.build import build_index

PACKAGE = Path(grit_jax.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
DOCUMENTS = {
    "list.sort": "sorts a list in place",
    "str.split": "splits a string",
    "dict.items": "the pairs of a dictionary",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`model` (the shipped base model), `index` (over three documents) and `run.yaml`."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "model").symlink_to(PACKAGE / "quickstart" / "base_model")
    (folder / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "title": name, "text": text}) + "\n"
            for name, text in DOCUMENTS.items()
        )
    )
    model = GritLM.from_pretrained(folder / "model")
    build_index(model, folder / "corpus.jsonl", folder / "index", quiet=True)
    (folder / "run.yaml").write_text(
        "model: {path: model}\ndata: {generative: [chat.jsonl], generative_batch: 4}\noutput: out\n"
    )
    return folder


def test_the_first_functions_have_examples():
    """Those that a user meets first."""
    first = """inference.model rag.index text.chat text.rag_layouts config run_config data.formats
        data.bm25 inference.files models.presets types sharding"""
    assert {f"grit_jax.{name}" for name in first.split()} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, capfd.readouterr().out
