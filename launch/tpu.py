#!/usr/bin/env python3
"""A TPU slice from nothing to a finished run or a server: create, wait, install, run, watch.

See launch/README.md.

Exit status: 2 what you can change, 3 gave up (retries, time), 130 interrupted, otherwise that of
the run or of gcloud.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import NoReturn

from accelerators import accelerator, check_zone
from gke import submit
from job import Job, Workers, check_hosts
from machine import ABSENT, ACTIVE, GOING, Machine, State
from serving import PORT
from shell import LaunchError, Shell, say
from watch import Policy, Watch, wait_until_active

# The variables that gcloud itself reads.
ENVIRONMENT = {"project": "CLOUDSDK_CORE_PROJECT", "zone": "CLOUDSDK_COMPUTE_ZONE"}
UNSET = {
    "type": None,
    "vm": False,
    "spot": False,
    "reserved": False,
    "image": None,
    "service_account": None,
    "create_flag": (),
    "retries": 0,
    "backoff": Policy.backoff,
}


class Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    argv, after = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    args = build_parser().parse_args(argv, argparse.Namespace(**UNSET, after=after))
    machine: Machine | None = None
    try:
        if after and args.verb not in ("run", "watch", "exec", "xpk"):
            raise LaunchError(f"{args.verb} takes no arguments after --")
        machine = make_machine(args)
        return VERBS[args.verb](args, machine)
    except LaunchError as error:
        say(f"tpu.py {args.verb}: {error}")
        leave(args, machine)
        return error.status
    except KeyboardInterrupt:
        say(f"\ntpu.py {args.verb}: interrupted")
        leave(args, machine)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tpu.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "name", metavar="NAME", help="of the slice (queued resource and node alike)"
    )
    common.add_argument("--project", help="default: $CLOUDSDK_CORE_PROJECT, then gcloud's setting")
    common.add_argument("--zone", help="default: $CLOUDSDK_COMPUTE_ZONE, then gcloud's setting")
    common.add_argument(
        "--dry-run", action="store_true", help="print the commands, one per line, and run nothing"
    )

    queue = argparse.ArgumentParser(add_help=False)
    queue.add_argument(
        "--vm", action="store_true", help="request a TPU VM directly, without the queue"
    )

    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("--type", required=True, help="the slice, such as v5litepod-8, v6e-8, v5p-8")
    what.add_argument(
        "--spot", action="store_true", help="cheaper, but can be preempted at any moment"
    )
    what.add_argument(
        "--create-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="another flag of gcloud, as in --create-flag=--network=x",
    )

    make = argparse.ArgumentParser(add_help=False, parents=[what])
    make.add_argument("--reserved", action="store_true", help="from your reservation")
    make.add_argument("--image", help="runtime version (default: Google's for that generation)")
    make.add_argument(
        "--service-account", metavar="EMAIL", help="the account that the workers act as"
    )

    job = argparse.ArgumentParser(add_help=False)
    job.add_argument(
        "config",
        metavar="CONFIG|MODEL",
        help="gs://BUCKET/FOLDER/NAME.yaml, or configs/NAME.yaml; with --verb index, encode or"
        " serve a model: gs://BUCKET/FOLDER, or a hub id",
    )
    job.add_argument(
        "--verb",
        dest="verb_of_grit",
        choices=("train", "index", "encode", "serve"),
        default="train",
        help="the grit command that runs (default: %(default)s)",
    )
    job.add_argument("--input", metavar="gs://BUCKET/FILE", help="what is indexed or encoded")
    job.add_argument(
        "--output",
        required=True,
        metavar="gs://BUCKET/FOLDER",
        help="of this run alone; resumes from it; of a server: for its log",
    )

    pace = argparse.ArgumentParser(add_help=False)
    pace.add_argument(
        "--poll",
        type=float,
        default=Policy.poll,
        metavar="SECONDS",
        help="between status checks (default: %(default)s)",
    )
    pace.add_argument(
        "--wait-hours",
        type=float,
        default=Policy.wait_hours,
        help="at most in the queue (default: %(default)s)",
    )

    ending = argparse.ArgumentParser(add_help=False)
    ending.add_argument(
        "--delete", action="store_true", help="delete the slice when the run ends or is given up"
    )

    def verb(name: str, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=help, description=help, parents=list(parents), allow_abbrev=False
        )

    verb("create", "request a slice; returns before it is ready", common, queue, make)
    verb("wait", "wait until the slice is ready", common, queue, pace)
    verb("install", "copy this checkout to all workers and install it", common)
    words = "start a run on all workers and wait for its end; arguments after -- go to grit"
    sub = verb("run", words, common, queue, job, pace, ending)
    sub.add_argument("--detach", action="store_true", help="return once it is started")
    words = "everything: create, install, run, and again after every preemption, until the run ends"
    sub = verb("watch", words, common, queue, make, job, pace, ending)
    sub.add_argument(
        "--retries",
        type=int,
        default=Policy.retries,
        help="new attempts in total (default: %(default)s)",
    )
    sub.add_argument(
        "--backoff",
        type=float,
        default=Policy.backoff,
        help="seconds before the first new attempt; doubled each time (default: %(default)s)",
    )
    verb("status", "the state of the slice and of the run on each worker", common, queue)
    sub = verb("logs", "the end of a worker's log", common)
    sub.add_argument("--worker", default="0")
    sub.add_argument("--lines", type=int, default=100)
    sub.add_argument("--follow", action="store_true")
    sub = verb("tunnel", "lead a port of this computer to the server on the slice", common)
    sub.add_argument("--port", type=int, default=PORT, help="of the server (default: %(default)s)")
    sub.add_argument("--local-port", type=int, metavar="PORT", help="here (default: the same)")
    verb("exec", "run a command on all workers: exec NAME -- COMMAND", common)
    words = "end the run, keep the slice; a server answers what it has accepted"
    verb("stop", words, common)
    sub = verb("delete", "delete the slice (asks first)", common, queue)
    sub.add_argument("--yes", action="store_true", help="do not ask")
    sub = verb(
        "xpk",
        "the same run as a workload on a GKE cluster; NAME is the workload's",
        common,
        what,
        job,
    )
    sub.add_argument("--cluster", required=True)
    sub.add_argument("--docker-image", required=True, metavar="REGISTRY/NAME:TAG")
    sub.add_argument(
        "--slices", type=int, default=1, metavar="N", help="of that type; needs -- --mesh.data N"
    )
    sub.add_argument("--no-build", action="store_true", help="use an image that is already pushed")
    sub.add_argument(
        "--retries",
        type=int,
        default=Policy.retries,
        help="restarts after a preemption (default: %(default)s)",
    )
    return parser


def make_machine(args: argparse.Namespace) -> Machine:
    """The slice that the command line names, checked before anything is requested."""
    chosen = accelerator(args.type) if args.type else None
    project, zone = (setting(args, key) for key in ENVIRONMENT)
    machine = Machine(
        args.name,
        Shell(project, check_zone(zone), args.dry_run),
        chosen,
        queued=not args.vm,
        spot=args.spot,
        reserved=args.reserved,
        image=args.image,
        service_account=args.service_account,
        create_flags=tuple(args.create_flag),
        imagined=ABSENT if args.verb == "watch" else ACTIVE[args.vm],
    )
    if machine.spot and machine.reserved:
        raise LaunchError("give --spot or --reserved, not both")
    return machine


def setting(args: argparse.Namespace, key: str) -> str:
    """A project or zone: from the flag, the environment, or gcloud's own configuration."""
    if value := getattr(args, key) or os.environ.get(ENVIRONMENT[key]):
        return value
    section = "core" if key == "project" else "compute"
    if not args.dry_run:  # a dry run runs nothing
        value = Shell("", "").ask(["gcloud", "config", "get-value", f"{section}/{key}"]).strip()
    if not value or value == "(unset)":
        choices = f"--{key}, ${ENVIRONMENT[key]}, or: gcloud config set {section}/{key} VALUE"
        raise LaunchError(f"no {key} is given; use {choices}")
    return value


def make_job(args: argparse.Namespace, machine: Machine) -> Job:
    """The run that the command line describes."""
    chosen = machine.accelerator
    job = job_of(args, several_hosts=bool(chosen and chosen.hosts > 1))
    check_hosts(job, machine)
    return job


def job_of(args: argparse.Namespace, *, several_hosts: bool) -> Job:
    direct = several_hosts and args.verb_of_grit == "train"
    return Job(args.config, args.output, tuple(args.after), direct, args.verb_of_grit, args.input)


def make_policy(args: argparse.Namespace) -> Policy:
    return Policy(
        poll=args.poll,
        wait_hours=args.wait_hours,
        delete=args.delete,
        recreate=args.verb == "watch",
        backoff=args.backoff,
        retries=args.retries,
    )


def leave(args: argparse.Namespace, machine: Machine | None) -> None:
    """Says in which state the slice is left, whether it is billed, and how to delete it."""
    if machine is None or machine.shell.dry_run or machine.last_seen in ("", ABSENT):
        return
    state = State(machine.last_seen)
    if state.active:
        billing = "it stays, and is billed until it is deleted"
    elif state.name in GOING:
        billing = "it is billed until it is gone; check again"
    elif state.lost:
        billing = "it is not billed, but occupies its name and perhaps quota"
    else:
        billing = "it is billed once it becomes ACTIVE"
    say(f"{machine.name} was {state.name} when last seen: {billing}")
    if args.verb in ("run", "watch"):
        say("  a run on it continues; the same command watches it again")
    say(f"  to delete it: launch/tpu.py delete {machine.name} {location_flags(args, machine)}")


def location_flags(args: argparse.Namespace, machine: Machine) -> str:
    return (
        f"--project={machine.shell.project} --zone={machine.shell.zone}{' --vm' if args.vm else ''}"
    )


# ---- verbs ---------------------------------------------------------------------------------------


def create(args: argparse.Namespace, machine: Machine) -> int:
    machine.create()
    if not args.dry_run:
        say(
            f"{machine.name}: requested; next: launch/tpu.py wait {machine.name}"
            f" {location_flags(args, machine)}"
        )
    return 0


def wait(args: argparse.Namespace, machine: Machine) -> int:
    wait_until_active(machine, Policy(poll=args.poll, wait_hours=args.wait_hours))
    return 0


def install(args: argparse.Namespace, machine: Machine) -> int:
    machine.install()
    return 0


def run(args: argparse.Namespace, machine: Machine) -> int:
    job, workers = make_job(args, machine), Workers(machine, imagined="idle")
    watch = Watch(machine, workers, job, make_policy(args))
    if not args.detach:
        return watch.until_end()
    watch.until_started()
    if not args.dry_run:
        say(f"{machine.name}: started; it continues without this terminal (see status, logs, stop)")
    return 0


def watch(args: argparse.Namespace, machine: Machine) -> int:
    job = make_job(args, machine)
    again = "start the server" if job.verb == "serve" else "resume from the checkpoint"
    machine.shell.note(f"without a failure; on SUSPENDED or FAILED: delete, create, and {again},")
    machine.shell.note(
        f"at most {args.retries} times, first after {args.backoff:g} s, then twice as long each"
        " time"
    )
    return Watch(machine, Workers(machine), job, make_policy(args)).until_end()


def status(args: argparse.Namespace, machine: Machine) -> int:
    state = machine.state()
    if not args.dry_run:
        print(f"{machine.name} {state.type} {state}".replace("  ", " "))
    if state.active:
        machine.accelerator = accelerator(state.type) if state.type else None
        for report in Workers(machine).reports():
            if not args.dry_run:
                code = "" if report.status is None else f" {report.status}"
                print(
                    f"worker {report.host}:"
                    f" {report.state}{code}{' | ' + report.note if report.note else ''}"
                )
    return 0


def logs(args: argparse.Namespace, machine: Machine) -> int:
    command = f"tail -n {args.lines} {'-F ' if args.follow else ''}grit/run/log"
    return machine.shell.show(machine.on_workers(command, worker=args.worker))


def tunnel(args: argparse.Namespace, machine: Machine) -> int:
    here = args.local_port or args.port
    if not args.dry_run:
        say(
            f"http://127.0.0.1:{here} leads to port {args.port} of {machine.name}; Ctrl-C ends the"
            " tunnel, the server continues"
        )
    return machine.shell.show(machine.tunnel(here, args.port))


def execute(args: argparse.Namespace, machine: Machine) -> int:
    if not args.after:
        raise LaunchError("nothing to run: exec NAME -- COMMAND")
    command = args.after[0] if len(args.after) == 1 else shlex.join(args.after)
    return machine.shell.show(machine.on_workers(command))


def stop(args: argparse.Namespace, machine: Machine) -> int:
    Workers(machine).stop()
    return 0


def delete(args: argparse.Namespace, machine: Machine) -> int:
    state = machine.state()
    if state.name == ABSENT:
        say(f"there is no {machine.name} in {machine.shell.zone} of {machine.shell.project}")
        return 0
    if not (args.yes or args.dry_run):
        if not sys.stdin.isatty():
            raise LaunchError("stdin is not a terminal; --yes deletes without asking")
        answer = input(f"Delete {machine.name} ({state.name}) and everything on its disks? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            say("nothing was deleted")
            return 1
    machine.delete()
    if not args.dry_run:
        say(f"{machine.name}: deleted; it is no longer billed (the bucket still is)")
    return 0


def xpk(args: argparse.Namespace, machine: Machine) -> int:
    assert machine.accelerator is not None
    if args.slices < 1:
        raise LaunchError(f"--slices: must be at least 1, got {args.slices}")
    if args.verb_of_grit == "serve":
        raise LaunchError("xpk runs jobs that end; a server on GKE is launch/serve.yaml")
    job = job_of(args, several_hosts=args.slices * machine.accelerator.hosts_on_gke > 1)
    options = {"slices": args.slices, "build": not args.no_build, "retries": args.retries}
    return submit(machine, job, args.cluster, args.docker_image, **options)


VERBS = {
    "create": create,
    "wait": wait,
    "install": install,
    "run": run,
    "watch": watch,
    "status": status,
    "logs": logs,
    "tunnel": tunnel,
    "exec": execute,
    "stop": stop,
    "delete": delete,
    "xpk": xpk,
}

if __name__ == "__main__":
    sys.exit(main())
