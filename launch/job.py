"""The run on a slice: its configuration and output folder, and the commands to its workers."""

from __future__ import annotations

import dataclasses
import re
import shlex

from machine import REPOSITORY, UNDER_WAY, WORKER, Machine
from shell import STEP_WITHIN_S, LaunchError, NotThere, StepFailed, Unreachable

INTERRUPTED = 143  # SIGTERM: the machine goes down; the run can resume
UNSAVED = 75  # of worker.py: the run ended, but its output could not be copied to the bucket
REPORT = re.compile(
    r"^grit-worker (\S+) (absent|idle|running|lost|stopped|exited (\d+))(?: \| (.*))?$",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """`grit train CONFIG OVERRIDES`, its output in a bucket; or `grit index MODEL` and `grit encode
    MODEL` with an input; or `grit serve MODEL`, whose output is its log.

    `config` is a file under `configs/` of this checkout, or a `gs://` address; the folder that
    holds the latter is copied to each worker, so that relative paths in the YAML hold. A model is a
    folder in a bucket or a hub id.
    """

    config: str
    output: str
    overrides: tuple[str, ...] = ()
    direct: bool = False  # `grit train` itself writes to the bucket, as several hosts need
    verb: str = "train"
    input: str | None = None  # of index and encode

    def __post_init__(self) -> None:
        if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+", self.output):
            raise LaunchError(
                f"--output: expected gs://BUCKET/FOLDER, got {self.output}; files that only the"
                " machine has are lost with it"
            )
        if self.verb != "train":
            return self._check_shared()
        if self.input is not None:
            raise LaunchError("--input is for --verb index and --verb encode")
        if self.config.startswith("gs://"):
            if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+/[^/\s]+\.ya?ml", self.config):
                raise LaunchError(
                    f"expected gs://BUCKET/FOLDER/NAME.yaml, got {self.config}; its whole folder is"
                    " copied to the workers"
                )
            if f"{self.output.rstrip('/')}/".startswith(self.config.rpartition("/")[0] + "/"):
                raise LaunchError(
                    f"--output {self.output}: is inside the folder of {self.config}, which is"
                    " copied to the workers; choose another one"
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

    def _check_shared(self) -> None:
        model = self.config
        if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+|[-\w.]+/[-\w.]+", model) or (
            model.startswith("configs/") or model.endswith((".yaml", ".yml"))
        ):
            raise LaunchError(
                f"--verb {self.verb}: expected a model, gs://BUCKET/FOLDER or a hub id, got {model}"
            )
        if self.verb == "serve":
            if self.input is not None:
                raise LaunchError("--input is for --verb index and --verb encode")
            if re.search(r"(?:^|\s)--port[=\s]0(?=\s|$)", " ".join(self.overrides)):
                raise LaunchError("--port 0: expected a number, by which the server is reached")
            return
        if self.input is None or not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/\S+", self.input):
            raise LaunchError(
                f"--verb {self.verb} needs --input gs://BUCKET/FILE, got {self.input or 'none'}"
            )
        own = r"--(input|output|shards|store|ray)\b"
        if taken := [word for word in self.overrides if re.match(own, word)]:
            raise LaunchError(f"{taken[0]} is set by the launcher; leave it out")

    def words(self) -> list[str]:
        """The arguments of worker.py."""
        direct = ["--direct"] if self.direct else []
        shared = ["--verb", self.verb] if self.verb != "train" else []
        shared += ["--input", self.input] if self.input else []
        return [
            self.config,
            self.output,
            *direct,
            *shared,
            *(["--", *self.overrides] if self.overrides else []),
        ]


def check_hosts(job: Job, machine: Machine) -> None:
    """Raises LaunchError for a server on several hosts: it runs on one."""
    chosen = machine.accelerator
    if job.verb == "serve" and chosen and chosen.hosts > 1:
        raise LaunchError(
            f"--verb serve: a server runs on one host, and {chosen.name} has {chosen.hosts}; choose"
            " a smaller slice, and several of them for more requests"
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """The state of the run on one worker: absent, idle, running, lost, stopped or exited."""

    host: str
    state: str
    status: int | None = None
    note: str = ""


class Workers:
    """The workers of a machine, reached through ssh."""

    def __init__(self, machine: Machine, imagined: str = "absent"):
        self.machine = machine
        self.imagined = imagined  # the state that a dry run assumes of every worker

    def reports(self) -> list[Report]:
        """Reports of all workers.

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
        except NotThere as error:  # it existed a moment ago
            raise Unreachable(str(error)) from None
        reports: dict[str, Report] = {}
        for host, state, status, note in REPORT.findall(text):
            reports[host] = Report(host, state.split()[0], int(status) if status else None, note)
        if not reports or (self.machine.accelerator and len(reports) != hosts):
            raise Unreachable(f"{self.machine.name}: {len(reports)} of {hosts} workers answered")
        return list(reports.values())

    def install(self) -> None:
        self.machine.install()
        self.imagined = "idle"

    def start(self, job: Job) -> None:
        """Starts the run on every worker, detached, unless it runs there already.

        Raises:
          StepFailed: it failed on a worker, and may succeed another time.
          LaunchError: another run is active there.
        """
        self._on_all(f"python3 {WORKER} start {shlex.join(job.words())}", "start")
        self.imagined = "exited 0"

    def stop(self) -> None:
        """Sends SIGTERM to the run on every worker and returns when it has ended. Workers without
        an installation are skipped.

        Raises:
          StepFailed: it failed on a worker, and may succeed another time.
        """
        self._on_all(f"if [ -f {WORKER} ]; then python3 {WORKER} stop; fi", "stop")
        self.imagined = "stopped"

    def _on_all(self, command: str, step: str) -> None:
        if status := self.machine.shell.show(
            self.machine.on_workers(command), within_s=STEP_WITHIN_S
        ):
            failed = (
                f"{self.machine.name}: {step} failed on a worker (status {status}; its output is"
                " above)"
            )
            raise LaunchError(failed, 1) if status == UNDER_WAY else StepFailed(failed)
