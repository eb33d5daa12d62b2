"""mteb tasks from the documentation: their data. A run of them is in tests/peers/test_mteb.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from cli_world import run, write_lines
from pydocs_corpus import write_corpus

from grit_jax.errors import GritError
from grit_jax.evaluation.mteb_tasks import SCORES
from grit_jax.evaluation.pydocs_mteb import LEAST_ROWS, name_similarity, write_mteb_tasks

KINDS = sorted(set(SCORES) - {"Summarization"})


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pydocs")
    write_mteb_tasks(write_corpus(root / "corpus"), root / "tasks", rows=30)
    return root / "tasks"


def test_two_tasks_of_each_type(tasks):
    settings = [json.loads(path.read_text()) for path in tasks.glob("*/task.json")]
    assert Counter(s["type"] for s in settings) == dict.fromkeys(KINDS, 2)
    assert {s["name"] for s in settings} == {path.parent.name for path in tasks.glob("*/task.json")}


@pytest.mark.parametrize("name", ["Summary", "Question"])
def test_a_query_has_its_own_document(tasks, name):
    for kind in ("Retrieval", "Reranking"):
        folder = tasks / f"Pydocs{name}{kind}"
        texts = {row["_id"]: row["text"] for row in rows(folder / "corpus.jsonl")}
        assert len(set(texts.values())) == len(texts) > 30
        relevant = dict(
            line.split("\t")[:2]
            for line in (folder / "qrels/test.tsv").read_text().splitlines()[1:]
        )
        queries = rows(folder / "queries.jsonl")
        assert len(queries) == len(relevant) == 30
        for query in queries:
            named = query["text"].removeprefix("Sentence of ").split("`")[-2:][0].rstrip(".")
            own = texts[relevant[query["_id"]]]
            assert own.startswith(f"{named} ")
            assert name == "Question" or query["text"] not in own  # not by its own words
    places = set()
    for row in rows(folder / "top_ranked.jsonl"):
        assert len(row["documents"]) == len(set(row["documents"])) <= 5
        places.add(row["documents"].index(relevant[row["query"]]))
    assert len(places) > 1  # the relevant one is not told by its place


def test_labels_are_packages_and_modules(tasks):
    for kind, parts in (("Package", 1), ("Module", 2)):
        clustered = rows(tasks / f"Pydocs{kind}Clustering" / "test.jsonl")
        folder = tasks / f"Pydocs{kind}Classification"
        train, test = rows(folder / "train.jsonl"), rows(folder / "test.jsonl")
        assert len(clustered) == len(test) == 30
        assert set(Counter(row["label"] for row in train).values()) == {8}
        for row in [*clustered, *train, *test]:
            # The texts name their object in the middle, as those of real documents rarely do.
            assert ".".join(row["text"].split(" ")[2].split(".")[:parts]) == row["label"]
        assert not {row["text"] for row in train} & {row["text"] for row in test}
        assert len({row["label"] for row in test}) == (3 if parts == 1 else 6)


def test_pairs(tasks):
    summaries = rows(tasks / "PydocsSummaryPairs" / "test.jsonl")
    modules = rows(tasks / "PydocsModulePairs" / "test.jsonl")
    for pairs in (summaries, modules):
        assert Counter(row["label"] for row in pairs) == {0: 15, 1: 15}
    for row in summaries:
        own = row["text1"].removeprefix("Sentence of ").rstrip(".")
        assert row["text2"].startswith(f"{own} ") == row["label"]
    for row in modules:
        a, b = (row[key].split(" ")[2].split(".")[:2] for key in ("text1", "text2"))
        assert a[0] == b[0] and (a == b) == row["label"]


def test_similarity_of_names(tasks):
    assert name_similarity("a.b.c", "a.b.c") == 5 and name_similarity("a.b", "c.b") == 0
    assert name_similarity("a.b.c", "a.b.d") == pytest.approx(10 / 3, abs=1e-4)
    assert name_similarity("a.b.c", "a.d") == name_similarity("a.d", "a.b.c") == 2
    objects = rows(tasks / "PydocsObjectSTS" / "test.jsonl")
    for row in objects:
        names = [row[key].split(" ")[2].rstrip(".") for key in ("text1", "text2")]
        assert row["score"] == name_similarity(*names)
    # Names of three parts that differ share none, one or two of them.
    assert {row["score"] for row in objects} == {0.0, 1.6667, 3.3333}
    summaries = rows(tasks / "PydocsSummarySTS" / "test.jsonl")
    own = [row for row in summaries if row["score"] == 5]
    assert 10 <= len(own) < 20 and len(summaries) == 30
    for row in summaries:
        name = row["text1"].removeprefix("Sentence of ").rstrip(".").replace(".", " ")
        assert (f"Rest of {name}," in row["text2"]) == (row["score"] == 5)


def test_the_seed_decides(tasks, tmp_path):
    corpus = tasks.parent / "corpus"
    read = lambda folder: {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    write_mteb_tasks(corpus, tmp_path / "again", rows=30)
    write_mteb_tasks(corpus, tmp_path / "other", rows=30, seed=1)
    assert read(tmp_path / "again") == read(tasks) != read(tmp_path / "other")


def test_command(tasks, tmp_path, capsys):
    command = f"data mteb-tasks --input {tasks.parent / 'corpus'} --output"
    ended = run(capsys, f"{command} {tmp_path}/tasks --rows 10")
    assert ended.status == 0 and f"{tmp_path}/tasks: 12 tasks" in ended.out
    assert "PydocsModulePairs: PairClassification, 10 scored" in ended.out
    ended = run(capsys, f"{command} {tmp_path}/tasks")
    assert ended.status == 2 and "the folder is not empty" in ended.err
    ended = run(capsys, f"data mteb-tasks --input {tmp_path} --output {tmp_path}/new")
    assert ended.status == 2 and "no heldout/rag.jsonl; expected the folder" in ended.err


def test_too_few_documents(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    for name in ("documents", "embedding", "rag"):
        for split in ("heldout", "heldout_packages"):
            path = corpus / split / f"{name}.jsonl"
            write_lines(path, *rows(path)[: LEAST_ROWS - 5])
    with pytest.raises(GritError, match="6 rows are too few for the task PydocsSummaryRetrieval"):
        write_mteb_tasks(corpus, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
