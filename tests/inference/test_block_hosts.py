"""Several processes encode and index as one does; killed anywhere, and resumed with another number
of processes, nothing is lost, doubled, or computed again."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from block_runs import contents, encoded, finish, logs, start, wait

from grit_jax.inference.model import GritLM
from grit_jax.inference.shards import Shard
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
    texts[7] = texts[8] = "twice"  # one record for two documents
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


# ---- kills ---------------------------------------------------------------------------------------


def acknowledged(run: Path) -> tuple[list[str], int]:
    """Ids of the documents in the index, and how many more texts are in shards. None of the former
    is there twice or out of order."""
    ids: list[str] = []
    keys: set[str] = set()
    index = run / "index"
    if (index / MANIFEST).exists():
        manifest = json.loads((index / MANIFEST).read_text())
        lines = (index / DOCUMENTS).read_bytes()[: manifest["documents_bytes"]].splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        keys = {json.loads(line)["key"] for line in lines}
        assert len(ids) == manifest["documents"] == manifest["rows"]
        assert ids == [f"d{i}" for i in range(len(ids))]
    found = [*run.glob("index/shards/block-*"), *run.glob("v.npy.shards/block-*")]
    shards = [Shard.from_bytes(path.read_bytes()) for path in found if "__" not in path.name]
    # The shard of a block that has just been joined may still be there.
    texts = sum(len(shard.lengths) for shard in shards if not shard.keys or {*shard.keys} - keys)
    assert all(np.isfinite(shard.vectors).all() for shard in shards)
    return ids, texts


@pytest.mark.parametrize("verb", ["index", "encode"])
def test_killed_at_random_moments_and_resumed_by_another_number_of_processes(folder, alone, verb):
    """SIGKILL to one process, or to all; $GRIT_KILLS of them (3 unless set) for each verb."""
    kills, rng = int(os.environ.get("GRIT_KILLS", "3")), random.Random(verb)
    words_of, more = {
        "index": (index_words, ["--kv", "int8"]),
        "encode": (encode_words, []),
    }[verb]
    one, turn, processes, done = alone(verb, *more), 0, 2, 0
    run = run_folder(folder, f"killed-{verb}0")
    while True:
        ids, in_shards = acknowledged(run)
        before = len(encoded(run))
        kill = done < kills
        words = words_of(folder, run.name, *more)
        started = start(
            run, words, processes, environment={"BLOCK_SECONDS": "0.15" if kill else "0"}
        )
        if kill:
            deadline = time.monotonic() + 120
            if rng.random() < 0.85:  # the others are killed while they start
                while len(encoded(run)) == before and time.monotonic() < deadline:
                    time.sleep(0.01)
            time.sleep(rng.uniform(0, 4))
            victims = [rng.choice(started)] if rng.random() < 0.5 else started
            for process in victims:
                process.kill()
            time.sleep(rng.uniform(0, 1))  # the rest of them go on for a while
            statuses = [process.poll() for process in started]
            for process in started:
                process.kill()
                process.wait()
        else:
            statuses = wait(started)
        new = encoded(run)[before:]
        where = (verb, done, processes, statuses, logs(run))
        assert len(set(new)) == len(new), where  # no two processes encode the same
        assert not {name.split("'")[1] for name in new if "document '" in name} & set(ids), where
        done += kill and statuses != [0] * processes
        if verb == "encode" and (run / "v.npy").exists():  # killed after the end, perhaps
            assert (run / "v.npy").read_bytes() == (one / "v.npy").read_bytes(), where
        elif statuses == [0] * processes:
            assert contents(run / "index") == contents(one / "index"), where
        else:
            assert kill, where
            now, shards = acknowledged(run)
            assert now[: len(ids)] == ids and len(now) + shards >= len(ids) + in_shards, where
            processes = rng.choice([n for n in (1, 2, 3, 4) if n != processes])
            continue
        assert len(new) == 160 - len(ids) - in_shards, where
        if not kill:
            break
        turn += 1
        run = run_folder(folder, f"killed-{verb}{turn}")
        processes = rng.choice([n for n in (1, 2, 3, 4) if n != processes])


def test_the_loss_of_a_process_ends_the_others(folder):
    run = run_folder(folder, "lost")
    words = index_words(folder, "lost")
    started = start(run, words, 2, environment={"HEARTBEAT_SECONDS": "10", "BLOCK_SECONDS": "0.5"})
    while not encoded(run):
        time.sleep(0.05)
    started[1].kill()
    try:
        assert started[0].wait(timeout=120) == PREEMPTED, logs(run)
    finally:
        started[0].kill()
    assert "grit index: another process of this run was lost" in logs(run)[0]
    assert "goes on from what is encoded" in logs(run)[0]


# ---- processes that do not fit together ----------------------------------------------------------


def test_processes_that_differ_do_not_start(folder):
    run = run_folder(folder, "differ")
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (run / "other.jsonl").write_text("".join(lines[1:]))
    own = {1: ["--input", str(run / "other.jsonl"), "--kv", "int4"]}
    assert wait(start(run, index_words(folder, "differ"), 2, own=own)) == [2, 2], logs(run)
    for log in logs(run):
        assert (
            "grit index: the processes of this run differ: --kv is native on process 0, int4" in log
        )
        assert "corpus is 160 documents, content " in log and "159 documents, content " in log
    assert not (run / "index").exists()


def test_an_error_of_one_process_ends_all(folder):
    run = run_folder(folder, "failed")
    own = {1: ["--input", "nowhere.txt"]}
    assert wait(start(run, encode_words(folder, "failed"), 2, own=own)) == [2, 2], logs(run)
    zero, one = logs(run)
    assert "grit encode: process 1: nowhere.txt: no such file" in zero
    assert "grit encode: nowhere.txt: no such file" in one


def test_shards_that_the_others_do_not_see_are_refused(folder):
    run = run_folder(folder, "apart")
    words = encode_words(folder, "apart", "--shards")
    own = {number: [str(run / f"shards{number}")] for number in range(2)}
    assert wait(start(run, words, 2, own=own)) == [2, 2], logs(run)
    assert all("is not the same place on process 1; put the output" in log for log in logs(run))


def test_another_run_of_the_same_output_is_refused_whole(folder):
    run = run_folder(folder, "twice")
    other = run_folder(folder, "twice-other")
    words = index_words(folder, "twice")
    first = start(run, words, 2, environment={"BLOCK_SECONDS": "0.5"})
    while not encoded(run):
        time.sleep(0.05)
    assert wait(start(other, words, 2)) == [2, 2], logs(other)
    assert all("another grit index is writing here" in log for log in logs(other))
    assert not encoded(other) and wait(first) == [0, 0], logs(run)
    assert len(Index.open(run / "index", GritLM.from_pretrained(folder / "model"))) == 160
