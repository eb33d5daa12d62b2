"""The numbers of each step: in metrics.jsonl, in the trackers and on the progress bar."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_json
from grit_jax.runtime.hosts import is_first
from grit_jax.runtime.metrics import MetricsFile
from grit_jax.runtime.progress import progress
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.runtime.trackers import Tracker
from grit_jax.training.preference import REWARDS
from grit_jax.training.throughput import count_tokens, memory_in_use
from grit_jax.types import Batch

METRICS_FILE = "metrics.jsonl"
BAD_BATCH_FILE = "bad_batch.json"


class StepLog:
    """Writes one line for each step, read from the device while the next step computes.

    A step lasts from the line before to its own; evaluations are left out of that time.

    Args:
      start, steps: steps that are done, and those of the whole run.
      trackers: take each step's numbers, as metrics.jsonl does; closed at the end.
      batch_ids: names of the examples of a step, for the report of a loss that is not finite.
      flops: model FLOPs of the step over a batch.
      peak: FLOP/s that the devices can do; with `flops` it gives a step's `mfu`.
    """

    def __init__(
        self,
        output: RunFolder,
        start: int,
        steps: int,
        trackers: Sequence[Tracker] = (),
        *,
        batch_ids: Callable[[int], Any] | None = None,
        flops: Callable[[Batch], int] = lambda batch: 0,
        peak: float | None = None,
    ):
        self._output, self._batch_ids, self._flops, self._peak = output, batch_ids, flops, peak
        self._start, self._steps = start, steps
        self._sinks: list[Tracker] = list(trackers)
        self._pending: tuple[int, dict[str, jax.Array], dict[str, Any]] | None = None
        self._lacks_scores = False
        self._began = time.perf_counter()

    def __enter__(self) -> StepLog:
        # However the loop ends, the numbers on their way to a tracker get there.
        self._ends = contextlib.ExitStack()
        for tracker in self._sinks:
            self._ends.callback(tracker.close)
        if is_first():
            lines = MetricsFile(self._output.local / METRICS_FILE, self._start)
            self._ends.callback(lines.close)
            self._sinks.insert(0, lines)
            self._lacks_scores = lines.last.get("step") == self._start - 1 and not any(
                name.startswith("eval_") for name in lines.last
            )
        self._bar = progress(self._steps, "training", "steps", initial=self._start)
        self._ends.callback(self._bar.close)
        return self

    def __exit__(self, *_: Any) -> None:
        self._ends.close()

    def lacks_scores(self) -> bool:
        """Whether the line of the step that the run goes on from has no scores (in process 0)."""
        return self._lacks_scores

    def start_clock(self) -> None:
        """A step begins now."""
        self._began = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array], batch: Batch, waited: float) -> None:
        """Takes a step that computes now, and writes the line of the step before.

        Args:
          waited: seconds that the step waited for its batch.

        Raises:
          GritError: see `flush`.
        """
        self.flush()
        usage = {
            **count_tokens(batch),
            "data_wait_s": round(waited, 4),
            "hbm_bytes": memory_in_use(),
        }
        self._pending = (step, metrics, usage | {"flops": self._flops(batch)})

    def flush(self) -> None:
        """Writes the line of the step taken last, unless it is written.

        Raises:
          GritError: a loss or the gradient is not finite; the ids of its batch are in
            `bad_batch.json`.
        """
        if self._pending is not None:
            step, metrics, usage = self._pending
            self._pending = None
            self._write(step, {name: float(value) for name, value in metrics.items()}, usage)

    def add_scores(self, step: int, evaluate: Callable[[], dict[str, float]]) -> None:
        """Evaluates the state after `step`; the scores join the step's line."""
        began = time.perf_counter()
        scores = evaluate()
        for sink in self._sinks:
            sink.write(step, scores)
        self._began += time.perf_counter() - began

    def _write(self, step: int, metrics: dict[str, float], usage: dict[str, Any]) -> None:
        now = time.perf_counter()
        seconds, self._began = max(now - self._began, 1e-9), now
        flops = usage.pop("flops")
        # NaN: no answer of the kind in the batch. (Were the loss not finite, it would say so.)
        absent = {name for name in REWARDS if name in metrics and math.isnan(metrics[name])}
        metrics = {name: value for name, value in metrics.items() if name not in absent}
        values = metrics | dict.fromkeys(sorted(absent)) | usage
        values["seconds"] = round(seconds, 4)
        values["tokens_per_s"] = round(usage["tokens"] / seconds, 1)
        values["mfu"] = round(flops / (seconds * self._peak), 4) if flops and self._peak else None
        for sink in self._sinks:
            sink.write(step, values)
        losses = [f"{name} {metrics[name]:.3f}" for name in metrics if name.startswith("loss")]
        self._bar.update(1, note=" ".join(losses))
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._refuse(step, name, metrics)

    def _refuse(self, step: int, name: str, metrics: dict[str, float]) -> None:
        # As words, since JSON has no name for such numbers.
        shown = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
        ids = self._batch_ids(step) if self._batch_ids else None
        if is_first():
            report = {"step": step, "metrics": shown, "ids": ids}
            write_json(self._output.local / BAD_BATCH_FILE, report)
        raise GritError(
            f"step {step}: {name} is {metrics[name]}; the examples of its batch are listed in"
            f" {self._output.under(BAD_BATCH_FILE)}; a lower optimizer.lr or a longer warmup"
            " usually helps"
        )
