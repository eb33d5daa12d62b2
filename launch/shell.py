"""Runs `gcloud` and other programs, or prints what would be run; a failure becomes one line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

GAVE_UP = 3  # exit status: no retries or no time left
ANSWER_WITHIN_S = 900  # gcloud itself tries an unreachable worker for some minutes
# Installing takes some minutes; a machine that vanishes meanwhile must not block for ever.
STEP_WITHIN_S = 3600


class LaunchError(Exception):
    """A failure that the user can do something about: one line, and the exit status."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


class NotThere(LaunchError):
    """The cloud knows nothing of that name."""


class NoCapacity(LaunchError):
    """The zone has no such machine available now."""


class Unreachable(LaunchError):
    """No answer, or an unexpected one; worth another try."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message, status)


class StepFailed(LaunchError):
    """A step on the workers failed and may succeed later: a lost machine, a download, the
    network."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message, status)


# A pattern in the stderr of gcloud -> the error and its message. The first match counts.
KNOWN_FAILURES: tuple[tuple[str, type[LaunchError], str], ...] = (
    (
        (
            r"do not currently have an active account|Reauthentication|invalid_grant|default"
            r" credentials"
        ),
        LaunchError,
        "gcloud has no valid credentials; run: gcloud auth login",
    ),
    (
        r"SERVICE_DISABLED|has not been used in project|it is disabled",
        LaunchError,
        (
            "the Cloud TPU API is off in {project}; run: gcloud services enable tpu.googleapis.com"
            " --project={project}"
        ),
    ),
    # Not a quota of machines but of requests, which is RESOURCE_EXHAUSTED as well.
    (
        r"per minute|rateLimitExceeded|quota metric",
        Unreachable,
        "too many requests to the cloud ({detail})",
    ),
    (
        r"SSH Key is not present in the SSH agent",
        LaunchError,
        (
            "the ssh-agent holds other keys, but not the one of gcloud; run: ssh-add"
            " ~/.ssh/google_compute_engine"
        ),
    ),
    (
        r"no more capacity|STOCKOUT",
        NoCapacity,
        "{zone} has no free capacity now; try another zone, --spot, or the queue",
    ),
    (
        r"RESOURCE_EXHAUSTED|[Qq]uota (limit|.*exceeded)",
        LaunchError,
        (
            "the quota of {project} does not allow it ({detail}); ask for more at "
            "https://console.cloud.google.com/iam-admin/quotas?project={project}"
        ),
    ),
    (
        r"ALREADY_EXISTS|already exists",
        LaunchError,
        (
            "{name} already exists in {zone}; choose another name, continue with it (tpu.py watch),"
            " or delete it (tpu.py delete)"
        ),
    ),
    (
        r"[Ll]ocation .*(not found|unauthorized)",
        LaunchError,
        (
            "{zone} has no TPUs, or {project} may not use it; see"
            " https://cloud.google.com/tpu/docs/regions-zones"
        ),
    ),
    (
        r"CONSUMER_INVALID|Project .*(not found|deleted)|project .*does not exist",
        LaunchError,
        "there is no project {project} for this account; see: gcloud projects list",
    ),
    (r"NOT_FOUND|was not found", NotThere, "there is no {name} in {zone} of {project}"),
    (
        r"PERMISSION_DENIED|does not have .*permission",
        LaunchError,
        (
            "this account may not do that in {project}; it needs roles/tpu.admin and"
            " roles/iam.serviceAccountUser ({detail})"
        ),
    ),
)


class Shell:
    """Runs commands here or, with `dry_run`, prints each as one line to paste."""

    def __init__(self, project: str, zone: str, dry_run: bool = False):
        self.project, self.zone, self.dry_run = project, zone, dry_run

    def ask(self, command: Sequence[str], *, name: str = "", imagined: str = "") -> str:
        """The stdout of a command; in a dry run `imagined`.

        Raises:
          LaunchError: it failed; see `KNOWN_FAILURES`.
        """
        if self._only_print(command):
            return imagined
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ANSWER_WITHIN_S,
            )
        except FileNotFoundError:
            raise missing(command[0]) from None
        except subprocess.TimeoutExpired:
            raise silent(command, ANSWER_WITHIN_S) from None
        if done.returncode:
            raise self.explain(command, name, done.stderr)
        return done.stdout

    def show(self, command: Sequence[str], within_s: float | None = None) -> int:
        """Runs a command on the user's terminal and returns its exit status (0 in a dry run).

        Raises:
          Unreachable: it has not ended after `within_s` seconds.
        """
        if self._only_print(command):
            return 0
        try:
            return subprocess.run(command, timeout=within_s).returncode
        except FileNotFoundError:
            raise missing(command[0]) from None
        except subprocess.TimeoutExpired:
            raise silent(command, within_s) from None

    def note(self, text: str) -> None:
        """Prints a remark in a dry run."""
        if self.dry_run:
            print(f"# {text}")

    def explain(self, command: Sequence[str], name: str, stderr: str) -> LaunchError:
        """The error for the stderr of a failed command."""
        # Warnings come before it, and may mention quotas as well.
        error = stderr[max(0, stderr.find("ERROR:")) :]
        detail = " ".join(re.sub(r"^ERROR: (\(\S+\) )?", "", error).split())[:300] or "no message"
        for pattern, kind, message in KNOWN_FAILURES:
            if re.search(pattern, error):
                filled = message.format(
                    project=self.project, zone=self.zone, name=name or "that", detail=detail
                )
                return kind(filled)
        return Unreachable(f"{' '.join(command[:5])}: {detail}")

    def _only_print(self, command: Sequence[str]) -> bool:
        if self.dry_run:
            print(shlex.join(command))
        return self.dry_run


def silent(command: Sequence[str], seconds: float | None) -> Unreachable:
    """The error for a command that does not end."""
    return Unreachable(f"{' '.join(command[:5])}: no answer within {seconds:g} s")


def missing(program: str) -> LaunchError:
    """The error for a program that is not installed."""
    places = {
        "gcloud": "https://cloud.google.com/sdk/docs/install",
        "xpk": "https://github.com/AI-Hypercomputer/xpk (pip install xpk)",
        "docker": "https://docs.docker.com/engine/install",
    }
    where = f"; see {places[program]}" if program in places else ""
    return LaunchError(f"{program} is not installed or not on PATH{where}")


def say(text: str) -> None:
    """Prints progress on stderr; stdout is for results and, in a dry run, commands."""
    print(text, file=sys.stderr, flush=True)
