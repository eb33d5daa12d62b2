"""Asking: cached layouts say what the same layout without a cache says, and nothing damaged is ever
read."""

from __future__ import annotations

import dataclasses
import functools
import json

import dense_reference as dense
import pytest
from dense_answer import dense_answer

from grit_jax.data.bm25 import BM25
from grit_jax.errors import GritError
from grit_jax.rag import answer as answer_module
from grit_jax.rag import store as store_module
from grit_jax.rag.answer import Asker
from grit_jax.rag.build import delete_documents
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.quality import RECEIPT, LayoutQuality, QualityReceipt
from grit_jax.rag.record_format import StreamedRecord, encode_record
from grit_jax.rag.router import PassWork, RouteCosts
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.rag.store import RECORDS
from grit_jax.text.rag_layouts import MODES, compose

NEW = 5
QUESTION = "Which river is quiet?"
expected = functools.partial(dense_answer, new_tokens=NEW)


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


@pytest.mark.parametrize("mode", MODES)
def test_the_answer_is_that_of_the_layout_without_a_cache(tiny_model, asker, indices, mode):
    answer = asker.ask(QUESTION, mode, k=2, max_new_tokens=NEW)[0]
    texts = [indices["native"].text(document["id"]) for document in answer.documents]
    assert (
        len(texts) == (0 if mode == "none" else 2) and answer.mode == mode and not answer.warnings
    )
    assert answer.answer == expected(tiny_model, mode, QUESTION, texts)


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


@pytest.mark.parametrize("mode", ["doc", "auto"])
def test_documents_are_found_by_words(asker, indices, sentences, mode, monkeypatch):
    """And the model encodes no query for it, unless a layout reads its record."""
    index = indices["native"]
    expected = BM25([index.text(i) for i in range(12)])
    monkeypatch.setattr(asker.model, "encode", None)
    answer = asker.ask(QUESTION, mode, k=3, retrieval=Retrieval("lexical"), max_new_tokens=2)[0]
    best = expected.search(QUESTION, 3)
    assert [document["id"] for document in answer.documents] == [f"d{i}" for i in best]
    scores = [document["score"] for document in answer.documents]
    assert scores == pytest.approx([expected.scores(QUESTION)[i] for i in best], rel=1e-5)


def test_documents_are_found_by_both(tiny_model, asker, indices):
    index, retrieval = indices["native"], Retrieval("hybrid", "ranks", 0.25)
    found = asker.ask([QUESTION, "amber"], "doc", k=4, retrieval=retrieval, max_new_tokens=2)
    vectors = tiny_model.encode([QUESTION, "amber"])
    for answer, hits in zip(found, index.find([QUESTION, "amber"], vectors, 4, retrieval)):
        ids = [index.documents[row]["id"] for row in hits.rows.tolist()]
        assert [document["id"] for document in answer.documents] == ids and len(ids) == 4


@pytest.mark.parametrize("mode", ["doc", "query-doc", "auto"])
def test_where_no_document_is_found_the_answer_does_without(tiny_model, asker, mode, capsys):
    both = asker.ask(
        ["whales!", QUESTION], mode, retrieval=Retrieval("lexical"), max_new_tokens=NEW
    )
    assert both[0].documents == [] and both[0].mode == "none"
    assert both[0].warnings == [
        "no document has a word of the question; answered without documents"
    ]
    assert both[0].answer == expected(tiny_model, "none", "whales!", [])
    assert both[1].documents and both[1].mode != "none" and both[1].warnings == []


@pytest.fixture(scope="module")
def emptied(tiny_model, corpus, tmp_path_factory):
    """An index whose documents were all deleted."""
    path = tmp_path_factory.mktemp("emptied")
    build_index(tiny_model, corpus, path, IndexOptions(), quiet=True)
    delete_documents(tiny_model, path, {f"d{i}" for i in range(12)}, quiet=True)
    return Index.open(path, tiny_model)


@pytest.mark.parametrize("search", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize("mode", ["doc", "query-doc", "auto"])
def test_over_an_emptied_index_the_answer_does_without(tiny_model, emptied, mode, search):
    retrieval = Retrieval(search, rerank=5, where="year > 1")
    [answer] = Asker(tiny_model, emptied).ask(
        QUESTION, mode, k=2, retrieval=retrieval, max_new_tokens=NEW
    )
    assert (answer.documents, answer.mode, answer.cache) == ([], "none", "read")
    assert answer.warnings == [
        f"{emptied.path}: there is no document in this index; answered without documents"
    ]
    assert answer.answer == expected(tiny_model, "none", QUESTION, [])


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
    assert isinstance(index.store.stream([key])[0], StreamedRecord) == (head == SHORT_HEAD)
    record = index.store.fetch([key])[0]
    for path in (tmp_path / "index" / "kv").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if (at := data.find(record.v[1].tobytes())) >= 0:
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


@pytest.mark.parametrize(
    "mode, k, cache",
    [
        ("none", 1, "read"),
        ("doc-then-query", 1, "read"),
        ("query", 1, "read"),
        ("doc", 1, "exact"),
        ("doc", 2, "composed"),
        ("query-doc", 1, "composed"),
    ],
)
def test_how_the_documents_were_read(asker, mode, k, cache):
    assert asker.ask(QUESTION, mode, k, max_new_tokens=1)[0].cache == cache


def test_a_compressed_record_is_not_exact(tiny_model, corpus, tmp_path):
    build_index(tiny_model, corpus, tmp_path / "index", IndexOptions(kv="int8"), quiet=True)
    asker = Asker(tiny_model, Index.open(tmp_path / "index", tiny_model))
    assert asker.ask(QUESTION, "doc", max_new_tokens=1)[0].cache == "composed"


@pytest.mark.parametrize(
    "lost, quality, chosen",
    [(1.0, 2.0, "doc"), (9.0, 2.0, "doc-then-query"), (9.0, 12.0, "doc")],
)
def test_auto_takes_no_layout_that_loses_too_much(
    tiny_model, corpus, tmp_path, monkeypatch, lost, quality, chosen
):
    """Reading from the record is the quickest here; the index's receipt decides if it may be."""
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    layouts = {"doc": LayoutQuality(50.0, lost, 0.5), "query": LayoutQuality(10.0, 50.0, 0.5)}
    manifest = index.manifest
    receipt = QualityReceipt(layouts, 60.0, 32, 0, 12, manifest.model, manifest.compression)
    (index.path / RECEIPT).write_text(json.dumps(receipt.to_dict()))
    costs = RouteCosts(PassWork.of(tiny_model.config), 1.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(answer_module, "load_costs", lambda model, index: costs)
    asked = Asker(tiny_model, index, quality=quality).ask(QUESTION, max_new_tokens=1)[0]
    assert asked.mode == chosen


def test_json_has_every_key(asker):
    for mode in (*MODES, "auto"):
        found = json.loads(json.dumps(asker.ask(QUESTION, mode, max_new_tokens=2)[0].to_dict()))
        assert set(found) >= {"answer", "documents", "mode", "timings"}
        timings = found["timings"]
        assert list(timings) == [
            *("encode_query", "search", "rerank", "load", "prefill", "decode", "total")
        ]
        parts = sum(seconds for name, seconds in timings.items() if name != "total")
        assert (
            all(seconds >= 0 for seconds in timings.values())
            and 0 < parts <= timings["total"] + 1e-3
        )
        assert all(set(document) >= {"id", "score"} for document in found["documents"])


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


def test_what_is_needed_to_ask(tiny_model):
    with pytest.raises(GritError, match="index or documents"):
        Asker(tiny_model).ask(QUESTION, "doc")
    with pytest.raises(GritError, match="at least one document"):
        Asker(tiny_model).ask(QUESTION, "doc", documents=[[]])
    assert set(DOCUMENT_CACHES) | set(QUERY_CACHES) < set(MODES)


# ---- documents that are long for the model's context ---------------------------------------------

CONTEXT = 256


@pytest.fixture(scope="module")
def short_model(tiny_model):
    """The model with a context of 256 tokens."""
    config = dataclasses.replace(tiny_model.config, max_position_embeddings=CONTEXT)
    return type(tiny_model)(config, tiny_model.params, tiny_model.tokenizer, tiny_model.chat)


@pytest.fixture(scope="module")
def long_corpus(sentences, tmp_path_factory):
    """A document far longer than the context, and short ones."""
    texts = [" ".join(sentences * 3), *sentences[:3]]
    path = tmp_path_factory.mktemp("long") / "c.jsonl"
    rows = [{"id": "long" if i == 0 else f"d{i}", "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, texts


@pytest.fixture(scope="module")
def long_indices(short_model, long_corpus, tmp_path_factory):
    """Of documents cut by default, and at the whole context."""
    folder = tmp_path_factory.mktemp("long_indices")
    indices = {}
    for name, length in (("default", None), ("whole", CONTEXT)):
        options = IndexOptions(max_length=length)
        build_index(short_model, long_corpus[0], folder / name, options, quiet=True)
        indices[name] = Index.open(folder / name, short_model)
    return indices


@pytest.fixture(scope="module")
def long_question(short_model, long_corpus, long_indices):
    """A passage of the long document that finds it, in both indices."""
    document = long_corpus[1][0]
    for start in range(0, 2000, 20):
        question = document[start : start + 24].strip()
        vectors = short_model.encode([question])
        if all(index.search(vectors, 1).rows[0, 0] == 0 for index in long_indices.values()):
            return question
    raise AssertionError("no passage finds its document")


def tokens_of(model, parts) -> list[int]:
    return [i for part in model.tokenizer.encode_parts([parts])[0] for i in part]


@pytest.mark.slow
def test_documents_are_cut_by_default_so_that_a_question_fits(tiny_model, long_corpus, tmp_path):
    """And the index says how many, also when it is continued and when they are replaced."""
    path, texts = long_corpus
    config = dataclasses.replace(tiny_model.config, max_position_embeddings=512)
    model = type(tiny_model)(config, tiny_model.params, tiny_model.tokenizer, tiny_model.chat)
    assert len(tokens_of(model, model.chat.embed_parts("", texts[0]))) > 512
    summary = build_index(model, path, tmp_path / "index", quiet=True)
    assert (summary.to_dict()["documents_truncated"], summary.to_dict()["max_length"]) == (1, 384)
    assert "1 cut to 384 tokens" in str(summary)
    index = Index.open(tmp_path / "index", model)
    assert index.max_length == index.documents[0]["tokens"] == 384
    asker = Asker(model, index)
    for mode in (*MODES, "auto"):
        [answer] = asker.ask(QUESTION, mode, documents=[[index.text(0)]], max_new_tokens=NEW)
        assert not answer.warnings
    again = build_index(model, path, tmp_path / "index", quiet=True)
    assert (again.documents_truncated, again.max_length, again.encoded) == (1, 384, 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "c.jsonl").write_text(json.dumps({**rows[0], "text": "now short"}) + "\n")
    replaced = build_index(
        model, tmp_path / "c.jsonl", tmp_path / "index", IndexOptions(update=True), quiet=True
    )
    assert (replaced.documents_truncated, replaced.replaced) == (0, 1)


def test_a_document_exactly_as_long_as_the_limit_is_not_cut(short_model, long_corpus, tmp_path):
    text = long_corpus[1][1]
    length = len(tokens_of(short_model, short_model.chat.embed_parts("", text)))
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a", "text": text}) + "\n")
    for limit, cut in ((length, 0), (length - 1, 1)):
        summary = build_index(
            short_model,
            tmp_path / "c.jsonl",
            tmp_path / str(limit),
            IndexOptions(max_length=limit),
            quiet=True,
        )
        assert summary.documents_truncated == cut and summary.tokens == limit


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_of_a_document_that_is_too_long_the_beginning_is_read(
    short_model, long_corpus, long_indices, long_question, mode, capsys
):
    """The answer is that of one dense pass over as many of its tokens as fit."""
    document, question, chat = long_corpus[1][0], long_question, short_model.chat
    answers = Asker(short_model, long_indices["whole"]).ask(
        [question, long_corpus[1][1]], mode, max_new_tokens=NEW
    )
    layout = compose(mode, question, [document], chat)
    parts = short_model.tokenizer.encode_parts([layout.continuation])[0]
    other = sum(
        len(ids)
        for ids, part in zip(parts, layout.continuation, strict=True)
        if not part.is_document
    )
    if mode in QUERY_CACHES:
        other += len(tokens_of(short_model, chat.embed_parts("", question)))
    kept = CONTEXT - NEW - other
    cached = [
        tokens_of(short_model, chat.embed_parts("", text.text))[
            : kept if text.kind == "document" else None
        ]
        for text in layout.cached
    ]
    continuation = [
        i
        for ids, part in zip(parts, layout.continuation, strict=True)
        for i in (ids[:kept] if part.is_document else ids)
    ]
    assert sum(map(len, cached)) + len(continuation) + NEW == CONTEXT
    tokens = dense.greedy(short_model.params, short_model.config, cached, continuation, NEW).tokens
    stop = next((n for n, token in enumerate(tokens) if token in short_model.stop_ids), NEW)
    assert answers[0].answer == short_model.tokenizer.decode(tokens[:stop]).strip()
    [warning] = answers[0].warnings
    assert f"document 'long' beyond the first {kept} do not fit the model's context" in warning
    # The other question of the batch is answered as it is alone.
    assert not answers[1].warnings and answers[1].documents[0]["id"] == "d1"
    assert answers[1].answer == expected(short_model, mode, long_corpus[1][1], [long_corpus[1][1]])
    assert capsys.readouterr().err.count("warning: cut") == 1


@pytest.mark.parametrize("mode", ["doc-then-query", "doc", "query-doc"])
def test_of_several_documents_those_that_do_not_fit_are_left_out(
    short_model, long_corpus, long_indices, mode
):
    texts = long_corpus[1]
    asker = Asker(short_model, long_indices["default"])
    given = [[texts[1], texts[2], texts[0], texts[3]], [texts[0], texts[1]], [texts[3]]]
    answers = asker.ask([QUESTION] * 3, mode, documents=given, max_new_tokens=NEW)
    assert [[d["id"] for d in answer.documents] for answer in answers] == [["0", "1"], ["0"], ["0"]]
    assert "left out: documents '2', '3' do not fit" in answers[0].warnings[0]
    assert "left out: documents '1' do not fit" in answers[1].warnings[0]
    assert not answers[2].warnings
    assert answers[0].answer == expected(short_model, mode, QUESTION, texts[1:3])


def test_a_question_that_does_not_fit_even_without_documents(short_model, long_corpus):
    texts = long_corpus[1]
    for mode, arguments in (("none", {}), ("doc", {"documents": [[texts[1]]]})):
        with pytest.raises(
            GritError, match="does not fit the model's context of 256 tokens.*short"
        ):
            Asker(short_model).ask(texts[0], mode, max_new_tokens=NEW, **arguments)
        with pytest.raises(GritError, match="300 new tokens.*--max-new-tokens"):
            Asker(short_model).ask(QUESTION, mode, max_new_tokens=300, **arguments)
