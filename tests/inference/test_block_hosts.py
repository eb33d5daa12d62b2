"""Several processes encode and index as one does; killed anywhere, and resumed with another number
of processes, nothing is lost, doubled, or computed again."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from block_runs import contents, encoded, finish, logs, start, wait

from grit_jax.rag.index import Index
from grit_jax.rag.index_files import DOCUMENTS
from grit_jax.rag.manifest import MANIFEST
from grit_jax.runtime.preemption import PREEMPTED

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, sentences) -> Path:
    """A model, a corpus and a file of texts."""
    root = tmp_path_factory.mktemp("blocks")
    tiny_model.save_pretrained(root / "model")
    texts = [f"{text} {number}" for number, text in enumerate(sentences[:160])]
    texts[7] = texts[3]  # one record for two documents
    (root / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    (root / "texts.txt").write_text("".join(text + "\n" for text in texts))
    return root


def run_folder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def index_words(folder: Path, name: str, *more: str) -> list[str]:
    corpus, output = str(folder / "corpus.jsonl"), str(folder / name / "index")
    return ["index", str(folder / "model"), "--input", corpus, "--output", output, *more]


def encode_words(folder: Path, name: str, *more: str) -> list[str]:
    texts, output = str(folder / "texts.txt"), str(folder / name / "v.npy")
    return ["encode", str(folder / "model"), "--input", texts, "--output", output, *more]


@pytest.fixture(scope="module")
def alone(folder):
    """What one process makes: `alone(verb, *flags)`."""
    made: dict[tuple[str, ...], Path] = {}

    def make(verb: str, *more: str) -> Path:
        if (verb, *more) not in made:
            name = f"alone{len(made)}"
            words = (index_words if verb == "index" else encode_words)(folder, name, *more)
            finish(run_folder(folder, name), words, 1)
            made[(verb, *more)] = folder / name
        return made[(verb, *more)]

    return make


@pytest.mark.parametrize(
    "processes, kv",
    [(2, "native"), (4, "int8")],
)
def test_several_processes_index_as_one(folder, alone, processes, kv):
    name = f"index{processes}"
    run = run_folder(folder, name)
    printed = finish(run, index_words(folder, name, "--kv", kv, "--json"), processes)
    one = alone("index", "--kv", kv)
    assert contents(run / "index") == contents(one / "index")
    assert sorted(encoded(run)) == sorted(encoded(one))
    documents = [line for line in printed if '"documents"' in line]
    assert len(documents) == 1 and printed[0] == documents[0], "process 0 alone prints"
    assert json.loads(printed[0].splitlines()[-1])["documents"] == 160
    assert not (run / "index" / "shards").exists()


def test_several_processes_encode_as_one(folder, alone):
    run = run_folder(folder, "encode3")
    more = ["--dim", "16", "--precision", "int8", "--instruction", "say"]
    finish(run, encode_words(folder, "encode3", *more), 3)
    one = alone("encode", *more)
    assert (run / "v.npy").read_bytes() == (one / "v.npy").read_bytes()
    assert np.load(run / "v.npy").shape == (160, 16)
    assert sorted(encoded(run)) == sorted(encoded(one)) and len(encoded(run)) == 160
    assert [path.name for path in run.glob("v.npy*")] == ["v.npy"]
