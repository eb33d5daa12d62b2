"""The routes of files: what OpenAPI says of them, and bodies that are no form."""

from __future__ import annotations

import json
import re


def test_the_description_names_them(server):
    paths = server.send("/openapi.json")[1]["paths"]
    assert set(paths["/v1/files"]) == {"get", "post"}
    form = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"]
    assert set(paths["/v1/files/{id}"]) == {"get", "delete"}
    assert set(paths["/v1/vector_stores/{name}/files"]) == {"get", "post"}
    single = paths["/v1/vector_stores/{name}/files/{file_id}"]
    assert set(single) == {"get", "post", "delete"}
    assert [parameter["name"] for parameter in single["post"]["parameters"]] == ["name", "file_id"]


def test_references_lead_somewhere(server):
    document = server.send("/openapi.json")[1]
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert len(references) > 20
    for reference in references:
        value = document
        for part in reference.split("/"):
            value = value[part.replace("~1", "/").replace("~0", "~")]
        assert isinstance(value, dict) and value


def test_queries(server):
    files = lambda query: server.send(f"/v1/vector_stores/docs/files?{query}")
    assert files("filter=song")[0] == 400 and files("limit=101")[0] == 400
    assert files("after=song")[0] == 404
    assert [file["id"] for file in files("after=d3&limit=2")[1]["data"]] == ["d2", "d1"]
    assert files("filter=failed")[1]["data"] == []
    assert server.send("/v1/vector_stores/docs/files/song")[0] == 404
    assert server.send("/v1/vector_stores/song/files")[0] == 404
    status, page, _ = server.send("/v1/vector_stores/docs/files/d1/content")
    assert status == 200 and page["data"][0]["text"].startswith("Amber")
    assert server.send("/v1/files?limit=x")[0] == 400
