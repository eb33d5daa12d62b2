"""The training loop: data, step, metrics, evaluation, checkpoint. It reads from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_json
from grit_jax.runtime.hosts import Agreement, all_say, is_first, wait_for_all
from grit_jax.runtime.metrics import MetricsFile
from grit_jax.runtime.preemption import Preempted
from grit_jax.runtime.progress import progress
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.runtime.trackers import Tracker
from grit_jax.sharding import put_rows
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.state import TrainState
from grit_jax.training.throughput import count_tokens, memory_in_use, peak_flops
from grit_jax.types import Batch

Evaluate = Callable[[TrainState], dict[str, float]]


def run_loop(
    state: TrainState,
    step_function: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Batch],
    *,
    steps: int,
    mesh: Mesh,
    output: RunFolder,
    checkpoints: Checkpoints,
    resume: bool = True,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
    batch_ids: Callable[[int], Any] | None = None,
    profile: tuple[int, int] | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
    flops: Callable[[Batch], int] = lambda batch: 0,
    trackers: Sequence[Tracker] = (),
    description: str = "training",
) -> TrainState:
    """Trains until `steps` steps are done, from the newest checkpoint when there is one.

    Args:
      batches: a grain iterator (host arrays); its state is saved in every checkpoint.
      evaluate: called every `evaluate_every` steps and at the end, after a save where one is due;
        its numbers (`eval_...`) join that step's metrics. Where a run ended between the two, they
        come first when it goes on.
      batch_ids: names of the examples of a step, for the report of a loss that is not finite.
      profile: steps (from, to) to trace with the JAX profiler into `output/profile`.
      told_to_stop: asked after every step; where any host's is True, the run ends on all of them,
        its state saved.
      flops: model FLOPs of the step over a batch, for its `mfu`.
      trackers: take each step's numbers, as metrics.jsonl does; closed at the end, whichever it is.

    Returns:
      The final state; `output/metrics.jsonl` has one line for each step.

    Raises:
      GritError: a loss or the gradient is not finite; the ids of its batch are in
        `output/bad_batch.json`.
      Preempted: it was told to stop.
    """
    # --- where are we ---
    start = checkpoints.latest() if resume else None
    if start is not None:
        state = checkpoints.restore(start, state, batches)
    start = start or 0
    due = lambda step: bool(
        evaluate and (step == steps or (evaluate_every and step % evaluate_every == 0))
    )
    with (
        contextlib.ExitStack() as ends
    ):  # however the loop ends, the numbers on their way to a tracker get there
        sinks: list[Tracker] = list(trackers)
        for tracker in trackers:
            ends.callback(tracker.close)
        lacks_scores = False
        if is_first():
            lines = MetricsFile(output.local / "metrics.jsonl", start)
            ends.callback(lines.close)
            sinks.insert(0, lines)
            lacks_scores = lines.last.get("step") == start - 1 and not any(
                map(_is_score, lines.last)
            )
        bar = progress(steps, description, "steps", initial=start)
        ends.callback(bar.close)
        record = _Recorder(sinks, bar, output, batch_ids, peak_flops(mesh.devices.flat))
        # A save comes before the evaluation of its step. The run that it is of ended between them.
        if start and due(start) and all_say("lacks" if lacks_scores else "has")[0] == "lacks":
            assert evaluate is not None
            record.scores(start - 1, evaluate, state)

        def save(done: int, state: TrainState, force: bool) -> None:
            output.copy()  # the lines are safe before the checkpoint that says they are behind us
            checkpoints.save(done, state, batches, force=force)

        # --- train ---
        wait_for_all(
            "first step"
        )  # it is compiled side by side; where one has to wait, some transports lose patience
        record.go_on()
        pending: tuple[int, dict[str, jax.Array], dict[str, Any]] | None = None
        stop, to_stop = False, Agreement(told_to_stop, mesh)
        for step in range(start, steps):
            if profile and step == profile[0]:
                jax.profiler.start_trace(str(output.local / "profile"))
            waited = time.perf_counter()
            host_batch = next(batches)
            waited = time.perf_counter() - waited
            state, metrics = step_function(state, put_rows(host_batch, mesh))
            # The previous step's numbers are read while this one computes.
            if pending:
                record(*pending)
            used = {
                **count_tokens(host_batch),
                "data_wait_s": round(waited, 4),
                "hbm_bytes": memory_in_use(),
            }
            pending = (step, metrics, {**used, "flops": flops(host_batch)})
            if profile and step + 1 == profile[1]:
                jax.block_until_ready(state.params)
                jax.profiler.stop_trace()
            last, stop = step + 1 == steps, to_stop()
            saving = last or stop or checkpoints.due(step + 1)
            if saving or due(step + 1):
                record(*pending)
                pending = None
            if saving:
                save(step + 1, state, force=last or stop)
            # Saved before: an evaluation may last longer than the grace between SIGTERM and
            # SIGKILL.
            if due(step + 1) and not stop:
                assert evaluate is not None
                record.scores(step, evaluate, state)
                if (stop := to_stop()) and not saving:
                    save(step + 1, state, force=True)
            if stop:
                break
    if stop:
        raise Preempted(f"told to stop; {step + 1} of {steps} steps are saved", together=True)
    return state


def _is_score(name: str) -> bool:
    return name.startswith("eval_")


class _Recorder:
    """Reads a step's numbers from the device and writes its line; a step lasts from the line before
    to its own."""

    def __init__(
        self,
        sinks: Sequence[Tracker],
        bar: Any,
        output: RunFolder,
        batch_ids: Callable[[int], Any] | None,
        peak: float | None,
    ):
        self._sinks, self._bar, self._output, self._batch_ids, self._peak = (
            sinks,
            bar,
            output,
            batch_ids,
            peak,
        )
        self._last = time.perf_counter()

    def go_on(self) -> None:
        """A step begins now."""
        self._last = time.perf_counter()

    def scores(self, step: int, evaluate: Evaluate, state: TrainState) -> None:
        """Evaluates the state after `step`, which joins the step's line; the time is no part of the
        next step."""
        began = time.perf_counter()
        found = evaluate(state)
        for sink in self._sinks:
            sink.write(step, found)
        self._last += time.perf_counter() - began

    def __call__(self, step: int, metrics: dict[str, jax.Array], extra: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        flops = extra.pop("flops")
        mfu = round(flops / (seconds * self._peak), 4) if flops and self._peak else None
        rate = round(extra["tokens"] / seconds, 1)
        values |= extra | {"seconds": round(seconds, 4), "tokens_per_s": rate, "mfu": mfu}
        for sink in self._sinks:
            sink.write(step, values)
        losses = " ".join(
            f"{name} {value:.3f}" for name, value in values.items() if name.startswith("loss")
        )
        self._bar.update(1, note=losses)
        if bad := next((name for name in metrics if not math.isfinite(values[name])), None):
            report = {
                "step": step,
                "metrics": str(values),
                "ids": self._batch_ids(step) if self._batch_ids else None,
            }
            if is_first():
                write_json(self._output.local / "bad_batch.json", report)
            raise GritError(
                f"step {step}: {bad} is {values[bad]}; the examples of its batch are listed in"
                f" {self._output.under('bad_batch.json')}; a lower optimizer.lr or a longer warmup"
                " usually helps"
            )
