"""Asking: cached layouts say what the same layout without a cache says, and nothing damaged is ever
read."""

from __future__ import annotations

import dataclasses
import json

import dense_reference as dense
import pytest

from grit_jax.errors import GritError
from grit_jax.rag import store as store_module
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.reading import DOCUMENT_CACHES, QUERY_CACHES, Reader, Reading
from grit_jax.rag.record_format import StreamedDocument, encode_record
from grit_jax.rag.store import RECORDS
from grit_jax.text.rag_layouts import MODES, compose

NEW = 5
QUESTION = "Which river is quiet?"


@pytest.fixture(scope="module")
def corpus(sentences, tmp_path_factory):
    rows = [
        {"id": f"d{i}", "title": "Amber" * (i % 2), "text": text}
        for i, text in enumerate(sentences[:12])
    ]
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def indices(tiny_model, corpus, tmp_path_factory):
    """Of the same corpus, with caches and without."""
    folder = tmp_path_factory.mktemp("indices")
    for kv in ("native", "none"):
        build_index(tiny_model, corpus, folder / kv, IndexOptions(kv=kv), quiet=True)
    return {kv: Index.open(folder / kv, tiny_model) for kv in ("native", "none")}


@pytest.fixture(scope="module")
def asker(tiny_model, indices):
    return Asker(tiny_model, indices["native"])


def expected(model, mode, question, documents) -> str:
    """The answer by one dense pass for every token, from the texts alone."""
    layout = compose(mode, question, documents, model.chat)
    ids = lambda pieces: [i for part in model.tokenizer.encode_parts([pieces])[0] for i in part]
    cached = [ids(model.chat.embed_parts("", text.text)) for text in layout.cached]
    found = dense.greedy(model.params, model.config, cached, ids(layout.continuation), NEW)
    tokens = found.tokens
    stop = next((n for n, token in enumerate(tokens) if token in model.stop_ids), NEW)
    return model.tokenizer.decode(tokens[:stop]).strip()


@pytest.mark.parametrize("mode", MODES)
def test_the_answer_is_that_of_the_layout_without_a_cache(tiny_model, asker, indices, mode):
    answer = asker.ask(QUESTION, mode, k=2, max_new_tokens=NEW)[0]
    texts = [indices["native"].text(document["id"]) for document in answer.documents]
    assert (
        len(texts) == (0 if mode == "none" else 2) and answer.mode == mode and not answer.warnings
    )
    assert answer.answer == expected(tiny_model, mode, QUESTION, texts)


def test_the_order_of_query_and_documents_counts(tiny_model, asker, indices):
    """Positions run in the order of the layout: query-doc is not doc-query, nor d1 d2 the same as
    d2 d1."""
    reader = Reader(tiny_model)
    texts = [indices["native"].text(i) for i in (3, 5)]
    query, records = reader.records([QUESTION])[0], reader.records(texts)
    readings = [
        Reading(
            mode, QUESTION, tuple(texts[i] for i in order), tuple(records[i] for i in order), query
        )
        for mode in ("query-doc", "doc-query", "doc")
        for order in ([0, 1], [1, 0])
    ]
    found = reader.read(readings, dataclasses.replace(_greedy(), max_new_tokens=NEW)).answers
    for reading, answer in zip(readings, found, strict=True):
        assert answer == expected(tiny_model, reading.mode, QUESTION, reading.documents)
    assert len(set(found)) > 3


def _greedy():
    from grit_jax.inference.sampling import Sampling

    return Sampling()


@pytest.mark.parametrize("mode", MODES)
def test_an_index_without_caches_answers_the_same_with_a_warning(
    tiny_model, asker, indices, mode, capsys
):
    bare = Asker(tiny_model, indices["none"])
    mine, theirs = (
        one.ask([QUESTION, "What is copper?"], mode, k=2, max_new_tokens=NEW)
        for one in (asker, bare)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert a.answer == b.answer and a.documents == b.documents and not a.warnings
        assert bool(b.warnings) == (mode in DOCUMENT_CACHES)
    # Once on stderr, whatever the number of questions.
    bare.ask(QUESTION, mode, max_new_tokens=1)
    assert capsys.readouterr().err.count("no caches") == (mode in DOCUMENT_CACHES)


def test_documents_come_from_search(tiny_model, asker, indices, sentences):
    answers = asker.ask([sentences[4], f"Amber {sentences[7]}"], "doc", k=3, max_new_tokens=1)
    assert [a.documents[0]["id"] for a in answers] == ["d4", "d7"]
    vectors = tiny_model.encode([sentences[4]])
    found = indices["native"].search(vectors, 3)
    assert [d["id"] for d in answers[0].documents] == [f"d{row}" for row in found.rows[0]]
    assert [d["score"] for d in answers[0].documents] == pytest.approx(
        found.scores[0].tolist(), abs=1e-5
    )
    assert len(asker.ask(QUESTION, "none", max_new_tokens=1)[0].documents) == 0
    assert len(asker.ask(QUESTION, "doc", k=100, max_new_tokens=1)[0].documents) == 12


def test_an_instruction_is_for_the_search_alone(tiny_model, asker, indices, monkeypatch):
    asked = []
    encode = type(tiny_model.encoder).encode

    def spy(self, texts, instruction="", *args, **kwargs):
        asked.append((list(texts), instruction, bool(kwargs.get("return_cache"))))
        return encode(self, texts, instruction, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model.encoder), "encode", spy)
    plain = asker.ask(QUESTION, "query", max_new_tokens=NEW)[0]
    # One pass gives the vector and the record.
    assert asked == [([QUESTION], "", True)]
    asked.clear()
    told = asker.ask(QUESTION, "query", instruction="Find the river", max_new_tokens=NEW)[0]
    assert sorted(asked) == [([QUESTION], "", True), ([QUESTION], "Find the river", False)]
    vector = tiny_model.encode([QUESTION], "Find the river")
    assert told.documents[0]["score"] == pytest.approx(
        indices["native"].search(vector, 1).scores[0, 0], abs=1e-5
    )
    texts = [indices["native"].text(told.documents[0]["id"])]
    assert told.answer == expected(tiny_model, "query", QUESTION, texts)
    assert plain.documents[0]["score"] != told.documents[0]["score"]


SHORT_HEAD = 1200  # bytes: every record is longer, no header is


@pytest.mark.parametrize(
    "head", [store_module.HEAD, SHORT_HEAD], ids=["read-whole", "layer-by-layer"]
)
def test_a_damaged_record_is_computed_anew_with_a_warning(
    tiny_model, corpus, asker, sentences, tmp_path, capsys, monkeypatch, head
):
    """Layer by layer, the damage shows when the prompt has gone through the layer before."""
    monkeypatch.setattr(store_module, "HEAD", head)
    monkeypatch.setattr(store_module, "PART", 1)
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    question = sentences[4]
    good = asker.ask(question, "doc", k=2, max_new_tokens=NEW)[0]
    index = Index.open(tmp_path / "index", tiny_model)
    key = index.documents[4]["key"]
    assert isinstance(index.store.stream([key])[0], StreamedDocument) == (head == SHORT_HEAD)
    record = index.store.fetch([key])[0]
    for path in (tmp_path / "index" / "kv").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if (at := data.find(record.v[1].transpose(1, 0, 2).tobytes())) >= 0:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    again = Asker(tiny_model, Index.open(tmp_path / "index", tiny_model))
    again = again.ask(question, "doc", k=2, max_new_tokens=NEW)[0]
    assert again.answer == good.answer and again.documents == good.documents
    assert (
        len(again.warnings) == 1
        and "document 'd4'" in again.warnings[0]
        and "damaged" in again.warnings[0]
    )
    assert "document 'd4'" in capsys.readouterr().err


def cut_short(index):
    return encode_record(index.store.fetch([index.documents[4]["key"]])[0], index.store.identity)[
        :-9
    ]


def of_another_document(index):
    return encode_record(index.store.fetch([index.documents[5]["key"]])[0], index.store.identity)


def of_another_model(index):
    other = dataclasses.replace(index.store.identity, weights="0" * 32)
    return encode_record(index.store.fetch([index.documents[4]["key"]])[0], other)


def gone(index):
    return None


@pytest.mark.parametrize(
    "record, message",
    [
        (cut_short, "is cut short"),
        (of_another_document, "is that of another document"),
        (of_another_model, "was made by another model"),
        (gone, "has no record"),
    ],
)
def test_a_record_that_is_not_the_documents_is_computed_anew(
    tiny_model, corpus, asker, sentences, tmp_path, record, message, capsys
):
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    index.store._kv.write(RECORDS + index.documents[4]["key"], record(index)).result()
    again = Asker(tiny_model, Index.open(tmp_path / "index", tiny_model)).ask(
        sentences[4], "doc", k=2, max_new_tokens=NEW
    )[0]
    assert again.answer == asker.ask(sentences[4], "doc", k=2, max_new_tokens=NEW)[0].answer
    assert len(again.warnings) == 1 and message in again.warnings[0]
    assert (
        again.warnings[0].startswith("document 'd4'")
        and again.warnings[0] in capsys.readouterr().err
    )


def test_a_store_that_cannot_be_opened_is_done_without(tiny_model, corpus, asker, tmp_path):
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    (tmp_path / "index" / "kv" / "manifest.ocdbt").write_bytes(b"nonsense")
    found = Asker(tiny_model, Index.open(tmp_path / "index", tiny_model)).ask(
        QUESTION, "doc", max_new_tokens=NEW
    )[0]
    assert (
        found.answer == asker.ask(QUESTION, "doc", max_new_tokens=NEW)[0].answer and found.warnings
    )


def test_questions_together_are_answered_as_alone(asker, sentences):
    questions = [text[:30] for text in sentences[20:25]]
    for mode in ("doc", "query-doc"):
        together = asker.ask(questions, mode, max_new_tokens=NEW)
        for question, answer in zip(questions, together, strict=True):
            alone = asker.ask(question, mode, max_new_tokens=NEW)[0]
            assert (alone.answer, alone.documents) == (answer.answer, answer.documents)
    assert asker.ask([], "doc") == []


def test_documents_given_with_a_question(tiny_model, asker, indices):
    texts = [indices["native"].text(i) for i in (2, 6)]
    for mode in ("doc", "doc-then-query", "doc-query"):
        found = Asker(tiny_model).ask(QUESTION, mode, documents=[texts], max_new_tokens=NEW)[0]
        assert found.answer == expected(tiny_model, mode, QUESTION, texts)
        assert [d["id"] for d in found.documents] == ["0", "1"] and not found.warnings
    assert Asker(tiny_model).ask(QUESTION, documents=[texts], max_new_tokens=1)[0].mode in MODES
    assert Asker(tiny_model).ask(QUESTION, "none", max_new_tokens=NEW)[0].answer == expected(
        tiny_model, "none", QUESTION, []
    )


def test_auto_uses_documents_and_says_how(tiny_model, asker, indices):
    answer = asker.ask(QUESTION, max_new_tokens=NEW)[0]
    assert answer.mode in MODES and answer.mode != "none" and len(answer.documents) == 1
    texts = [indices["native"].text(answer.documents[0]["id"])]
    assert answer.answer == expected(tiny_model, answer.mode, QUESTION, texts)


def test_json_has_every_key(asker):
    for mode in (*MODES, "auto"):
        found = json.loads(json.dumps(asker.ask(QUESTION, mode, max_new_tokens=2)[0].to_dict()))
        assert set(found) >= {"answer", "documents", "mode", "timings"}
        timings = found["timings"]
        assert list(timings) == ["encode_query", "search", "load", "prefill", "decode", "total"]
        parts = sum(seconds for name, seconds in timings.items() if name != "total")
        assert (
            all(seconds >= 0 for seconds in timings.values())
            and 0 < parts <= timings["total"] + 1e-3
        )
        assert all(set(document) >= {"id", "score"} for document in found["documents"])


def test_long_documents_are_cut_alike_in_every_layout(tiny_model, sentences):
    reader, text = Reader(tiny_model, max_length=20), " ".join(sentences[:5])
    record = reader.records([text])[0]
    assert len(record.tokens) == 20
    prompt = reader.prompts([Reading("doc-then-query", QUESTION, (text,))])[0]
    tags = len(tiny_model.tokenizer.encode_parts([tiny_model.chat.embed_parts("", "")])[0][0])
    body = record.tokens[tags:].tolist()
    assert any(prompt[i : i + len(body)] == body for i in range(len(prompt)))
    whole = Reader(tiny_model, max_length=512).prompts(
        [Reading("doc-then-query", QUESTION, (text,))]
    )[0]
    assert len(prompt) < len(whole)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((QUESTION, "docs"), "unknown mode 'docs'"),
        ((" ", "doc"), "question is empty"),
        ((QUESTION, "doc", 0), "k: expected"),
    ],
)
def test_mistakes_are_named(asker, arguments, message):
    with pytest.raises(GritError, match=message):
        asker.ask(*arguments)


def test_more_than_the_model_can_read(tiny_model, indices):
    short = type(tiny_model)(
        dataclasses.replace(tiny_model.config, max_position_embeddings=64),
        tiny_model.params,
        tiny_model.tokenizer,
        tiny_model.chat,
    )
    with pytest.raises(GritError, match="reads 64.*--k"):
        Asker(short).ask(
            QUESTION, "doc", documents=[[indices["native"].text(i) for i in range(12)]]
        )
    with pytest.raises(GritError, match="index or documents"):
        Asker(tiny_model).ask(QUESTION, "doc")
    with pytest.raises(GritError, match="at least one document"):
        Asker(tiny_model).ask(QUESTION, "doc", documents=[[]])
    assert set(DOCUMENT_CACHES) | set(QUERY_CACHES) < set(MODES)
