"""The line of each step: its numbers and its time; losses that are not finite."""

from __future__ import annotations

import jax.numpy as jnp

from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.training import step_log
from grit_jax.training.step_log import StepLog
from grit_jax.types import Batch


def test_mfu_is_what_was_done_of_what_could_be(tmp_path, monkeypatch):
    batch = Batch(generative=generative(packed([[3], [5]], 16)))
    now = iter([0.0, 10.0, 14.0])
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: next(now))
    log = StepLog(RunFolder(tmp_path), 0, 1, flops=lambda batch: 120, peak=100.0)
    with log:
        log.start_clock()
        log.add(0, {"loss": jnp.float32(1)}, batch, waited=0.5)
        log.flush()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["mfu"] == 0.3 and line["tokens_per_s"] == 2.0 and "flops" not in line
    assert line["seconds"] == 4.0 and line["data_wait_s"] == 0.5
