"""SIGTERM: noted once, obeyed at once when it comes again later, and heard by nobody but a training
run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from grit_jax.runtime.preemption import PREEMPTED, Preempted, on_sigterm


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_raises_where_it_strikes_and_waits_where_it_is_held():
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm() as notice, notice.hold():
        terminate()
        assert notice.arrived
    with pytest.raises(Preempted), on_sigterm() as notice:
        terminate()
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_except_clause_of_a_library_swallows_it():
    with pytest.raises(Preempted), on_sigterm():
        try:
            terminate()
        except Exception:
            pytest.fail("swallowed")


def test_a_second_one_ends_the_process_at_once():
    program = """
import os, signal, time
from grit_jax.runtime import preemption
from grit_jax.runtime.preemption import on_sigterm
preemption.SAME_NOTICE_S = 0
with on_sigterm() as notice, notice.hold():
    for _ in range(2):
        print(notice.arrived, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert (
        done.stdout.split() == ["False", "True"]
        and done.returncode == -signal.SIGTERM == 128 - PREEMPTED
    )


def test_those_that_follow_at_once_are_the_same_notice():
    program = """
import os, signal
from grit_jax.runtime import preemption
from grit_jax.runtime.preemption import Preempted, on_sigterm
preemption.SAME_NOTICE_S = 600
try:
    with on_sigterm() as notice:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for _ in range(2):  # while what is under way is saved
                os.kill(os.getpid(), signal.SIGTERM)
except Preempted:
    print("saved")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "saved\n" and done.returncode == 0


def test_a_thread_hears_nothing_and_does_no_harm():
    found = []

    def work():
        with on_sigterm() as notice:
            found.append(notice.arrived)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before
