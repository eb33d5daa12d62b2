"""One slice in the cloud: create it, query it, copy to it, run commands on all of its workers,
delete it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

from accelerators import Accelerator
from shell import STEP_WITHIN_S, LaunchError, NotThere, Shell, StepFailed, say

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "requirements.lock",
    "grit_jax",
    "configs",
    "launch",
)
STARTUP = REPOSITORY / "launch" / "startup.sh"
# The user on every worker, whoever calls: another user would have another home directory.
USER = "grit"
CODE = "grit/code"  # on every worker, from its home directory
WORKER = f"{CODE}/launch/worker.py"
UNDER_WAY = 2  # of worker.py: another run is active there and stays
ALIVE = "-oServerAliveInterval=30"  # ssh ends after three without an answer

# States of a queued resource (tpu/v2 QueuedResourceState) and of a TPU VM (tpu/v2 Node.State), by
# their meaning for the launcher.
ABSENT = "ABSENT"
ACTIVE = ("ACTIVE", "READY")
LOST = ("SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN")
# Soon one of LOST, or gone; until then nothing can be done.
GOING = ("DELETING", "SUSPENDING", "STOPPING", "HIDING")
# All other states precede ACTIVE: CREATING, ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING,
# STARTING, RESTARTING, ...


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a slice as the cloud reports it."""

    name: str
    reason: str = ""
    type: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name

    @property
    def active(self) -> bool:
        return self.name in ACTIVE

    @property
    def lost(self) -> bool:
        return self.name in LOST


@dataclasses.dataclass
class Machine:
    """A queued resource with one node of the same name, or (`queued=False`) a TPU VM without a
    queue."""

    name: str
    shell: Shell
    accelerator: Accelerator | None = None
    spot: bool = False
    reserved: bool = False
    queued: bool = True
    image: str | None = None
    service_account: str | None = None
    create_flags: tuple[str, ...] = ()
    last_seen: str = ""  # the last state that the cloud reported
    imagined: str = ABSENT  # the state that a dry run assumes

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise LaunchError(
                f"{self.name}: a name has lower-case letters, digits and dashes, and begins with a"
                " letter"
            )

    def state(self) -> State:
        """The current state; ABSENT when the cloud knows no such name."""
        imagined = json.dumps({"state": {"state": self.imagined} if self.queued else self.imagined})
        try:
            command = [*self._kind("describe"), "--format=json"]
            described: dict[str, Any] = json.loads(
                self.shell.ask(command, name=self.name, imagined=imagined)
            )
        except NotThere:
            self.last_seen = ABSENT
            return State(ABSENT)
        if self.queued:
            nodes = described.get("tpu", {}).get("nodeSpec") or [{}]
            node = nodes[0].get("node", {})
            inner = described.get("state", {})
            error = inner.get("failedData", {}).get("error", {})
            state = State(
                inner.get("state", "UNKNOWN"),
                error.get("message", ""),
                node.get("acceleratorType", ""),
            )
        else:
            health = described.get("healthDescription", "")
            state = State(
                described.get("state", "UNKNOWN"), health, described.get("acceleratorType", "")
            )
        self.last_seen = state.name
        return state

    def create(self, wait_hours: float | None = None) -> None:
        """Requests the slice; it is not ready when this returns. With `wait_hours`, the request
        expires an hour after them."""
        assert self.accelerator is not None
        image = self.image or self.accelerator.image
        if image is None:
            raise LaunchError(
                f"no default image for {self.accelerator.name}; give one with --image"
            )
        command = self._kind("create")
        command += [f"--node-id={self.name}"] if self.queued else []
        command += [f"--accelerator-type={self.accelerator.name}"]
        command += [f"--runtime-version={image}"] if self.queued else [f"--version={image}"]
        command += ["--spot"] if self.spot else ["--reserved"] if self.reserved else []
        command += ["--scopes=https://www.googleapis.com/auth/cloud-platform"]
        own = any(flag.startswith("--valid-until") for flag in self.create_flags)
        if self.queued and wait_hours is not None and not own:
            # An hour later, so that a waiting launcher gives up first.
            command += [f"--valid-until-duration={math.ceil(60 * (wait_hours + 1))}m"]
        command += [f"--service-account={self.service_account}"] if self.service_account else []
        command += [f"--metadata-from-file=startup-script={STARTUP}", *self.create_flags]
        if not self.shell.dry_run:
            say(f"{self.name}: requesting {self.accelerator} in {self.shell.zone}, image {image}")
        self.last_seen = "CREATING"  # also if interrupted here: better one warning too many
        try:
            self.shell.ask(command, name=self.name)
        except LaunchError as error:
            self.last_seen = ""
            if re.search(r"accelerator.?type", str(error), re.IGNORECASE):
                offered = ", ".join(self._offered()) or "none"
                raise LaunchError(f"{error}; types that {self.shell.zone} has: {offered}") from None
            raise
        self.imagined = ACTIVE[0 if self.queued else 1]

    def delete(self) -> None:
        """Deletes the slice and waits until it is gone."""
        command = [*self._kind("delete"), "--quiet"]
        try:
            self.shell.ask([*command, "--force"] if self.queued else command, name=self.name)
        except NotThere:
            say(f"{self.name}: already gone")
        self.imagined = self.last_seen = ABSENT

    def install(self) -> None:
        """Copies this checkout to every worker and installs it there.

        Raises:
          StepFailed: a step failed on a worker and may succeed later; its output is on the
            terminal.
          LaunchError: a step failed here, or a run is active there.
        """
        archive = Path(tempfile.gettempdir()) / f"grit-{self.name}.tgz"
        shipped = [part for part in SHIPPED if (REPOSITORY / part).exists()]
        pack = [
            "tar",
            "-czf",
            str(archive),
            "--exclude=__pycache__",
            "-C",
            str(REPOSITORY),
            *shipped,
        ]
        target = f"{USER}@{self.name}:grit-code.tgz"
        copy = [
            *self._vm("scp"),
            f"--scp-flag={ALIVE}",
            str(archive),
            target,
            "--worker=all",
            "--quiet",
        ]
        # Unpacked beside the old code, which may be running, and moved in its place once it is not.
        new = f"{CODE}.new"
        unpack = f"(rm -rf {new} && mkdir -p {new} && tar -xzf grit-code.tgz -C {new}) || exit 1"
        swap = f"python3 {new}/launch/worker.py free && rm -rf {CODE} && mv {new} {CODE}"
        install = self.on_workers(f"{unpack}; {swap} && python3 {WORKER} install --extra=tpu")
        for what, command in (
            ("pack the code", pack),
            ("copy the code", copy),
            ("install", install),
        ):
            if status := self.shell.show(command, within_s=STEP_WITHIN_S):
                ours = command is pack or status == UNDER_WAY
                failed = f"{self.name}: could not {what} (status {status}; its output is above)"
                raise LaunchError(failed, 1) if ours else StepFailed(failed)

    def on_workers(self, command: str, worker: str = "all") -> list[str]:
        """The gcloud command that runs a shell command on the workers. It returns the status of a
        worker that failed."""
        options = [f"--ssh-flag={ALIVE}", f"{USER}@{self.name}", f"--worker={worker}", "--quiet"]
        return [*self._vm("ssh"), *options, f"--command={command}"]

    def tunnel(self, here: int, there: int) -> list[str]:
        """The gcloud command that leads a port of this computer to one of the first worker."""
        forward = f"-L127.0.0.1:{here}:127.0.0.1:{there}"
        options = (ALIVE, "-oExitOnForwardFailure=yes", "-N", forward)
        ssh = [*self._vm("ssh"), *(f"--ssh-flag={option}" for option in options)]
        return [*ssh, f"{USER}@{self.name}", "--worker=0", "--quiet"]

    def _kind(self, verb: str) -> list[str]:
        kind = "queued-resources" if self.queued else "tpu-vm"
        return ["gcloud", "compute", "tpus", kind, verb, self.name, *self._where()]

    def _vm(self, verb: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm", verb, *self._where()]

    def _where(self) -> list[str]:
        return [f"--project={self.shell.project}", f"--zone={self.shell.zone}"]

    def _offered(self) -> list[str]:
        """Accelerator types that the zone has, of the same generation if any."""
        assert self.accelerator is not None
        command = [
            "gcloud",
            "compute",
            "tpus",
            "accelerator-types",
            "list",
            *self._where(),
            "--format=value(type)",
        ]
        try:
            names = self.shell.ask(command).split()
        except LaunchError:
            return []
        family = self.accelerator.name.rpartition("-")[0]
        return [name for name in names if name.startswith(family)] or names
