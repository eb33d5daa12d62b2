"""Functions in responses by the official client, and documents of a store beside them."""

from __future__ import annotations

import json

import pytest
from live_server import live_server
from tool_template import CLOCK, WEATHER, with_tools

from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.serving.settings import ServeSettings
from grit_jax.text.rag_layouts import AFTER_CONTEXT, AFTER_QUERY

QUESTION = "Which river is quiet?"
FUNCTIONS = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]
SEARCH = {"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2}
NEW = 4


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return with_tools(tiny_model, tmp_path_factory.mktemp("tools") / "model")


@pytest.fixture(scope="module")
def running(model, corpus, tmp_path_factory):
    index = tmp_path_factory.mktemp("index") / "docs"
    build_index(model, corpus, index, IndexOptions(kv="none"), quiet=True)
    settings = ServeSettings("tiny", slots=4, context=1024, warm_up=False, indices={"docs": index})
    with live_server(model, settings) as server:
        yield server


@pytest.fixture(scope="module")
def index(running, model):
    return Index.open(running.service.settings.indices["docs"], model)


@pytest.fixture(scope="module")
def client(running):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def said(running, ids) -> str:
    """What the engine answers to a prompt."""
    request = GenerateRequest(ids, (), Sampling(NEW))
    tokens = running.service.engine.submit(request).result(60).tokens
    return running.service.model.tokenizer.decode(tokens)


def rendered(model, *messages, calls="", tools=(WEATHER, CLOCK)) -> list[int]:
    """Token ids of the template's text."""
    shown = [
        {**tool, "function": {k: v for k, v in tool["function"].items() if k != "strict"}}
        for tool in tools
    ]
    head = "".join(json.dumps(tool) + "\n" for tool in shown)
    head = f"# Tools\n{head}as <tool_call>{{}}</tool_call>\n" if tools else ""
    end = model.tokenizer.eos_token
    turns = "".join(f"[{role}] {text}{end}" for role, text in messages)
    text = f"{model.tokenizer.bos_token}{head}{turns}[assistant] "
    return model.tokenizer.encode_rendered(text)


def test_a_call_and_its_result(client, running, model):
    """Required, whole and streamed in the client's types; the result is read by the template."""
    types = pytest.importorskip("openai.types.responses")
    from pydantic import TypeAdapter

    named = {"type": "function", "name": "weather"}
    body = {"model": "tiny", "input": "Rain?", "temperature": 0, "max_output_tokens": 200}
    body |= {"tools": FUNCTIONS, "tool_choice": named}
    reply = client.responses.create(**body)
    types.Response.model_validate(reply.to_dict(), strict=False)
    [call] = reply.output
    assert (call.type, call.name, call.status, reply.status) == (
        "function_call",
        "weather",
        "completed",
        "completed",
    )
    assert set(json.loads(call.arguments)) == {"unit", "days"} and reply.output_text == ""
    events = list(client.responses.create(**body, stream=True))
    adapter = TypeAdapter(types.ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event.to_dict())
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type.endswith("arguments.delta")]
    assert len(deltas) > 1 and "".join(deltas) == call.arguments
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[-2].item.arguments == call.arguments and events[-2].item.id.startswith("fc_")
    with client.responses.stream(**body) as stream:
        assert stream.get_final_response().output[0].arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    written = {"name": "weather", "arguments": json.loads(call.arguments)}
    ids = rendered(
        model,
        ("user", "Rain?"),
        ("assistant", f"<tool_call>\n{json.dumps(written)}\n</tool_call>"),
        ("tool", "wet"),
    )
    free = {**body, "tool_choice": "auto", "max_output_tokens": NEW}
    for more in (
        {"input": [result], "previous_response_id": reply.id},
        {"input": [{"role": "user", "content": "Rain?"}, *reply.output, result]},
    ):
        again = client.responses.create(**(free | more))
        assert again.usage.input_tokens == len(ids)
        assert again.output_text == said(running, ids)
    cut = client.responses.create(**(body | {"max_output_tokens": 30}))
    assert cut.status == "incomplete" and cut.output[-1].status == "incomplete"
    plain = client.responses.create(**(free | {"tool_choice": "none"}))
    assert plain.usage.input_tokens == len(rendered(model, ("user", "Rain?"), tools=()))


def test_documents_beside_functions(client, running, model, index):
    """They are read as text in the last question, wherever it stands, and cited."""
    ids = [line["id"] for line in index.documents]
    body = {"model": "tiny", "input": QUESTION, "temperature": 0, "max_output_tokens": NEW}
    body |= {"tools": [*FUNCTIONS, SEARCH], "include": ["file_search_call.results"]}
    reply = client.responses.create(**body)
    found = [result.file_id for result in reply.output[0].results]
    assert len(found) == 2 and set(found) <= set(ids)
    texts = [index.text(id) for id in found]
    asked = f"{texts[0]}\n\n{texts[1]}\n\n{QUESTION}\n\n{AFTER_CONTEXT}"
    prompt = rendered(model, ("user", asked))
    assert reply.usage.input_tokens == len(prompt)
    assert reply.output_text == said(running, prompt)
    assert (reply.grit["mode"], reply.grit["cache"]) == ("doc-then-query", "read")
    assert [each.file_id for each in reply.output[1].content[0].annotations] == found
    # In chat, too; a call and its result follow the question.
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    asked = f"{QUESTION}\n\n{texts[0]}\n\n{AFTER_QUERY}"
    written = {"name": "clock", "arguments": {}}
    prompt = rendered(
        model,
        ("user", asked),
        ("assistant", f"<tool_call>\n{json.dumps(written)}\n</tool_call>"),
        ("tool", "12:00"),
        tools=(CLOCK,),
    )
    chat = running.post(
        "/v1/chat/completions",
        messages=messages,
        tools=[CLOCK],
        store="docs",
        mode="query-then-doc",
        temperature=0,
        max_tokens=NEW,
    )
    assert chat["usage"]["prompt_tokens"] == len(prompt)
    assert chat["choices"][0]["message"]["content"] == said(running, prompt)
    assert [document["id"] for document in chat["grit"]["documents"]] == found[:1]
    # The search, then a call that is required.
    forced = {"type": "allowed_tools", "mode": "required", "tools": FUNCTIONS[1:]}
    reply = client.responses.create(**(body | {"tool_choice": forced, "max_output_tokens": 60}))
    assert [item.type for item in reply.output] == ["function_call"]


def test_what_the_context_has_no_room_for_is_left_out(running):
    body = {"messages": [{"role": "user", "content": QUESTION}], "tools": [WEATHER, CLOCK]}
    body |= {"store": "docs", "k": 12, "temperature": 0, "max_tokens": 450}
    reply = running.post("/v1/chat/completions", **body)
    read = len(reply["grit"]["documents"])
    assert 1 <= read < 12 and reply["usage"]["prompt_tokens"] + 450 <= 1024
    [warning] = [each for each in reply["grit"]["warnings"] if "its tools" in each]
    assert warning.startswith("left out: documents 'd") and warning.count("'d") == 12 - read
    nothing = running.post("/v1/chat/completions", **(body | {"where": "n > 99", "max_tokens": 4}))
    assert (nothing["grit"]["mode"], nothing["grit"]["documents"]) == ("none", [])
    for more, words in (
        ({"mode": "doc"}, "mode: 'doc' reads records, and beside tools documents are read as text"),
        ({"messages": [{"role": "system", "content": "x"}]}, "there is no message of the user"),
    ):
        status, error = running.error("/v1/chat/completions", **(body | more))
        assert status == 400 and words in error["message"]
