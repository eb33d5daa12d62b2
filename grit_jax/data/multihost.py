"""A batch that several hosts prepare together: each tokenises its share of the texts, and gets
those of its rows.

Where a text goes depends on the lengths of all texts, nothing else: each host tokenises every n-th
text, all tell all how long theirs are, and everyone packs the same rows. Then each sends the others
the texts that stand in *their* rows. So a batch is the one that a single host would make, however
many there are, and each text is tokenised once. What stands in the rows of others is left out here:
those places hold zeros, in arrays that are otherwise whole.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from grit_jax.data.packing import Arrive, TokenCached, TokenText
from grit_jax.runtime.hosts import Exchange

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PromptedText:
    """An embedding text: `prompt` tokens of `ids` are not pooled; `digest` is known where the ids
    are not."""

    ids: Sequence[int]
    prompt: int
    digest: bytes = b""

    @functools.cached_property
    def key(self) -> bytes:
        """The same for the same ids."""
        return (
            self.digest
            or hashlib.blake2b(np.asarray(self.ids, np.int32).tobytes(), digest_size=16).digest()
        )


@dataclasses.dataclass(frozen=True)
class WireFormat(Generic[T]):
    """How texts of a kind travel, as numbers.

    Attributes:
      about: what all must know: enough for `outline`, a text of the right lengths.
      content: what those must know in whose rows it stands: with `about` enough for `whole`.
    """

    about: Callable[[T], Sequence[int]]
    outline: Callable[[np.ndarray], T]
    content: Callable[[T], Sequence[int] | np.ndarray]
    whole: Callable[[np.ndarray, np.ndarray], T]


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's part in the preparation of batches.

    Attributes:
      rows: for a number of rows, which of them each host's devices hold, `[hosts, rows]`.
    """

    exchange: Exchange
    rows: Callable[[int], np.ndarray]

    def prepare(
        self,
        key: str,
        number: int,
        tokenise: Callable[[Sequence[int]], list[T]],
        coding: WireFormat[T],
    ) -> tuple[list[T], Arrive[T]]:
        """All `number` texts of a part of a batch, outlines of those tokenised elsewhere, and how
        they arrive.

        Args:
          key: names the part, the same one on all hosts.
          tokenise: the texts of these numbers.
        """
        me, hosts = self.exchange.number, self.exchange.hosts
        mine = range(me, number, hosts)
        own = tokenise(mine)
        told = _joined([coding.about(text) for text in own])
        about: list[np.ndarray] = [np.empty(0)] * number
        for host, letter in enumerate(self.exchange(f"{key}/about", [told] * hosts)):
            about[host::hosts] = _parted(letter)
        outlines = [
            own[i // hosts] if i % hosts == me else coding.outline(about[i]) for i in range(number)
        ]

        def arrive(rows: np.ndarray, height: int) -> list[T]:
            holds = self.rows(height)
            for_host = lambda host, numbers: [
                i for i in numbers if rows[i] >= 0 and holds[host, rows[i]]
            ]
            letters = [
                (
                    b""
                    if host == me
                    else _joined([coding.content(own[i // hosts]) for i in for_host(host, mine)])
                )
                for host in range(hosts)
            ]
            texts = list(outlines)
            for host, letter in enumerate(self.exchange(f"{key}/texts", letters)):
                if host != me:
                    expected = for_host(me, range(host, number, hosts))
                    for i, content in zip(expected, _parted(letter), strict=True):
                        texts[i] = coding.whole(about[i], content)
            return texts

        return outlines, arrive


def _joined(lists: Sequence[Sequence[int] | np.ndarray]) -> bytes:
    """Lists of numbers as bytes: how many, how long each, and all of them."""
    lengths = np.array([len(lists), *map(len, lists)], "<i4")
    return np.concatenate([lengths, *(np.asarray(numbers, "<i4") for numbers in lists)]).tobytes()


def _parted(letter: bytes) -> list[np.ndarray]:
    numbers = np.frombuffer(letter, "<i4")
    begin = 1 + int(numbers[0])
    cuts = begin + np.cumsum([0, *numbers[1:begin]])
    return [numbers[a:b] for a, b in itertools.pairwise(cuts)]


def _marked(text: TokenText) -> np.ndarray:
    """Ids and targets in one list of numbers."""
    return 2 * np.asarray(text.ids, np.int32) + np.asarray(text.targets, np.int32)  # type: ignore[no-any-return]


def _unmarked(numbers: np.ndarray) -> TokenText:
    return TokenText((numbers // 2).tolist(), (numbers % 2 == 1).tolist())


def _first_target(text: TokenText) -> int:
    targets = list(text.targets)
    return targets.index(True) if True in targets else len(targets)


def _outline(length: int, first_target: int) -> TokenText:
    return TokenText([0] * length, [i >= first_target for i in range(length)])


def _cached_outline(about: np.ndarray) -> TokenCached:
    prompt, length, first, *pieces = about.tolist()
    return TokenCached([[0] * n for n in pieces], _outline(length, first), prompt)


def _cached_whole(about: np.ndarray, content: np.ndarray) -> TokenCached:
    *pieces, text = np.split(content, np.cumsum(about[3:]))
    return TokenCached([piece.tolist() for piece in pieces], _unmarked(text), int(about[0]))


PROMPTED: WireFormat[PromptedText] = WireFormat(
    about=lambda text: [len(text.ids), text.prompt, *np.frombuffer(text.key, "<i4").tolist()],
    outline=lambda about: PromptedText([0] * int(about[0]), int(about[1]), about[2:].tobytes()),
    content=lambda text: text.ids,
    whole=lambda about, content: PromptedText(content.tolist(), int(about[1]), about[2:].tobytes()),
)
GENERATIVE: WireFormat[TokenText] = WireFormat(
    about=lambda text: [len(text.ids), _first_target(text)],
    outline=lambda about: _outline(*about.tolist()),
    content=_marked,
    whole=lambda about, content: _unmarked(content),
)
CACHED: WireFormat[TokenCached] = WireFormat(
    about=lambda one: [
        one.prompt,
        len(one.text.ids),
        _first_target(one.text),
        *map(len, one.pieces),
    ],
    outline=_cached_outline,
    content=lambda one: np.concatenate(
        [np.asarray([i for piece in one.pieces for i in piece], np.int32), _marked(one.text)]
    ),
    whole=_cached_whole,
)
