"""Tokenized examples, and how they travel between the hosts that prepare a batch together.

A text is sent in two parts. Its *header* goes to every host: it holds all lengths, so that each
host can compute the same packing from placeholders. Its *content*, the token ids, goes only to the
hosts whose rows the text is packed into.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np


class WireText(Protocol):
    """A tokenized text that can be sent to other hosts."""

    def header(self) -> list[int]:
        """What every host needs for packing: lengths, and what depends on ids of other hosts."""
        ...

    def content(self) -> np.ndarray:
        """int32: everything that `header` leaves out."""
        ...

    @classmethod
    def placeholder(cls, header: np.ndarray) -> Self:
        """A text with the lengths of `header` and zeros as ids."""
        ...

    def with_content(self, content: np.ndarray) -> Self:
        """This placeholder, filled in with the `content()` of the text it stands for."""
        ...


@dataclasses.dataclass(frozen=True)
class PromptedText:
    """Token ids of an embedding text.

    Attributes:
      prompt_length: leading ids (instruction and tags) that pooling leaves out.
      digest: of the ids, where those are not on this host (see `key`).
    """

    ids: Sequence[int]
    prompt_length: int
    digest: bytes = b""

    @functools.cached_property
    def key(self) -> bytes:
        """16 bytes, equal for equal ids."""
        return (
            self.digest
            or hashlib.blake2b(np.asarray(self.ids, np.int32).tobytes(), digest_size=16).digest()
        )

    def header(self) -> list[int]:
        return [len(self.ids), self.prompt_length, *np.frombuffer(self.key, "<i4").tolist()]

    def content(self) -> np.ndarray:
        return np.asarray(self.ids, np.int32)

    @classmethod
    def placeholder(cls, header: np.ndarray) -> Self:
        return cls([0] * int(header[0]), int(header[1]), header[2:].tobytes())

    def with_content(self, content: np.ndarray) -> Self:
        return dataclasses.replace(self, ids=content.tolist())


@dataclasses.dataclass(frozen=True)
class TokenText:
    """Token ids of a sequence for the language loss; `targets` marks those to be predicted."""

    ids: Sequence[int]
    targets: Sequence[bool]

    @property
    def first_target(self) -> int:
        """The number of tokens before the first target (all of them where there is none)."""
        targets = list(self.targets)
        return targets.index(True) if True in targets else len(targets)

    def header(self) -> list[int]:
        return [len(self.ids), self.first_target]

    def content(self) -> np.ndarray:
        ids, targets = np.asarray(self.ids, np.int32), np.asarray(self.targets, np.int32)
        return 2 * ids + targets

    @classmethod
    def placeholder(cls, header: np.ndarray) -> Self:
        length, first_target = header.tolist()
        return cls([0] * length, [i >= first_target for i in range(length)])

    def with_content(self, content: np.ndarray) -> Self:
        return type(self)((content // 2).tolist(), (content % 2 == 1).tolist())


TARGET_MULTIPLE = 32


def max_targets(texts: Sequence[TokenText], rows: np.ndarray, least: int = 0) -> int:
    """The most targets that a row may have, rounded up to a multiple of `TARGET_MULTIPLE`.

    The tokens from each text's first target on, which every host knows.

    Args:
      rows: the row of each text.
    """
    counts = np.zeros(int(rows.max(initial=0)) + 1, np.int64)
    np.add.at(counts, rows, [len(text.ids) - text.first_target for text in texts])
    return max(-(-int(counts.max()) // TARGET_MULTIPLE) * TARGET_MULTIPLE, least)


@dataclasses.dataclass(frozen=True)
class TokenCached:
    """A continuation with its answer, and the ids of the cached texts that it follows.

    Attributes:
      prompt_length: leading ids (tags) of each cached text.
      teacher: documents, question and the same answer in one text, as a teacher reads them; empty
        without a teacher.
    """

    cached_texts: Sequence[Sequence[int]]
    text: TokenText
    prompt_length: int = 0
    teacher: TokenText = dataclasses.field(default_factory=lambda: TokenText([], []))

    def header(self) -> list[int]:
        lengths = map(len, self.cached_texts)
        return [self.prompt_length, *self.text.header(), *self.teacher.header(), *lengths]

    def content(self) -> np.ndarray:
        cached = [np.asarray(ids, np.int32) for ids in self.cached_texts]
        return np.concatenate([*cached, self.text.content(), self.teacher.content()])

    @classmethod
    def placeholder(cls, header: np.ndarray) -> Self:
        cached = [[0] * length for length in header[5:].tolist()]
        text, teacher = (TokenText.placeholder(part) for part in (header[1:3], header[3:5]))
        return cls(cached, text, int(header[0]), teacher)

    def with_content(self, content: np.ndarray) -> Self:
        lengths = [*map(len, self.cached_texts), len(self.text.ids)]
        *cached, text, teacher = np.split(content, np.cumsum(lengths))
        return dataclasses.replace(
            self,
            cached_texts=[ids.tolist() for ids in cached],
            text=self.text.with_content(text),
            teacher=self.teacher.with_content(teacher),
        )
