"""Checkpoints, evaluation and the profiler as hooks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from grit_jax.training.hooks import profile_steps
from grit_jax.training.loop import StepInfo
from grit_jax.training.state import TrainState


@pytest.mark.parametrize(
    "span, start, end, events",
    [
        ((0, 2), 0, 4, ["start before step 0", "stop after 2"]),
        ((2, 4), 0, 4, ["start after 2", "stop after 4"]),
        ((2, 4), 2, 4, ["start before step 2", "stop after 4"]),
        ((1, 4), 0, 3, ["start after 1", "stop after 3"]),  # interrupted
    ],
)
def test_the_profiler_traces_whole_steps(monkeypatch, span, start, end, events):
    seen, now = [], f"before step {start}"
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {now}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(f"stop {now}"))
    hook = profile_steps(*span, start, "folder")
    for done in range(start + 1, end + 1):
        now = f"after {done}"
        info = StepInfo(done, 4, TrainState(jnp.int32(done), {}, ()), stopping=done == end < 4)
        if hook.due(info):
            hook.run(info)
    assert seen == events
