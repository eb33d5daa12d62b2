"""`/v1/files` and the files of vector stores: uploaded, added to a store, listed and deleted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from grit_jax.errors import GritError
from grit_jax.rag.chunking import Chunking
from grit_jax.serving.embeddings import Reply
from grit_jax.serving.errors import ApiError, bad_request
from grit_jax.serving.file_folder import Attachment
from grit_jax.serving.paging import list_body, page_of
from grit_jax.serving.protocol import Body
from grit_jax.serving.request_body import Upload
from grit_jax.serving.service import Service
from grit_jax.serving.sources import FILE_ID, FILENAME, source_of
from grit_jax.serving.store_writer import StoreWriter, no_such_file
from grit_jax.serving.stores import Store, StoreFiles

PURPOSES = ("assistants", "user_data")  # of OpenAI's, those of files to search
MOST_FILES = 10_000  # of a page
MOST_STORE_FILES, DEFAULT_STORE_FILES = 100, 20
MOST_NAME = 255
STATUSES = ("in_progress", "completed", "failed", "cancelled")
Key: TypeAlias = Annotated[str, Field(min_length=1, max_length=64)]
Value: TypeAlias = bool | int | float | Annotated[str, Field(max_length=512)]
Attributes: TypeAlias = Annotated[dict[Key, Value], Field(max_length=16)]


class StaticChunks(BaseModel):
    """`chunking_strategy.static`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    max_chunk_size_tokens: Annotated[int, Field(ge=1, le=4096)]
    chunk_overlap_tokens: Annotated[int, Field(ge=0)]


class ChunkingStrategy(BaseModel):
    """`chunking_strategy`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["auto", "static"]
    static: StaticChunks | None = None


class StoreFileBody(Body):
    """`POST /v1/vector_stores/{id}/files`."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class AttributesBody(Body):
    """`POST /v1/vector_stores/{id}/files/{file_id}`."""

    attributes: Attributes | None


def writer_of(service: Service) -> StoreWriter:
    """The writer of the stores.

    Raises:
      ApiError: 403, this server does not write.
    """
    if service.writer is None:
        raise ApiError(
            403,
            "this server takes no files and changes no store; start it with --files DIR",
            code="read_only",
        )
    return service.writer


# ---- /v1/files -----------------------------------------------------------------------------------


async def upload(service: Service, sent: Upload) -> dict[str, Any]:
    """Keeps a file.

    Raises:
      ApiError: 400 for a field with a mistake.
    """
    writer = writer_of(service)
    fields = dict(sent.fields)
    purpose = fields.pop("purpose", None)
    if purpose not in PURPOSES:
        raise bad_request(
            f"purpose: expected {' or '.join(PURPOSES)}, got {purpose!r:.60}", "purpose"
        )
    if fields:
        name = sorted(fields)[0]
        raise bad_request(f"{name:.60}: this server does not have it; leave it out", name)
    filename = os.path.basename(sent.filename.replace("\\", "/"))
    if not filename or len(filename) > MOST_NAME or not filename.isprintable():
        raise bad_request(f"file: expected a name of 1 to {MOST_NAME} printable characters", "file")
    if not sent.content:
        raise bad_request(f"file: {filename} is empty", "file")
    file = await asyncio.to_thread(writer.folder.add, filename, purpose, sent.content)
    return file.body()


def files_list(service: Service, query: Mapping[str, str]) -> dict[str, Any]:
    """The uploaded files, a page of them.

    Raises:
      ApiError: 400 for a limit or order that is none, 404 for an unknown `after`.
    """
    purpose = query.get("purpose")
    uploaded = service.writer.folder.files() if service.writer is not None else []
    files = {file.id: file for file in uploaded if purpose in (None, file.purpose)}
    ids, more = page_of(list(files), query, default=MOST_FILES, most=MOST_FILES, order="desc")
    return list_body([files[id].body() for id in ids], more)


def file_body(service: Service, id: str) -> dict[str, Any]:
    """An uploaded file.

    Raises:
      ApiError: 404, there is none.
    """
    return writer_of(service).folder.get(id).body()


async def file_content(service: Service, id: str) -> bytes:
    """An uploaded file as it was sent.

    Raises:
      ApiError: 404, there is none.
    """
    return await asyncio.to_thread(writer_of(service).folder.content, id)


async def delete_file(service: Service, id: str) -> dict[str, Any]:
    """Deletes an uploaded file, and its documents from all stores.

    Raises:
      ApiError: 404, there is none.
    """
    await writer_of(service).remove(id, service.stores)
    return {"id": id, "object": "file", "deleted": True}


# ---- files of a store ----------------------------------------------------------------------------


async def add_file(service: Service, name: str, body: StoreFileBody, user: str) -> Reply:
    """Begins to add an uploaded file to a store.

    Raises:
      ApiError: a request that is refused.
    """
    writer, store = writer_of(service), service.stores.get(name)
    attributes = _attributes(body.attributes)
    chunking, strategy = None, body.chunking_strategy
    if strategy is not None and (strategy.type == "static") != (strategy.static is not None):
        raise bad_request(
            "chunking_strategy: expected {'type': 'auto'} or {'type': 'static', 'static': ...}",
            "chunking_strategy",
        )
    if strategy is not None and strategy.static is not None:
        static = strategy.static
        try:
            chunking = Chunking(static.max_chunk_size_tokens, static.chunk_overlap_tokens)
        except GritError as error:
            raise bad_request(f"chunking_strategy: {error}", "chunking_strategy") from None
    attachment = await asyncio.to_thread(writer.attach, store, body.file_id, attributes, chunking)
    return Reply(_attached(store, body.file_id, attachment))


async def update_attributes(
    service: Service, name: str, file_id: str, body: AttributesBody, user: str
) -> Reply:
    """Gives the documents of a file other attributes; none of them is encoded again.

    Raises:
      ApiError: a request that is refused; 400 for a document that `grit index` added.
    """
    writer, store = writer_of(service), service.stores.get(name)
    attributes = _attributes(body.attributes)
    attachment = writer.folder.attachments(name).get(file_id)
    if attachment is None:
        await asyncio.to_thread(store_file, service, name, file_id)  # a 404 where there is none
        raise bad_request(
            f"file_id: {file_id!r:.100} was not uploaded here; its metadata are those of the corpus"
            " that grit index read",
            "file_id",
        )
    chunking = None
    if attachment.tokens is not None:
        chunking = Chunking(attachment.tokens, attachment.overlap or 0)
    changed = await asyncio.to_thread(writer.attach, store, file_id, attributes, chunking)
    return Reply(_attached(store, file_id, changed))


def store_files(service: Service, name: str, query: Mapping[str, str]) -> dict[str, Any]:
    """The files of a store, a page of them.

    Raises:
      ApiError: 404 for an unknown store or `after`, 400 for a field with a mistake.
    """
    store = service.stores.get(name)
    status = query.get("filter")
    if status not in (None, *STATUSES):
        raise bad_request(
            f"filter: expected one of {', '.join(STATUSES)}, got {status!r:.40}", "filter"
        )
    attachments, files = _attachments(service, name), store.files()
    ids = [
        id
        for id in (*(id for id in files.rows if id not in attachments), *attachments)
        if status is None or status == _status(attachments.get(id))
    ]
    page, more = page_of(
        ids, query, default=DEFAULT_STORE_FILES, most=MOST_STORE_FILES, order="desc"
    )
    bodies = [_store_file(store, id, attachments.get(id), files) for id in page]
    return list_body(bodies, more)


def store_file(service: Service, name: str, id: str) -> dict[str, Any]:
    """A file of a store.

    Raises:
      ApiError: 404, there is none.
    """
    store = service.stores.get(name)
    attachment, files = _attachments(service, name).get(id), store.files()
    if attachment is None and id not in files.rows:
        raise no_such_file(store, id)
    return _store_file(store, id, attachment, files)


def store_file_content(service: Service, name: str, id: str) -> dict[str, Any]:
    """The texts of a file's documents, as they are encoded.

    Raises:
      ApiError: 404, there is none.
    """
    store_file(service, name, id)
    store = service.stores.get(name)
    files = store.files()
    texts = [files.index.text(row) for row in files.rows.get(id, [])]
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text} for text in texts],
        "has_more": False,
        "next_page": None,
    }


async def delete_store_file(service: Service, name: str, id: str) -> dict[str, Any]:
    """Deletes a file's documents from a store; an uploaded file itself stays.

    Raises:
      ApiError: 404, there is none.
    """
    writer = writer_of(service)
    await writer.detach(service.stores.get(name), id)
    return {"id": id, "object": "vector_store.file.deleted", "deleted": True}


def _attachments(service: Service, store: str) -> dict[str, Attachment]:
    return service.writer.folder.attachments(store) if service.writer is not None else {}


def _attributes(given: dict[str, Any] | None) -> dict[str, Any]:
    for name in (FILE_ID, FILENAME):
        if name in (given or {}):
            raise bad_request(f"attributes: {name!r} names the file; choose another", "attributes")
    return given or {}


def _status(attachment: Attachment | None) -> str:
    return "completed" if attachment is None else attachment.status


def _store_file(
    store: Store, id: str, attachment: Attachment | None, files: StoreFiles
) -> dict[str, Any]:
    if attachment is not None:
        return _attached(store, id, attachment)
    lines = [files.index.documents[row] for row in files.rows[id]]
    return {
        **_body(store, id),
        "status": "completed",
        "usage_bytes": sum(len(f"{line['title']}{line['text']}".encode()) for line in lines),
        "attributes": source_of(lines[0])["attributes"],
        "chunking_strategy": {"type": "other"},
    }


def _attached(store: Store, id: str, attachment: Attachment) -> dict[str, Any]:
    error = None
    if attachment.error is not None:
        error = {"code": attachment.error_code, "message": attachment.error}
    tokens, overlap = attachment.tokens, attachment.overlap
    static = {"max_chunk_size_tokens": tokens, "chunk_overlap_tokens": overlap}
    return {
        **_body(store, id),
        "created_at": attachment.created_at,
        "status": attachment.status,
        "usage_bytes": attachment.usage_bytes,
        "last_error": error,
        "attributes": attachment.attributes,
        "chunking_strategy": {"type": "other"}
        if tokens is None
        else {"type": "static", "static": static},
    }


def _body(store: Store, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": "vector_store.file",
        "created_at": store.created,
        "vector_store_id": store.name,
        "last_error": None,
    }
