"""The access log: one JSON object a line."""

from __future__ import annotations

import io
import json

from grit_jax.serving.access_log import RequestRecord, request_id, write


def test_a_line():
    file = io.StringIO()
    path = '/v1/"x\n\u2028'
    write(RequestRecord("id-1", "POST", path, "127.0.0.1", status=200, seconds=0.25), file)
    [line] = file.getvalue().splitlines()
    values = json.loads(line)
    assert values["id"] == "id-1" and values["path"] == path and values["seconds"] == 0.25
    assert values["time"].endswith("+00:00") and values["prompt_tokens"] == 0
    assert "trace_id" not in values  # it is not traced
    write(RequestRecord("id-2", "GET", "/", trace_id="ab"), file)
    assert json.loads(file.getvalue().splitlines()[1])["trace_id"] == "ab"


def test_ids():
    assert request_id("abc-1") == "abc-1"
    for bad in (None, "", "a b", "x" * 129, "\u00e9", "a\n"):
        assert request_id(bad).startswith("req_")
