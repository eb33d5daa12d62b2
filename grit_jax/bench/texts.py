"""Texts of an exact number of tokens, made of words of a model's own vocabulary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM

CANDIDATES = 4000  # ids that are tried as words
ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """Words that are one token: `first` at the beginning of a text, `next` after a word and the
    separator."""

    first: list[str]
    next: list[str]
    separator: str


class TextMaker:
    """Makes texts of an exact number of tokens, not counting the tags of the embedding format; the
    same seed gives the same texts."""

    def __init__(self, model: GritLM, seed: int = 0):
        self._model, self._seed = model, seed

    def text(self, tokens: int, name: str = "") -> str:
        """A text of exactly `tokens` tokens; a different one for each name.

        Raises:
          GritError: the tokenizer has no words of one token to make such a text from.
        """
        vocabulary = self._vocabulary
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self._seed, tokens, attempt, *name.encode()])
            words = [rng.choice(vocabulary.first), *rng.choice(vocabulary.next, tokens - 1)]
            for _ in range(ATTEMPTS):  # words can merge with their neighbours into fewer tokens
                text = vocabulary.separator.join(words)
                more = tokens - self.count([text])[0]
                if not more:
                    return text
                words = (
                    words[: max(1, len(words) + more)]
                    if more < 0
                    else [*words, *rng.choice(vocabulary.next, more)]
                )
        raise GritError(
            f"no text of exactly {tokens} tokens can be made with this model's tokenizer"
        )

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts as the model embeds them, without its tags."""
        formatted = self._model.encoder.format(texts, max_length=self._model.config.context_length)
        return [len(ids) - formatted.prompt for ids in formatted.ids]

    @functools.cached_property
    def _vocabulary(self) -> _Vocabulary:
        tokenizer = self._model.tokenizer
        ids = np.random.default_rng(self._seed).permutation(tokenizer.vocab_size)[:CANDIDATES]
        texts = dict.fromkeys(tokenizer.decode([i]).strip() for i in ids.tolist())
        words = [text for text in texts if text.isalnum()]
        first = [word for word, n in zip(words, self.count(words), strict=True) if n == 1]
        for separator in (" ", "") if first else ():
            counts = self.count([f"{first[0]}{separator}{word}" for word in words])
            if following := [word for word, n in zip(words, counts, strict=True) if n == 2]:
                return _Vocabulary(first, following, separator)
        raise GritError(
            "this model's tokenizer has no words that are one token; texts of a given length cannot"
            " be made"
        )
