"""The routes of files that are not JSON bodies: uploads, lists, single files and deletions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from grit_jax.serving.files import (
    delete_file,
    delete_store_file,
    file_body,
    file_content,
    files_list,
    store_file,
    store_file_content,
    store_files,
    upload,
    writer_of,
)
from grit_jax.serving.request_body import read_upload
from grit_jax.serving.service import Service

STORE = "/v1/vector_stores/{name}/files"
STORE_FILE = STORE + "/{file_id:path}"  # the id of a document may have slashes
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                    },
                }
            }
        },
    }
}


def add_file_routes(app: FastAPI, service: Service) -> None:
    """Adds them to an application."""

    @app.post("/v1/files", openapi_extra=FORM)
    async def upload_file(request: Request) -> Response:
        """Keeps a file."""
        writer_of(service)
        most = service.settings.limits.body_bytes
        return JSONResponse(await upload(service, await read_upload(request, most)))

    @app.get("/v1/files")
    async def files(request: Request) -> Response:
        """The uploaded files."""
        return JSONResponse(files_list(service, request.query_params))

    @app.get("/v1/files/{id}")
    async def file(id: str) -> Response:
        """An uploaded file."""
        return JSONResponse(file_body(service, id))

    @app.get("/v1/files/{id}/content")
    async def content(id: str) -> Response:
        """An uploaded file as it was sent."""
        return Response(await file_content(service, id), media_type="application/octet-stream")

    @app.delete("/v1/files/{id}")
    async def file_deleted(id: str) -> Response:
        """Deletes an uploaded file, and its documents from all stores."""
        return JSONResponse(await delete_file(service, id))

    @app.get(STORE)
    async def files_of_store(request: Request, name: str) -> Response:
        """The files of a store."""
        query = request.query_params
        return JSONResponse(await asyncio.to_thread(store_files, service, name, query))

    @app.get(STORE + "/{file_id:path}/content")
    async def content_of_store(name: str, file_id: str) -> Response:
        """The texts of a file's documents."""
        return JSONResponse(await asyncio.to_thread(store_file_content, service, name, file_id))

    @app.get(STORE_FILE)
    async def file_of_store(name: str, file_id: str) -> Response:
        """A file of a store."""
        return JSONResponse(await asyncio.to_thread(store_file, service, name, file_id))

    @app.delete(STORE_FILE)
    async def file_of_store_deleted(name: str, file_id: str) -> Response:
        """Deletes a file's documents from a store."""
        return JSONResponse(await delete_store_file(service, name, file_id))
