"""What is noted of a request, and that nothing is without tracing."""

from __future__ import annotations

import asyncio

from grit_jax.inference.requests import Times
from grit_jax.serving.request_trace import RequestTrace, current, stage, tracing


def test_nothing_is_noted_without_a_trace():
    with stage("search"):
        assert current() is None


def test_tasks_note_in_the_trace_of_their_request():
    async def request(name: str) -> RequestTrace:
        trace = RequestTrace()
        with tracing(trace):

            async def work() -> None:
                await asyncio.sleep(0)
                with stage(name):
                    await asyncio.to_thread(lambda: current().attributes.update(by=name))

            await asyncio.gather(work(), work())
        assert current() is None
        return trace

    async def both() -> list[RequestTrace]:
        return await asyncio.gather(request("a"), request("b"))

    for name, trace in zip("ab", asyncio.run(both()), strict=True):
        assert [each.name for each in trace.stages] == [name, name]
        assert trace.attributes == {"by": name}


def test_stages_that_followed_each_other():
    trace = RequestTrace()
    trace.consecutive(10.0, {"search": 2.0, "records": 0.5})
    assert [(each.name, each.began, each.seconds) for each in trace.stages] == [
        ("search", 10.0, 2.0),
        ("records", 12.0, 0.5),
    ]


def test_a_batch_waits_and_is_computed():
    trace = RequestTrace()
    trace.batch(Times(submitted=1.0, admitted=3.0, finished=7.0))
    trace.batch(Times(submitted=8.0, finished=9.0))
    assert [(each.name, each.began, each.seconds) for each in trace.stages] == [
        ("queue", 1.0, 2.0),
        ("encode", 3.0, 4.0),
        ("encode", 8.0, 1.0),
    ]
