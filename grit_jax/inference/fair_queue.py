"""A bounded queue that serves its users in turn."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Generic, TypeVar

from grit_jax.errors import GritError

T = TypeVar("T")


class QueueFull(GritError):
    """The queue holds as many requests as it may; try again later."""


class FairQueue(Generic[T]):
    """First in, first out for each user, and the users in turn: who sends a thousand requests does
    not hold up who sends one. Not thread-safe.

    Args:
      limit: most items that wait at a time.

    >>> queue = FairQueue(limit=10)
    >>> for item, user in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")]:
    ...     queue.put(item, user)
    >>> [queue.get() for _ in range(len(queue))]
    ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._users: collections.OrderedDict[str, collections.deque[T]] = collections.OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for items in self._users.values():
            yield from items

    def put(self, item: T, user: str = "") -> None:
        """Adds an item behind those of the same user.

        Raises:
          QueueFull: `limit` items wait.
        """
        if self._size >= self.limit:
            raise QueueFull(
                f"the queue is full: {self._size} requests wait; try again later or raise its limit"
            )
        self._users.setdefault(user, collections.deque()).append(item)
        self._size += 1

    def peek(self) -> T:
        """The item that `get` would return.

        Raises:
          IndexError: the queue is empty.
        """
        if not self._users:
            raise IndexError("the queue is empty")
        return next(iter(self._users.values()))[0]

    def get(self) -> T:
        """Takes the first item of the user whose turn it is.

        Raises:
          IndexError: the queue is empty.
        """
        if not self._users:
            raise IndexError("the queue is empty")
        user, items = self._users.popitem(last=False)
        item = items.popleft()
        if items:
            self._users[user] = items  # now the last of the users
        self._size -= 1
        return item

    def discard(self, item: T) -> bool:
        """Removes an item; False if it does not wait here."""
        for user, items in self._users.items():
            if item in items:
                items.remove(item)
                self._size -= 1
                if not items:
                    del self._users[user]
                return True
        return False
