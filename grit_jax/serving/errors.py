"""Errors as an OpenAI client expects them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grit_jax.errors import GritError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
CLIENT_GONE = 499  # nginx's number, for the log: nobody reads the reply


class ApiError(Exception):
    """What ends a request with another status than 200.

    Args:
      param: the field of the request that is wrong.
      code: a word for programs, such as "model_not_found".
      headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class FormError(GritError):
    """An answer cannot go on in the form that its request demands in the field `param`."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


class ClientGone(Exception):
    """The client has closed its connection before the reply."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, param=param, code=code)
