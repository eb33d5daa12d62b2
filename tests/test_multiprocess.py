"""Several processes as one run: real ones, with devices of their own, that talk over the loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from training_run import STEPS, trace, write_run

from grit_jax.inference.model import GritLM
from grit_jax.preemption import PREEMPTED

DEVICES = 8  # of the whole run, over however many processes
# `grit`, which says at its end how many texts this process tokenised for its batches.
COUNTED = """
import sys
from grit_jax import cli
from grit_jax.data import pipeline

class Counting(pipeline.ExampleTokenizer):
    texts = 0

    def embedding(self, texts, limits):
        Counting.texts += len(texts)
        return super().embedding(texts, limits)

    def generative(self, examples):
        Counting.texts += len(examples)
        return super().generative(examples)

pipeline.ExampleTokenizer = Counting
try:
    cli.main()
finally:
    print("tokenised", Counting.texts, file=sys.stderr)
"""
pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    """The run of other tests with less to compile, or the processes wait for each other too long."""
    root = write_run(tmp_path_factory.mktemp("hosts"), sentences[:120])
    config = yaml.safe_load((root / "config.yaml").read_text())
    config["model"]["shape"]["num_hidden_layers"] = 1
    del config["data"]["cached"], config["data"]["cached_batch"]
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(scope="module")
def alone(folder) -> list[dict]:
    """The metrics of the run in one process."""
    return trace(finish(folder, "one", 1))


def start(folder: Path, name: str, processes: int, *more: str) -> list[subprocess.Popen]:
    """`grit train` in so many processes, which share the eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", COUNTED, "train", str(folder / "config.yaml")]
    command = [*program, "--output", str(folder / name)]
    started = []
    for number in range(processes):
        environment = os.environ | {
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        }  # fmt: skip
        if processes > 1:
            environment |= {
                "GRIT_COORDINATOR": f"localhost:{port}", "GRIT_NUM_PROCESSES": str(processes),
                "GRIT_PROCESS_ID": str(number),
            }  # fmt: skip
        log = (folder / f"{name}.{processes}.{number}.log").open("w")
        started.append(subprocess.Popen([*command, *more], stdout=log, stderr=log, env=environment))
    return started


def wait(folder: Path, processes: list[subprocess.Popen]) -> list[int]:
    """Their exit statuses; none outlives the test."""
    deadline = time.monotonic() + 600
    try:
        return [process.wait(timeout=max(deadline - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()


def finish(folder: Path, name: str, processes: int) -> Path:
    """A run to its end; its folder."""
    statuses = wait(folder, start(folder, name, processes))
    logs = {path.name: path.read_text() for path in folder.glob(f"{name}.{processes}.*.log")}
    assert statuses == [0] * processes, logs
    done = [log for log in logs.values() if f"{STEPS} steps done" in log]
    assert len(done) == 1, f"process 0 alone speaks: {logs}"
    return folder / name


def tokenised(folder: Path, name: str, processes: int) -> list[int]:
    """How many texts each process of a finished run tokenised."""
    logs = [(folder / f"{name}.{processes}.{number}.log").read_text() for number in range(processes)]
    return [int(log.split("tokenised ")[1].split()[0]) for log in logs]


def check(found: list[dict], wanted: list[dict]) -> None:
    """The same batches, and the numbers of one process up to the order in which they are added."""
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for a, b in zip(found, wanted):
        assert a.keys() == b.keys() and (a["tokens"], a["padding"]) == (b["tokens"], b["padding"])
        for name in a.keys() - {"mfu", "hbm_bytes"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (a["step"], name)


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
