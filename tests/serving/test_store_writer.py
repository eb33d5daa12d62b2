"""The writer of the stores: what is interrupted goes on, and what fails says why."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from grit_jax.errors import GritError
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.serving import store_writer
from grit_jax.serving.errors import ApiError
from grit_jax.serving.file_folder import Attachment, FileFolder
from grit_jax.serving.store_writer import StoreWriter
from grit_jax.serving.stores import Store, Stores


@pytest.fixture
def store(tiny_model, sentences, tmp_path):
    corpus = tmp_path / "c.jsonl"
    rows = [{"id": f"d{i}", "text": sentences[i]} for i in range(2)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tiny_model, corpus, tmp_path / "index", IndexOptions(), quiet=True)
    return Store("docs", tmp_path / "index", {"tiny": tiny_model}, 256)


def writer(store, folder, most=4) -> StoreWriter:
    return StoreWriter(FileFolder(folder), Stores([store]), most)


def ids(store) -> list[str]:
    return [line["id"] for line in Index.open(store.path, store.model).documents]


def test_an_interrupted_addition_is_done_by_the_next_server(store, tmp_path, sentences):
    folder = FileFolder(tmp_path / "files")
    file = folder.add("a.txt", "assistants", sentences[5].encode())
    other = folder.add("b.txt", "assistants", sentences[6].encode())
    file.stores["docs"] = Attachment(1, {"n": 3})
    other.stores["not served"] = Attachment(1)
    folder.save(file)
    folder.save(other)
    folder.close()
    running = writer(store, tmp_path / "files")
    asyncio.run(running._in_turn(lambda: None))  # after the file that waits
    [(id, attachment)] = running.folder.attachments("docs").items()
    assert (id, attachment.status, attachment.documents) == (file.id, "completed", 1)
    assert ids(store) == ["d0", "d1", f"{file.id}#1"]
    assert store.index.allowed("n == 3").tolist() == [False, False, True]
    assert running.folder.get(other.id).stores["not served"].status == "in_progress"
    assert not list((tmp_path / "files").glob("*/corpus.jsonl"))
    running.close()


def test_a_failure_is_told_and_overload_refused(store, tmp_path, monkeypatch):
    running = writer(store, tmp_path / "files", most=1)
    file = running.folder.add("a.txt", "assistants", b"amber")

    def fails(*_, **__):
        raise GritError("the disk is full")

    monkeypatch.setattr(store_writer, "build_index", fails)
    monkeypatch.setattr(running, "_waiting", 1)
    with pytest.raises(ApiError, match="1 files wait") as error:
        running.attach(store, file.id, {}, None)
    assert error.value.status == 429
    monkeypatch.setattr(running, "_waiting", 0)
    running.attach(store, file.id, {}, None)
    asyncio.run(running._in_turn(lambda: None))
    attachment = running.folder.attachments("docs")[file.id]
    assert (attachment.status, attachment.error_code) == ("failed", "server_error")
    assert attachment.error == "the disk is full"
    with pytest.raises(ApiError, match="has no file 'x'"):
        asyncio.run(running.detach(store, "x"))
    asyncio.run(running.detach(store, file.id))
    assert running.folder.attachments("docs") == {}
    running.close()


def test_the_end_does_not_wait_for_a_file_for_ever(store, tmp_path, monkeypatch):
    going_on = threading.Event()
    monkeypatch.setattr(store_writer, "build_index", lambda *_, **__: going_on.wait(60))
    running = writer(store, tmp_path / "files")
    files = [running.folder.add(name, "assistants", b"amber") for name in ("a.txt", "b.txt")]
    for file in files:
        running.attach(store, file.id, {}, None)
    assert not running.close(0.05)
    going_on.set()
    assert running.close(60)
    # The second one was not begun: the next server adds it.
    again = FileFolder(tmp_path / "files")
    states = {id: attached.status for id, attached in again.attachments("docs").items()}
    assert states == {files[0].id: "completed", files[1].id: "in_progress"}
    again.close()
