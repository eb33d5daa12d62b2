"""How many tokens of a text are read: one rule for every verb and for Python.

A limit that the caller names must fit the model's context; a default is lowered to the context
where that is shorter. Texts that lose their end are counted, and the count is reported.
"""

from __future__ import annotations

import warnings
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.arguments import whole_number


class DefaultLength(int):
    """A length that applies where the caller names none.

    It is an ordinary int in every other respect, so that signatures and `--help` show the number.
    """


MAX_LENGTH = DefaultLength(512)  # tokens of a text to embed
MAX_NEW_TOKENS = DefaultLength(256)  # tokens of an answer


def length_limit(length: Any, context: int, name: str = "max_length") -> int:
    """The number of tokens that a text may have.

    A `DefaultLength` is lowered to the model's context, any other number must fit it:

    >>> length_limit(DefaultLength(512), context=128)
    128
    >>> length_limit(512, context=128)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    grit_jax.errors.GritError: max_length is 512 tokens, but this model's context is 128...

    Args:
      context: tokens that the model reads (`ModelConfig.context_length`).
      name: of the argument, for the message.

    Raises:
      GritError: not a positive whole number, or more than the context.
    """
    tokens = whole_number(name, length, 1)
    if isinstance(length, DefaultLength):
        return min(tokens, context)
    if tokens > context:
        raise GritError(
            f"{name} is {tokens} tokens, but this model's context is {context}; lower {name}"
        )
    return tokens


def warn_truncated(count: int, texts: int, max_length: int) -> None:
    """Warns that `count` of `texts` texts were cut, where any were.

    A UserWarning: the command line prints it as one line.
    """
    if count:
        verb = "was" if count == 1 else "were"
        warnings.warn(
            f"{count} of {texts} texts {verb} cut to {max_length} tokens (max_length)", stacklevel=3
        )
