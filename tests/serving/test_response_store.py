"""Responses that are kept: the latest ones, each for its user."""

from __future__ import annotations

import pytest

from grit_jax.serving.errors import ApiError
from grit_jax.serving.response_store import ResponseStore, StoredResponse


def stored(id: str, text: str = "x") -> StoredResponse:
    return StoredResponse("a", {"id": id, "text": text}, [])


def test_the_oldest_make_room():
    store = ResponseStore(most=2, most_bytes=10_000)
    for id in ("r1", "r2", "r3"):
        store.put(stored(id))
    assert len(store) == 2 and store.get("r2", "a").body["id"] == "r2"
    with pytest.raises(ApiError, match="there is no response 'r1'") as error:
        store.get("r1", "a")
    assert error.value.status == 404
    store.put(stored("r4", "x" * 9_950))  # leaves no room for another
    assert len(store) == 1 and store.get("r4", "a")
    store.put(stored("r5", "x" * 20_000))  # larger than the whole store
    assert len(store) == 0


def test_users_and_deletion():
    store = ResponseStore()
    store.put(stored("r1"))
    for call in (store.get, store.delete):
        with pytest.raises(ApiError, match="there is no response"):
            call("r1", "b")
    store.delete("r1", "a")
    assert len(store) == 0 and store._bytes == 0
