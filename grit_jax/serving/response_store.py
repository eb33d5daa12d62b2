"""Responses that can be read again and continued (`previous_response_id`), in memory."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

from grit_jax.serving.errors import ApiError

MOST_RESPONSES, MOST_BYTES = 1000, 64 << 20  # the oldest ones go first


@dataclasses.dataclass(frozen=True)
class StoredResponse:
    """A response that has ended.

    Attributes:
      user: who asked; nobody else can read it.
      body: the response.
      items: its input items, with ids.
    """

    user: str
    body: dict[str, Any]
    items: list[dict[str, Any]]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(json.dumps([self.body, self.items]))


class ResponseStore:
    """The latest responses of a server; used in its event loop alone."""

    def __init__(self, most: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._responses: collections.OrderedDict[str, tuple[StoredResponse, int]] = (
            collections.OrderedDict()
        )
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response: StoredResponse) -> None:
        """Keeps a response; the oldest ones make room for it."""
        size = response.size
        self._responses[response.body["id"]] = (response, size)
        self._bytes += size
        while self._responses and (
            len(self._responses) > self._most or self._bytes > self._most_bytes
        ):
            self._bytes -= self._responses.popitem(last=False)[1][1]

    def get(self, id: str, user: str, param: str = "response_id") -> StoredResponse:
        """A response of a user.

        Raises:
          ApiError: 404, there is none (any more).
        """
        stored = self._responses.get(id)
        if stored is None or stored[0].user != user:
            raise ApiError(
                404,
                f"{param}: there is no response {id!r:.100}; this server keeps the latest"
                f" {self._most} that were not sent with store: false, until it ends",
                param=param,
                code="not_found",
            )
        return stored[0]

    def delete(self, id: str, user: str) -> None:
        """Forgets a response.

        Raises:
          ApiError: 404, there is none.
        """
        self.get(id, user)
        self._bytes -= self._responses.pop(id)[1]
