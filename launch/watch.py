"""Keeps a run going until it ends: creates the slice, installs, starts, looks, and begins anew
after a preemption.

A loop that compares what is with what should be, and does the next missing thing. It keeps nothing
between two rounds but its counts, so it can be interrupted at any moment and started again, on
another computer, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time

from accelerators import accelerator
from job import INTERRUPTED, UNSAVED, Job, Report, Workers
from machine import ABSENT, ACTIVE, GOING, Machine, State
from shell import GAVE_UP, LaunchError, NoCapacity, StepFailed, Unreachable, say

LONGEST_PAUSE_S = 900.0
NOTE_EVERY_S = 300.0
UNHEARD = (
    5  # looks at an ACTIVE machine that answered before and is silent now, until it counts as lost
)
NEVER_HEARD_S = 1200.0  # that an ACTIVE machine may take to answer at all: it boots in minutes
GOING_S = 3600.0  # that a slice may take to be deleted, or suspended
DELETE_TRIES = 5  # at the end: what stays is billed
PATIENCE = 40  # looks in a row without any answer: about nine hours at the longest pause


@dataclasses.dataclass(frozen=True)
class Policy:
    """How long, how often, how many times."""

    poll: float = 30.0  # seconds between two looks
    backoff: float = (
        30.0  # seconds before the first new attempt, doubled for each further one in a row
    )
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
        # of those, the ones at a machine that is ACTIVE: the cloud answered, the workers did not
        self.unheard = 0
        self.created = False  # whether it was created from here
        self.heard = False  # whether this machine ever answered
        self.active_since: float | None = None  # when it was first found ACTIVE
        self.started = False  # whether the run was started on it, or found there
        self.waiting_since: float | None = None
        self.going: tuple[str, float] | None = None  # the state of GOING it is in, and since when
        self.told = ""
        self.noted = -NOTE_EVERY_S

    def until_end(self) -> int:
        """Returns the exit status of the run.

        Raises:
          LaunchError: it cannot go on, the person's matter or out of retries (status 3).
        """
        try:
            while (status := self._round()) is None:
                pass
        except LaunchError as error:
            if error.status == GAVE_UP and self.policy.delete and self._ours():
                try:
                    self._tear_down()
                except LaunchError as another:  # what we gave up for matters more
                    say(f"{self.machine.name}: could not be torn down: {another}")
            raise
        return self._end(status)

    def _ours(self) -> bool:
        """Whether what is there may be torn down by one who gives up.

        A machine that was ACTIVE before and never answered may run well: the way from here to it
        can be closed.
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
            self._again(str(error).removeprefix(f"{self.machine.name}: "))
        except Unreachable as error:
            self._bear(error, active=state is not None and state.active)
        return None

    def _act(self, state: State) -> int | None:
        """Does the next missing thing; returns the run's status once it has ended."""
        self._tell(str(state))
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
                    f"{self.machine.name} is {state.name}; tpu.py watch would create it anew",
                    GAVE_UP,
                )
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
        if "absent" in kinds or not self.started:
            if (
                "running" in kinds and len(kinds) > 1
            ):  # half of a run: the others wait for the lost ones, for ever
                self.workers.stop()
            if "absent" in kinds:
                self.workers.install()
                self.started = False
            else:  # what an earlier watch saw the end of is begun again, from its checkpoint
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
            self.started = False  # should the start fail, the stop was not a person's
            self.workers.stop()
            self.workers.start(self.job)
            self.started = True
        return None

    def _compare_type(self, state: State) -> None:
        """The slice that is there must be the one that is wanted; where none is named, it is what
        is there."""
        machine = self.machine
        if machine.accelerator is None and state.type:
            machine.accelerator = accelerator(state.type)
            self.job = dataclasses.replace(self.job, direct=machine.accelerator.hosts > 1)
        elif machine.accelerator and state.type and state.type != machine.accelerator.name:
            raise LaunchError(
                f"{machine.name} exists already, as {state.type}, not {machine.accelerator.name};"
                " choose another name"
            )

    def _create(self) -> None:
        try:
            self.machine.create(self.policy.wait_hours)
            self.created = True
        except NoCapacity as error:
            self._again(str(error))

    def _wait(self, state: State) -> None:
        """In the queue, or on the way out of it."""
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
        """Whether the slice has been going away for too long to wait for it any further.

        Raises:
          LaunchError: it is being deleted, so that deleting it once more is no help.
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

    def _bear(self, error: Unreachable, active: bool) -> None:
        """No answer, of the cloud or (`active`) of a machine that is there. The network here may be
        down, too."""
        self.silent += 1
        self.unheard += active
        if self.silent == 1:
            say(f"{self.machine.name}: {error}; trying again")
        if active and self.heard and self.policy.recreate and self.unheard >= UNHEARD:
            self._again(f"does not answer, though it is {self.machine.last_seen}")
            with contextlib.suppress(
                Unreachable
            ):  # the next round finds it as it is, and tries again
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

    def _again(self, why: str) -> None:
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

    # ---- talk ------------------------------------------------------------------------------------

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
            text = (
                f"the run's output could not be copied to {output}; it is on the machine alone,"
                " which is kept"
            )
        else:
            text = f"the run ended with status {status}; its log is in {output}/logs"
        self._tell(text)
        if self.policy.delete and status != UNSAVED:
            self._tear_down()
        return status

    def _tear_down(self) -> None:
        """Gives the slice back, patiently: nobody looks after it from now on, and it is billed."""
        for attempt in range(DELETE_TRIES):
            try:
                self.machine.delete()
                break
            except Unreachable as error:
                if attempt == DELETE_TRIES - 1:
                    raise
                say(f"{self.machine.name}: {error}; trying again")
                time.sleep(self._pause(self.policy.poll, attempt))
        self._tell("torn down")


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
