"""The parent of a process that joins others: its exit status is the child's, but for an abort by JAX."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grit_jax.preemption import PREEMPTED


def start(work: str) -> subprocess.Popen:
    """A process that does `work` as `grit train` does on several hosts."""
    words = "import os, signal, sys, time\nfrom grit_jax.supervision import joined_others, watched\n"
    code = f"{words}def work():\n    {work}\nwatched(work)\nprint('at its end')"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "work, status, said",
    [("print('done')", 0, "done\nat its end\n"),
     ("sys.exit(143)", 143, ""),
     ("print('half', end=''); sys.exit(2)", 2, "half"),
     ("raise KeyError('a bug')", 1, "KeyError: 'a bug'"),
     ("os.abort()", -signal.SIGABRT, ""),
     ("joined_others(); os.abort()", PREEMPTED, "another process of this run was lost"),
     ("joined_others(); os.kill(os.getpid(), 9)", -signal.SIGKILL, "")],
)  # fmt: skip
def test_the_status_is_the_childs(work, status, said):
    process = start(work)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert said in out + err


def test_one_that_fails_leaves_without_the_orderly_end_that_waits_for_others():
    late = "import atexit; atexit.register(lambda: print('waited'))"
    assert "waited" not in start(f"{late}; sys.exit(2)").communicate(timeout=60)[0]
    assert "waited" in start(f"{late}; sys.exit(143)").communicate(timeout=60)[0]


def test_sigterm_is_handed_on_and_sigkill_takes_the_child_along():
    process = start("signal.signal(15, lambda *a: sys.exit(143)); print(os.getpid(), flush=True); time.sleep(600)")
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    process.terminate()
    assert process.wait(timeout=60) == 143
    process = start("print(os.getpid(), flush=True); time.sleep(600)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")
