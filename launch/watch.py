"""Keeps a run going until it ends: creates the slice, installs, starts, checks, and starts again
after a preemption.

A loop that compares the actual state with the wanted one and does the next missing step. Between
two rounds it keeps only counters, so it can be interrupted at any moment and started again, also on
another computer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time

from accelerators import accelerator
from job import INTERRUPTED, UNSAVED, Job, Report, Workers, check_hosts
from machine import ABSENT, ACTIVE, GOING, Machine, State
from shell import GAVE_UP, LaunchError, NoCapacity, StepFailed, Unreachable, say

LONGEST_PAUSE_S = 900.0
NOTE_EVERY_S = 300.0
# Checks without an answer after which an ACTIVE machine that answered before counts as lost.
UNHEARD = 5
NEVER_HEARD_S = 1200.0  # for an ACTIVE machine to answer at all: it boots in minutes
GOING_S = 3600.0  # for a slice to be deleted or suspended
DELETE_TRIES = 5  # at the end, since a slice that stays is billed
PATIENCE = 40  # checks in a row without any answer: about nine hours at the longest pause


@dataclasses.dataclass(frozen=True)
class Policy:
    """Waiting times and numbers of attempts."""

    poll: float = 30.0  # seconds between two checks
    backoff: float = 30.0  # seconds before the first new attempt, doubled for each in a row
    retries: int = 10  # new attempts in total: recreations and restarts
    wait_hours: float = 48.0  # in the queue, each time
    recreate: bool = True  # whether to create the slice at all
    delete: bool = False  # delete the slice when the run has ended


class Watch:
    """One run on one machine."""

    def __init__(self, machine: Machine, workers: Workers, job: Job, policy: Policy):
        self.machine, self.workers, self.job, self.policy = machine, workers, job, policy
        self.attempts = 0  # retries used
        self.in_a_row = 0  # attempts since the run was last seen running
        self.silent = 0  # checks in a row without an answer
        # Of those, checks of an ACTIVE machine: the cloud answered, the workers did not.
        self.unheard = 0
        self.created = False  # whether it was created from here
        self.heard = False  # whether this machine ever answered
        self.active_since: float | None = None  # when it was first found ACTIVE
        self.started = False  # whether the run was started on it, or found there
        self.waiting_since: float | None = None
        self.going: tuple[str, float] | None = None  # its state among GOING, and since when
        self.last_said = ""
        self.noted = -NOTE_EVERY_S

    def until_end(self) -> int:
        """Returns the exit status of the run.

        Raises:
          LaunchError: it cannot continue: a mistake, or no retries left (status 3).
        """
        try:
            while (status := self._round()) is None:
                pass
        except LaunchError as error:
            if error.status == GAVE_UP and self.policy.delete and self._ours():
                try:
                    self._tear_down()
                except LaunchError as another:  # the first error matters more
                    say(f"{self.machine.name}: could not be deleted: {another}")
            raise
        return self._end(status)

    def _ours(self) -> bool:
        """Whether the slice may be deleted when the launcher gives up.

        A machine that was ACTIVE before and never answered may be working: perhaps only the network
        between here and there is closed.
        """
        seen = self.machine.last_seen
        return seen not in ("", ABSENT) and (self.created or self.heard or seen not in ACTIVE)

    def until_started(self) -> None:
        """Returns once the run is started on every worker, or was found there."""
        while not self.started:
            self._round()

    # ---- one round -------------------------------------------------------------------------------

    def _round(self) -> int | None:
        state: State | None = None
        try:
            state = self.machine.state()
            status = self._act(state)
            self.silent = self.unheard = 0
            return status
        except StepFailed as error:
            if not self.policy.recreate:
                raise
            self.silent = self.unheard = 0  # the workers had answered
            self._count_attempt(str(error).removeprefix(f"{self.machine.name}: "))
        except Unreachable as error:
            self._no_answer(error, active=state is not None and state.active)
        return None

    def _act(self, state: State) -> int | None:
        """Does the next missing step; returns the run's status once it has ended."""
        self._say_once(str(state))
        self._compare_type(state)
        if not state.active:
            self.heard, self.active_since, self.unheard = False, None, 0
        elif self.active_since is None:
            self.active_since = time.monotonic()
        if state.name not in GOING:
            self.going = None
        elif self.going is None or self.going[0] != state.name:
            self.going = (state.name, time.monotonic())
        if state.name == ABSENT:
            if not self.policy.recreate:
                raise LaunchError(
                    f"there is no {self.machine.name} in {self.machine.shell.zone}; create it first"
                )
            self._create()
        elif state.lost or self._stuck(state):
            if not self.policy.recreate:
                raise LaunchError(
                    f"{self.machine.name} is {state.name}; tpu.py watch would create it again",
                    GAVE_UP,
                )
            self._count_attempt(f"is {state.name}")
            self.machine.delete()
        elif not state.active:
            self._wait(state)
        else:
            self.waiting_since = None
            return self._look()
        return None

    def _look(self) -> int | None:
        """Checks the run on an ACTIVE machine, and starts what is missing."""
        reports = self.workers.reports()
        self.heard = True
        kinds = {report.state for report in reports}
        failed = [r.status for r in reports if r.status not in (None, 0, INTERRUPTED)]
        if "absent" in kinds or not self.started:
            if "running" in kinds and len(kinds) > 1:
                # The others would wait for the lost hosts forever.
                self.workers.stop()
            if "absent" in kinds:
                self.workers.install()
                self.started = False
            else:  # a run that ended under an earlier watch resumes from its checkpoint
                self.workers.start(self.job)
                self.started = True
        elif failed:
            if "running" in kinds:  # the other hosts would wait for the failed one for ever
                self.workers.stop()
            return failed[0]
        elif "stopped" in kinds:
            what = "server" if self.job.verb == "serve" else "run"
            say(f"{self.machine.name}: the {what} was stopped by a command")
            return INTERRUPTED
        elif all(report.status == 0 for report in reports):
            return 0
        elif kinds <= {"running", "exited"} and INTERRUPTED not in (r.status for r in reports):
            self.in_a_row = 0
            self._note(reports)
            time.sleep(self.policy.poll)
        else:
            self._count_attempt("lost its run")
            self.started = False  # if the start fails, this stop was not the user's
            self.workers.stop()
            self.workers.start(self.job)
            self.started = True
        return None

    def _compare_type(self, state: State) -> None:
        """Checks that the existing slice has the wanted type, or takes its type where none is
        given."""
        machine = self.machine
        if machine.accelerator is None and state.type:
            machine.accelerator = accelerator(state.type)
            check_hosts(self.job, machine)
            self.job = dataclasses.replace(self.job, direct=machine.accelerator.hosts > 1)
        elif machine.accelerator and state.type and state.type != machine.accelerator.name:
            raise LaunchError(
                f"{machine.name} already exists as {state.type}, not {machine.accelerator.name};"
                " choose another name"
            )

    def _create(self) -> None:
        try:
            self.machine.create(self.policy.wait_hours)
            self.created = True
        except NoCapacity as error:
            self._count_attempt(str(error))

    def _wait(self, state: State) -> None:
        """Waits for a slice in the queue, or for one that is being deleted."""
        if state.name not in GOING:
            now = time.monotonic()
            self.waiting_since = now if self.waiting_since is None else self.waiting_since
            if now - self.waiting_since > self.policy.wait_hours * 3600:
                place = "" if self.policy.delete else "; it keeps its place"
                raise LaunchError(
                    f"{self.machine.name} is {state.name} after {self.policy.wait_hours:g}"
                    f" h{place}",
                    GAVE_UP,
                )
        time.sleep(self.policy.poll)

    def _stuck(self, state: State) -> bool:
        """Whether the slice has been on its way out for too long to wait any longer.

        Raises:
          LaunchError: it is being deleted, so that deleting it again does not help.
        """
        if self.going is None or time.monotonic() - self.going[1] <= GOING_S:
            return False
        if state.name == "DELETING":
            raise LaunchError(
                f"{self.machine.name} has been DELETING for {GOING_S / 3600:g} h; look at it at"
                f" https://console.cloud.google.com/compute/tpus?project={self.machine.shell.project},"
                " or choose another name",
                GAVE_UP,
            )
        return True

    # ---- setbacks --------------------------------------------------------------------------------

    def _no_answer(self, error: Unreachable, active: bool) -> None:
        """Counts a check without an answer from the cloud or, with `active`, an ACTIVE machine. The
        local network may be down as well."""
        self.silent += 1
        self.unheard += active
        if self.silent == 1:
            say(f"{self.machine.name}: {error}; trying again")
        if active and self.heard and self.policy.recreate and self.unheard >= UNHEARD:
            self._count_attempt(f"does not answer, though it is {self.machine.last_seen}")
            with contextlib.suppress(Unreachable):  # the next round tries again
                self.machine.delete()
                self.heard, self.active_since = False, None
                self.silent = self.unheard = 0
        elif active and not self.heard and self.unheard > 1 and self._active_for() > NEVER_HEARD_S:
            raise LaunchError(
                f"{error}; it has been {self.machine.last_seen} for {self._active_for() / 60:.0f}"
                " min and never answered ssh; its network must allow it: gcloud compute"
                " firewall-rules create allow-ssh --allow=tcp:22 --network=NAME",
                GAVE_UP,
            )
        elif self.silent >= PATIENCE:
            raise LaunchError(f"{error}; no answer {self.silent} times in a row", GAVE_UP)
        else:
            time.sleep(self._pause(self.policy.poll, self.silent - 1))

    def _active_for(self) -> float:
        return 0.0 if self.active_since is None else time.monotonic() - self.active_since

    def _count_attempt(self, why: str) -> None:
        """Counts an attempt and pauses before it, longer each time."""
        self.waiting_since = None
        if self.attempts >= self.policy.retries:
            raise LaunchError(
                f"{self.machine.name}: {why}; {self.attempts} retries are used up (--retries)",
                GAVE_UP,
            )
        pause = self._pause(self.policy.backoff, self.in_a_row)
        self.attempts += 1
        self.in_a_row += 1
        say(
            f"{self.machine.name}: {why}; attempt {self.attempts} of {self.policy.retries} in"
            f" {pause:g} s"
        )
        time.sleep(pause)

    @staticmethod
    def _pause(first: float, doublings: int) -> float:
        return min(first * 2.0 ** min(doublings, 20), LONGEST_PAUSE_S)

    # ---- messages --------------------------------------------------------------------------------

    def _say_once(self, text: str) -> None:
        if text != self.last_said and not self.machine.shell.dry_run:
            say(f"{self.machine.name}: {text}")
        self.last_said = text

    def _note(self, reports: list[Report]) -> None:
        """Prints the last line of the run's log from time to time."""
        if time.monotonic() - self.noted > NOTE_EVERY_S:
            self.noted = time.monotonic()
            say(f"{self.machine.name}: running{': ' + reports[0].note if reports[0].note else ''}")

    def _end(self, status: int) -> int:
        output = self.job.output.rstrip("/")
        if status == 0:
            text = f"the run has finished; its model is in {output}/model"
        elif status == UNSAVED:
            text = (
                f"the run's output could not be copied to {output}; it exists on the machine only,"
                " which is kept"
            )
        else:
            what = "server" if self.job.verb == "serve" else "run"
            text = f"the {what} ended with status {status}; its log is in {output}/logs"
        self._say_once(text)
        if self.policy.delete and status != UNSAVED:
            self._tear_down()
        return status

    def _tear_down(self) -> None:
        """Deletes the slice with several tries: nobody watches it from now on, and it is billed."""
        for attempt in range(DELETE_TRIES):
            try:
                self.machine.delete()
                break
            except Unreachable as error:
                if attempt == DELETE_TRIES - 1:
                    raise
                say(f"{self.machine.name}: {error}; trying again")
                time.sleep(self._pause(self.policy.poll, attempt))
        self._say_once("deleted")


def wait_until_active(machine: Machine, policy: Policy) -> None:
    """Returns when the slice is ready.

    Raises:
      LaunchError: there is none of that name, it failed, or it took too long (status 3).
    """
    began, printed = time.monotonic(), ""
    while True:
        state = machine.state()
        if state.name != printed and not machine.shell.dry_run:
            say(f"{machine.name}: {state}")
        printed = state.name
        if state.active:
            return
        if state.name == ABSENT:
            raise LaunchError(
                f"there is no {machine.name} in {machine.shell.zone}; create it first"
            )
        if state.lost or state.name in GOING:
            raise LaunchError(f"{machine.name} is {state}", GAVE_UP)
        if time.monotonic() - began > policy.wait_hours * 3600:
            hours = f"{policy.wait_hours:g} h"
            raise LaunchError(
                f"{machine.name} is {state.name} after {hours}; it keeps its place", GAVE_UP
            )
        time.sleep(policy.poll)
