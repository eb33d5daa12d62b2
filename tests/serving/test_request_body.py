"""Bodies of requests, over sockets in test_app.py and here by hand."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request

from grit_jax.serving.errors import ApiError, ClientGone
from grit_jax.serving.request_body import read_json, read_upload

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\none\r\ntwo\r\n--b--\r\n"
)


def request(kind: str, *parts: bytes | None) -> Request:
    """A request whose body comes in parts; None: the client leaves."""
    messages = [
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]

    async def receive():
        return messages.pop(0)

    headers = [(b"content-type", kind.encode())]
    return Request({"type": "http", "headers": headers, "method": "POST"}, receive)


def upload(*parts: bytes, kind: str = "multipart/form-data; boundary=b", most: int = 1000):
    return asyncio.run(read_upload(request(kind, *parts), most))


def test_a_form():
    sent = upload(FORM[:50], FORM[50:])
    assert (sent.filename, sent.content) == ("a.txt", b"one\r\ntwo")
    assert sent.fields == {"purpose": "assistants"}


@pytest.mark.parametrize(
    "body, kind, status, words",
    [
        (FORM, "application/json", 415, "expected multipart/form-data"),
        (FORM, "multipart/form-data", 400, "the form: "),
        (FORM, "multipart/form-data; boundary=x", 400, "the form: "),
        (b"", "multipart/form-data; boundary=b", 400, "file: this field is required"),
        (
            FORM.replace(b'; filename="a.txt"', b""),
            "multipart/form-data; boundary=b",
            400,
            "file: this",
        ),
        (FORM * 100, "multipart/form-data; boundary=b", 413, "larger than 1000 bytes"),
    ],
)
def test_a_bad_form(body, kind, status, words):
    with pytest.raises(ApiError, match=words) as error:
        upload(body, kind=kind)
    assert error.value.status == status


def test_json():
    read = lambda kind, *parts: asyncio.run(read_json(request(kind, *parts), 10))
    assert read("application/problem+json", b"{", b"}") == b"{}"
    with pytest.raises(ApiError, match="expected application/json"):
        read("text/plain", b"{}")
    with pytest.raises(ApiError, match="larger than 10 bytes"):
        read("application/json", b"x" * 11)
    with pytest.raises(ClientGone):
        read("application/json", b"{", None)
