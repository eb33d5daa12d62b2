"""The bodies of requests, read up to a limit: JSON, and the forms in which files are sent."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from grit_jax.serving.errors import ApiError, ClientGone, bad_request

MOST_FIELDS = 16


def content_type(request: Request) -> str:
    """The type of a request's body; JSON where it says none."""
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


async def read_json(request: Request, most: int) -> bytes:
    """The body of a request of at most `most` bytes.

    Raises:
      ApiError: 413 for one that is too large, 415 for one that is not said to be JSON.
      ClientGone: it did not come whole.
    """
    kind = content_type(request)
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"content-type: expected application/json, got {kind!r:.60}")
    return await _read(request, most)


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was sent with other fields."""

    filename: str
    content: bytes
    fields: dict[str, str]


async def read_upload(request: Request, most: int) -> Upload:
    """A form (`multipart/form-data`) with one file, in the field `file`.

    Raises:
      ApiError: 413 for a body that is too large, 415 for no form, 400 for one with a mistake.
      ClientGone: it did not come whole.
    """
    kind = content_type(request)
    if kind != "multipart/form-data":
        raise ApiError(415, f"content-type: expected multipart/form-data, got {kind!r:.60}")
    raw = await _read(request, most)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield raw
        yield b""

    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=MOST_FIELDS, max_part_size=most
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise bad_request(f"the form: {str(error) or 'no boundary'}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise bad_request("file: this field is required, and is a file", "file")
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        if other := sorted(name for name, value in form.items() if name not in ("file", *fields)):
            raise bad_request(f"{other[0]:.60}: expected a text", other[0])
        return Upload(file.filename or "", await file.read(), fields)
    finally:
        await form.close()


async def _read(request: Request, most: int) -> bytes:
    too_large = ApiError(
        413, f"the body is larger than {most} bytes; send fewer inputs at a time", code="too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large
        if not message.get("more_body"):
            return bytes(body)
