"""The Responses API: equal to chat, whole and streamed, in the official client's types."""

from __future__ import annotations

import json

import pytest

from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index

QUESTION = "Which river is quiet?"
SCHEMA = {
    "type": "object",
    "properties": {"stone": {"enum": ["amber", "slate"]}},
    "required": ["stone"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def api(openai_client):
    return openai_client.responses


@pytest.fixture(scope="module")
def types():
    return pytest.importorskip("openai.types.responses")


def search_tool(**fields):
    return {"type": "file_search", "vector_store_ids": ["docs"], **fields}


def valid(types, response):
    """A response of the client, which must have every required field in its type."""
    types.Response.model_validate(response.to_dict(), strict=False)
    return response


def test_answers_are_those_of_generate(api, types, tiny_model):
    conversation = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"role": "assistant", "content": "The amber one."},
        {"type": "message", "role": "user", "content": "And the stone?"},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "The amber one."},
        {"role": "user", "content": "And the stone?"},
    ]
    greedy = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
    [one, several] = tiny_model.generate([QUESTION, plain], max_new_tokens=8)
    reply = valid(types, api.create(input=QUESTION, **greedy))
    assert reply.output_text.strip() == one
    assert reply.usage.input_tokens == len(tiny_model.prompt_ids(QUESTION)[0])
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.status == "incomplete" and reply.incomplete_details.reason == "max_output_tokens"
    assert valid(types, api.create(input=conversation, **greedy)).output_text.strip() == several
    # `instructions` are the system message.
    reply = api.create(input=conversation[1:], instructions="Be brief.", **greedy)
    assert reply.output_text.strip() == several and reply.instructions == "Be brief."
    sampled = {"temperature": 0.8, "top_p": 0.9, "extra_body": {"seed": 5}}
    expected = tiny_model.generate(QUESTION, max_new_tokens=8, temperature=0.8, top_p=0.9, seed=5)
    assert api.create(input=QUESTION, **(greedy | sampled)).output_text.strip() == expected[0]


def test_the_events_of_a_stream(api, types):
    from pydantic import TypeAdapter

    adapter = TypeAdapter(types.ResponseStreamEvent)
    body = {
        "model": "tiny",
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": 8,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = valid(types, api.create(**body))
    events = list(api.create(**body, stream=True))
    for event in events:
        adapter.validate_python(event.to_dict())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type.endswith("text.delta")]
    assert len(deltas) > 1
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert "".join(event.delta for event in deltas) == whole.output_text
    last = events[-1].response
    assert last.output[0].content == whole.output[0].content and last.usage == whole.usage
    logprobs = whole.output[0].content[0].logprobs
    assert len(logprobs) == whole.usage.output_tokens == 8
    assert all(len(token.top_logprobs) == 2 for token in logprobs)
    assert sum(len(event.logprobs) for event in deltas) == 8
    assert events[0].response.id == last.id != whole.id


def test_file_search_answers_as_ask_does(api, types, tiny_model, index_path):
    """The documents are read from their records and cited."""
    index = Index.open(index_path, tiny_model)
    [expected] = Asker(tiny_model, index).ask(QUESTION, "doc", k=2, max_new_tokens=6)
    ids = [document["id"] for document in expected.documents]
    body = {
        "model": "tiny",
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": 6,
        "tools": [search_tool(max_num_results=2, mode="doc")],
        "include": ["file_search_call.results"],
    }
    reply = valid(types, api.create(**body))
    assert reply.output_text.strip() == expected.answer
    call, message = reply.output
    assert call.queries == [QUESTION] and call.status == "completed"
    assert [result.file_id for result in call.results] == ids
    assert [result.text for result in call.results] == [index.text(id) for id in ids]
    assert [r.score for r in call.results] == [d["score"] for d in expected.documents]
    assert call.results[0].attributes == {"n": int(ids[0][1:])}
    cited = message.content[0].annotations
    assert [(c.type, c.file_id, c.index) for c in cited] == [
        ("file_citation", id, number) for number, id in enumerate(ids)
    ]
    assert reply.usage.input_tokens_details.cached_tokens > 0
    assert reply.grit["mode"] == "doc" and reply.grit["timings"]["total"] > 0
    events = list(api.create(**body, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    first = kinds.index("output_text.delta")
    assert kinds[:first] == [
        "created",
        "in_progress",
        "output_item.added",
        "file_search_call.in_progress",
        "file_search_call.searching",
        "file_search_call.completed",
        "output_item.done",
        "output_item.added",
        "content_part.added",
    ]
    last = kinds.index("output_text.annotation.added")
    assert set(kinds[first:last]) == {"output_text.delta"}
    assert kinds[last:] == [
        *["output_text.annotation.added"] * 2,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    end = events[-1].response
    assert end.output_text == reply.output_text
    assert end.output[0].results == call.results and end.output[1].content == message.content
    # Not shown unless asked for.
    assert api.create(**(body | {"include": []})).output[0].results is None


def test_what_file_search_takes(api, server):
    body = {"model": "tiny", "input": "amber", "temperature": 0, "max_output_tokens": 2}
    body["include"] = ["file_search_call.results"]
    ask = lambda choice="auto", **tool: api.create(
        **body, tools=[search_tool(**({"mode": "doc"} | tool))], tool_choice=choice
    )
    filters = {"type": "gte", "key": "n", "value": 9}
    reply = ask(filters=filters, max_num_results=50, mode="doc-then-query")
    assert {result.file_id for result in reply.output[0].results} == {"d9", "d10", "d11"}
    assert reply.usage.input_tokens_details.cached_tokens == 0
    least = reply.output[0].results[1].score
    options = {"score_threshold": least - 1e-6, "ranker": "auto"}
    reply = ask(filters=filters, ranking_options=options, choice={"type": "file_search"})
    assert len(reply.output[0].results) == 2
    reply = ask(ranking_options={"score_threshold": 2.0})
    assert reply.output[0].results == [] and reply.grit["mode"] == "none"
    assert not reply.output[1].content[0].annotations
    assert [item.type for item in ask(choice="none").output] == ["message"]
    weights = {"hybrid_search": {"embedding_weight": 0.0, "text_weight": 1.0}}
    assert len(ask(ranking_options=weights, rerank=4, max_num_results=1).output[0].results) == 1


def test_a_conversation_goes_on(api, types, tiny_model):
    """By `previous_response_id`, by the output sent back, with documents on the way."""
    openai = pytest.importorskip("openai")
    greedy = {"model": "tiny", "temperature": 0, "max_output_tokens": 6}
    first = api.create(input=QUESTION, instructions="Be brief.", **greedy)
    second = api.create(input="And why?", previous_response_id=first.id, **greedy)
    assert second.previous_response_id == first.id
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And why?"},
    ]
    # Instructions are not carried over.
    [expected] = tiny_model.generate([turns], max_new_tokens=6)
    assert second.output_text.strip() == expected
    sent_back = [{"role": "user", "content": QUESTION}, *first.output, turns[2]]
    assert api.create(input=sent_back, **greedy).output_text == second.output_text
    tools = [search_tool(max_num_results=1, mode="doc")]
    third = api.create(
        input="And the stone?", previous_response_id=second.id, tools=tools, **greedy
    )
    assert third.output[0].queries == ["And the stone?"]
    assert third.usage.input_tokens_details.cached_tokens > 0
    assert api.retrieve(second.id).to_dict() == second.to_dict()
    items = api.input_items.list(third.id).data
    texts = [item.content[0].text for item in items if item.type == "message"]
    assert texts[::-1] == [
        QUESTION,
        first.output_text,
        "And why?",
        second.output_text,
        "And the stone?",
    ]
    api.delete(second.id)
    for call in (api.retrieve, api.delete, api.input_items.list):
        with pytest.raises(openai.NotFoundError, match="there is no response"):
            call(second.id)
    unkept = api.create(input=QUESTION, store=False, **greedy)
    with pytest.raises(openai.NotFoundError, match="there is no response"):
        api.create(input="And why?", previous_response_id=unkept.id, **greedy)


def test_text_in_a_form(api, openai_client):
    from pydantic import BaseModel

    form = {"type": "json_schema", "name": "stone", "schema": SCHEMA, "strict": True}
    reply = api.create(model="tiny", input=QUESTION, temperature=0, text={"format": form})
    assert json.loads(reply.output_text)["stone"] in ("amber", "slate")
    assert reply.status == "completed" and reply.to_dict()["text"]["format"] == form

    class Number(BaseModel):
        even: bool

    parsed = api.parse(model="tiny", input=QUESTION, text_format=Number, temperature=0)
    assert parsed.output_parsed.even in (True, False)
    with api.stream(model="tiny", input=QUESTION, text_format=Number, temperature=0) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed


@pytest.mark.parametrize(
    "change, status, words",
    [
        ({"model": "other"}, 404, "the model 'other' does not exist"),
        ({"input": []}, 400, "input: the list is empty"),
        ({"input": [{"role": "tool", "content": "x"}]}, 400, "input[0].role: expected one of"),
        ({"input": [{"type": "reasoning"}]}, 400, "input[0].type: expected message"),
        ({"input": [{"role": "user", "content": "x", "song": 1}]}, 400, "song: unknown field"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "text only"),
        ({"input": [{"role": "user"}]}, 400, "input[0].content: expected a string"),
        ({"input": [{"role": "assistant", "content": "x"}]}, 400, "alternate"),
        ({"input": "word " * 900}, 400, "256"),
        ({"include": ["reasoning.encrypted_content"]}, 400, "include: expected"),
        (
            {"tools": [{"type": "web_search"}]},
            400,
            "tools[0].type: expected file_search or function",
        ),
        ({"tools": [{"type": "file_search"}]}, 400, "tools[0].vector_store_ids: Field required"),
        ({"tools": [search_tool(vector_store_ids=["docs", "x"])]}, 400, "expected one store"),
        ({"tools": [search_tool(vector_store_ids=["x"])]}, 404, "there is no store 'x'"),
        ({"tools": [search_tool(max_num_results=51)]}, 400, "tools[0].max_num_results"),
        ({"tools": [search_tool(mode="song")]}, 400, "file_search.mode: expected one of"),
        ({"tools": [search_tool(filters={"type": "eq"})]}, 400, "filters: expected"),
        ({"tools": [search_tool(where="no_such == 1", mode="doc")]}, 400, "no_such"),
        ({"tool_choice": "required"}, 400, "tool_choice: 'required', and there are no tools"),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            400,
            "there is no function 'f' among the tools",
        ),
        ({"tool_choice": {"type": "file_search"}}, 400, "there is no file_search among"),
        ({"tool_choice": {"type": "song"}}, 400, "tool_choice: expected 'auto'"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, 400, "expected allowed_tools"),
        ({"previous_response_id": "resp_x"}, 404, "previous_response_id: there is no response"),
        ({"background": True}, 400, "background: this server does not have it"),
        ({"truncation": "auto"}, 400, "truncation: this server does not have it"),
        ({"conversation": "c"}, 400, "conversation: this server does not have it"),
        ({"text": {"format": {"type": "song"}}}, 400, "text.format.type: expected text"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            400,
            "text.format.schema: expected a JSON schema",
        ),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"messages": []}, 400, "messages: unknown field"),
    ],
)
def test_a_bad_request_is_refused(server, change, status, words):
    body = {"input": "x", "max_output_tokens": 4}
    got, error = server.error("/v1/responses", **(body | change))
    assert got == status and words in error["message"], error


def test_fields_without_effect_are_named(server):
    body = {"input": "x", "max_output_tokens": 1, "reasoning": {"effort": "low"}, "store": True}
    status, reply, headers = server.send("/v1/responses", body)
    assert status == 200 and headers["x-grit-ignored"] == "reasoning"
    assert reply["metadata"] == {} and reply["store"] is True


def test_another_user_cannot_read_a_response(server):
    from grit_jax.serving.errors import ApiError

    reply = server.post("/v1/responses", input="x", max_output_tokens=1)
    own = server.service.responses.get(reply["id"], "127.0.0.1")
    assert own.body == reply
    with pytest.raises(ApiError, match="there is no response"):
        server.service.responses.get(reply["id"], "key 1")
