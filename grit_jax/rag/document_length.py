"""How many tokens of a document are indexed by default. Imports nothing, for the command line."""

from __future__ import annotations

LONGEST_DOCUMENT = 4096  # tokens of a document by default, where the context allows
# Tokens of the context that a document leaves for the question, the template and the answer by
# default; a quarter of the context where that is less.
ROOM_FOR_QUESTION = 512


def default_max_length(context: int) -> int:
    """Tokens of a document by default, for a model that reads `context` tokens: so many that a
    question and its answer fit beside it (`ROOM_FOR_QUESTION`).

    >>> default_max_length(32768), default_max_length(2048), default_max_length(512)
    (4096, 1536, 384)
    """
    return max(1, min(LONGEST_DOCUMENT, context - min(ROOM_FOR_QUESTION, context // 4)))
