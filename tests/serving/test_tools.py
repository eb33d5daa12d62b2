"""Tools in chat by the official client: what the template shows, calls that are required, streams."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from live_server import live_server
from tool_template import CLOCK, SCHEMA, TEMPLATE, WEATHER, with_tools

from grit_jax.cli.serve import TOOL_PARSERS
from grit_jax.inference.model import GritLM
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.serving.answers import Delta
from grit_jax.serving.service import Service
from grit_jax.serving.settings import ServeSettings
from grit_jax.serving.tools import AnswerReader, ToolUse, _form
from grit_jax.text.tool_calls import FORMATS

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Rain?"}], "temperature": 0}


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> GritLM:
    return with_tools(tiny_model, tmp_path_factory.mktemp("tools") / "model")


@pytest.fixture(scope="module")
def running(model):
    settings = ServeSettings("tiny", slots=4, context=1024, warm_up=False)
    with live_server(model, settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def check(call) -> None:
    """The arguments of a call fulfil their schema."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert set(arguments) == {"unit", "days"} and arguments["unit"] in ("C", "F")
        assert len(arguments["days"]) <= 2 and all(0 <= day <= 9 for day in arguments["days"])
    else:
        assert call.function.name == "clock" and arguments == {}
    assert call.type == "function" and call.id.startswith("call_")


def test_required_calls(client):
    """One of the tools, or the one that is named, several times or once; whole and streamed."""
    create = client.chat.completions.create
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, names in (("required", {"weather", "clock"}), (named, {"weather"})):
        asked = {**ASK, "tools": [WEATHER, CLOCK], "tool_choice": choice}
        asked |= {"parallel_tool_calls": False, "max_tokens": 200}
        [answer] = create(**asked).choices
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        [call] = answer.message.tool_calls
        assert call.function.name in names
        check(call)
        drawn = create(**(asked | {"temperature": 1, "n": 3, "seed": 5}))
        assert len(drawn.choices) == 3
        for other in drawn.choices:
            [call_drawn] = other.message.tool_calls
            check(call_drawn)
        chunks = list(create(**asked, stream=True, stream_options={"include_usage": True}))
        *parts, usage = chunks
        assert usage.usage.completion_tokens > 0 and parts[0].choices[0].delta.role == "assistant"
        deltas = [part.choices[0].delta for part in parts]
        calls = [each for delta in deltas for each in delta.tool_calls or []]
        assert len(calls) > 1 and {each.index for each in calls} == {0}
        assert [each.function.name for each in calls if each.function.name] == [call.function.name]
        assert calls[0].id and calls[0].type == "function" and not calls[1].id
        arguments = "".join(each.function.arguments for each in calls)
        assert arguments == call.function.arguments
        assert not any(delta.content for delta in deltas)
        assert parts[-1].choices[0].finish_reason == "tool_calls"


def test_the_template_gets_tools_calls_and_results(client, running, model):
    """The prompt has the tokens of transformers' rendering, which `usage` counts."""
    arguments = {"unit": "C", "days": []}
    call = {"id": "c1", "type": "function"}
    call |= {"function": {"name": "weather", "arguments": json.dumps(arguments)}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "wet"}]},
    ]
    shown = [WEATHER, {"type": "function", "function": {"name": "clock"}}]
    function = {"name": "weather", "arguments": arguments}
    tools = "".join(json.dumps(tool) + "\n" for tool in shown)
    begin, end = model.tokenizer.bos_token, model.tokenizer.eos_token
    rest = (
        f"[user] Rain?{end}[assistant] <tool_call>\n{json.dumps(function)}\n</tool_call>{end}"
        f"[tool] wet{end}[assistant] "
    )
    whole = f"{begin}# Tools\n{tools}as <tool_call>{{}}</tool_call>\n{rest}"
    create = client.chat.completions.create
    asked = {**ASK, "messages": messages, "max_tokens": 4}
    for more, text in (
        ({"tools": [WEATHER, CLOCK]}, whole),
        ({"tools": [WEATHER, CLOCK], "tool_choice": "none"}, begin + rest),
        ({}, begin + rest),
    ):
        ids = model.tokenizer.encode_rendered(text)
        reply = create(**asked, **more)
        assert reply.usage.prompt_tokens == len(ids)
        expected = running.service.engine.submit(GenerateRequest(ids, (), Sampling(4))).result()
        assert reply.choices[0].message.content == model.tokenizer.decode(expected.tokens)
        assert reply.choices[0].finish_reason in ("length", "stop")
        assert reply.choices[0].message.tool_calls is None


def test_calls_in_a_free_answer():
    """Content and calls, whole and in parts; a later call does not count where one is asked for."""
    text = 'Ok.\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    tools = ToolUse([CLOCK], FORMATS["hermes"], {"clock": {}})
    message, finished = AnswerReader(tools).message(Delta(text * 2, [], None, "stop"))
    assert finished == "tool_calls" and message["content"] == "Ok.Ok."
    first, second = message["tool_calls"]
    assert first["id"] != second["id"] and first["function"] == {"name": "clock", "arguments": "{}"}
    message, _ = AnswerReader(
        ToolUse([CLOCK], FORMATS["hermes"], {"clock": {}}, parallel=False)
    ).message(Delta(text * 2, [], None, "stop"))
    assert message["content"] == "Ok." and len(message["tool_calls"]) == 1
    reader = AnswerReader(tools)
    parts = [reader.delta(Delta(part, [])) for part in text] + [
        reader.delta(Delta("", [], None, "stop"))
    ]
    assert "".join(fields.get("content", "") for fields, _ in parts) == "Ok."
    calls = [call for fields, _ in parts for call in fields.get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"
    assert parts[-1][1] == "tool_calls"
    plain = AnswerReader(None).message(Delta(text, [], None, "length"))
    assert plain == ({"content": text}, "length")
    mistral = AnswerReader(ToolUse([CLOCK], FORMATS["mistral"], {"clock": {}}))
    [call] = mistral.message(Delta("[TOOL_CALLS]clock{}", [], None, "stop"))[0]["tool_calls"]
    assert len(call["id"]) == 9 and call["id"].isalnum()


ARGUMENTS = '{"unit": "C", "days": [1, 2]}'
EXAMPLES = {
    "hermes": '<tool_call>\n{{"name": "weather", "arguments": {}}}\n</tool_call>',
    "smollm2": '<tool_call>[{{"name": "weather", "arguments": {}}}]</tool_call>',
    "llama3_json": '{{"name": "weather", "parameters": {}}}',
    "mistral": '[TOOL_CALLS][{{"name": "weather", "arguments": {}}}]',
}


@pytest.mark.parametrize("form", TOOL_PARSERS)
def test_grammars_of_every_form(form, running, model):
    """Take a call and nothing else: not another function, other arguments, or text."""
    assert set(TOOL_PARSERS) == set(FORMATS) == set(EXAMPLES)
    tools = ToolUse([WEATHER], FORMATS[form], {"weather": SCHEMA}, ["weather"], parallel=False)
    grammar = tools.grammar(model)

    def takes(text: str) -> bool:
        [constraint] = running.service.grammars.lark_constraints(grammar, 1, "tools")
        for token in [*model.tokenizer.encode(text), model.tokenizer.eos_id]:
            allowed = constraint.allowed()
            if not allowed[token // 32] >> (token % 32) & 1:
                return False
            constraint.accept(token)
        return True

    example = EXAMPLES[form]
    assert takes(example.format(ARGUMENTS))
    for wrong in (
        "Hello",
        example.format(ARGUMENTS.replace("C", "K")),
        example.format(ARGUMENTS.replace("2", "12")),
        example.format(ARGUMENTS).replace("weather", "clock"),
        example.format(ARGUMENTS) * 2,
    ):
        assert not takes(wrong), wrong
    several = ToolUse(
        [WEATHER, CLOCK],
        FORMATS[form],
        {"weather": SCHEMA, "clock": {"type": "object"}},
        ["weather", "clock"],
    )
    grammar = several.grammar(model)
    first, second = example.format(ARGUMENTS), example.format("{}").replace("weather", "clock")
    if form in ("smollm2", "mistral"):  # one list
        begin, end = example.split("{{")[0], example.rpartition("}}")[2]
        first, second = first.removesuffix(end), second.removeprefix(begin)
    separator = {"hermes": "\n", "llama3_json": "; "}.get(form, ", ")
    assert takes(first + separator + second)
    reader = AnswerReader(several)
    message, _ = reader.message(Delta(first + separator + second, [], None, "stop"))
    names = [call["function"]["name"] for call in message["tool_calls"]]
    assert names == ["weather", "clock"] and message["content"] is None


def test_marks_that_are_special_tokens(tiny_tokenizer):
    """They stand in a grammar by their ids, and in an answer's text as they are spelled."""
    end = tiny_tokenizer.eos_token
    form = FORMATS["mistral"]
    form = type(form)(**{**vars(form), "begin": end, "opening": f"{end}["})
    tools = ToolUse([CLOCK], form, {"clock": {"type": "object"}}, ["clock"])
    fake = SimpleNamespace(tokenizer=tiny_tokenizer)
    assert tools.kept(fake) == {tiny_tokenizer.eos_id: end}
    first = tools.grammar(fake).splitlines()[0]
    assert first.startswith(f'start: <[{tiny_tokenizer.eos_id}]> "[" (call_0)')


def tool(**function):
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tools": [{"type": "custom"}]}, "tools[0]: expected {'type': 'function'"),
        (tool(name="a b"), "tools[0].function.name: expected up to 64 letters"),
        (tool(name="a", parameters="x"), "tools[0].function.parameters: expected the JSON"),
        (tool(name="a", parameters={"type": "string"}), "expected the JSON schema of an object"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name: there is another 'clock'"),
        ({"tools": [CLOCK] * 129}, "tools: 129 tools"),
        ({"tool_choice": "required"}, "tool_choice: 'required', and there are no tools"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice: expected 'auto'"),
        (
            {
                "tools": [CLOCK],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
            },
            "there is no function 'weather' among the tools",
        ),
        ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "not with tools"),
        ({"tools": [CLOCK], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        (
            {
                **tool(name="a", parameters={"type": "object", "properties": {"x": {"type": "y"}}}),
                "tool_choice": "required",
            },
            "tools: ",
        ),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": ["y"]}]}, "tool_call_id"),
        *(
            (
                {
                    **tool(name="a", parameters={"properties": {"x": odd}}),
                    "tool_choice": "required",
                },
                "tools",
            )
            for odd in (5, {"$ref": "#/no"}, {"anyOf": 3}, {"enum": {}}, {"pattern": "("})
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "messages[0].tool_calls[0]: expected {'id'",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "x", "function": {"name": "clock", "arguments": "[1"}}
                        ],
                    }
                ]
            },
            "arguments: expected a JSON object as text",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y"},
                ],
                "tools": [CLOCK],
            },
            "there is nothing to answer",
        ),
    ],
)
def test_what_is_refused(running, change, words):
    status, error = running.error("/v1/chat/completions", **(ASK | {"max_tokens": 4} | change))
    assert status == 400 and words in error["message"], error


def test_a_template_without_tools(server, model, tiny_model):
    """Of a format of ours; and one that shows tools, but not how they are called."""
    status, error = server.error("/v1/chat/completions", **ASK, tools=[CLOCK])
    assert (status, error["code"], error["param"]) == (400, "tools_not_supported", "tools")
    assert "the chat template of 'tiny', the format 'grit', has no tools" in error["message"]
    source = TEMPLATE.replace("as <tool_call>{}</tool_call>", "").replace("tool_call>", "c>")
    template = type(model.template)(source, model.tokenizer, "chat_template.jinja")
    other = GritLM(model.config, model.params, model.tokenizer, model.chat)
    other.template = template
    settings = ServeSettings("tiny", slots=1, context=256, warm_up=False)
    with live_server(other, settings) as running:
        status, error = running.error("/v1/chat/completions", **ASK, tools=[CLOCK])
        assert status == 400 and "start the server with --tool-parser" in error["message"]
    service = Service(other, ServeSettings("tiny", slots=1, context=256, tool_parser="smollm2"))
    service.engine.close()
    assert _form(service) is FORMATS["smollm2"]
