"""Real processes as one run: `grit train` several times over on the loopback, each with devices of
its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from training_run import STEPS, write_run

DEVICES = 8  # of the whole run, over however many processes
# `grit`, which says at its end how many texts this process tokenised for its batches.
COUNTED = """
import os, sys
from grit_jax.cli import main as cli
from grit_jax.runtime import hosts
from grit_jax.data import pipeline

hosts.HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT_SECONDS", hosts.HEARTBEAT_SECONDS))

class Counting(pipeline.ExampleTokenizer):
    texts = 0

    def embedding(self, texts, limits):
        Counting.texts += len(texts)
        return super().embedding(texts, limits)

    def generative(self, examples):
        Counting.texts += len(examples)
        return super().generative(examples)

def told_early(*args, **options):
    os.kill(os.getpid(), 15)
    return make_iterator(*args, **options)

pipeline.ExampleTokenizer = Counting
if os.environ.get("TOLD_EARLY", "nobody") == os.environ.get("GRIT_PROCESS_ID"):  # SIGTERM before the model is there
    make_iterator, pipeline.make_iterator = pipeline.make_iterator, told_early
try:
    cli.main()
finally:
    print("tokenised", Counting.texts, file=sys.stderr)
"""


def small_run(root: Path, sentences: list[str]) -> Path:
    """The run of other tests with less to compile, or the processes wait for each other too
    long."""
    root = write_run(root, sentences[:120])
    config = yaml.safe_load((root / "config.yaml").read_text())
    config["model"]["shape"]["num_hidden_layers"] = 1
    del config["data"]["cached"], config["data"]["cached_batch"]
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def start(
    folder: Path,
    name: str,
    processes: int,
    *more: str,
    output: str = "",
    environment: Mapping[str, str] = {},
    own: Mapping[int, list[str]] = {},
) -> list[subprocess.Popen]:
    """`grit train` in so many processes, which share the eight devices; `output` is `folder/name`
    unless given; `own` words to some."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", COUNTED, "train", str(folder / "config.yaml")]
    command = [*program, "--output", output or str(folder / name)]
    started = []
    for number in range(processes):
        mine = {
            **os.environ,
            **environment,
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        }
        if processes > 1:
            mine |= {
                "GRIT_COORDINATOR": f"localhost:{port}",
                "GRIT_NUM_PROCESSES": str(processes),
                "GRIT_PROCESS_ID": str(number),
            }
        log = (folder / f"{name}.{processes}.{number}.log").open("w")
        words = [*command, *more, *own.get(number, [])]
        started.append(subprocess.Popen(words, stdout=log, stderr=log, env=mine))
    return started


def wait(folder: Path, processes: list[subprocess.Popen]) -> list[int]:
    """Their exit statuses; none outlives the test."""
    deadline = time.monotonic() + 600
    try:
        return [process.wait(timeout=max(deadline - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()


def finish(
    folder: Path, name: str, processes: int, said: str = f"{STEPS} steps done", **how
) -> Path:
    """A run to its end; its folder."""
    statuses = wait(folder, start(folder, name, processes, **how))
    logs = {path.name: path.read_text() for path in folder.glob(f"{name}.{processes}.*.log")}
    assert statuses == [0] * processes, logs
    done = [log for log in logs.values() if said in log]
    assert len(done) == 1, f"process 0 alone speaks: {logs}"
    return folder / name


def tokenised(folder: Path, name: str, processes: int) -> list[int]:
    """How many texts each process of a finished run tokenised."""
    logs = [
        (folder / f"{name}.{processes}.{number}.log").read_text() for number in range(processes)
    ]
    return [int(log.split("tokenised ")[1].split()[0]) for log in logs]


def check(found: list[dict], wanted: list[dict]) -> None:
    """The same batches, and the numbers of one process up to the order in which they are added."""
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for a, b in zip(found, wanted):
        assert a.keys() == b.keys() and (a["tokens"], a["padding"]) == (b["tokens"], b["padding"])
        for name in a.keys() - {"mfu", "hbm_bytes"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (a["step"], name)
