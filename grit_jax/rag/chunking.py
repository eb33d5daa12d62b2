"""A text in chunks that are documents of an index."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence

from grit_jax.errors import GritError
from grit_jax.text.tokenizer import Tokenizer

_WORD = re.compile(r"\s*\S+")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_SENTENCE_END = re.compile(r"[.!?…。！？]['\")\]’”]*$")


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How a text is divided.

    Attributes:
      tokens: of a chunk, at most.
      overlap: tokens at the end of a chunk with which the next one begins, at most; at most half of
        `tokens`.

    Raises:
      GritError: numbers out of range.
    """

    tokens: int = 400
    overlap: int = 50

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise GritError(f"tokens of a chunk: expected at least 1, got {self.tokens}")
        if not 0 <= self.overlap <= self.tokens // 2:
            raise GritError(
                f"overlap of chunks: expected 0 to {self.tokens // 2} tokens, half of a chunk, got"
                f" {self.overlap}"
            )


def chunks(text: str, tokenizer: Tokenizer, chunking: Chunking) -> list[str]:
    """Divides a text at the ends of paragraphs, lines or sentences, where one comes in the second
    half of a chunk, else between words, and inside a word that is longer than a chunk.

    Together the chunks have all words of the text in their order.
    """
    words = _words(text, tokenizer, chunking.tokens)
    sizes = [len(ids) for ids in tokenizer.encode_batch(words)] if words else []
    ends = list(itertools.accumulate(sizes, initial=0))  # tokens before each word
    found: list[str] = []
    start = covered = 0  # words before `covered` are in a chunk
    while covered < len(words):
        last = bisect.bisect_right(ends, ends[start] + chunking.tokens) - 1
        if last <= covered:  # the next word has no room beside the overlap
            start, last = covered, max(last, covered + 1)
        stop = _break(words, range(last, covered, -1), start, ends)
        chunk = "".join(words[start:stop]).strip()
        # Words tokenised together can have more tokens than each by itself.
        while stop - 1 > covered and len(tokenizer.encode(chunk)) > chunking.tokens:
            stop -= 1
            chunk = "".join(words[start:stop]).strip()
        found.append(chunk)
        covered = stop
        start = min(bisect.bisect_left(ends, ends[stop] - chunking.overlap), stop)
    return found


def _words(text: str, tokenizer: Tokenizer, most: int) -> list[str]:
    """The words of a text, each with the white space before it; long ones in parts."""
    words: list[str] = []
    queue = _WORD.findall(text)
    lengths = [len(ids) for ids in tokenizer.encode_batch(queue)] if queue else []
    for word, length in zip(queue, lengths, strict=True):
        if length <= most:
            words.append(word)
            continue
        bare = word.lstrip()
        first, *rest = _parts(bare, tokenizer, most)
        words += [word[: len(word) - len(bare)] + first, *rest]
    return words


def _parts(word: str, tokenizer: Tokenizer, most: int) -> list[str]:
    """A long word in halves, and those again, until each is short enough."""
    if len(word) < 2 or len(tokenizer.encode(word)) <= most:
        return [word]
    middle = len(word) // 2
    return _parts(word[:middle], tokenizer, most) + _parts(word[middle:], tokenizer, most)


def _break(words: Sequence[str], places: range, start: int, ends: Sequence[int]) -> int:
    """The number of the word before which a chunk ends.

    Args:
      places: the words before which it may end, the last one first.
      start: its first word.
    """
    last = places[0]
    if last == len(words):
        return last
    half = ends[start] + (ends[last] - ends[start]) / 2
    for is_end in (
        lambda place: _PARAGRAPH.search(words[place]),
        lambda place: words[place].lstrip(" \t").startswith("\n"),
        lambda place: _SENTENCE_END.search(words[place - 1]),
    ):
        for place in places:
            if ends[place] >= half and is_end(place):
                return place
    return last
