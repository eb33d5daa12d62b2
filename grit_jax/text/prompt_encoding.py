"""Token ids of prompt parts: together those of the whole string, and each part with its own.

Many vocabularies have tokens that hold a line break and the character beside it (`.` and `\\n` in
one), and tags begin and end with line breaks. So a tag and the text beside it are tokenised
together, as one run, where a token may cross the border between them; that token belongs to the
part in which it begins. No token crosses the borders that masks and cached documents depend on:
beside an answer, a document or a tag that is a token of its own, and before the text that ends a
prompt.
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
class _Run:
    """Text of neighbouring parts that is tokenised at once.

    `ends`: for each of the parts, its number in the prompt and where it ends in `text`. `ids`:
    token ids of each of the parts.
    """

    text: str
    ends: list[tuple[int, int]]
    is_template: bool
    ids: list[list[int]] = dataclasses.field(default_factory=list)


class PartEncoder:
    """Encodes prompts part by part, for tokenizers without a dummy prefix.

    Args:
      plain, template: two copies of one tokenizer; the first reads special tokens as text.
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
        # Tokens whose neighbours never merge with them: special ones, and tags that are one token.
        self._tags = frozenset(
            i for i, token in added.items() if token.special or token.content.strip()
        )
        self._before, self._after = self._neighbours()
        self._merges = functools.lru_cache(maxsize=65536)(self._may_merge)
        self._split_template = functools.lru_cache(maxsize=4096)(self._split)
        self._text_ids = functools.lru_cache(maxsize=4096)(self._raw)

    def encode(self, prompts: Sequence[Sequence[PromptPart]]) -> list[list[list[int]]]:
        """Ids of every part of every prompt.

        Raises:
          GritError: a text holds half of a surrogate pair.
        """
        runs: list[_Run] = []
        # Each prompt as a row of runs and of (number of the part, id of a tag).
        rows: list[list[_Run | tuple[int, int]]] = []
        for prompt in prompts:
            row: list[_Run | tuple[int, int]] = []
            joins = False  # whether the next text may join the last run
            for number, part in enumerate(prompt):
                alone = part.is_answer or part.is_document
                alone = alone or (not part.is_template and number == len(prompt) - 1)
                joins = joins and not alone
                items = self._split_template(part.text) if part.is_template else (part.text,)
                for item in items:
                    if isinstance(item, int):
                        row.append((number, item))
                        joins = False
                        continue
                    if not item:
                        continue
                    if joins and self._merges(runs[-1].text[-1], item[0]):
                        runs[-1].text += item
                        runs[-1].ends.append((number, len(runs[-1].text)))
                    else:
                        runs.append(_Run(item, [(number, len(item))], part.is_template))
                        row.append(runs[-1])
                    joins = not alone
            rows.append(row)
        self._tokenise(runs)
        result: list[list[list[int]]] = [[[] for _ in prompt] for prompt in prompts]
        for part_ids, row in zip(result, rows, strict=True):
            for entry in row:
                if isinstance(entry, tuple):
                    part_ids[entry[0]].append(entry[1])
                else:
                    for (number, _), ids in zip(entry.ends, entry.ids, strict=True):
                        part_ids[number] += ids
        return result

    def _tokenise(self, runs: Sequence[_Run]) -> None:
        """Sets the ids of runs. Template texts are cached, single texts go through the fast call,
        and only runs of several parts need offsets."""
        texts: list[_Run] = []
        several: list[_Run] = []
        for run in runs:
            if len(run.ends) > 1:
                several.append(run)
            elif run.is_template:
                run.ids = [self._text_ids(run.text)]
            else:
                texts.append(run)
        encoded = self._encode_batch([run.text for run in texts])
        for run, ids in zip(texts, encoded, strict=True):
            run.ids = [ids]
        whole = [unicode_text(run.text) for run in several]
        for run, encoding in zip(
            several, self._plain.encode_batch(whole, add_special_tokens=False), strict=True
        ):
            starts = [start for start, _ in encoding.offsets]
            cuts = [
                0,
                *(bisect.bisect_left(starts, end) for _, end in run.ends[:-1]),
                len(encoding.ids),
            ]
            run.ids = [encoding.ids[a:b] for a, b in itertools.pairwise(cuts)]

    def _split(self, text: str) -> tuple[int | str, ...]:
        """A template as the ids of its tags and the texts between them."""
        encoding = self._template.encode(text, add_special_tokens=False)
        items: list[int | str] = []
        place = 0
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in self._tags:
                items += [text[place:start], i]
                place = end
        return tuple(item for item in (*items, text[place:]) if item != "")

    def _raw(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    def _may_merge(self, left: str, right: str) -> bool:
        """Whether a token may hold these two neighbouring characters; true unless one of them is a
        line break and no token of the vocabulary holds the other beside it."""
        if right == _BREAK:
            return self._symbol(left, -1) in self._before
        return left != _BREAK or self._symbol(right, 0) in self._after

    def _symbol(self, character: str, place: int) -> str:
        """How the vocabulary writes the first (0) or last (-1) part of a character."""
        ids = self._raw(character)
        return (self._template.id_to_token(ids[place]) or " ")[place] if ids else ""

    def _neighbours(self) -> tuple[set[str], set[str]]:
        """The symbols right before and right after a line break inside tokens of the vocabulary."""
        before: set[str] = set()
        after: set[str] = set()
        ids = self._raw(_BREAK)
        symbol = self._template.id_to_token(ids[0]) if len(ids) == 1 else None
        # Without such a token, or with a byte's token for it, a line break merges with nothing.
        if symbol is None or len(symbol) > 1:
            return before, after
        for text in self._template.get_vocab(with_added_tokens=True):
            if symbol in text and len(text) > 1:
                before |= {a for a, b in itertools.pairwise(text) if b == symbol}
                after |= {b for a, b in itertools.pairwise(text) if a == symbol}
        return before, after


def unicode_text(text: str, number: int | None = None) -> str:
    """The text itself; `number` is its index in a list, for the message.

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
