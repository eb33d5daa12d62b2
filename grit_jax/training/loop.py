"""The training loop: a batch, a step, its line, and the hooks that are due."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh

from grit_jax.runtime.hosts import Agreement, gather_text, wait_for_all
from grit_jax.runtime.preemption import Preempted
from grit_jax.sharding import put_rows
from grit_jax.training.state import TrainState
from grit_jax.training.step_log import StepLog
from grit_jax.types import Batch

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes.

    Attributes:
      step: the jitted step.
      batches: an iterator of host arrays; its next one is the batch of step `start`.
      start, steps: the number of completed steps, and of all steps of the run.
    """

    step: StepFunction
    batches: Iterator[Batch]
    mesh: Mesh
    start: int
    steps: int


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """Where a run is when its hooks are called.

    Attributes:
      done: steps that the state has behind it.
      steps: those of the whole run.
      stopping: the run is interrupted after this step.
    """

    done: int
    steps: int
    state: TrainState
    stopping: bool = False


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something to do between two steps.

    Attributes:
      run: what to do.
      every: after each so many steps; 0: not between steps.
      at_end: after the last step, too.
      when_stopping: in a run that is interrupted, True: always; False: not at all, even if due.
      needs_line: the step's line is to be written before.
      long: the run may be interrupted meanwhile, and looks whether it is.
      missing: for a run that goes on: whether the step it goes on from lacks this hook's work;
        process 0 decides.
    """

    run: Callable[[StepInfo], None]
    every: int = 0
    at_end: bool = True
    when_stopping: bool = True
    needs_line: bool = True
    long: bool = False
    missing: Callable[[], bool] | None = None

    def due(self, info: StepInfo) -> bool:
        """Whether it is to be called now."""
        if info.stopping:
            return self.when_stopping
        at_end = self.at_end and info.done == info.steps
        return at_end or bool(self.every) and info.done % self.every == 0


def run_loop(
    state: TrainState,
    program: Program,
    *,
    log: StepLog,
    hooks: Sequence[Hook] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains from step `program.start` until `program.steps` are done; returns the final state.

    Args:
      hooks: called in this order after the steps for which they are due.
      stop_requested: asked after every step; where any host says so, all of them stop after the
        same step.

    Raises:
      GritError: a loss or the gradient is not finite.
      Preempted: a stop was requested, and the hooks for it have run.
    """
    info = StepInfo(program.start, program.steps, state)
    for hook in hooks:
        if not (info.done and hook.missing and hook.due(info)):
            continue
        if gather_text("missing" if hook.missing() else "there")[0] == "missing":
            hook.run(info)
    # The step is compiled side by side: where one host has to wait, some transports time out.
    wait_for_all("first step")
    log.start_clock()
    should_stop = Agreement(stop_requested, program.mesh)
    for step in range(program.start, program.steps):
        began = time.perf_counter()
        batch = next(program.batches)
        waited = time.perf_counter() - began
        state, metrics = program.step(state, put_rows(batch, program.mesh))
        log.add(step, metrics, batch, waited)
        info = StepInfo(step + 1, program.steps, state, should_stop())
        called = _call(hooks, info, log)
        if not info.stopping and any(hook.long for hook in called) and should_stop():
            info = dataclasses.replace(info, stopping=True)
            _call([hook for hook in hooks if hook not in called], info, log)
        if info.stopping:
            done = f"{info.done} of {info.steps} steps are saved"
            raise Preempted(f"interrupted by SIGTERM; {done}", together=True)
    log.flush()
    return state


def _call(hooks: Sequence[Hook], info: StepInfo, log: StepLog) -> list[Hook]:
    """Calls the hooks that are due, and returns them."""
    due = [hook for hook in hooks if hook.due(info)]
    for hook in due:
        if hook.needs_line:
            log.flush()
        hook.run(info)
    return due
