"""What is wrong with a local task's files. Tasks that load are in tests/peers/test_mteb.py."""

from __future__ import annotations

import json

import mteb_folders
import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation import mteb_tasks
from grit_jax.evaluation.mteb_tasks import folder_task, local_tasks, tasks_named


@pytest.fixture
def folders(tmp_path, sentences):
    return mteb_folders.task_folders(tmp_path, sentences)


@pytest.mark.parametrize(
    "settings,message",
    [
        ("{", "not JSON"),
        ([1], "expected an object with the texts name and type"),
        ({"name": "a"}, "expected an object with the texts name and type"),
        ({"name": "a", "type": "Bitext"}, "type: expected one of Retrieval, Reranking, .*Bitext"),
        ({"name": "a", "type": "STS", "promt": ""}, "unknown key 'promt'; known: name, type"),
        ({"name": "a", "type": "STS", "prompt": {"corpus": ""}}, "prompt: expected a text or"),
        ({"name": "a", "type": "Classification"}, "needs train.jsonl, test.jsonl; no train.jsonl"),
    ],
)
def test_a_description_that_is_none(tmp_path, settings, message):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(GritError, match=message):
        folder_task(tmp_path)


def test_files_that_are_no_tasks(tmp_path):
    with pytest.raises(GritError, match="no task.json here, nor in a folder of it"):
        local_tasks(tmp_path)
    with pytest.raises(GritError, match="expected a folder with a task.json, or a Python file"):
        local_tasks(tmp_path / "absent.txt")
    with pytest.raises(GritError, match="name tasks or benchmarks, or give --task-files"):
        tasks_named([])


def test_lines_of_data(folders):
    read = lambda kind: mteb_tasks._rows(folders / kind / "test.jsonl", "text1", "text2", "score")
    assert len(read("STS")) == 30
    with pytest.raises(GritError, match=r"PairClassification/test.jsonl:1: expected an object"):
        read("PairClassification")
    (folders / "STS/test.jsonl").write_text('{"text1": "a", "text2": "b", "score": 1}\n\n[\n')
    with pytest.raises(GritError, match=r"test.jsonl:3: not JSON"):
        read("STS")
    (folders / "STS/test.jsonl").write_text("\n")
    with pytest.raises(GritError, match="the file is empty"):
        read("STS")


def test_judgements(folders):
    file = folders / "Retrieval/qrels/test.tsv"
    read = mteb_tasks._read_qrels(file)
    assert read["q0"] == {"d0": 1, "d1": 1} and len(read) == 8
    file.write_text("q0\td0\t1\nq0 d1 1\n")
    with pytest.raises(GritError, match=r"test.tsv:2: expected query, document and a number"):
        mteb_tasks._read_qrels(file)


def test_the_revision_of_a_task_is_that_of_its_files(folders):
    revision = lambda: mteb_tasks._revision(folders / "STS", ["test.jsonl"])
    before = revision()
    assert revision() == before and before != mteb_tasks._revision(folders / "STS", [])
    file = folders / "STS/test.jsonl"
    file.write_text(file.read_text().replace("Ribbon", "Ribbom", 1))  # of the same length
    assert revision() != before
