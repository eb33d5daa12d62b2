"""The parent of a process that joins others: its exit status is the child's, but for an abort by
JAX."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grit_jax.runtime.preemption import PREEMPTED

LONG_S = 600  # a bound for what never ends; no test waits for time to pass


def start(work: str, begin: str = "", **how: Any) -> subprocess.Popen:
    """A process that does `work` as `grit train` does on several hosts, and `begin` before."""
    words = """import os, signal, sys, time
from grit_jax.runtime.preemption import PREEMPTED, Preempted, on_sigterm
from grit_jax.runtime.supervision import joined_others, watched
"""
    # The tests themselves may run under nohup, whose children ignore SIGHUP.
    begin = f"signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{begin}"
    code = f"{words}{begin}\ndef work():\n    {work.strip()}\nwatched(work)\nprint('at its end')"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, **how)


@pytest.mark.parametrize(
    "work, status, said",
    [
        ("print('done')", 0, "done\nat its end\n"),
        ("sys.exit(143)", 143, ""),
        ("print('half', end=''); sys.exit(2)", 2, "half"),
        ("raise KeyError('a bug')", 1, "KeyError: 'a bug'"),
        ("os.abort()", -signal.SIGABRT, ""),
        ("joined_others(); os.abort()", PREEMPTED, "another process of this run was lost"),
        ("joined_others(); os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_the_status_is_the_childs(work, status, said):
    process = start(work)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == status, err
    assert said in out + err


@pytest.mark.parametrize(
    "end, status, waits",
    [
        ("sys.exit(2)", 2, False),
        ("sys.exit(143)", 143, True),
        # As `cli` ends after SIGTERM: before the first step or during the export, the others have
        # not heard of it.
        ("joined_others(); raise SystemExit(143) from Preempted('told')", 143, False),
        ("joined_others(); raise SystemExit(143) from Preempted('told', together=True)", 143, True),
    ],
)
def test_one_that_ends_alone_leaves_without_the_orderly_end_that_waits_for_others(
    end, status, waits
):
    process = start(f"import atexit; atexit.register(lambda: print('waited')); {end}")
    out, err = process.communicate(timeout=LONG_S)
    assert (process.returncode, "waited" in out) == (status, waits), err


SAVES = """
    with on_sigterm() as notice, notice.hold():
        print('ready', flush=True)
        while not notice.arrived:
            time.sleep(0.01)
        sys.stdin.readline()  # all signals have been sent
        print('saved', flush=True)
    sys.exit(PREEMPTED)
"""
ONE_NOTICE = """
from grit_jax.runtime import preemption
preemption.SAME_NOTICE_S = 600
"""


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM, signal.SIGHUP, signal.SIGTERM], [signal.SIGHUP]]
)
def test_a_session_that_ends_is_one_notice_to_save(signals):
    """The system signals every process of it, each more than once; the parent passes on what it
    gets itself."""
    process = start(SAVES, ONE_NOTICE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in signals:
        os.killpg(process.pid, number)
    out, err = process.communicate("go\n", timeout=LONG_S)
    assert (process.returncode, out) == (PREEMPTED, "saved\n"), err


# The parent is held between the fork and what it does next.
SLOW_PARENT = """
fork = os.fork
def slow():
    child = fork()
    if child:
        sys.stdin.readline()
    return child
os.fork = slow
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_comes_before_the_parent_is_ready_is_not_lost(number):
    """As on a slow machine, where the child may be ahead."""
    saves = SAVES.replace("sys.stdin.readline()", "pass")
    process = start(saves, ONE_NOTICE + SLOW_PARENT, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)  # to the parent alone
    out, err = process.communicate("go\n", timeout=LONG_S)
    assert (process.returncode, out) == (PREEMPTED, "saved\n"), err


def test_a_run_that_is_to_outlive_its_terminal_does():
    """As under nohup: SIGHUP was ignored before, so it is no notice."""
    process = start(
        "print('ready', flush=True); sys.stdin.readline()",
        begin="signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    out = process.communicate("go\n", timeout=LONG_S)[0]
    assert out == "at its end\n" and process.returncode == 0


def test_sigterm_is_handed_on_and_sigkill_takes_the_child_along():
    process = start(
        "signal.signal(15, lambda *a: sys.exit(143)); print(os.getpid(), flush=True);"
        " time.sleep(600)"
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    process.terminate()
    assert process.wait(timeout=LONG_S) == 143
    process = start("print(os.getpid(), flush=True); time.sleep(600)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")
