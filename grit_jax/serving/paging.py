"""Pages of lists, as OpenAI's clients read them: `limit`, `order`, `after` and `before`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.serving.errors import ApiError, bad_request

ORDERS = ("asc", "desc")


def page_of(
    ids: Sequence[str], query: Mapping[str, str], *, default: int, most: int, order: str = "asc"
) -> tuple[list[str], bool]:
    """The ids that a page shows, and whether more follow.

    Args:
      ids: all ids, the oldest first.
      query: of the request.
      default, most: ids of a page.
      order: where the query says none.

    Raises:
      ApiError: 400 for a limit or order that is none, 404 for an unknown `after` or `before`.
    """
    count, limit = default, query.get("limit")
    if limit is not None:
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= most):
            raise bad_request(f"limit: expected 1 to {most}, got {limit!r:.40}", "limit")
        count = int(limit)
    order = query.get("order", order)
    if order not in ORDERS:
        raise bad_request(f"order: expected {' or '.join(ORDERS)}, got {order!r:.40}", "order")
    listed = list(ids) if order == "asc" else list(ids)[::-1]
    for name in ("after", "before"):
        if (id := query.get(name)) is not None:
            if id not in listed:
                raise ApiError(
                    404, f"{name}: there is no {id!r:.100}", param=name, code="not_found"
                )
            place = listed.index(id)
            listed = listed[place + 1 :] if name == "after" else listed[:place]
    return listed[:count], len(listed) > count


def list_body(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page as JSON."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
