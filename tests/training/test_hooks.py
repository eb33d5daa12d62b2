"""Checkpoints, evaluation and the profiler as hooks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.training.hooks import evaluate_held_out, profile_steps, save_checkpoints
from grit_jax.training.loop import StepInfo
from grit_jax.training.state import TrainState
from grit_jax.training.step_log import StepLog


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


class Recorder:
    """Stands for checkpoints and a folder; keeps the order of what is asked of them."""

    every = 3

    def __init__(self):
        self.calls = []

    def copy(self):
        self.calls.append("copy")

    def save(self, step, state, batches, *, force):
        self.calls.append(("save", step, int(state.step), batches, force))


def info(done, stopping=False):
    return StepInfo(done, 10, TrainState(jnp.int32(done), {}, ()), stopping)


def test_a_checkpoint_follows_the_lines_that_it_says_are_written():
    recorder = Recorder()
    hook = save_checkpoints(recorder, recorder, "the data")
    hook.run(info(6))
    assert recorder.calls == ["copy", ("save", 6, 6, "the data", True)]
    assert [done for done in range(1, 11) if hook.due(info(done))] == [3, 6, 9, 10]
    assert hook.due(info(4, stopping=True)) and hook.needs_line


def test_scores_belong_to_the_step_before(tmp_path):
    with StepLog(RunFolder(tmp_path), 0, 10) as log:
        hook = evaluate_held_out(lambda state: {"eval_x": float(state.step)}, 4, log)
        hook.run(info(8))
        assert not hook.missing()
    assert [(line["step"], line["eval_x"]) for line in read_lines(tmp_path / "metrics.jsonl")] == [
        (7, 8.0)
    ]
    assert [done for done in range(1, 11) if hook.due(info(done))] == [4, 8, 10]
    assert not hook.due(info(8, stopping=True))  # left to the run that goes on
