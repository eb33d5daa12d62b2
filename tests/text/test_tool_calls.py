"""Calls in answers of every form, whole and cut into pieces at every place."""

from __future__ import annotations

import json
import random

import pytest

from grit_jax.text.tool_calls import FORMATS, ToolCallParser, format_of

TOKYO = '{"name": "weather", "arguments": {"city": "T\\"o{ky\\u00f6", "days": [1, {"a": 2}]}}'
TOKYO_ARGUMENTS = {"city": 'T"o{ky\u00f6', "days": [1, {"a": 2}]}
OSLO = '{"name":"clock.now","arguments":{}}'
LLAMA = '{"name": "weather", "parameters": {"city": "Oslo"}}'

WEATHER, CLOCK = ("weather", TOKYO_ARGUMENTS), ("clock.now", {})
CASES = [
    ("hermes", f"<tool_call>\n{TOKYO}\n</tool_call>", "", [WEATHER]),
    (
        "hermes",
        f"Let me see.\n\n<tool_call>\n{TOKYO}\n</tool_call>\n<tool_call>{OSLO}</tool_call>\n",
        "Let me see.",
        [WEATHER, CLOCK],
    ),
    ("hermes", f"<tool_call>[{TOKYO}, {OSLO}]</tool_call> Done. ", "Done.", [WEATHER, CLOCK]),
    ("smollm2", f"<tool_call>[{TOKYO}, {OSLO}]</tool_call>", "", [WEATHER, CLOCK]),
    ("smollm2", "<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
    ("llama3_json", LLAMA, "", [("weather", {"city": "Oslo"})]),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}", "", [("weather", {"city": "Oslo"})] * 2),
    ("llama3_json", f"I say {LLAMA}", f"I say {LLAMA}", []),
    ("llama3_json", '{"a": 1}', '{"a": 1}', []),
    ("mistral", f"[TOOL_CALLS][{TOKYO}, {OSLO}]", "", [WEATHER, CLOCK]),
    ("mistral", f"[TOOL_CALLS] [{TOKYO}]", "", [WEATHER]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "x"}', "", [("weather", {"city": "x"})]),
    (
        "mistral",
        '[TOOL_CALLS]weather{"city": "x"}[TOOL_CALLS]clock.now{}',
        "",
        [("weather", {"city": "x"}), CLOCK],
    ),
    # Arguments before the name, none, and as a string.
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "weather"}</tool_call>', "", None),
    ("hermes", '<tool_call>{"name": "clock.now"}</tool_call>', "", [CLOCK]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("weather", {"a": 1})],
    ),
    ("hermes", '<tool_call>{"name": "clock.now", "arguments": null}</tool_call>', "", [CLOCK]),
    ("hermes", '<tool_call>{"name": "clock.now", "arguments": ""}</tool_call>', "", [CLOCK]),
    # No calls: text, an unknown function, something that is no JSON, half a mark.
    ("hermes", " 1 < 2 <tool \n", " 1 < 2 <tool \n", []),
    ("hermes", '<tool_call>{"name": "x", "arguments": {}}</tool_call>', None, []),
    ("hermes", "a <tool_call> is a tag {", "a <tool_call> is a tag {", []),
    ("hermes", "<tool_call>{oh}</tool_call>", "<tool_call>{oh}</tool_call>", []),
    ("hermes", '<tool_call>{"name": [1], "arguments": {}}', None, []),
    ("hermes", f"<tool_call>x<tool_call>{OSLO}</tool_call>", "<tool_call>x", [CLOCK]),
    ("mistral", "plain [TOOL", "plain [TOOL", []),
    ("llama3_json", "", "", []),
]


def parse(form, pieces, most=None):
    """Content, and names and argument texts of the calls."""
    parser = ToolCallParser(FORMATS[form], {"weather", "clock.now"}, most)
    content, calls = "", []
    for number, piece in enumerate(pieces):
        parsed = parser.write(piece, last=number == len(pieces) - 1)
        content += parsed.content
        for part in parsed.calls:
            if part.name is not None:
                assert part.index == len(calls)
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    assert parser.calls == len(calls)
    return content, calls


@pytest.mark.parametrize("form, text, content, calls", CASES)
def test_every_form(form, text, content, calls):
    content = text if content is None else content
    calls = [("weather", {"a": 1})] if calls is None else calls
    whole = parse(form, [text])
    assert whole[0] == content
    assert [(name, json.loads(arguments)) for name, arguments in whole[1]] == calls
    for cut in range(len(text) + 1):
        assert parse(form, [text[:cut], text[cut:]]) == whole
    assert parse(form, [*text, ""]) == whole


def test_arguments_come_as_they_grow():
    parser = ToolCallParser(FORMATS["hermes"], {"weather"})
    assert not parser.write('<tool_call>{"name": "weat').calls
    assert not parser.write('her", "arguments": ').calls
    [first] = parser.write('{"city": "To').calls
    [second] = parser.write("kyo").calls
    assert (first.name, first.arguments) == ("weather", '{"city": "To')
    assert (second.name, second.arguments) == (None, "kyo")
    [rest] = parser.write('"}}\n</tool', last=False).calls
    assert rest.arguments == '"}'


def test_an_answer_that_is_cut():
    """Within arguments it is a call whose arguments are not complete; before them it is text."""
    content, calls = parse("hermes", [f"Hm. <tool_call>{TOKYO[:50]}"])
    assert content == "Hm." and [name for name, _ in calls] == ["weather"]
    assert TOKYO.partition('arguments": ')[2].startswith(calls[0][1])
    text = '<tool_call>{"name": "weather"'
    assert parse("hermes", [text]) == (text, [])


def test_no_more_calls_than_asked_for():
    two = f"A <tool_call>{TOKYO}</tool_call>\n<tool_call>{OSLO}</tool_call> B"
    content, calls = parse("hermes", [*two], most=1)
    assert content == "A" and [name for name, _ in calls] == ["weather"]


def test_forms_of_templates():
    assert format_of("... {{'<tool_call>\\n' }} ...") is FORMATS["hermes"]
    assert format_of("{{ '[TOOL_CALLS][' }} {{ '<tool_call>' }}") is FORMATS["mistral"]
    llama = """{{- "Environment: ipython\\n" }} {{ '"parameters": ' }}"""
    assert format_of(llama) is FORMATS["llama3_json"]
    assert format_of("<tool_call>[{...}]</tool_call>") is FORMATS["smollm2"]
    assert format_of("{{ message['content'] }}") is None


def test_odd_ends_of_a_call_that_has_begun():
    """What follows complete arguments does not undo the call."""
    for rest in ("]", ', "id" 7}', ', "arguments": 3}', "<tool_call>"):
        content, calls = parse("hermes", [*f"<tool_call>{OSLO[:-1]}{rest}"])
        assert calls == [["clock.now", "{}"]], rest


PIECES = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "weather", "x"),
    *(
        '{"name": "weather", ',
        '"arguments": {',
        '"parameters": {',
        '"a": "',
        '"',
        "\\",
        "1",
        "null",
    ),
    *("{", "}", "[", "]", ",", ";", ":", " ", "\n", OSLO, LLAMA, '"name": ', '"clock.now"'),
]


@pytest.mark.parametrize("form", FORMATS)
def test_any_text_is_read_the_same_in_any_pieces(form):
    """And what has no calls is content, word for word."""
    rng = random.Random(form)
    called = 0
    for _ in range(300):
        begun = rng.choice(["", FORMATS[form].begin + '{"name": "weather", "arguments": {'])
        text = begun + "".join(rng.choices(PIECES, k=rng.randrange(1, 14)))
        whole = parse(form, [text])
        assert parse(form, [*text, ""]) == whole, text
        cut = rng.randrange(len(text))
        assert parse(form, [text[:cut], text[cut:]]) == whole, text
        called += bool(whole[1])
        if not whole[1]:
            assert whole[0] == text
    assert called > 100
