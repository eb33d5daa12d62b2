"""Prompts in the forms that a caller may pass, and tokens to text while they are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

from grit_jax.errors import GritError
from grit_jax.text.chat import turns_of
from grit_jax.text.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, str]  # {"role": ..., "content": ...}
Prompts: TypeAlias = "str | Sequence[str] | Sequence[Message] | Sequence[str | Sequence[Message]]"

_RARE_CHARACTER = "\U0003fffd"  # unassigned, so every vocabulary spells it in bytes


def conversations(prompts: Prompts) -> list[list[str]]:
    """Prompts as turns `[user, assistant, ..., user]`.

    A string is a user's turn, a list of messages is a conversation; `prompts` is one of them or a
    list of them.

    Raises:
      GritError: a prompt that is neither, or a conversation that does not end with the user's turn.
    """
    return [_turns(prompt, name) for prompt, name in _named(prompts)]


def messages_of(prompts: Prompts) -> list[Sequence[Message]]:
    """Prompts as conversations of messages, for a chat template, which checks their order itself.

    Raises:
      GritError: a prompt that is neither a string nor a list of messages, or one that ends with the
        assistant's.
    """
    result: list[Sequence[Message]] = []
    for prompt, name in _named(prompts):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages and messages[-1].get("role") == "assistant":
            raise GritError(
                f"{name}: the last message must be the user's, there is nothing to answer"
            )
        result.append(messages)
    return result


class TextWriter:
    """Passes an answer on as text while its tokens are generated.

    Text that a later token may still change is held back: a character whose bytes are not all there
    yet and, in vocabularies that fall back to bytes, any run of bytes, because one invalid byte
    changes how all of it is decoded. To find out, the ids are also decoded with the last byte of a
    rare character appended.

    Args:
      kept: special tokens that are part of the text, and how they are spelled.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        on_text: Callable[[int, str], None],
        number: int,
        kept: Mapping[int, str] | None = None,
    ):
        self._tokenizer, self._on_text, self._number = tokenizer, on_text, number
        self._kept = kept or {}
        self._byte = tokenizer.encode(_RARE_CHARACTER)[-1:]
        self._ids: list[int] = []
        self._written = ""

    def write(self, tokens: Sequence[int]) -> None:
        """Adds tokens and passes on what is certain."""
        self._ids += tokens
        text = self._decode(self._ids)
        spoilt = self._decode(self._ids + self._byte)
        if not text.endswith("\ufffd") and spoilt.startswith(text):
            self._pass_on(text)

    def finish(self) -> None:
        """Passes on what was held back."""
        self._pass_on(self._decode(self._ids))

    def _decode(self, ids: Sequence[int]) -> str:
        text, start = "", 0
        for place, token in enumerate(ids):
            if token in self._kept:
                text += self._tokenizer.decode(ids[start:place]) + self._kept[token]
                start = place + 1
        return text + self._tokenizer.decode(ids[start:])

    def _pass_on(self, text: str) -> None:
        if len(text) > len(self._written):
            self._on_text(self._number, text[len(self._written) :])
            self._written = text


def _turns(prompt: Any, name: str) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    try:
        turns = turns_of(prompt)
    except GritError as error:
        raise GritError(f"{name}: {error}") from None
    if len(turns) % 2 == 0:
        raise GritError(f"{name}: the last message must be the user's, there is nothing to answer")
    return turns


def _named(prompts: Any) -> Iterator[tuple[Any, str]]:
    """Each prompt with its name in error messages."""
    if isinstance(prompts, Mapping):
        raise GritError(
            f"prompts: a message belongs in a list, as in [{{'role': 'user', 'content': ...}}], got"
            f" {prompts!r:.60}"
        )
    if isinstance(prompts, bytes | Set) or not isinstance(prompts, Iterable):
        raise GritError(
            "prompts must be a string, a list of {'role', 'content'} messages, or a list of those,"
            f" got {type(prompts).__name__}: {prompts!r:.60}"
        )
    if isinstance(prompts, str):
        yield prompts, "prompt"
        return
    prompts = list(prompts)
    if prompts and all(isinstance(item, Mapping) for item in prompts):
        yield prompts, "prompt"
        return
    for i, prompt in enumerate(prompts):
        is_conversation = isinstance(prompt, Sequence) and all(
            isinstance(item, Mapping) for item in prompt
        )
        if not isinstance(prompt, str) and (not is_conversation or not prompt):
            raise GritError(
                f"prompt {i} is neither a string nor a list of {{'role', 'content'}} messages:"
                f" {prompt!r:.60}"
            )
        yield prompt, f"prompt {i}"
