"""The text of an answer while it grows, up to the first stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grit_jax.inference.text import TextWriter
from grit_jax.text.tokenizer import Tokenizer


class AnswerText:
    """Tokens to text that will not change any more.

    Text that may be the beginning of a stop string is held back. A stop string itself is not part
    of the text.

    Attributes:
      stopped: whether a stop string came.

    Args:
      kept: special tokens that are part of the text, and how they are spelled.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), kept: Mapping[int, str] | None = None
    ):
        append = lambda _, text: self._parts.append(text)
        self._writer = TextWriter(tokenizer, append, 0, kept)
        self._parts: list[str] = []
        self._stop, self._held = tuple(stop), ""
        self.stopped = False

    def write(self, tokens: Sequence[int]) -> str:
        """Adds tokens; returns the text that is new and certain."""
        if self.stopped:
            return ""
        self._writer.write(tokens)
        return self._take(last=False)

    def finish(self) -> str:
        """The rest of the text."""
        if self.stopped:
            return ""
        self._writer.finish()
        return self._take(last=True)

    def _take(self, *, last: bool) -> str:
        text = self._held + "".join(self._parts)
        self._parts.clear()
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = 0 if last else self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _beginning(self, text: str) -> int:
        """Characters at the end of a text that a stop string may begin with."""
        longest = max(map(len, self._stop), default=0)
        for size in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
