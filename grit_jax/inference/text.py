"""What a person hands in and gets back: prompts as turns of a conversation, tokens as text while
they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from grit_jax.errors import GritError
from grit_jax.text.chat import turns_of
from grit_jax.text.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, str]  # {"role": ..., "content": ...}
Prompts: TypeAlias = "str | Sequence[str] | Sequence[Message] | Sequence[str | Sequence[Message]]"

_NEVER_WHOLE = "\U0003fffd"  # unassigned: no vocabulary has it whole


def conversations(prompts: Prompts) -> list[list[str]]:
    """Prompts as turns `[user, assistant, ..., user]`.

    A string is a user's turn, a list of messages a conversation; one of them or a list of them is
    taken.

    Raises:
      GritError: a prompt that is neither, or a conversation that does not end with the user's turn.
    """
    return [_turns(prompt, where) for prompt, where in _named(prompts)]


def messages_of(prompts: Prompts) -> list[Sequence[Message]]:
    """Prompts as conversations of messages, for a chat template, which says itself what a
    conversation may be.

    Raises:
      GritError: a prompt that is neither a string nor a list of messages, or one that ends with the
        assistant's.
    """
    found: list[Sequence[Message]] = []
    for prompt, where in _named(prompts):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages and messages[-1].get("role") == "assistant":
            raise GritError(
                f"{where}: the last message must be the user's, there is nothing to answer"
            )
        found.append(messages)
    return found


class TextWriter:
    """Tokens to text as they come; what a later token may still change is held back.

    That is a character whose bytes are not all there yet and, in vocabularies that fall back to
    bytes, any run of bytes: an invalid one spoils all of it. Whether it does is tried out with the
    last byte of a rare character.
    """

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[int, str], None], number: int):
        self._tokenizer, self._on_text, self._number = tokenizer, on_text, number
        self._byte = tokenizer.encode(_NEVER_WHOLE)[-1:]
        self._ids: list[int] = []
        self._said = ""

    def write(self, tokens: Sequence[int]) -> None:
        self._ids += tokens
        text = self._tokenizer.decode(self._ids)
        spoilt = self._tokenizer.decode(self._ids + self._byte)
        if not text.endswith("\ufffd") and spoilt.startswith(text):
            self._say(text)

    def finish(self) -> None:
        """Says what was held back."""
        self._say(self._tokenizer.decode(self._ids))

    def _say(self, text: str) -> None:
        if len(text) > len(self._said):
            self._on_text(self._number, text[len(self._said) :])
            self._said = text


def _turns(prompt: Any, where: str) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    try:
        turns = turns_of(prompt)
    except GritError as error:
        raise GritError(f"{where}: {error}") from None
    if len(turns) % 2 == 0:
        raise GritError(f"{where}: the last message must be the user's, there is nothing to answer")
    return turns


def _named(prompts: Any) -> Iterator[tuple[Any, str]]:
    """Each prompt with its name in messages to the person."""
    if isinstance(prompts, str) or (
        len(prompts) and all(isinstance(item, Mapping) for item in prompts)
    ):
        yield prompts, "prompt"
        return
    for i, prompt in enumerate(prompts):
        is_conversation = isinstance(prompt, Sequence) and all(
            isinstance(item, Mapping) for item in prompt
        )
        if not (isinstance(prompt, str) or is_conversation):
            raise GritError(
                f"prompt {i} is neither a string nor a list of {{'role', 'content'}} messages:"
                f" {prompt!r:.60}"
            )
        yield prompt, f"prompt {i}"
