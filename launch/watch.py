"""Keeps a run going until it ends: creates the slice, installs, starts, looks, and begins anew after a preemption.

A loop that compares what is with what should be, and does the next missing thing. It keeps nothing between two
rounds but its counts, so it can be interrupted at any moment and started again, on another computer, too.
"""

from __future__ import annotations

import dataclasses
import time

from accelerators import accelerator
from job import INTERRUPTED, UNSAVED, Job, Report, Workers
from machine import ABSENT, ACTIVE, GOING, Machine, State
from shell import GAVE_UP, LaunchError, NoCapacity, Unreachable, say

LONGEST_PAUSE_S = 900.0
NOTE_EVERY_S = 300.0
UNHEARD = 5  # looks at a machine that answered before and is silent now, until it counts as lost
PATIENCE = 40  # looks in a row without any answer: about nine hours at the longest pause


@dataclasses.dataclass(frozen=True)
class Policy:
    """How long, how often, how many times."""

    poll: float = 30.0  # seconds between two looks
    backoff: float = 30.0  # seconds before the first new attempt, doubled for each further one in a row
    retries: int = 10  # new attempts in all: recreations and restarts
    wait_hours: float = 48.0  # in the queue, each time
    recreate: bool = True  # whether to create the slice at all
    delete: bool = False  # tear it down when the run has ended


class Watch:
    """One run on one machine."""

    def __init__(self, machine: Machine, workers: Workers, job: Job, policy: Policy):
        self.machine, self.workers, self.job, self.policy = machine, workers, job, policy
        self.attempts = 0  # retries used
        self.in_a_row = 0  # attempts since the run was last seen running
        self.silent = 0  # looks in a row that got no answer
        self.heard = False  # whether this machine ever answered
        self.started = False  # whether the run was started on it, or found there
        self.waiting_since: float | None = None
        self.told = ""
        self.noted = -NOTE_EVERY_S

    def until_end(self) -> int:
        """Returns the exit status of the run.

        Raises:
          LaunchError: it cannot go on, the person's matter or out of retries (status 3).
        """
        while (status := self._round()) is None:
            pass
        return self._end(status)

    def until_started(self) -> None:
        """Returns once the run is started on every worker, or was found there."""
        while not self.started:
            self._round()

    # ---- one round ---------------------------------------------------------------------------------------------------

    def _round(self) -> int | None:
        try:
            status = self._act(self.machine.state())
            self.silent = 0
            return status
        except Unreachable as error:
            self._bear(error)
            return None

    def _act(self, state: State) -> int | None:
        """Does the next missing thing; returns the run's status once it has ended."""
        self._tell(str(state))
        self._compare_type(state)
        if not state.active:
            self.heard = False
        if state.name == ABSENT:
            if not self.policy.recreate:
                raise LaunchError(f"there is no {self.machine.name} in {self.machine.shell.zone}; create it first")
            self._create()
        elif state.lost:
            if not self.policy.recreate:
                raise LaunchError(f"{self.machine.name} is {state.name}; tpu.py watch would create it anew", GAVE_UP)
            self._again(f"is {state.name}")
            self.machine.delete()
        elif not state.active:
            self._wait(state)
        else:
            self.waiting_since = None
            return self._look()
        return None

    def _look(self) -> int | None:
        """The run on a machine that is there."""
        reports = self.workers.reports()
        self.heard = True
        kinds = {report.state for report in reports}
        failed = [r.status for r in reports if r.status not in (None, 0, INTERRUPTED)]
        if "absent" in kinds:
            self.workers.install()
            self.started = False
        elif not self.started:  # what an earlier watch saw the end of is begun again, from its checkpoint
            self.workers.start(self.job)
            self.started = True
        elif failed:
            if "running" in kinds:  # the other hosts wait for the failed one, for ever
                self.workers.stop()
            return failed[0]
        elif "stopped" in kinds:
            say(f"{self.machine.name}: the run was stopped on purpose")
            return INTERRUPTED
        elif all(report.status == 0 for report in reports):
            return 0
        elif kinds <= {"running", "exited"} and INTERRUPTED not in (r.status for r in reports):
            self.in_a_row = 0
            self._note(reports)
            time.sleep(self.policy.poll)
        else:
            self._again("lost its run")
            self.workers.stop()
            self.workers.start(self.job)
        return None

    def _compare_type(self, state: State) -> None:
        """The slice that is there must be the one that is wanted; where none is named, it is what is there."""
        machine = self.machine
        if machine.accelerator is None and state.type:
            machine.accelerator = accelerator(state.type)
            self.job = dataclasses.replace(self.job, direct=machine.accelerator.hosts > 1)
        elif machine.accelerator and state.type and state.type != machine.accelerator.name:
            raise LaunchError(
                f"{machine.name} exists already, as {state.type}, not {machine.accelerator.name}; choose another name"
            )

    def _create(self) -> None:
        try:
            self.machine.create()
        except NoCapacity as error:
            self._again(str(error))

    def _wait(self, state: State) -> None:
        """In the queue, or on the way out of it."""
        now = time.monotonic()
        self.waiting_since = now if self.waiting_since is None else self.waiting_since
        if state.name not in GOING and now - self.waiting_since > self.policy.wait_hours * 3600:
            raise LaunchError(
                f"{self.machine.name} is {state.name} after {self.policy.wait_hours:g} h; it keeps its place", GAVE_UP
            )
        time.sleep(self.policy.poll)

    # ---- setbacks ----------------------------------------------------------------------------------------------------

    def _bear(self, error: Unreachable) -> None:
        """No answer. The network here may be down, or the machine may be gone."""
        self.silent += 1
        if self.silent == 1:
            say(f"{self.machine.name}: {error}; trying again")
        there = self.machine.last_seen in ACTIVE
        if self.heard and there and self.policy.recreate and self.silent >= UNHEARD:
            self._again(f"does not answer, though it is {self.machine.last_seen}")
            self.machine.delete()
            self.heard = False
            self.silent = 0
        elif self.silent >= PATIENCE:
            raise LaunchError(f"{error}; no answer {self.silent} times in a row", GAVE_UP)
        else:
            time.sleep(self._pause(self.policy.poll, self.silent - 1))

    def _again(self, why: str) -> None:
        """Counts an attempt and pauses before it, longer each time."""
        self.waiting_since = None
        if self.attempts >= self.policy.retries:
            raise LaunchError(f"{self.machine.name}: {why}; {self.attempts} retries are used up (--retries)", GAVE_UP)
        pause = self._pause(self.policy.backoff, self.in_a_row)
        self.attempts += 1
        self.in_a_row += 1
        say(f"{self.machine.name}: {why}; attempt {self.attempts} of {self.policy.retries} in {pause:g} s")
        time.sleep(pause)

    @staticmethod
    def _pause(first: float, doublings: int) -> float:
        return min(first * 2.0 ** min(doublings, 20), LONGEST_PAUSE_S)

    # ---- talk --------------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        if text != self.told and not self.machine.shell.dry_run:
            say(f"{self.machine.name}: {text}")
        self.told = text

    def _note(self, reports: list[Report]) -> None:
        """The last line of the run's log, now and then."""
        if time.monotonic() - self.noted > NOTE_EVERY_S:
            self.noted = time.monotonic()
            say(f"{self.machine.name}: running{': ' + reports[0].note if reports[0].note else ''}")

    def _end(self, status: int) -> int:
        output = self.job.output.rstrip("/")
        if status == 0:
            text = f"the run has finished; its model is in {output}/model"
        elif status == UNSAVED:
            text = f"the run's output could not be copied to {output}; it is on the machine alone, which is kept"
        else:
            text = f"the run ended with status {status}; its log is in {output}/logs"
        self._tell(text)
        if self.policy.delete and status != UNSAVED:
            self.machine.delete()
            self._tell("torn down")
        return status


def wait_until_active(machine: Machine, policy: Policy) -> None:
    """Returns when the slice is there.

    Raises:
      LaunchError: there is none of that name, it failed, or it took too long (status 3).
    """
    began, told = time.monotonic(), ""
    while True:
        state = machine.state()
        if state.name != told and not machine.shell.dry_run:
            say(f"{machine.name}: {state}")
        told = state.name
        if state.active:
            return
        if state.name == ABSENT:
            raise LaunchError(f"there is no {machine.name} in {machine.shell.zone}; create it first")
        if state.lost or state.name in GOING:
            raise LaunchError(f"{machine.name} is {state}", GAVE_UP)
        if time.monotonic() - began > policy.wait_hours * 3600:
            hours = f"{policy.wait_hours:g} h"
            raise LaunchError(f"{machine.name} is {state.name} after {hours}; it keeps its place", GAVE_UP)
        time.sleep(policy.poll)
