"""Starts, reports and stops a run on a worker that outlives the ssh connection.

Its files are in `$GRIT_HOME/run`: the request, pid, log and exit status, and a lock that the run
holds while it lives, which tells a killed run from a running one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import serving

HOME = Path(os.environ.get("GRIT_HOME", Path.home() / "grit"))
RUN = HOME / "run"
INSTALLED = HOME / "venv" / "grit-installed"
WORKER = Path(__file__).with_name("worker.py")
STOP_WITHIN_S = 120
# Of 0.05 s each: `running` holds the lock for an instant, which is long on a busy machine.
LOCK_TRIES = 600
MISTAKE, INTERRUPTED = 2, 143

# config, output, direct, verb, input, overrides, as the command line has them
Request = dict[str, Any]


def start(request: Request, dry_run: bool = False) -> int:
    """Starts the run detached from the connection, and returns once it holds the lock."""
    if request["verb"] == "serve":
        words = ["serve", request["config"], "--output", request["output"]]
    else:
        words = [
            "train",
            request["config"],
            request["output"],
            *(["--direct"] if request["direct"] else []),
            *(["--verb", request["verb"], "--input", request["input"]] if request["input"] else []),
        ]
    command = [str(WORKER), *words, "--supervised", "--", *request["overrides"]]
    if dry_run:
        print(shlex.join(["python3", *command]))
        return 0
    RUN.mkdir(parents=True, exist_ok=True)
    if running():
        if json.loads((RUN / "request").read_text()) == request:
            print(f"running already: {request['config']}")
            return 0
        print(
            "worker.py start: another run is active here; stop it first (tpu.py stop)",
            file=sys.stderr,
        )
        return MISTAKE
    kill_leftovers()
    for name in ("exit", "stopped", "pid", "port"):
        (RUN / name).unlink(missing_ok=True)
    (RUN / "request").write_text(json.dumps(request))
    with (RUN / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=HOME,
            start_new_session=True,
        )
    while not (RUN / "pid").exists() and child.poll() is None:
        time.sleep(0.05)
    if (RUN / "pid").exists():
        print(f"started: {request['config']}")
        return 0
    print(f"worker.py start: the run ended immediately; see {RUN / 'log'}", file=sys.stderr)
    return 1


def supervise(run: Callable[[], int]) -> int:
    """Calls `run` with its pid and its exit status on disk, and holds the lock until this process
    ends, however it ends."""
    _lock = take_lock()
    write(RUN / "pid", str(os.getpid()))
    code = 1  # for an exception, which is a bug
    try:
        code = run()
    finally:
        write(RUN / "exit", str(code))
    return code


def status() -> int:
    """Prints one line: what the run is doing, or how it ended."""
    state, note = "absent", ""
    if INSTALLED.exists():
        state = "idle"
    if running():
        state, note = "running", last_line(RUN / "log")
        if (RUN / "port").exists():
            _, text = serving.answer(int((RUN / "port").read_text()), "/ready")
            note = f"{serving.readiness(text)} | {note}"
    elif (RUN / "stopped").exists():
        state = "stopped"
    elif (RUN / "exit").exists():
        state, note = f"exited {(RUN / 'exit').read_text()}", last_line(RUN / "log")
    elif (RUN / "request").exists() and state == "idle":
        state = "lost"  # the machine went down, or the run was killed
    print(f"grit-worker {host()} {state}{' | ' + note if note else ''}")
    return 0


def stop(dry_run: bool = False) -> int:
    """Sends SIGTERM to the run, waits, and kills what is left."""
    if dry_run:
        print(f'kill -TERM "$(cat {shlex.quote(str(RUN / "pid"))})"')
        return 0
    if running():
        write(RUN / "stopped", "")
        os.kill(int((RUN / "pid").read_text()), signal.SIGTERM)
        until = time.monotonic() + stop_within_s()
        while running() and time.monotonic() < until:
            time.sleep(0.05)
    kill_leftovers()
    print("stopped")
    return 0


def stop_within_s() -> float:
    """Seconds that the run has to end: a server answers the requests that it has accepted."""
    if not (RUN / "port").exists():
        return STOP_WITHIN_S
    flags = json.loads((RUN / "request").read_text())["overrides"]
    return STOP_WITHIN_S + serving.number(flags, "--grace", serving.GRACE_S)


def running() -> bool:
    """Whether a run holds the lock. It tries a shared lock, so that several may look at once."""
    try:
        lock = (RUN / "lock").open("r+")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def take_lock() -> object:
    """Takes the lock of a run.

    Raises:
      BlockingIOError: another run holds it.
    """
    lock = (RUN / "lock").open("w")
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.05)
    lock.close()
    raise BlockingIOError(f"{RUN / 'lock'}: another run holds it")


def kill_leftovers() -> None:
    """Kills what a killed supervisor left running: its `grit train` would hold the TPU."""
    if not (RUN / "pid").exists():
        return
    group = int((RUN / "pid").read_text())
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pgrp = int((entry / "stat").read_text().rpartition(")")[2].split()[2])
            if pgrp == group and b"grit" in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue  # it has ended


def host() -> str:
    return os.environ.get("HOSTNAME") or os.uname().nodename


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    half = path.with_suffix(".half")
    half.write_text(text)
    half.replace(path)


def last_line(path: Path) -> str:
    """The last line of a log, cut to the width of a terminal."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:150] if lines else ""
