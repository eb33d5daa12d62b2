"""Several processes as one run: real ones, with devices of their own, that talk over the
loopback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from processes import check, finish, small_run, start, tokenised, wait
from training_run import STEPS, trace

from grit_jax.data.pipeline import JointBatches
from grit_jax.inference.model import GritLM
from grit_jax.run_config import read_run_config
from grit_jax.runtime.preemption import PREEMPTED
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.train_tokenizer import train_tokenizer

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
    # A run may have begun a batch more than it needed, and the texts of a step do not divide
    # evenly.
    assert max(counts) <= 0.55 * everything and sum(counts) == pytest.approx(everything, rel=0.1), (
        counts
    )
    checkpoint = output / "checkpoints" / str(STEPS)
    assert {path.name for path in checkpoint.glob("state/ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }


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
    processes = start(
        folder, "told", 2, "--train.steps", "100000", "--train.checkpoint_every", "100000"
    )
    deadline = time.monotonic() + 300
    while (
        not trace(folder / "told") and time.monotonic() < deadline and processes[0].poll() is None
    ):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert wait(folder, processes) == [PREEMPTED] * 2, [
        p.read_text() for p in folder.glob("told.*.log")
    ]
    (saved,) = (folder / "told" / "checkpoints").iterdir()
    assert [line["step"] for line in trace(folder / "told")] == list(range(int(saved.name)))


def test_sigterm_on_one_host_before_the_first_step_ends_all(folder):
    """The other has not heard of it, and loses it by its heartbeat, whose time is shorter here."""
    processes = start(
        folder, "early", 2, environment={"HEARTBEAT_SECONDS": "10", "TOLD_EARLY": "1"}
    )
    try:
        assert (
            processes[1].wait(timeout=600) == PREEMPTED
            and "interrupted by SIGTERM; the same" in logs(folder, "early")[1]
        )
        assert processes[0].wait(timeout=600) == PREEMPTED, logs(folder, "early")
        assert "another process of this run was lost" in logs(folder, "early")[0]
    finally:
        for process in processes:
            process.kill()


def test_an_output_that_each_host_has_for_itself_is_refused_by_all(folder):
    statuses = wait(
        folder, start(folder, "apart", 2, own={1: ["--output", str(folder / "elsewhere")]})
    )
    assert statuses == [2, 2], logs(folder, "apart")
    for log, name in zip(logs(folder, "apart"), ("apart", "elsewhere"), strict=True):
        assert (
            f"output {folder / name} is not the same folder on process 1; put it where all hosts"
            " see it" in log
        )
    assert not list((folder / "apart").iterdir())


def started(folder: Path, name: str, processes: list[subprocess.Popen]) -> None:
    """Returns once the run has taken its first steps."""
    deadline = time.monotonic() + 600
    while len(trace(folder / name)) < 2 and time.monotonic() < deadline:
        assert [process.poll() for process in processes] == [None] * len(processes), logs(
            folder, name
        )
        time.sleep(0.05)


def logs(folder: Path, name: str) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob(f"{name}.*.log"))]


@pytest.mark.parametrize("lost", [1, 0], ids=["another", "the one that joins them"])
def test_the_loss_of_a_process_ends_the_others_soon(folder, alone, lost):
    """SIGKILL to one: the other says so and exits as an interrupted run does, and the same command
    goes on."""
    name = f"lost{lost}"
    processes = start(folder, name, 2, environment={"HEARTBEAT_SECONDS": "10"})
    started(folder, name, processes)
    processes[lost].kill()
    assert processes[1 - lost].wait(timeout=600) == PREEMPTED, logs(folder, name)
    assert "another process of this run was lost" in logs(folder, name)[1 - lost]
    assert "steps done" not in str(logs(folder, name))
    check(trace(finish(folder, name, 2)), alone)


def test_what_one_process_cannot_read_ends_all(folder):
    """The mistake of one machine is known to all of them, which end at once."""
    statuses = wait(
        folder, start(folder, "failed", 2, own={1: ["--data.generative", "[nowhere.jsonl]"]})
    )
    assert statuses == [2, 2], logs(folder, "failed")
    zero, one = logs(folder, "failed")
    assert "grit train: process 1: nowhere.jsonl: no such file" in zero
    assert "grit train: nowhere.jsonl: no such file" in one


SETTINGS = ["--optimizer.lr", "0.002", "--train.seed", "1", "--data.embedding_batch", "8"]


def test_processes_with_other_settings_do_not_start(folder):
    statuses = wait(folder, start(folder, "settings", 2, own={1: SETTINGS}))
    assert statuses == [2, 2], logs(folder, "settings")
    line = (
        "grit train: the processes of this run differ: data.embedding_batch is 6 on process 0, 8 on"
        " process 1; train.seed is 0 on process 0, 1 on process 1; optimizer.lr is 0.001 on process"
        " 0, 0.002 on process 1; start all of them with the same settings and the same files"
    )
    assert all(line in log for log in logs(folder, "settings")), logs(folder, "settings")
    assert not (folder / "settings").exists(), "nothing is written before all agree"


def test_processes_with_other_data_do_not_start(folder, alone, sentences, tmp_path):
    """The same number of lines in another order, a line fewer, another tokenizer, another held-out
    file: each would make other batches or other scores."""
    lines = (folder / "embedding.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "order.jsonl").write_text("".join(reversed(lines)))
    lines = (folder / "generative.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]))
    train_tokenizer(sentences[150:], 470).save(tmp_path / "tokenizer")
    tokenizer = ["--tokenizer.path", str(folder / "one" / "tokenizer")]
    own = [
        ["--data.embedding", f"[{tmp_path}/order.jsonl]"],
        ["--data.generative", f"[{tmp_path}/fewer.jsonl]"],
        ["--train.eval_generative", f"{tmp_path}/fewer.jsonl"],
        ["--tokenizer.path", f"{tmp_path}/tokenizer"],
    ]
    words = [word for pair in own for word in pair]
    statuses = wait(folder, start(folder, "data", 2, own={0: tokenizer, 1: words}))
    assert statuses == [2, 2], logs(folder, "data")
    for log in logs(folder, "data"):
        (line,) = [line for line in log.splitlines() if line.startswith("grit train: ")]
        same, fewer, scored, ids, end = line.split("the processes of this run differ: ")[1].split(
            "; "
        )
        assert same.startswith("data.embedding[0] ") and same.count("40 lines, content ") == 2
        assert "50 lines, content " in fewer and "49 lines, content " in fewer
        assert scored.startswith("train.eval_generative ") and ids.startswith("tokenizer ")
        assert end.startswith("start all of them with the same settings")
    assert not (folder / "data" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_all_with_the_ids_of_its_batch(folder, alone):
    statuses = wait(folder, start(folder, "wild", 2, "--optimizer.lr", "1e30"))
    assert statuses == [2, 2], logs(folder, "wild")
    report = json.loads((folder / "wild" / "bad_batch.json").read_text())
    assert all("examples of its batch are listed in" in log for log in logs(folder, "wild"))
    config = read_run_config(folder / "one" / "config.yaml")
    tokenizer = Tokenizer.from_pretrained(folder / "one" / "tokenizer")
    batches = JointBatches(config.data, tokenizer, seed=config.train.seed, num_steps=STEPS)
    assert report["step"] >= 1 and report["ids"] == batches.ids(report["step"])
    assert [line["step"] for line in trace(folder / "wild")] == list(range(report["step"] + 1))
