"""Few-shot instructions, character for character as the original makes them."""

from __future__ import annotations

import pytest

from grit_jax.text.chat import GRIT
from grit_jax.text.few_shot import SHOT_FORMATS, few_shot_instruction

# `SET_TO_FEWSHOT_PROMPT` of the original's evaluation/eval_mteb.py, as written there.
ORIGINAL = {
    "retrieval": '\n\nFor example given "{}", you should retrieve "{}"',
    "match": '\n\nFor example given "{}", it would match with "{}"',
    "medi2": '\n\nThe provided query could be "{}" and the positive "{}"',
}
INSTRUCTION = "Given a claim, find documents that refute the claim"
EXAMPLE = ('animal "testing" {saves}', "many {positive} drugs: ")


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_prompt_of_the_original(name):
    """`gritlm_instruction_format((v + PROMPT.format(*shots)).strip(": \\n"))` of that file."""
    instruction = (INSTRUCTION + ORIGINAL[name].format(*EXAMPLE)).strip(": \n")
    expected = "<|user|>\n" + instruction + "\n<|embed|>\n"
    made = few_shot_instruction(INSTRUCTION, [EXAMPLE], name)
    assert GRIT.embed_prompt(made) == "<s>" + expected
    assert ORIGINAL.keys() == SHOT_FORMATS.keys()


def test_several_examples_and_none():
    two = few_shot_instruction(INSTRUCTION, [("a", "b"), ("c", "d")])
    assert two == (
        f'{INSTRUCTION}\n\nFor example given "a", you should retrieve "b"'
        '\n\nFor example given "c", you should retrieve "d"'
    )
    assert few_shot_instruction(INSTRUCTION, []) == INSTRUCTION
    assert few_shot_instruction("", [EXAMPLE]) == ""  # as the original: `... if v else v`
