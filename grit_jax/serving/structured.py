"""Answers in a form: `response_format` as a constraint on tokens, by llguidance."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
from jaxtyping import UInt

from grit_jax.inference.adjustments import words
from grit_jax.inference.model import GritLM
from grit_jax.serving.errors import FormError, bad_request
from grit_jax.text.token_bytes import TokenBytes

FIELD = "response_format"
# No spaces outside of strings: a model that is not sure would add them without end.
OPTIONS = {"whitespace_flexible": False}


class Grammars:
    """Grammars over one model's vocabulary."""

    def __init__(self, model: GritLM, token_bytes: TokenBytes):
        self._model, self._bytes = model, token_bytes

    @functools.cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        vocabulary = _Vocabulary(self._model, self._bytes)
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=list(self._model.stop_ids)
        )

    def constraints(self, form: dict[str, Any], count: int) -> Sequence[JsonConstraint | None]:
        """What `response_format` demands of each of so many answers; None: nothing.

        Raises:
          ApiError: 400 for an unknown type, or a schema that has a mistake or is not supported.
        """
        kind = form.get("type")
        if kind == "text":
            return [None] * count
        if kind == "json_object":
            schema: Any = {"type": "object"}
        elif kind == "json_schema":
            named = form.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            if not isinstance(schema, dict):
                raise bad_request(f"{FIELD}.json_schema.schema: expected a JSON schema", FIELD)
        else:
            raise bad_request(
                f"{FIELD}.type: expected text, json_object or json_schema, got {kind!r:.40}", FIELD
            )
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides=OPTIONS
            )
        except ValueError as error:
            raise bad_request(f"{FIELD}: {error}", FIELD) from None
        return self._held_to(grammar, count, f"{FIELD}.json_schema.schema")

    def lark_constraints(self, grammar: str, count: int, field: str) -> list[JsonConstraint]:
        """What a grammar in llguidance's Lark demands of each of so many answers.

        Raises:
          ApiError: 400 for a schema in it that has a mistake or is not supported; `field` is where.
        """
        try:
            whole = llguidance.LLMatcher.grammar_from_lark(grammar)
        except ValueError as error:
            raise bad_request(f"{field}: {error}", field) from None
        return self._held_to(whole, count, field)

    def _held_to(self, grammar: str, count: int, place: str) -> list[JsonConstraint]:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        field = re.split(r"[.\[]", place)[0]
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise bad_request(f"{place}: {reason:.300}", field)
        size = self._model.config.vocab_size
        try:  # a schema that nothing satisfies, such as one that refers to itself alone
            JsonConstraint(matcher.deep_copy(), size, field).check()
        except FormError as error:
            raise bad_request(str(error), field) from None
        return [JsonConstraint(matcher.deep_copy(), size, field) for _ in range(count)]


class JsonConstraint:
    """The tokens with which an answer stays within a grammar (`requests.TokenConstraint`)."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, field: str = FIELD):
        self._matcher, self._words, self._field = matcher, words(vocab_size), field

    def allowed(self) -> UInt[np.ndarray, " W"]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        whole = np.zeros(self._words, np.uint32)
        whole[: len(mask)] = mask[: self._words]
        if self._matcher.is_error() or not whole.any():
            whole[:] = ~np.uint32(0)  # whatever comes now, `accept` ends this answer alone
        return whole

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._raise_error()

    def check(self) -> None:
        """Raises FormError: there is no first token."""
        self._matcher.compute_bitmask()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise FormError(f"{self._field}: the grammar cannot go on: {reason:.300}", self._field)


class _Vocabulary:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, model: GritLM, token_bytes: TokenBytes):
        tokenizer, size = model.tokenizer, model.config.vocab_size
        self._encode = tokenizer.encode
        self.eos_token_id = model.stop_ids[0]
        self.bos_token_id = tokenizer.bos_id
        special = set(tokenizer.special_tokens)
        texts = [tokenizer.token_text(token) for token in range(size)]
        # Ids without a token are special ones that no grammar names.
        self.special_token_ids = [
            i for i, text in enumerate(texts) if text is None or text in special
        ]
        names = {i: f"<unused {i}>".encode() for i, text in enumerate(texts) if text is None}
        self.tokens = [names.get(token) or token_bytes[token] for token in range(size)]

    def __call__(self, text: str) -> Sequence[int]:
        return self._encode(text, continues=True)
