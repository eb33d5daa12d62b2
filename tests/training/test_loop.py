"""What the loop writes, saves and closes, and in which order, however it ends. Steps cost nothing
here."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from grit_jax.data.packing import (
    GenerativePacking,
    generative_batch,
)
from grit_jax.data.token_texts import TokenText
from grit_jax.errors import GritError
from grit_jax.runtime.preemption import Preempted
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.hooks import evaluate_held_out, save_checkpoints
from grit_jax.training.loop import Hook, Program, StepInfo, run_loop
from grit_jax.training.state import TrainState
from grit_jax.training.step_log import StepLog
from grit_jax.types import Batch

STEPS = 4
TEXT = TokenText([1, 2, 3], [False, True, True])


class Saved:
    """Checkpoints every three steps in memory; `events` is what became of the run in order."""

    def __init__(self, events: list[str]):
        self.states: dict[int, TrainState] = {}
        self.events = events

    def latest(self) -> int | None:
        return max(self.states, default=None)

    every = 3

    def save(self, step: int, state: TrainState, data: Any, *, force: bool) -> None:
        assert force, "the hook decides when"
        self.states[step] = state
        self.events.append(f"save {step}")


class Run:
    """A run in a folder that can be started again and again."""

    def __init__(self, folder):
        self.output, self.events = RunFolder(folder), []
        self.checkpoints = Saved(self.events)
        self.told, self.told_in_evaluation, self.fails_in_evaluation = False, False, False
        self.closed = 0

    def write(self, step: int, values: dict[str, Any]) -> None:  # it is its own tracker
        self.events.append(f"scores {step}" if "eval_x" in values else f"line {step}")

    def close(self) -> None:
        self.closed += 1

    def evaluate(self, state: TrainState) -> dict[str, float]:
        self.events.append("evaluate")
        if self.fails_in_evaluation:
            raise KeyboardInterrupt
        self.told |= self.told_in_evaluation
        return {"eval_x": float(state.step) / 3}

    def start(self, nan_at: int | None = None, every: int = 2) -> TrainState:
        self.events.clear()

        def step(state, batch):
            loss = jnp.where(
                state.step == (-1 if nan_at is None else nan_at), jnp.nan, 1.0 / (1 + state.step)
            )
            return TrainState(state.step + 1, {}, ()), {"loss": loss}

        batch = Batch(
            generative=generative_batch([TEXT] * 2, GenerativePacking(row_length=8, row_multiple=8))
        )
        start = self.checkpoints.latest() or 0
        state = self.checkpoints.states.get(start, TrainState(jnp.int32(0), {}, ()))
        mesh = make_mesh(MeshConfig(1, -1, 1), jax.devices())
        program = Program(step, iter([batch] * STEPS), mesh, start, STEPS)
        with StepLog(self.output, start, STEPS, [self]) as log:
            hooks = [
                save_checkpoints(self.checkpoints, self.output, None),
                evaluate_held_out(self.evaluate, every, log),
            ]
            return run_loop(state, program, log=log, hooks=hooks, stop_requested=lambda: self.told)

    def lines(self) -> list[dict[str, Any]]:
        """Step, loss and scores of each line of the file, all of which are whole."""
        found = [
            json.loads(line)
            for line in (self.output.local / "metrics.jsonl").read_text().splitlines()
        ]
        return [
            {name: line[name] for name in ("step", "loss", "eval_x") if name in line}
            for line in found
        ]


@pytest.fixture()
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict[str, Any]]:
    """The lines of a run that nothing interrupts."""
    run = Run(tmp_path_factory.mktemp("whole"))
    run.start()
    return run.lines()


def test_a_step_that_is_due_is_saved_before_it_is_evaluated_and_has_one_line(run, whole):
    assert run.start().step == STEPS
    assert run.events == [
        "line 0",
        "line 1",
        "evaluate",
        "scores 1",
        "line 2",
        "save 3",
        "line 3",
        "save 4",
        "evaluate",
        "scores 3",
    ]
    assert [line["step"] for line in whole] == list(range(STEPS))
    assert [line.get("eval_x") for line in whole] == [None, 2 / 3, None, 4 / 3]


@pytest.mark.parametrize("every, saved", [(3, 3), (0, STEPS)], ids=["between steps", "at the end"])
def test_a_kill_in_an_evaluation_costs_nothing_but_the_evaluation(run, tmp_path, every, saved):
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole")
    whole.start(every=every)
    run.fails_in_evaluation = True
    with pytest.raises(KeyboardInterrupt):
        run.start(every=every)
    assert run.checkpoints.latest() == saved and run.closed == 1
    assert [line["step"] for line in run.lines()] == list(
        range(saved)
    ) and "eval_x" not in run.lines()[-1]
    run.fails_in_evaluation = False
    assert run.start(every=every).step == STEPS
    assert run.events[:2] == ["evaluate", f"scores {saved - 1}"]
    assert run.lines() == whole.lines()
    run.start(every=every)
    assert "evaluate" not in run.events, "the scores are there"


def test_told_to_stop_it_leaves_the_evaluation_to_the_run_that_goes_on(run, whole):
    run.told = True
    for saved in (1, 2):
        with pytest.raises(Preempted, match=f"{saved} of 4 steps are saved") as ended:
            run.start()
        assert ended.value.together and run.events[-1] == f"save {saved}"
    run.told = False
    run.start()
    assert run.events[0] == "evaluate" and run.lines() == whole


def test_told_to_stop_during_an_evaluation_it_saves_and_takes_no_other_step(run, whole):
    run.told_in_evaluation = True
    with pytest.raises(Preempted, match="2 of 4 steps are saved"):
        run.start()
    assert run.events[-3:] == ["evaluate", "scores 1", "save 2"] and run.lines() == whole[:2]


def test_trackers_get_the_bad_step_and_are_closed(run):
    with pytest.raises(GritError, match="step 2: loss is nan"):
        run.start(nan_at=2)
    assert run.events[-1] == "line 2" and run.closed == 1


def test_when_hooks_are_due():
    info = lambda done, stopping=False: StepInfo(done, 10, None, stopping)
    due = lambda hook: [done for done in range(1, 11) if hook.due(info(done))]
    nothing = lambda info: None
    assert due(Hook(nothing, 4)) == [4, 8, 10] and due(Hook(nothing)) == [10]
    assert due(Hook(nothing, 4, at_end=False)) == [4, 8]
    assert Hook(nothing).due(info(3, stopping=True))
    assert not Hook(nothing, 3, when_stopping=False).due(info(3, stopping=True))
