"""Files: uploaded with the official client, added to a store while it is served, found, read and
deleted."""

from __future__ import annotations

import concurrent.futures
import json

import numpy as np
import pytest
from live_server import live_server

from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.serving.settings import ServeLimits, ServeSettings
from grit_jax.serving.stores import Store

DOCUMENTS = 4  # that are in the index from the start


@pytest.fixture(scope="module")
def written(tiny_model, sentences, tmp_path_factory):
    """A server whose store can be written to."""
    folder = tmp_path_factory.mktemp("written")
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(sentences[:DOCUMENTS])]
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tiny_model, corpus, folder / "index", IndexOptions(), quiet=True)
    settings = ServeSettings(
        "tiny",
        slots=4,  # the programs of the other server
        context=256,
        indices={"docs": folder / "index"},
        limits=ServeLimits(body_bytes=50_000),
        warm_up=False,
        files=folder / "files",
    )
    with live_server(tiny_model, settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(written):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{written.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def store_index(written, tiny_model):
    """The index on disk as it is now."""
    return lambda: Index.open(written.service.settings.indices["docs"], tiny_model)


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def send(client, name: str, content: bytes):
    return client.files.create(file=(name, content), purpose="assistants")


def add(client, file, **fields):
    """The file in the store, once it is done."""
    files = client.vector_stores.files
    return files.create_and_poll(
        vector_store_id="docs", file_id=file.id, poll_interval_ms=20, **fields
    )


def test_uploads(client):
    first, second = send(client, "a.txt", b"one"), send(client, "b.md", "zwölf\r\n".encode())
    assert first.id.startswith("file-") and (first.bytes, first.filename) == (3, "a.txt")
    assert client.files.retrieve(second.id) == second
    assert client.files.content(second.id).content == "zwölf\r\n".encode()
    listed = [file.id for file in client.files.list()]
    assert {first.id, second.id} <= set(listed)
    assert [f.id for f in client.files.list(limit=1)] == listed  # the client turns the pages
    for file in (first, second):
        assert client.files.delete(file.id).deleted
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError, match="there is no uploaded file"):
        client.files.retrieve(first.id)


def test_a_corpus_is_added_and_deleted(client, written, store_index, tiny_model, sentences):
    rows = [
        {"id": "x1", "title": "Amber", "text": sentences[20], "metadata": {"year": 2020}},
        {"id": "x2", "text": sentences[21]},
    ]
    file = send(client, "corpus.jsonl", lines(*rows))
    added = add(client, file, attributes={"year": 1999, "draft": False})
    assert added.status == "completed" and added.last_error is None, added
    assert added.attributes == {"year": 1999, "draft": False} and added.usage_bytes > 0
    # It is in the index as if `grit index` had read it: vector, words and record.
    index = store_index()
    assert len(index) == DOCUMENTS + 2 and index.manifest.complete
    np.testing.assert_allclose(
        index.vectors[-2:], tiny_model.encode([index.text("x1"), index.text("x2")]), atol=1e-5
    )
    [hits] = index.find([sentences[21]], None, 1, Retrieval("lexical"))
    assert index.documents[int(hits.rows[0])]["id"] == "x2"
    # Found and filtered in the server at once; the line's own metadata come before the attributes.
    search = lambda **filters: (
        client.vector_stores.search(
            "docs", query=sentences[20], filters={"type": "eq", **filters}
        ).data
    )
    [found] = search(key="year", value=2020)
    assert (found.file_id, found.filename) == (file.id, "corpus.jsonl")
    assert found.attributes == {"year": 2020, "draft": False} and found.document_id == "x1"
    [found] = search(key="year", value=1999)
    assert found.document_id == "x2" and found.content[0].text == sentences[21]
    # And answers are read from its records.
    body = {"store": "docs", "mode": "doc", "where": "year == 2020", "k": 1}
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Amber?"}],
        temperature=0,
        max_tokens=5,
        extra_body=body,
    )
    [expected] = Asker(tiny_model, index).ask(
        "Amber?", "doc", retrieval=Retrieval(where="year == 2020"), max_new_tokens=5
    )
    assert reply.choices[0].message.content.strip() == expected.answer
    assert reply.usage.prompt_tokens_details.cached_tokens > 0
    # Listed beside the documents of `grit index`.
    files = client.vector_stores.files
    ids = [item.id for item in files.list("docs")]
    assert ids == [file.id, "d3", "d2", "d1", "d0"]
    assert files.retrieve(file.id, vector_store_id="docs") == added
    assert [item.id for item in files.list("docs", limit=2, order="asc")][:2] == ["d0", "d1"]
    texts = [part.text for part in files.content(file.id, vector_store_id="docs")]
    assert texts == [index.text("x1"), index.text("x2")]
    counts = client.vector_stores.retrieve("docs").file_counts
    assert (counts.completed, counts.in_progress, counts.total) == (5, 0, 5)
    # New attributes: nothing is encoded again.
    key = index.documents[DOCUMENTS + 1]["key"]
    changed = files.update(file.id, vector_store_id="docs", attributes={"year": 2001})
    assert changed.status in ("in_progress", "completed")
    assert files.poll(file.id, vector_store_id="docs", poll_interval_ms=20).status == "completed"
    [found] = search(key="year", value=2001)
    assert found.document_id == "x2"
    assert {line["id"]: line["key"] for line in store_index().documents}["x2"] == key
    # Deleted: the documents are gone from the index, the file stays.
    assert files.delete(file.id, vector_store_id="docs").deleted
    assert [line["id"] for line in store_index().documents] == ["d0", "d1", "d2", "d3"]
    assert not [
        r for r in client.vector_stores.search("docs", query="amber").data if r.file_id == file.id
    ]
    assert client.files.retrieve(file.id).id == file.id
    assert client.vector_stores.retrieve("docs").file_counts.total == DOCUMENTS


def test_a_text_is_added_in_chunks(client, store_index):
    text = "\n\n".join(f"Paragraph {i} of the amber book, on rivers and stones." for i in range(12))
    file = send(client, "Book.TXT", text.encode())
    static = {"max_chunk_size_tokens": 60, "chunk_overlap_tokens": 0}
    strategy = {"type": "static", "static": static}
    added = add(client, file, chunking_strategy=strategy)
    assert added.status == "completed" and added.chunking_strategy.static.to_dict() == static
    index = store_index()
    own = [line for line in index.documents if line["id"].startswith(file.id)]
    assert len(own) > 2 and own[0]["id"] == f"{file.id}#1"
    assert "\n\n".join(line["text"] for line in own) == text
    assert not any(line.get("truncated") for line in own)
    assert all(line["metadata"] == {"file_id": file.id, "filename": "Book.TXT"} for line in own)
    # Added again in larger chunks, which replace the others.
    added = add(client, file)
    again = [line for line in store_index().documents if line["id"].startswith(file.id)]
    assert added.status == "completed" and 0 < len(again) < len(own)
    # Deleting the file itself deletes its documents, too.
    client.files.delete(file.id)
    assert len(store_index()) == DOCUMENTS


@pytest.mark.parametrize(
    "name, content, code, words",
    [
        (
            "a.pdf",
            b"%PDF",
            "unsupported_file",
            "a.pdf: expected a corpus (.jsonl, .ndjson) or a text",
        ),
        ("a.txt", b"\xff\xfe", "invalid_file", "a.txt: is not UTF-8 text (byte 0)"),
        ("a.txt", b" \n ", "invalid_file", "there is no text in this file"),
        ("a.jsonl", b'{"id": "1"}', "invalid_file", 'a.jsonl:1: the document has no "text"'),
        ("a.jsonl", lines({"id": "1", "text": "x"}) * 2, "invalid_file", "a.jsonl:2: duplicate id"),
        (
            "a.jsonl",
            lines({"id": "1", "text": "x", "metadata": {"file_id": "y"}}),
            "invalid_file",
            "the key 'file_id', which names the uploaded file",
        ),
    ],
)
def test_a_file_that_cannot_be_added(client, store_index, name, content, code, words):
    file = send(client, name, content)
    failed = add(client, file)
    assert failed.status == "failed" and failed.last_error.code == code
    assert words in failed.last_error.message
    assert client.vector_stores.retrieve("docs").file_counts.failed == 1
    [listed] = client.vector_stores.files.list("docs", filter="failed")
    assert listed.id == file.id and len(store_index()) == DOCUMENTS
    client.files.delete(file.id)
    assert client.vector_stores.retrieve("docs").file_counts.failed == 0


@pytest.mark.slow
def test_requests_go_on_while_files_come_and_go(client, written, store_index):
    """Answers over the other documents stay the same, and nothing fails, not even where many
    deletions copy the index to new files."""
    stays = send(client, "stays.txt", b"A copper engine hums.")
    assert add(client, stays, attributes={"kept": True}).status == "completed"
    tool = {
        "type": "file_search",
        "vector_store_ids": ["docs"],
        "where": "kept == true",
        "mode": "doc",
    }
    ask = lambda _=0: client.responses.create(
        model="tiny", input="engine", temperature=0, max_output_tokens=3, tools=[tool]
    )
    first = ask()
    assert first.output[1].content[0].annotations[0].file_id == stays.id

    def write(number: int) -> None:
        rows = [{"id": f"{number}-{i}", "text": f"Amber river {i}."} for i in range(3)]
        file = send(client, f"{number}.jsonl", lines(*rows))
        assert add(client, file, attributes={"kept": False}).status == "completed"
        client.files.delete(file.id)

    generation = store_index().manifest.generation
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(write, number) for number in range(2)]
        replies = list(pool.map(ask, range(12)))
        for each in writes:
            each.result()
    for reply in replies:
        assert reply.output_text == first.output_text
        assert reply.output[1].content[0].annotations == first.output[1].content[0].annotations
    assert store_index().manifest.generation > generation
    client.files.delete(stays.id)
    assert len(store_index()) == DOCUMENTS


def test_an_id_with_slashes(client, store_index, tiny_model, tmp_path):
    """Documents that `grit index` adds may have such ids."""
    name = "https://example.org/a b?c=d#e"
    corpus = tmp_path / "c.jsonl"
    corpus.write_bytes(lines({"id": name, "text": "amber"}))
    build_index(
        tiny_model, corpus, store_index().path, IndexOptions(delete_missing=None), quiet=True
    )
    files = client.vector_stores.files
    assert files.retrieve(name, vector_store_id="docs").id == name
    assert [part.text for part in files.content(name, vector_store_id="docs")] == ["amber"]
    assert files.delete(name, vector_store_id="docs").deleted
    assert len(store_index()) == DOCUMENTS


def test_what_cannot_be_deleted(client, written, tiny_model):
    files = client.vector_stores.files
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError, match="the store 'docs' has no file 'no'"):
        files.delete("no", vector_store_id="docs")
    with pytest.raises(openai.BadRequestError, match="'d3' was not uploaded here"):
        files.update("d3", vector_store_id="docs", attributes={"a": 1})


def test_a_store_may_lose_its_last_document(client, written, tiny_model):
    """It is searched without a result and answered without documents, until a file is added."""
    files, send_to = client.vector_stores.files, written.send
    for number in range(DOCUMENTS):
        assert files.delete(f"d{number}", vector_store_id="docs").deleted
    assert [file.id for file in files.list("docs")] == []
    store = client.vector_stores.retrieve("docs")
    assert (store.file_counts.total, store.status, store.usage_bytes) == (0, "completed", 0)
    for search in ("dense", "lexical", "hybrid"):
        body = {"query": ["amber", "river"], "search": search, "where": "n > 1"}
        status, page, _ = send_to("/v1/vector_stores/docs/search", body)
        assert (status, page["data"]) == (200, []), search
    status, judged, _ = send_to("/v1/rerank", {"query": "amber", "store": "docs"})
    assert (status, judged["results"], judged["usage"]["total_tokens"]) == (200, [], 0)
    asked = [{"role": "user", "content": "Which river is quiet?"}]
    plain = {"messages": asked, "max_tokens": 8, "temperature": 0}
    words = "store 'docs': there is no document in this index; answered without documents"
    without = send_to("/v1/chat/completions", plain)[1]["choices"][0]["message"]["content"]
    for mode in ("auto", "doc"):
        _, reply, _ = send_to("/v1/chat/completions", {**plain, "store": "docs", "mode": mode})
        assert reply["choices"][0]["message"]["content"] == without
        assert (reply["grit"]["mode"], reply["grit"]["warnings"]) == ("none", [words])
    response = client.responses.create(
        model="tiny",
        input=asked[0]["content"],
        temperature=0,
        max_output_tokens=8,
        tools=[{"type": "file_search", "vector_store_ids": ["docs"]}],
        include=["file_search_call.results"],
    )
    assert response.output[0].results == [] and response.output_text == without
    assert response.output[1].content[0].annotations == []
    path = written.service.settings.indices["docs"]
    Store("docs", path, {"tiny": tiny_model}, 256).warm_up()  # as a server that is started now
    added = add(client, send(client, "again.txt", b"The quiet amber river."))
    assert added.status == "completed"
    _, page, _ = send_to("/v1/vector_stores/docs/search", {"query": "amber"})
    assert [result["file_id"] for result in page["data"]] == [added.id]
    _, reply, _ = send_to("/v1/chat/completions", {**plain, "store": "docs", "mode": "doc"})
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert reply["grit"]["warnings"] == []


def test_without_the_flag_nothing_is_written(server):
    words = "this server takes no files and changes no store; start it with --files DIR"
    for method, path, body in (
        ("POST", "/v1/files", {}),
        ("DELETE", "/v1/files/file-1", None),
        ("POST", "/v1/vector_stores/docs/files", {"file_id": "file-1"}),
        ("POST", "/v1/vector_stores/docs/files/d1", {"attributes": {}}),
        ("DELETE", "/v1/vector_stores/docs/files/d1", None),
    ):
        status, reply, _ = server.send(path, body, method=method)
        assert status == 403 and words in reply["error"]["message"], (method, path)
    status, page, _ = server.send("/v1/vector_stores/docs/files?limit=1")
    assert status == 200 and [file["id"] for file in page["data"]] == ["d11"] and page["has_more"]
    assert server.send("/v1/files")[1]["data"] == []
    assert server.send("/v1/vector_stores/docs/files/d1")[1]["attributes"] == {"n": 1}


@pytest.mark.parametrize(
    "body, status, words",
    [
        ({"file_id": "file-1"}, 404, "there is no uploaded file 'file-1'"),
        ({}, 400, "file_id: this field is required"),
        ({"file_id": "x", "attributes": {"file_id": "y"}}, 400, "'file_id' names the file"),
        ({"file_id": "x", "attributes": {"a": [1]}}, 400, "attributes"),
        ({"file_id": "x", "attributes": {str(i): i for i in range(17)}}, 400, "attributes"),
        ({"file_id": "x", "chunking_strategy": {"type": "static"}}, 400, "chunking_strategy"),
        (
            {
                "file_id": "x",
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 20, "chunk_overlap_tokens": 11},
                },
            },
            400,
            "overlap of chunks: expected 0 to 10",
        ),
    ],
)
def test_a_bad_request_is_refused(written, body, status, words):
    got, error = written.error("/v1/vector_stores/docs/files", **body)
    assert got == status and words in error["message"], error


def test_chunks_that_do_not_fit(client, written):
    file = send(client, "a.txt", b"amber")
    static = {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 0}
    status, reply, _ = written.send(
        "/v1/vector_stores/docs/files",
        {"file_id": file.id, "chunking_strategy": {"type": "static", "static": static}},
    )
    assert status == 400 and "a document of 'docs' has room for" in reply["error"]["message"]
    client.files.delete(file.id)
