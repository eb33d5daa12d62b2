"""Adds files to stores and deletes them there, one after the other, beside the requests.

The index on disk is written by the code of `grit index`: it grows by vectors, records and words,
and a deletion is the index's own. What was accepted and is not done when the server ends is done
when one is started again with the same folder of files.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from grit_jax.errors import GritError
from grit_jax.rag.build import build_index, delete_documents
from grit_jax.rag.chunking import Chunking
from grit_jax.rag.index_options import IndexOptions
from grit_jax.runtime.files import write_file
from grit_jax.serving.errors import ApiError, bad_request
from grit_jax.serving.file_documents import FileProblem, auto_chunking, documents_of
from grit_jax.serving.file_folder import Attachment, FileFolder
from grit_jax.serving.stores import Store, Stores

LOG = logging.getLogger(__name__)
CORPUS = "corpus.jsonl"  # in the folder of a file while it is added
T = TypeVar("T")


class StoreWriter:
    """The one writer of a server's stores.

    Args:
      most: files that may wait.
    """

    def __init__(self, folder: FileFolder, stores: Stores, most: int):
        self.folder, self._stores = folder, stores
        self._most, self._waiting = most, 0
        self._lock = threading.RLock()  # of what is known of the files
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "store-writer")
        self._jobs: set[concurrent.futures.Future[Any]] = set()
        for store in stores:
            for id, attachment in folder.attachments(store.name).items():
                if attachment.status == "in_progress":
                    self._queue(store, id)

    def close(self, seconds: float | None = None) -> bool:
        """Ends after the file that is being added; the others are added by the next server.

        Args:
          seconds: to wait for that file; None: as long as it takes.

        Returns:
          Whether it has ended. If it has not, the process may end all the same: what is committed
          of the file stays, and the next server adds the rest.
        """
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            jobs = list(self._jobs)
        if concurrent.futures.wait(jobs, seconds).not_done:
            return False
        self.folder.close()
        return True

    def room(self, store: Store) -> int:
        """Tokens of text in a document of a store, beside the tags."""
        length = store.index.max_length
        return length - store.model.encoder.format([""], max_length=length).prompt

    def attach(
        self, store: Store, id: str, attributes: dict[str, Any], chunking: Chunking | None
    ) -> Attachment:
        """Begins to add a file to a store; one that is there is added anew.

        Args:
          chunking: of a text; None: what fits the store.

        Raises:
          ApiError: 404 for an unknown file, 400 for chunks that the store has no room for, 429
            where too many files wait.
        """
        self.folder.get(id)
        if chunking is not None and chunking.tokens > (room := self.room(store)):
            raise bad_request(
                f"chunking_strategy: max_chunk_size_tokens is {chunking.tokens}, and a document of"
                f" {store.name!r} has room for {room}",
                "chunking_strategy",
            )
        if self._waiting >= self._most:
            raise ApiError(
                429,
                f"{self._waiting} files wait to be added",
                code="overloaded",
                headers={"Retry-After": "10"},
            )
        attachment = Attachment(
            int(time.time()),
            attributes,
            chunking.tokens if chunking is not None else None,
            chunking.overlap if chunking is not None else None,
        )
        self._keep(id, store, attachment)
        self._queue(store, id)
        return attachment

    async def detach(self, store: Store, id: str) -> None:
        """Deletes a file's documents from a store, after the files that wait.

        Raises:
          ApiError: 404, the store does not have the file; 503, the index cannot be written.
        """
        await self._in_turn(lambda: self._delete(store, id))

    async def remove(self, id: str, stores: Stores) -> None:
        """Deletes an uploaded file, here and from all stores.

        Raises:
          ApiError: as `detach`.
        """
        file = self.folder.get(id)

        def work() -> None:
            for store in stores:
                if store.name in file.stores:
                    self._delete(store, id)
            self.folder.remove(id)

        await self._in_turn(work)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.wrap_future(self._submit(work))
        except GritError as error:
            raise ApiError(503, self._stores.named(str(error)), code="not_written") from None

    def _queue(self, store: Store, id: str) -> None:
        with self._lock:
            self._waiting += 1

        def done(_: Any) -> None:
            with self._lock:
                self._waiting -= 1

        self._submit(lambda: self._add(store, id)).add_done_callback(done)

    def _submit(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        job = self._thread.submit(work)

        def done(_: Any) -> None:
            with self._lock:
                self._jobs.discard(job)

        with self._lock:
            self._jobs.add(job)
        job.add_done_callback(done)
        return job

    def _keep(self, id: str, store: Store, attachment: Attachment | None) -> None:
        """Writes what has become of a file in a store; None: it is not there any more."""
        with self._lock:
            file = self.folder.get(id)
            stores = {name: each for name, each in file.stores.items() if name != store.name}
            if attachment is not None:
                stores[store.name] = attachment
            self.folder.save(dataclasses.replace(file, stores=stores))

    # ---- in the writer's thread ------------------------------------------------------------------

    def _add(self, store: Store, id: str) -> None:
        try:
            attachment = self.folder.get(id).stores[store.name]
        except (ApiError, KeyError):
            return  # deleted since
        try:
            added = self._index(store, id, attachment)
        except FileProblem as problem:
            added = _failed(attachment, problem.code, str(problem))
        except Exception as error:
            LOG.warning("%s: file %s was not added: %s", store.name, id, error, exc_info=True)
            is_known = isinstance(error, GritError)
            reason = str(error) if is_known else f"{type(error).__name__}: {error}"
            added = _failed(attachment, "server_error", store.named(reason))
        with self._lock:
            current = self.folder.get(id).stores.get(store.name)
            if current is attachment:  # and not one that was asked for since
                self._keep(id, store, added)

    def _index(self, store: Store, id: str, attachment: Attachment) -> Attachment:
        """Adds a file to the index of a store.

        Raises:
          FileProblem: the file cannot be added.
          GritError: the index cannot be written.
        """
        file = self.folder.get(id)
        chunking = auto_chunking(self.room(store))
        if attachment.tokens is not None:
            chunking = Chunking(attachment.tokens, attachment.overlap or 0)
        content = self.folder.content(id)
        documents = documents_of(
            file, content, attachment.attributes, store.model.tokenizer, chunking
        )
        corpus = self.folder.path / id / CORPUS
        with write_file(corpus) as writing:
            for document in documents:
                writing.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        try:
            options = IndexOptions(kv=store.index.kv, update=True, delete_missing=None)
            build_index(store.model, corpus, store.path, options, quiet=True)
        finally:
            corpus.unlink(missing_ok=True)
        store.refresh()
        # Of an earlier addition of this file, divided in other chunks.
        old = store.documents_of(id) - {document["id"] for document in documents}
        if old:
            delete_documents(store.model, store.path, old, quiet=True)
            store.refresh()
        size = sum(len(f"{d['title']}{d['text']}".encode()) for d in documents)
        return dataclasses.replace(
            attachment, status="completed", documents=len(documents), usage_bytes=size
        )

    def _delete(self, store: Store, id: str) -> None:
        documents = store.documents_of(id)
        is_attached = id in self.folder.attachments(store.name)
        if not documents and not is_attached:
            raise no_such_file(store, id)
        if documents:
            delete_documents(store.model, store.path, documents, quiet=True)
            store.refresh()
        if is_attached:
            self._keep(id, store, None)


def no_such_file(store: Store, id: str) -> ApiError:
    """A 404."""
    return ApiError(
        404,
        f"file_id: the store {store.name!r} has no file {id!r:.100}",
        param="file_id",
        code="not_found",
    )


def _failed(attachment: Attachment, code: str, reason: str) -> Attachment:
    return dataclasses.replace(attachment, status="failed", error_code=code, error=reason)
