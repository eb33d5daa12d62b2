"""Pieces of a prompt tokenised such that the prompt has the ids of its whole string, and every
piece its own.

Many vocabularies have tokens that hold a line break and what stands beside it (`.` and `\\n` in
one), and tags begin and end with line breaks. So a tag and the text beside it are tokenised as one
stretch where a token may cross their border; that token belongs to the piece in which it begins.
Nothing crosses the borders that masks and cached documents need: beside an answer, a document, or a
tag that is a token of its own, and before a text that ends a prompt.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import tokenizers

from grit_jax.errors import GritError
from grit_jax.text.chat import PromptPart

_BREAK = "\n"


@dataclasses.dataclass(slots=True, eq=False)
class _Stretch:
    """Text that is tokenised at once.

    `parts`: the pieces that it is of and where the part of each ends. `ids`: those of each part.
    """

    text: str
    parts: list[tuple[int, int]]
    is_template: bool
    ids: list[list[int]] = dataclasses.field(default_factory=list)


class StretchEncoder:
    """Encodes prompts of pieces, for tokenizers that put nothing before a text.

    Args:
      plain, template: readers of one tokenizer; special tokens are text to the first.
      encode_batch: ids of texts by `plain`.
    """

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        template: tokenizers.Tokenizer,
        encode_batch: Callable[[Sequence[str]], list[list[int]]],
    ):
        self._plain, self._template, self._encode_batch = plain, template, encode_batch
        added = template.get_added_tokens_decoder()
        # What nothing melts into: special tokens, and tags that are a token of their own.
        self._tags = frozenset(
            i for i, token in added.items() if token.special or token.content.strip()
        )
        self._before, self._after = self._neighbours()
        self._melts = functools.lru_cache(maxsize=65536)(self._may_melt)
        self._parts = functools.lru_cache(maxsize=4096)(self._split)
        self._text_ids = functools.lru_cache(maxsize=4096)(self._raw)

    def encode(self, prompts: Sequence[Sequence[PromptPart]]) -> list[list[list[int]]]:
        """Ids of every piece of every prompt.

        Raises:
          GritError: a text holds half of a surrogate pair.
        """
        stretches: list[_Stretch] = []
        laid_out: list[
            list[_Stretch | tuple[int, int]]
        ] = []  # of a prompt: a stretch, or (piece, id)
        for prompt in prompts:
            row: list[_Stretch | tuple[int, int]] = []
            joins = False  # whether the next text may go on with the last stretch
            for column, piece in enumerate(prompt):
                alone = piece.is_answer or piece.is_document
                alone = alone or (not piece.is_template and column == len(prompt) - 1)
                joins = joins and not alone
                for part in self._parts(piece.text) if piece.is_template else (piece.text,):
                    if isinstance(part, int):
                        row.append((column, part))
                        joins = False
                        continue
                    if not part:
                        continue
                    if joins and self._melts(stretches[-1].text[-1], part[0]):
                        stretches[-1].text += part
                        stretches[-1].parts.append((column, len(stretches[-1].text)))
                    else:
                        stretches.append(_Stretch(part, [(column, len(part))], piece.is_template))
                        row.append(stretches[-1])
                    joins = not alone
            laid_out.append(row)
        self._fill(stretches)
        result: list[list[list[int]]] = [[[] for _ in prompt] for prompt in prompts]
        for pieces, row in zip(result, laid_out, strict=True):
            for item in row:
                if isinstance(item, tuple):
                    pieces[item[0]].append(item[1])
                else:
                    for (column, _), ids in zip(item.parts, item.ids, strict=True):
                        pieces[column] += ids
        return result

    def _fill(self, stretches: Sequence[_Stretch]) -> None:
        """Tokenises stretches: tags are remembered, texts go through the quick call, only the rest
        needs offsets."""
        texts: list[_Stretch] = []
        several: list[_Stretch] = []
        for stretch in stretches:
            if len(stretch.parts) > 1:
                several.append(stretch)
            elif stretch.is_template:
                stretch.ids = [self._text_ids(stretch.text)]
            else:
                texts.append(stretch)
        for stretch, found in zip(
            texts, self._encode_batch([stretch.text for stretch in texts]), strict=True
        ):
            stretch.ids = [found]
        whole = [unicode_text(stretch.text) for stretch in several]
        for stretch, encoded in zip(
            several, self._plain.encode_batch(whole, add_special_tokens=False), strict=True
        ):
            ids, starts = encoded.ids, [start for start, _ in encoded.offsets]
            cuts = [
                0,
                *(bisect.bisect_left(starts, end) for _, end in stretch.parts[:-1]),
                len(ids),
            ]
            stretch.ids = [ids[a:b] for a, b in itertools.pairwise(cuts)]

    def _split(self, text: str) -> tuple[int | str, ...]:
        """A template as the ids of its tags and the text between them."""
        found = self._template.encode(text, add_special_tokens=False)
        parts: list[int | str] = []
        place = 0
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            if i in self._tags:
                parts += [text[place:start], i]
                place = end
        return tuple(part for part in (*parts, text[place:]) if part != "")

    def _raw(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    def _may_melt(self, left: str, right: str) -> bool:
        """Whether a token may hold two characters side by side; yes, if neither of them is a line
        break."""
        if right == _BREAK:
            return self._symbol(left, -1) in self._before
        return left != _BREAK or self._symbol(right, 0) in self._after

    def _symbol(self, character: str, place: int) -> str:
        """How the vocabulary writes the first (0) or last (-1) part of a character."""
        ids = self._raw(character)
        return (self._template.id_to_token(ids[place]) or " ")[place] if ids else ""

    def _neighbours(self) -> tuple[set[str], set[str]]:
        """What stands right before and right after a line break inside the tokens of the
        vocabulary."""
        before: set[str] = set()
        after: set[str] = set()
        ids = self._raw(_BREAK)
        symbol = self._template.id_to_token(ids[0]) if len(ids) == 1 else None
        if (
            symbol is None or len(symbol) > 1
        ):  # no such token, or the byte of one, which merges with nothing
            return before, after
        for text in self._template.get_vocab(with_added_tokens=True):
            if symbol in text and len(text) > 1:
                before |= {a for a, b in itertools.pairwise(text) if b == symbol}
                after |= {b for a, b in itertools.pairwise(text) if a == symbol}
        return before, after


def unicode_text(text: str, number: int | None = None) -> str:
    """The text, if it is one; `number` is its place among others.

    Raises:
      GritError: it holds half of a surrogate pair, or is no string.
    """
    name = "a text" if number is None else f"text number {number}"
    if not isinstance(text, str):
        raise GritError(f"{name} is not Unicode text but {type(text).__name__}: {text!r:.60}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GritError(
            f"{name} is not Unicode text ({type(error).__name__}): {text!r:.60}"
        ) from None
    return text
