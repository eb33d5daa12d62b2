"""Few-shot instructions of embedding texts, in the format of the GRIT paper.

An example is a query and a text that it should find. It follows the instruction, whose text then
counts as instruction: it is attended to and not pooled. The strings are those of the original
(`SET_TO_FEWSHOT_PROMPT` in `evaluation/eval_mteb.py`), which has one example for each task; several
examples are the same clause for each. Documents, which have no instruction, get no example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Example: TypeAlias = tuple[str, str]  # a query, and a text that it should find

# `retrieval` and `match` go with the E5 instructions, `medi2` with those of MEDI2.
SHOT_FORMATS = {
    "retrieval": '\n\nFor example given "{query}", you should retrieve "{positive}"',
    "match": '\n\nFor example given "{query}", it would match with "{positive}"',
    "medi2": '\n\nThe provided query could be "{query}" and the positive "{positive}"',
}


def few_shot_instruction(
    instruction: str, examples: Sequence[Example], shot_format: str = "retrieval"
) -> str:
    """An instruction with examples; one that is empty stays empty, as in the original.

    >>> print(few_shot_instruction("Find the author", [("Who wrote Faust?", "Goethe")]))
    Find the author
    <BLANKLINE>
    For example given "Who wrote Faust?", you should retrieve "Goethe"
    """
    if not instruction.strip():
        return instruction
    # One after the other would fill in a field that a query spells.
    before, rest = SHOT_FORMATS[shot_format].split("{query}")
    between, after = rest.split("{positive}")
    return instruction + "".join(
        before + query + between + positive + after for query, positive in examples
    )
