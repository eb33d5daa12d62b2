"""The description: complete, free of loose ends, and true of replies."""

from __future__ import annotations

import json
import re

import pytest
from live_server import live_server

from grit_jax.serving.app import POSTS
from grit_jax.serving.openapi import REPLIES
from grit_jax.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def document(server) -> dict:
    return server.send("/openapi.json")[1]


def test_every_operation_is_described(document):
    """Bodies, parts of the path, replies and errors; and every reference leads somewhere."""
    operations = {(m, path): op for path, ms in document["paths"].items() for m, op in ms.items()}
    assert set(REPLIES) <= set(operations) and not any("/page" in path for _, path in operations)
    for (method, path), operation in operations.items():
        given = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert given == set(re.findall(r"{(\w+)}", path)), path
        assert ("requestBody" in operation) == (method == "post"), path
        assert "200" in operation["responses"] and "422" not in operation["responses"]
        assert operation["responses"]["200"]["content"], (method, path)
        assert operation["description"] or operation["summary"]
    for path in (path.replace(":path}", "}") for path in POSTS):
        schema = operations["post", path]["requestBody"]["content"]["application/json"]["schema"]
        assert re.fullmatch(r"#/components/schemas/\w+", schema["$ref"])
    for reference in set(re.findall(r'"\$ref": "#([^"]*)"', json.dumps(document))):
        place = document
        for part in reference.split("/")[1:]:
            place = place[part]
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)


def test_fields_that_are_refused_are_described_as_such(document):
    """Only values that change nothing are allowed."""
    fields = document["components"]["schemas"]["CompletionBody"]["properties"]
    assert fields["suffix"]["enum"] == [None, ""]
    assert fields["max_tokens"]["anyOf"][0]["minimum"] == 0


def test_keys_are_described(tiny_model, document):
    assert "security" not in document
    with live_server(tiny_model, ServeSettings("m", slots=1, context=128, api_keys=["k"])) as own:
        assert own.send("/openapi.json")[0] == 401
        given = own.send("/openapi.json", headers={"Authorization": "Bearer k"})[1]
    assert given["security"] == [{"key": []}]
    assert given["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert "401" in given["paths"]["/v1/models"]["get"]["responses"]
    for path in ("/health", "/ready"):
        assert given["paths"][path]["get"]["security"] == []
