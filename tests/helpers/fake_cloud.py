"""A cloud on this disk: `fake_gcloud` on PATH, buckets and machines as folders. Nothing here
reaches a network."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

HERE = Path(__file__).parents[1] / "launch"
REPOSITORY = HERE.parent.parent
LAUNCH = REPOSITORY / "launch"
WHERE = ["--project=my-project", "--zone=us-west4-a"]
JOB = ["gs://bucket/in/my.yaml", "--output=gs://bucket/runs/mine"]
FAKE_GCLOUD = compile((HERE / "fake_gcloud").read_text(), "fake_gcloud", "exec")
FAST = ["--poll=0", "--wait-hours=1"]
LONG_S = 300  # what a busy machine may take for anything here; nothing waits so long that has come


@dataclasses.dataclass
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@dataclasses.dataclass
class Cloud:
    """The folder of the fake cloud, and what was asked of it."""

    root: Path
    capfd: pytest.CaptureFixture[str]

    def play(self, **scenario: Any) -> None:
        """Sets what the cloud will do; see fake_gcloud."""
        (self.root / "scenario.json").write_text(json.dumps(scenario))

    def answer_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on fake_gcloud runs in this process: the same program without a hundred starts
        of Python."""

        def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
            assert how["timeout"] > 0, f"{command} may take for ever: the machine vanishes"
            return (
                self.gcloud(command) if command[0] == "gcloud" else subprocess.run(command, **how)
            )

        monkeypatch.setattr(
            "shell.subprocess", types.SimpleNamespace(**{**vars(subprocess), "run": run})
        )

    def gcloud(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """fake_gcloud in this process."""
        out, err, status = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch("sys.argv", command),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                exec(FAKE_GCLOUD, {"__name__": "fake_gcloud"})
            except SystemExit as end:
                status = int(end.code or 0)
        return subprocess.CompletedProcess(list(command), status, out.getvalue(), err.getvalue())

    def tpu(self, *words: str) -> Said:
        """`launch/tpu.py WORDS` in this process."""
        import tpu

        self.capfd.readouterr()
        try:
            status = tpu.main(list(words))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Said(status, *self.capfd.readouterr())

    @property
    def calls(self) -> list[str]:
        """The calls of gcloud, as they could be typed."""
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def story(self) -> list[str]:
        """The calls in a word each, buckets and looks at the slice aside, the same words in a row
        once."""
        words: list[str] = []
        for call in self.calls:
            parts = shlex.split(call)
            command = next((part for part in parts if part.startswith("--command=")), "")
            if parts[1] != "compute":
                continue
            word = "status" if command.endswith("absent; fi") else parts[4]
            for told in ("install", "start", "stop"):
                word = told if f"worker.py {told}" in command else word
            words += [word] if word not in ("describe", *words[-1:]) else []
        return words

    def bucket(self, path: str = "") -> Path:
        return self.root / "buckets" / "bucket" / path

    def give_config(self, text: str = "{}\n") -> None:
        """The configuration that JOB names."""
        self.bucket("in").mkdir(parents=True, exist_ok=True)
        self.bucket("in/my.yaml").write_text(text)

    def trace(self) -> list[dict[str, Any]]:
        """The metrics in the bucket."""
        return [
            json.loads(line)
            for line in self.bucket("runs/mine/metrics.jsonl").read_text().splitlines()
        ]


def expected_trace(steps: int = 8) -> list[dict[str, Any]]:
    """The metrics of an uninterrupted run of fake_grit."""
    lines, state = [], ""
    for step in range(steps):
        state = hashlib.sha256(f"{state}{step}".encode()).hexdigest()
        lines.append({"step": step, "loss": int(state[:6], 16)})
    return lines


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds."""
    end = time.monotonic() + LONG_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"it did not come in {LONG_S} s")
        time.sleep(0.02)


def end_run(home: Path) -> None:
    """Ends what a test has left running in `$GRIT_HOME`."""
    if (home / "run" / "exit").exists():
        return
    with contextlib.suppress(OSError):
        os.killpg(int((home / "run" / "pid").read_text()), signal.SIGKILL)
