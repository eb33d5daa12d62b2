"""Batches that several hosts prepare together: each tokenizes a share of the texts and receives the
ids of the texts in its own rows.

The packing depends on the lengths of all texts and on nothing else. So each of n hosts tokenizes
every n-th text, all hosts exchange lengths (`tokenize_together`), every host computes the same
packing, and each text is then sent to the hosts that hold its row (`deliver`). The batch is the one
that a single host would prepare, and each text is tokenized once. Rows that belong to other hosts
keep their shape and hold zeros.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int

from grit_jax.data.token_texts import WireText
from grit_jax.runtime.hosts import Exchange

Text = TypeVar("Text", bound=WireText)


@dataclasses.dataclass(frozen=True)
class HostGroup:
    """The hosts that prepare batches together.

    Attributes:
      exchange: sends bytes between them.
      rows_of_hosts: given B, which of B rows each host's devices hold: bool [hosts, B].
    """

    exchange: Exchange
    rows_of_hosts: Callable[[int], Bool[np.ndarray, "hosts B"]]


def tokenize_together(
    group: HostGroup | None,
    key: str,
    count: int,
    tokenize: Callable[[Sequence[int]], list[Text]],
    kind: type[Text],
) -> list[Text]:
    """All `count` texts of one part of a batch, with placeholders for those of other hosts.

    Args:
      group: None: this host tokenizes all of them.
      key: names the part of the batch, the same on all hosts.
      tokenize: returns the texts with the given numbers.
      kind: the class of the texts.
    """
    if group is None:
        return tokenize(range(count))
    host, hosts = group.exchange.number, group.exchange.hosts
    texts: list[Text] = [None] * count  # type: ignore[list-item]
    texts[host::hosts] = tokenize(range(host, count, hosts))
    headers = _to_bytes([text.header() for text in texts[host::hosts]])
    for sender, message in enumerate(group.exchange(f"{key}/headers", [headers] * hosts)):
        if sender != host:
            texts[sender::hosts] = [kind.placeholder(header) for header in _from_bytes(message)]
    return texts


def deliver(
    group: HostGroup | None, key: str, texts: list[Text], rows: Int[np.ndarray, " M"], num_rows: int
) -> list[Text]:
    """`texts` with the token ids of those that are in this host's rows.

    Args:
      texts: as returned by `tokenize_together`.
      rows: the row of each text, of `num_rows` rows.
    """
    if group is None:
        return texts
    host, hosts = group.exchange.number, group.exchange.hosts
    holds = group.rows_of_hosts(num_rows)

    def sent(sender: int, receiver: int) -> list[int]:
        return [i for i in range(sender, len(texts), hosts) if holds[receiver, rows[i]]]

    messages = [
        b"" if to == host else _to_bytes([texts[i].content() for i in sent(host, to)])
        for to in range(hosts)
    ]
    delivered = list(texts)
    for sender, message in enumerate(group.exchange(f"{key}/texts", messages)):
        if sender != host:
            for i, content in zip(sent(sender, host), _from_bytes(message), strict=True):
                delivered[i] = texts[i].with_content(content)
    return delivered


def _to_bytes(lists: Sequence[Sequence[int] | np.ndarray]) -> bytes:
    """Lists of int32 as bytes: their count, the length of each, and then all numbers."""
    lengths = np.array([len(lists), *map(len, lists)], "<i4")
    return np.concatenate([lengths, *(np.asarray(numbers, "<i4") for numbers in lists)]).tobytes()


def _from_bytes(message: bytes) -> list[np.ndarray]:
    numbers = np.frombuffer(message, "<i4")
    begin = 1 + int(numbers[0])
    ends = begin + np.cumsum([0, *numbers[1:begin]])
    return [numbers[a:b] for a, b in itertools.pairwise(ends)]
