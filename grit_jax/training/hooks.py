"""The hooks of a training run: checkpoints, evaluation and the profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from grit_jax.runtime.run_folder import RunFolder
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.loop import Hook, StepInfo
from grit_jax.training.state import TrainState
from grit_jax.training.step_log import StepLog

Evaluate = Callable[[TrainState], dict[str, float]]


def save_checkpoints(checkpoints: Checkpoints, output: RunFolder, batches: Any) -> Hook:
    """Saves the state and the place in the data; also where a run is interrupted.

    Args:
      batches: a grain iterator, whose state is saved.
    """

    def save(info: StepInfo) -> None:
        output.copy()  # the lines are safe before the checkpoint that says they are behind us
        checkpoints.save(info.done, info.state, batches, force=True)

    return Hook(save, checkpoints.every)


def evaluate_held_out(evaluate: Evaluate, every: int, log: StepLog) -> Hook:
    """Adds scores to a step's line. It comes after the save, since it may last longer than the
    grace between SIGTERM and SIGKILL; where a run ended between the two, it comes first when the
    run goes on."""

    def run(info: StepInfo) -> None:
        log.add_scores(info.done - 1, lambda: evaluate(info.state))

    return Hook(run, every, when_stopping=False, long=True, missing=log.lacks_scores)


def profile_steps(first: int, end: int, start: int, folder: str) -> Hook:
    """Traces the steps from `first` to before `end` into `folder`, with the JAX profiler.

    Args:
      start: the step that the run begins with, at most `first`.
    """
    tracing = False

    def run(info: StepInfo) -> None:
        nonlocal tracing
        if tracing and (info.done == end or info.stopping):
            jax.block_until_ready(info.state.params)
            jax.profiler.stop_trace()
            tracing = False
        elif info.done == first:
            jax.profiler.start_trace(folder)
            tracing = True

    if first == start:
        jax.profiler.start_trace(folder)
        tracing = True
    return Hook(run, every=1, needs_line=False)
