"""A request in a slot: what of its prompt is left."""

from __future__ import annotations

from grit_jax.inference.requests import GenerateRequest, Pending
from grit_jax.inference.slot_jobs import Job


def test_the_rest_of_a_prompt():
    job = Job(Pending(GenerateRequest([1, 2, 3])), slot=0)
    assert job.rest == 3 and job.live
    job.read = 2
    assert job.rest == 1 and job.request.prompt == [1, 2, 3]
