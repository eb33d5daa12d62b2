"""Several processes as one run: real ones, with devices of their own, that talk over the loopback."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import check, finish, small_run, start, tokenised, wait
from training_run import STEPS, trace

from grit_jax.inference.model import GritLM
from grit_jax.preemption import PREEMPTED

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    return small_run(tmp_path_factory.mktemp("hosts"), sentences)


@pytest.fixture(scope="module")
def alone(folder) -> list[dict]:
    """The metrics of the run in one process."""
    return trace(finish(folder, "one", 1))


def test_two_processes_are_one(folder, alone):
    output = finish(folder, "two", 2)
    check(trace(output), alone)
    one, two = (GritLM.from_pretrained(folder / name / "model") for name in ("one", "two"))
    for name, weight in one.params.items():
        np.testing.assert_allclose(two.params[name], weight, atol=1e-4, err_msg=name)
    counts, everything = tokenised(folder, "two", 2), sum(tokenised(folder, "one", 1))
    # A run may have begun a batch more than it needed, and the texts of a step do not divide evenly.
    assert max(counts) <= 0.55 * everything and sum(counts) == pytest.approx(everything, rel=0.1), counts
    checkpoint = output / "checkpoints" / str(STEPS)
    assert {path.name for path in checkpoint.glob("state/ocdbt.process_*")} == {"ocdbt.process_0", "ocdbt.process_1"}


def test_four_save_and_two_or_one_go_on(folder, alone):
    output = finish(folder, "four", 4)
    check(trace(output), alone)
    counts, everything = tokenised(folder, "four", 4), sum(tokenised(folder, "one", 1))
    assert max(counts) <= 0.3 * everything, counts
    for processes in (2, 1):
        name = f"four_then_{processes}"
        shutil.copytree(output, folder / name)
        shutil.rmtree(folder / name / "model")
        shutil.rmtree(folder / name / "checkpoints" / str(STEPS))
        finish(folder, name, processes)
        check(trace(folder / name), alone)
        assert trace(folder / name)[: STEPS - 2] == trace(output)[: STEPS - 2]


def test_sigterm_on_one_host_saves_on_all(folder):
    processes = start(folder, "told", 2, "--train.steps", "100000", "--train.checkpoint_every", "100000")
    deadline = time.monotonic() + 300
    while not trace(folder / "told") and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert wait(folder, processes) == [PREEMPTED] * 2, [p.read_text() for p in folder.glob("told.*.log")]
    (saved,) = (folder / "told" / "checkpoints").iterdir()
    assert [line["step"] for line in trace(folder / "told")] == list(range(int(saved.name)))
