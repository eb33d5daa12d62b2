"""Retrieval tasks from BEIR's and mteb's layouts and from embedding files."""

from __future__ import annotations

import pytest
from retrieval_folders import DOCUMENTS, QUERIES, beir_folder, lines, mteb_folder

from grit_jax.data.formats import Text
from grit_jax.errors import GritError
from grit_jax.evaluation.retrieval_data import Document, read_task


@pytest.fixture(params=["beir", "gzip", "mteb"])
def folder(request, tmp_path):
    if request.param == "mteb":
        return mteb_folder(tmp_path / "task")
    return beir_folder(tmp_path / "task", compressed=request.param == "gzip")


def test_every_layout_gives_the_same_task(folder):
    task = read_task(folder)
    assert task.name == "task" and task.has_ids and task.passages is None
    assert task.query_ids == ["q1", "q2", "q3"]
    assert task.queries[1] == Text(None, "river stone")
    assert task.domains == ["metal", "nature", "metal"]
    assert task.judgements[0] == {"doc-a": 2, "doc-c": 1}
    assert task.judgements[2] == {"doc-c": 1, "doc-f": 0}
    assert list(task.documents.ids) == [d["_id"] for d in DOCUMENTS]
    assert task.documents[3] == Document("", "river stone meadow")
    assert task.documents[5] == Document("Copper", "pepper candle mirror")
    assert [d.content for d in task.documents][:2] == [
        "Copper a copper lantern shines over the harbor",
        "the river and the stone forest",
    ]
    counts = (task.unjudged_queries, task.missing_queries, task.missing_documents)
    assert counts == (1, 1, 1) and task.without_relevant == 0


def test_the_split_and_the_instruction(tmp_path):
    folder = mteb_folder(tmp_path / "task")
    assert read_task(folder, "dev").query_ids == ["q1"]
    with pytest.raises(
        GritError, match=r"no judgements of the split 'train'; there are: dev, test"
    ):
        read_task(folder, "train")
    beir = beir_folder(tmp_path / "beir")
    asked = [{**QUERIES[0], "instruction": "Find it"}, *QUERIES[1:]]
    (beir / "queries.jsonl").write_bytes(lines(asked))
    assert read_task(beir).queries[0] == Text("Find it", "copper lantern")


def test_an_embedding_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        lines(
            [
                {"query": ["Find", "a"], "pos": ["p", "r"], "neg": ["n"], "domain": "x"},
                {"query": "b", "pos": ["n"]},
            ]
        )
    )
    task = read_task(path)
    assert (task.name, task.has_ids, task.domains) == ("pairs.jsonl", False, ["x", ""])
    assert task.judgements == [{"0": 1, "1": 1}, {"2": 1}]
    assert list(task.documents) == [Document(None, text) for text in "prn"]


def test_mistakes_are_named(tmp_path):
    def broken(name, content, message, split="test"):
        folder = beir_folder(tmp_path / str(len(list(tmp_path.iterdir()))))
        (folder / name).write_bytes(content)
        with pytest.raises(GritError, match=message):
            read_task(folder, split)

    broken(
        "corpus.jsonl", lines([DOCUMENTS[0]] * 2), r"corpus\.jsonl:2: the id 'doc-a' was used at"
    )
    broken("corpus.jsonl", lines([{"_id": "a"}]), r"corpus\.jsonl:1: expected a string as \"text\"")
    broken("corpus.jsonl", lines([{"text": "a"}]), r"expected a string as \"_id\" or \"id\"")
    broken("queries.jsonl", lines([QUERIES[0]] * 2), r"queries\.jsonl:2: the id 'q1' is that of")
    broken("queries.jsonl", lines([{"_id": "q1", "text": " "}]), '"text" must be a text')
    broken("queries.jsonl", lines([{"_id": "other", "text": "a"}]), "no query has judgements")
    broken("qrels/test.tsv", b"q1\tdoc-a\tmuch\n", r"test\.tsv:1: expected a whole number")
    broken("qrels/test.tsv", b"q1 doc-a\n", "got 2 columns")
    broken("qrels/test.tsv", b"q1\tdoc-a\t1\nq1\tdoc-a\t2\n", "has the grade 2 here and 1 before")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GritError, match=r"no corpus\.jsonl and no corpus/\*\.parquet"):
        read_task(tmp_path / "empty")
