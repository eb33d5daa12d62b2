"""The line of each step: its numbers and its time; losses that are not finite."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.training import step_log
from grit_jax.training.step_log import StepLog
from grit_jax.types import Batch, GenerativeBatch, Rows


@pytest.fixture()
def eight_tokens() -> Batch:
    """Two rows of 16 places with 3 and 5 tokens."""
    segments = (np.arange(16) < [[3], [5]]).astype(np.int32)
    rows = Rows(segments, segments, segments)
    return Batch(generative=GenerativeBatch(rows, segments.astype(np.float32), segments))


@pytest.fixture()
def clock(monkeypatch):
    """Sets the times that the log reads, one after the other."""

    def at(*times: float) -> None:
        readings = iter(times)
        monkeypatch.setattr(step_log.time, "perf_counter", lambda: next(readings))

    return at


class Sink:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.written, self.closed = [], 0

    def write(self, step, values):
        self.written.append((step, dict(values)))

    def close(self):
        self.closed += 1


def test_a_reward_that_no_answer_has_is_null(tmp_path, eight_tokens):
    """A batch of KTO may have desirable answers alone."""
    with StepLog(RunFolder(tmp_path), 0, 1) as log:
        metrics = {"loss": jnp.float32(1), "rewards_rejected": jnp.float32(jnp.nan)}
        log.add(0, metrics, eight_tokens, waited=0.0)
        log.flush()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["loss"] == 1 and line["rewards_rejected"] is None


def test_mfu_is_what_was_done_of_what_could_be(tmp_path, clock, eight_tokens):
    clock(0.0, 10.0, 14.0)
    with StepLog(RunFolder(tmp_path), 0, 1, flops=lambda batch: 120, peak=100.0) as log:
        log.start_clock()
        log.add(0, {"loss": jnp.float32(1)}, eight_tokens, waited=0.5)
        log.flush()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["mfu"] == 0.3 and line["tokens_per_s"] == 2.0 and "flops" not in line
    assert line["seconds"] == 4.0 and line["data_wait_s"] == 0.5
    assert line["tokens"] == 8 and line["padding"] == 0.75


def test_a_line_is_written_with_the_next_step_and_goes_to_every_tracker(tmp_path, eight_tokens):
    trackers = [Sink(), Sink()]
    with StepLog(RunFolder(tmp_path), 0, 2, trackers) as log:
        log.add(0, {"loss": jnp.float32(3)}, eight_tokens, 0.0)
        assert not trackers[0].written  # step 0 may still be computing
        log.add(1, {"loss": jnp.float32(2)}, eight_tokens, 0.0)
        assert [step for step, _ in trackers[0].written] == [0]
        log.flush()
        log.flush()  # written once
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"], line["mfu"]) for line in lines] == [
        (0, 3.0, None),
        (1, 2.0, None),
    ]
    for tracker in trackers:
        assert [{"step": step} | values for step, values in tracker.written] == lines
        assert tracker.closed == 1


def test_scores_join_the_line_of_their_step_and_their_time_is_nobody_s(
    tmp_path, clock, eight_tokens
):
    tracker = Sink()
    clock(0, 0, 10, 100, 160, 175)  # the evaluation lasts from 100 to 160
    with StepLog(RunFolder(tmp_path), 0, 2, [tracker]) as log:
        log.start_clock()
        log.add(0, {"loss": jnp.float32(3)}, eight_tokens, 0.0)
        log.flush()
        log.add_scores(0, lambda: {"eval_x": 0.25})
        log.add(1, {"loss": jnp.float32(2)}, eight_tokens, 0.0)
        log.flush()
    first, second = read_lines(tmp_path / "metrics.jsonl")
    assert first["eval_x"] == 0.25 and first["loss"] == 3.0 and first["seconds"] == 10
    assert second["seconds"] == 175 - 10 - 60
    assert tracker.written[1] == (0, {"eval_x": 0.25})


@pytest.mark.parametrize("scored", [False, True])
def test_a_run_that_goes_on_knows_whether_its_last_step_was_evaluated(
    tmp_path, eight_tokens, scored
):
    folder = RunFolder(tmp_path)
    with StepLog(folder, 0, 3) as log:
        for step in range(3):
            log.add(step, {"loss": jnp.float32(3)}, eight_tokens, 0.0)
            log.flush()
            if scored or step != 1:
                log.add_scores(step, lambda: {"eval_x": 0.5})
        assert not log.lacks_scores()  # a new run goes on from no step
    with StepLog(folder, 2, 3) as log:  # step 2 is done again
        assert log.lacks_scores() is not scored
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("value, word", [(np.nan, "nan"), (np.inf, "inf")])
def test_a_bad_loss_ends_the_run_and_its_batch_is_named(tmp_path, eight_tokens, value, word):
    tracker = Sink()
    metrics = {"loss": jnp.float32(1.5), "grad_norm": jnp.float32(value)}
    pattern = f"^step 4: grad_norm is {word}; the examples .* {tmp_path}/bad_batch.json; a lower"
    with (
        pytest.raises(GritError, match=pattern),
        StepLog(
            RunFolder(tmp_path), 4, 9, [tracker], batch_ids=lambda step: {"generative": [step]}
        ) as log,
    ):
        log.add(4, metrics, eight_tokens, 0.0)
        log.flush()
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert report == {
        "step": 4,
        "metrics": {"loss": 1.5, "grad_norm": word},
        "ids": {"generative": [4]},
    }
    # The line of the step is there, too, and the trackers are closed.
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["loss"] == 1.5 and line["grad_norm"] is None and tracker.closed == 1
