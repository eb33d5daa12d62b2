"""RAG scores of a model behind a socket: answers of layouts over texts and over a server's store."""

from __future__ import annotations

import json

import pytest

from grit_jax.data.formats import CachedExample
from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.rag import AnswerSettings, evaluate_rag
from grit_jax.evaluation.rag_endpoint import READING, ServedQuestions, evaluate_served_table
from grit_jax.rag.index import Index, build_index
from grit_jax.text.answer_matching import score_answer

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
from cli_world import run, write_lines
from live_server import live_server

from grit_jax.serving.settings import ServeSettings

SETTINGS = AnswerSettings(max_new_tokens=4)


@pytest.fixture(scope="module")
def world(tiny_model, sentences, tmp_path_factory):
    """A server with a store, its index, and questions over the store's documents."""
    folder = tmp_path_factory.mktemp("rag")
    texts = sentences[:6]
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    index = folder / "docs"
    build_index(tiny_model, write_lines(folder / "corpus.jsonl", *documents), index, quiet=True)
    rows = [{"docs": [text], "text": [f"What of {text[:12]}?", "x"]} for text in texts[:3]]
    write_lines(folder / "rag.jsonl", *rows)
    settings = ServeSettings("tiny", slots=2, context=256, warm_up=False, indices={"docs": index})
    with live_server(tiny_model, settings) as server:
        yield server, folder


@pytest.fixture
def server(world):
    return world[0]


@pytest.fixture
def folder(world):
    return world[1]


@pytest.fixture
def endpoint(server):
    return Endpoint(server.url)


def asked_of(endpoint, monkeypatch) -> list:
    """The bodies and answers of the chats that follow."""
    seen, post = [], endpoint.post

    def spy(path, body):
        reply = post(path, body)
        seen.append((body, reply["choices"][0]["message"]["content"]))
        return reply

    monkeypatch.setattr(endpoint, "post", spy)
    return seen


def test_layouts_as_one_message(endpoint, folder, monkeypatch, tiny_model):
    """The message is the user's turn of the layout, and the scores are those of the answers."""
    seen = asked_of(endpoint, monkeypatch)
    table = evaluate_served_table(endpoint, folder / "rag.jsonl", settings=SETTINGS, quiet=True)
    assert [variant.mode for variant in table.scores] == list(READING)
    rows = [json.loads(line) for line in (folder / "rag.jsonl").read_text().splitlines()]
    messages = {body["messages"][0]["content"] for body, _ in seen}
    for row in rows:
        question, text = row["text"][0], row["docs"][0]
        assert messages >= {
            question,
            f"{question}\n\n{text}\n\nOptionally using the prior context answer the query prior to"
            " it",
            f"{text}\n\n{question}\n\nAnswer the prior query while optionally using the context"
            " prior to it",
        }
    answers = {body["messages"][0]["content"]: said for body, said in seen}
    expected = tiny_model.generate([row["text"][0] for row in rows], max_new_tokens=4)
    assert [answers[row["text"][0]].strip() for row in rows] == [a.strip() for a in expected]
    # Scored against the answers that the server gave: now all of them match.
    given = [CachedExample(tuple(r["docs"]), r["text"][0], answers[r["text"][0]]) for r in rows]
    given = [row for row in given if score_answer(row.answer, row.answer).match]
    table = evaluate_served_table(
        endpoint, given, ServedQuestions(["none"]), settings=SETTINGS, quiet=True
    )
    assert given and table.by_mode()["none"]["match"] == 1.0
    assert table.by_mode()["none"]["seconds"] > 0 and table.corpus is None


def test_more_documents_than_a_row_has(endpoint, folder, monkeypatch):
    seen = asked_of(endpoint, monkeypatch)
    asked = ServedQuestions(["doc-then-query"], (1, 3), corpus=folder / "corpus.jsonl")
    table = evaluate_served_table(
        endpoint, folder / "rag.jsonl", asked, settings=SETTINGS, quiet=True
    )
    assert [(v.mode, v.k) for v in table.scores] == [("doc-then-query", 1), ("doc-then-query", 3)]
    assert table.corpus == 6
    contents = {body["messages"][0]["content"] for body, _ in seen}  # timed again if compiled
    paragraphs = [content.count("\n\n") for content in contents]
    assert sorted(paragraphs) == [2] * 3 + [4] * 3


@pytest.mark.slow  # compiles both sides; the answers of a store: tests/serving/test_documents.py
def test_over_a_store_they_are_those_of_this_process(endpoint, folder, tiny_model, monkeypatch):
    index = Index.open(folder / "docs", tiny_model)
    modes = ["none", "doc-then-query", "doc", "query-doc"]
    seen = asked_of(endpoint, monkeypatch)
    asked = ServedQuestions(modes, (2,), store="docs")
    table = evaluate_served_table(
        endpoint, folder / "rag.jsonl", asked, settings=SETTINGS, quiet=True
    )
    assert all(body["store"] == "docs" for body, _ in seen)
    assert {(v.mode, v.k, v.kv) for v in table.scores} == {
        ("none", None, None),
        ("doc-then-query", 2, None),
        ("doc", 2, "stored"),
        ("query-doc", 2, "stored"),
    }
    rows = [json.loads(line) for line in (folder / "rag.jsonl").read_text().splitlines()]
    for mode in modes:
        said = {b["messages"][0]["content"]: text for b, text in seen if b["mode"] == mode}
        # Rows whose answers are those of the server: in this process they all match, too.
        given = [CachedExample((), r["text"][0], said[r["text"][0]].strip()) for r in rows]
        given = [row for row in given if score_answer(row.answer, row.answer).match]
        found = evaluate_rag(
            tiny_model, given, [mode], index=index, k=2, settings=SETTINGS, quiet=True
        )
        assert given and found[mode]["exact_match"] == 1.0


def test_documents_that_are_left_out_are_counted(endpoint, folder, monkeypatch):
    post = endpoint.post
    warned = lambda path, body: post(path, body) | {"grit": {"warnings": ["left out: documents"]}}
    monkeypatch.setattr(endpoint, "post", warned)
    asked = ServedQuestions(["doc"], store="docs")
    table = evaluate_served_table(
        endpoint, folder / "rag.jsonl", asked, settings=SETTINGS, quiet=True
    )
    assert table.by_mode()["doc"]["truncated"] == 3


def test_what_a_server_cannot_be_asked(endpoint, folder, monkeypatch):
    ask = lambda *asked, **more: evaluate_served_table(
        endpoint, folder / "rag.jsonl", ServedQuestions(*asked, **more), quiet=True
    )
    with pytest.raises(GritError, match="--modes doc: reads records of a store; name one"):
        ask(["none", "doc"])
    with pytest.raises(GritError, match="--corpus gives distractors to the rows' own"):
        ask(store="docs", corpus="x")
    with pytest.raises(GritError, match="404 .*'nope'"):
        ask(["doc"], store="nope")
    monkeypatch.setattr(endpoint, "post", lambda path, body: {"choices": []})
    with pytest.raises(GritError, match="the reply has no message"):
        ask(["none"])
    endpoint.is_ours = False
    with pytest.raises(GritError, match="is no grit serve; other servers answer over documents"):
        ask(["doc"], store="docs")


def test_command(server, folder, capsys, tmp_path):
    command = f"eval rag {server.url} --input {folder}/rag.jsonl --max-new-tokens 2"
    said = run(capsys, f"{command} --json --output {tmp_path}/table")
    assert said.status == 0, said.err
    assert said.json.keys() == set(READING)
    assert (tmp_path / "table/table.md").exists()
    said = run(capsys, f"{command} --modes doc --store docs --k 1,2 --search lexical --json")
    assert said.status == 0, said.err
    assert [(row["mode"], row["k"]) for row in said.json["rows"]] == [("doc", 1), ("doc", 2)]
    for flags, message in (
        ("--index x", "--index: of a MODEL in this process; a server has its own stores"),
        ("--kv int8", "--kv: of a MODEL"),
        ("--positions colliding", "--positions: of a MODEL"),
        ("--search-dim 4", "--search-...: of a MODEL"),
        ("--search lexical", "say how a store is searched, and no --store is given"),
        ("--where 'n > 1'", "say how a store is searched, and no --store is given"),
        ("--modes query", "--modes query: reads records of a store"),
    ):
        said = run(capsys, f"{command} {flags}")
        assert said.status == 2 and message in said.err, said.err
    said = run(capsys, f"eval rag somewhere --input {folder}/rag.jsonl --store docs")
    assert said.status == 2 and "names a store of the URL of a grit serve" in said.err
