"""Chat formats against the strings of the original, typed out, and the chat template against the
pieces."""

import jinja2
import pytest

from grit_jax.errors import GritError
from grit_jax.text.chat import FORMATS, GEMMA, GRIT, LLAMA3, QWEN, turns_of


def joined(pieces):
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "instruction, prompt",
    [
        ("", "<s><|embed|>\n"),
        ("\t\n :", "<s><|embed|>\n"),
        ("Retrieve a passage", "<s><|user|>\nRetrieve a passage\n<|embed|>\n"),
        (" \tRetrieve: a passage:\n", "<s><|user|>\nRetrieve: a passage\n<|embed|>\n"),
    ],
)
def test_embedding_prompt(instruction, prompt):
    assert GRIT.embed_prompt(instruction) == prompt
    pieces = GRIT.embed_parts(instruction, "  the text ")
    assert joined(pieces) == prompt + "  the text "
    assert pieces[-1].text == "  the text " and not pieces[-1].is_template


def test_one_turn():
    pieces = GRIT.render_turns([" What? ", "  An answer.\n"])
    assert joined(pieces) == "<s><|user|>\n What? \n<|assistant|>\nAn answer.</s>"
    assert [p.text for p in pieces if p.is_answer] == ["An answer.", "</s>"]
    assert [p.text for p in pieces if p.is_template] == [
        "<s><|user|>\n",
        "\n<|assistant|>\n",
        "</s>",
    ]


def test_more_turns():
    pieces = GRIT.render_turns(["a", "b", "c", "d"])
    assert (
        joined(pieces) == "<s><|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\nd</s>"
    )
    assert [p.text for p in pieces if p.is_answer] == ["b", "</s>", "d", "</s>"]


def test_prompt_of_an_answer_and_continuation():
    assert joined(GRIT.render_turns(["a"])) == "<s><|user|>\na\n<|assistant|>\n"
    assert joined(GRIT.render_turns(["a"], continues=True)) == "\n<|user|>\na\n<|assistant|>\n"


def test_document():
    pieces = GRIT.plain_parts("a text")
    assert joined(pieces) == "<s>a text</s>"
    assert [p.is_answer for p in pieces] == [False, True, True]


def test_other_families():
    turns = ["u", "a", "v", "b"]
    assert joined(QWEN.render_turns(turns)) == (
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )
    assert joined(GEMMA.render_turns(turns)) == (
        "<bos><start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
        "<start_of_turn>user\nv<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>"
    )
    assert joined(LLAMA3.render_turns(turns[:2])) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    )
    assert QWEN.embed_prompt("i") == "<|im_start|>user\ni<|im_end|>\n<|im_start|>embed\n"


def test_format_with_the_tokens_of_another_tokenizer():
    assert GRIT.with_tokens(None, "<|end|>").embed_prompt("") == "<|embed|>\n"
    assert joined(GRIT.with_tokens(None, "<|end|>").render_turns(["a", "b"])).endswith("b<|end|>")


MESSAGES = [
    [("user", "hi")],
    [("user", "hi"), ("assistant", " there \n")],
    [("system", "be brief"), ("user", "hi 'quoted' \"twice\"")],
    [("user", "a\nb"), ("assistant", "c"), ("system", "now long"), ("user", "d")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("messages", MESSAGES)
def test_chat_template_equals_the_pieces(name, messages):
    chat = FORMATS[name]
    messages = [{"role": role, "content": content} for role, content in messages]
    # The environment of transformers' apply_chat_template.
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(chat.jinja())
    text = template.render(messages=messages, add_generation_prompt=messages[-1]["role"] == "user")
    assert text == joined(chat.render_turns(turns_of(messages)))


def test_system_text_leads_the_next_user_turn():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert turns_of(messages) == ["S\n\nU"]


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "no user message"),
        ([("system", "x")], "no user message"),
        (
            [("assistant", "x")],
            r"messages\[0\]: roles must alternate, expected 'user', got 'assistant'",
        ),
        ([("user", "x"), ("user", "y")], r"messages\[1\]: roles must alternate"),
        ([("tool", "x")], "unknown role 'tool'; known: system, user, assistant"),
        ([("user", None)], "'content' must be a string, got NoneType"),
    ],
)
def test_messages_that_are_no_conversation(messages, message):
    with pytest.raises(GritError, match=message):
        turns_of([{"role": role, "content": content} for role, content in messages])
