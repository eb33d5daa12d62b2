"""Errors in OpenAI's form."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError, bad_request


@pytest.mark.parametrize(
    "status, kind",
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error")],
)
def test_the_type_follows_the_status(status, kind):
    body = ApiError(status, "why", param="input", code="x").body()
    assert body == {"error": {"message": "why", "type": kind, "param": "input", "code": "x"}}


def test_a_bad_request():
    assert bad_request("why", "n").status == 400 and bad_request("why", "n").param == "n"
