"""What is to run on a slice: a configuration, its output folder, and how the workers are told and
asked."""

from __future__ import annotations

import dataclasses
import re
import shlex

from machine import REPOSITORY, UNDER_WAY, WORKER, Machine
from shell import STEP_WITHIN_S, LaunchError, NotThere, StepFailed, Unreachable

INTERRUPTED = 143  # SIGTERM: the machine goes down; the run goes on from its checkpoint
UNSAVED = 75  # of worker.py: the run ended, but its output could not be copied to the bucket
REPORT = re.compile(
    r"^grit-worker (\S+) (absent|idle|running|lost|stopped|exited (\d+))(?: \| (.*))?$",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """`grit train CONFIG OVERRIDES`, its output in a bucket.

    `config` is a file under `configs/` of this checkout, or a `gs://` address; the folder that
    holds the latter is copied to each worker, so that relative paths in the YAML hold.
    """

    config: str
    output: str
    overrides: tuple[str, ...] = ()
    direct: bool = (
        False  # `grit train` itself writes to the bucket: several hosts, one output folder
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+", self.output):
            raise LaunchError(
                f"--output {self.output}: wants gs://BUCKET/FOLDER; what is on the machine alone"
                " dies with it"
            )
        if self.config.startswith("gs://"):
            if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+/[^/\s]+\.ya?ml", self.config):
                raise LaunchError(
                    f"{self.config}: wants gs://BUCKET/FOLDER/NAME.yaml; its whole folder goes"
                    " along"
                )
            if f"{self.output.rstrip('/')}/".startswith(self.config.rpartition("/")[0] + "/"):
                raise LaunchError(
                    f"--output {self.output}: lies in the folder of {self.config}, which goes along"
                )
        elif not self.config.startswith("configs/"):
            raise LaunchError(
                f"{self.config}: the workers have this checkout's configs/ only; put the file and"
                " its data in a bucket and name it there: gcloud storage cp -r"
                f" {self.config.rpartition('/')[0] or '.'} gs://BUCKET/inputs"
            )
        elif not (REPOSITORY / self.config).is_file():
            raise LaunchError(f"{REPOSITORY / self.config}: no such file")
        if own := [word for word in self.overrides if re.match(r"--(output|resume)\b", word)]:
            raise LaunchError(f"{own[0]} is set by the launcher; leave it out")

    def words(self) -> list[str]:
        """As worker.py takes it."""
        direct = ["--direct"] if self.direct else []
        return [
            self.config,
            self.output,
            *direct,
            *(["--", *self.overrides] if self.overrides else []),
        ]


@dataclasses.dataclass(frozen=True)
class Report:
    """What one worker says of its run: absent, idle, running, lost, stopped or exited."""

    host: str
    state: str
    status: int | None = None
    note: str = ""


class Workers:
    """The workers of a machine, asked through ssh."""

    def __init__(self, machine: Machine, imagined: str = "absent"):
        self.machine = machine
        self.imagined = imagined  # what every worker says in a dry run

    def reports(self) -> list[Report]:
        """One from every worker.

        Raises:
          Unreachable: some worker cannot be reached.
        """
        hosts = self.machine.accelerator.hosts if self.machine.accelerator else 1
        imagined = "".join(f"grit-worker {host} {self.imagined}\n" for host in range(hosts))
        command = (
            f"if [ -f {WORKER} ]; then python3 {WORKER} status; else echo grit-worker $(hostname)"
            " absent; fi"
        )
        try:
            text = self.machine.shell.ask(
                self.machine.on_workers(command), name=self.machine.name, imagined=imagined
            )
        except NotThere as error:  # it was there when the cloud was asked, a moment ago
            raise Unreachable(str(error)) from None
        found: dict[str, Report] = {}
        for host, state, status, note in REPORT.findall(text):
            found[host] = Report(host, state.split()[0], int(status) if status else None, note)
        if not found or (self.machine.accelerator and len(found) != hosts):
            raise Unreachable(f"{self.machine.name}: {len(found)} of {hosts} workers answered")
        return list(found.values())

    def install(self) -> None:
        self.machine.install()
        self.imagined = "idle"

    def start(self, job: Job) -> None:
        """Starts the run on every worker, detached; where it runs already, nothing happens.

        Raises:
          StepFailed: it failed on a worker, and may succeed another time.
          LaunchError: another run is under way there.
        """
        self._tell(f"python3 {WORKER} start {shlex.join(job.words())}", "start")
        self.imagined = "exited 0"

    def stop(self) -> None:
        """SIGTERM to the run on every worker; returns when it has ended. A worker may have nothing
        installed yet.

        Raises:
          StepFailed: it failed on a worker, and may succeed another time.
        """
        self._tell(f"if [ -f {WORKER} ]; then python3 {WORKER} stop; fi", "stop")
        self.imagined = "stopped"

    def _tell(self, command: str, what: str) -> None:
        if status := self.machine.shell.show(
            self.machine.on_workers(command), within_s=STEP_WITHIN_S
        ):
            failed = (
                f"{self.machine.name}: {what} failed on a worker (status {status}; its output is"
                " above)"
            )
            raise LaunchError(failed, 1) if status == UNDER_WAY else StepFailed(failed)
