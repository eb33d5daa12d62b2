#!/usr/bin/env python3
"""Runs on a worker: install, start, status, stop, and the run itself with its output copied to a
bucket.

    worker.py install --extra tpu
    worker.py start CONFIG gs://BUCKET/FOLDER -- --train.steps 100
        detached, survives the ssh connection
    worker.py train CONFIG gs://BUCKET/FOLDER -- --train.steps 100
        in the foreground, for containers and batch systems
    worker.py start MODEL gs://BUCKET/FOLDER --verb index --input gs://BUCKET/F.jsonl -- --kv int8
        grit index or grit encode in place of grit train
    worker.py start MODEL gs://BUCKET/FOLDER --verb serve -- --index docs=gs://BUCKET/INDEX
        grit serve, started again if it crashes; its log goes to the bucket
    worker.py serve MODEL -- --index docs=gs://BUCKET/INDEX
        in the foreground, for containers and batch systems
    worker.py status | stop | free | healthy
        free: exit status 2 while a run is active; healthy: 1 unless the server here is

Needs only the system's Python (3.10 or newer) and gcloud. Everything is in $GRIT_HOME (~/grit):
`venv/`, `inputs/`, `output/`, and in `run/` the pid, the log and the exit status of the run.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import detached
import serving
import share
from detached import HOME, INSTALLED, INTERRUPTED, MISTAKE, RUN, Request
from mirror import Mirror, MirrorError

CODE = Path(__file__).resolve().parent.parent
VENV = HOME / "venv"
SYNC_EVERY_S = float(os.environ.get("GRIT_SYNC_SECONDS", "60"))
UV = "uv==0.13.9"
PYTHON = "3.11"  # that of requirements.lock; the images' own Python is older
PLATFORMS = {"tpu": "tpu,cpu", "cuda": "cuda,cpu"}  # JAX_PLATFORMS by the installed extra
# What worker.py train and start run.
GRIT_VERBS = {"train": ("train", *share.VERBS), "start": ("train", *share.VERBS, "serve")}
UNSAVED = 75  # the run ended, but its output could not be copied to the bucket


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    argv, overrides = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    parser = argparse.ArgumentParser(
        prog="worker.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("install", "free", "start", "train", "serve", "status", "stop", "healthy"):
        sub = verbs.add_parser(name, allow_abbrev=False)
        if name == "install":
            sub.add_argument("--extra", default="tpu", choices=("tpu", "cuda", "cpu"))
        if name in ("start", "train"):
            sub.add_argument("config")
            sub.add_argument("output")
            sub.add_argument(
                "--direct", action="store_true", help="grit train writes to the bucket itself"
            )
            sub.add_argument(
                "--verb", dest="verb_of_grit", choices=GRIT_VERBS[name], default="train"
            )
            sub.add_argument("--input", help="what is indexed or encoded")
        if name == "serve":
            sub.add_argument("config", metavar="MODEL")
            sub.add_argument("--output", help="where the log goes (default: nowhere)")
        if name in ("train", "serve"):
            sub.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
        if name not in ("free", "status", "healthy"):
            sub.add_argument(
                "--dry-run", action="store_true", help="print the commands and run nothing"
            )
    args = parser.parse_args(argv)
    if args.verb == "install":
        return install(args.extra, args.dry_run)
    if args.verb == "free":
        return free()
    if args.verb == "status":
        return detached.status()
    if args.verb == "stop":
        return detached.stop(args.dry_run)
    if args.verb == "healthy":
        return healthy()
    if args.verb == "serve":
        request = {"config": args.config, "output": args.output, "overrides": overrides}
        run = lambda: report_failure(lambda: serve(request, args.dry_run, args.supervised))
        return detached.supervise(run) if args.supervised else run()
    request = {
        "config": args.config,
        "output": args.output,
        "direct": args.direct,
        "verb": args.verb_of_grit,
        "input": args.input,
        "overrides": overrides,
    }
    if args.verb == "start":
        return detached.start(request, args.dry_run)
    work = train if args.verb_of_grit == "train" else share_work
    run = lambda: report_failure(lambda: work(request, args.dry_run))
    return detached.supervise(run) if args.supervised else run()


def report_failure(run: Callable[[], int]) -> int:
    """The status of `run`; a failed copy or a missing program becomes one line."""
    try:
        return run()
    except MirrorError as error:
        line = str(error)
    except FileNotFoundError as error:
        if error.filename not in ("gcloud", "grit"):
            raise
        line = f"{error.filename} is not installed or not on PATH"
    print(f"worker.py: {line}", file=sys.stderr)
    return MISTAKE


# ---- install -------------------------------------------------------------------------------------


def free() -> int:
    """Exit status 0 if nothing runs here. Called before any file of a run is replaced."""
    if not detached.running():
        return 0
    print("worker.py: a run is active here; stop it first (tpu.py stop)", file=sys.stderr)
    return MISTAKE


def install(extra: str, dry_run: bool = False) -> int:
    """Installs this checkout and its dependencies in `venv/`, at the versions of
    requirements.lock."""
    if not dry_run and free():
        return MISTAKE
    uv = HOME / "uv" / "bin" / "uv"
    package = f"{CODE}[gcs,serve]" if extra == "cpu" else f"{CODE}[{extra},gcs,serve]"
    commands = [
        [
            "python3",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--upgrade",
            "--target",
            str(HOME / "uv"),
            UV,
        ],
        [str(uv), "venv", "--quiet", "--clear", "--python", PYTHON, str(VENV)],
        [
            str(uv),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(VENV / "bin" / "python"),
            "--constraint",
            str(CODE / "requirements.lock"),
            "--editable",
            package,
        ],
        [str(VENV / "bin" / "grit"), "--version"],
    ]
    for command in commands:
        if dry_run:
            print(shlex.join(command))
        elif code := subprocess.run(command).returncode:
            print(
                f"worker.py install: {shlex.join(command)} failed with status {code}",
                file=sys.stderr,
            )
            return 1  # not uv's own status: 2 would mean an active run
    if not dry_run:
        INSTALLED.write_text(f"{extra}\n")
    return 0


# ---- the run -------------------------------------------------------------------------------------


def train(request: Request, dry_run: bool = False) -> int:
    """Runs `grit train` with its inputs from a bucket and its output copied there; returns its exit
    status.

    143 when SIGTERM came, 75 when the run ended but its output could not be copied.
    """
    tell, run = prepared(dry_run)
    config, output = request["config"], request["output"]
    if config.startswith("gs://"):
        folder, _, name = config.rpartition("/")
        config = str(fetched(folder, run, dry_run) / name)
    elif not Path(config).is_absolute():
        config = str(CODE / config)

    mirror = None
    if output.startswith("gs://") and not request["direct"]:
        local = HOME / "output" / as_name(output)
        mirror = Mirror(local, output, run)
        if not dry_run:
            local.mkdir(parents=True, exist_ok=True)
        step = mirror.restore()
        tell(f"resuming from step {step}" if step else "starting from step 0")
        output = str(local)

    command = [grit_program(), "train", config, "--output", output, *request["overrides"]]
    if dry_run:
        print_only(command)
        if mirror:
            print(f"# every {SYNC_EVERY_S:g} s, for each new checkpoint; the model at the end")
            mirror.copy_checkpoint("STEP")
            mirror.copy_rest(model=True)
            mirror.mark("STEP")
        return 0
    code = run_mirrored(command, mirror, tell)
    tell(f"grit train ended with status {code}")
    # With --direct the run writes to the bucket itself, but for this log.
    if output.startswith("gs://") and (RUN / "log").exists():
        try:
            run(
                [
                    "gcloud",
                    "storage",
                    "cp",
                    str(RUN / "log"),
                    f"{output.rstrip('/')}/logs/{detached.host()}.log",
                ]
            )
        except MirrorError as error:
            tell(f"the log was not copied: {error}")
    return save_last(mirror, code, tell) if mirror else code


def share_work(request: Request, dry_run: bool = False) -> int:
    """Runs `grit index` or `grit encode`, its model and input from a bucket, its output copied
    there; returns its exit status, as `train`."""
    tell, run = prepared(dry_run)
    verb, model, output = request["verb"], request["config"], request["output"].rstrip("/")
    if model.startswith("gs://"):
        model = str(fetched(model.rstrip("/"), run, dry_run))
    source = request["input"]
    if source.startswith("gs://"):
        folder, _, name = source.rpartition("/")
        inputs = HOME / "inputs" / as_name(folder)
        if not dry_run:
            inputs.mkdir(parents=True, exist_ok=True)
        run(["gcloud", "storage", "cp", source, str(inputs / name)])
        source = str(inputs / name)
    local = HOME / "output" / as_name(output)
    if not dry_run:
        local.mkdir(parents=True, exist_ok=True)
    shared = share.Shared(verb, local, output, run)
    documents = shared.restore(dry_run)
    tell(f"resuming from {documents} documents" if documents else f"starting grit {verb}")
    words = ["--input", source, *share.command(verb, local, output)]
    command = [grit_program(), verb, model, *words, *request["overrides"]]
    if dry_run:
        print_only(command)
        if verb == "index":
            print(f"# every {SYNC_EVERY_S:g} s and at the end, where process 0 is")
            shared.copy_index()
            shared.commit()
        else:
            print("# at the end, where process 0 is")
            shared.add(local / share.VECTORS, share.VECTORS)
        return 0
    code = run_mirrored(command, shared, tell)
    tell(f"grit {verb} ended with status {code}")
    return save_last(shared, code, tell)


def serve(request: Request, dry_run: bool = False, supervised: bool = False) -> int:
    """Runs `grit serve` with what it reads copied from a bucket; returns its exit status.

    Supervised, a server that crashes is started again, at most `serving.RESTARTS` times in a row,
    and one that SIGTERM has ended has the status 143.
    """
    tell, run = prepared(dry_run)
    model, flags = request["config"], request["overrides"]
    if not (dry_run or supervised):
        # The first process of a container ignores SIGTERM unless it says otherwise.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    if model.startswith("gs://"):
        named = any(re.match(r"--name(=|$)", word) for word in flags)
        flags = flags if named else ["--name", model, *flags]
        model = str(fetched(model.rstrip("/"), run, dry_run))
    indices: list[serving.IndexCopy] = []

    def copy(flag: str, address: str) -> Path:
        if flag == serving.ADAPTER:
            return fetched(address.rstrip("/"), run, dry_run)
        path = HOME / "inputs" / as_name(address)
        if flag == serving.INDEX:
            indices.append(serving.IndexCopy(address, path, run))
            return path
        if not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
        run(["gcloud", "storage", "cp", address, str(path)])
        if not dry_run:
            path.chmod(0o600)
        return path

    command = [grit_program(), "serve", model, *serving.with_copies(flags, copy)]
    if indices and any(re.match(r"--files(=|$)", word) for word in flags):
        raise MirrorError(
            f"--files: files would be added to a copy of {indices[0].address} and lost with it;"
            " leave it out, or name an index on this disk"
        )
    for index in indices:
        if dry_run:
            index.fetch_manifest()
            index.fetch_files()
        else:
            index.pull()
    if dry_run:
        print_only(command)
        return 0
    RUN.mkdir(parents=True, exist_ok=True)
    detached.write(RUN / "port", str(serving.number(flags, "--port", serving.PORT)))
    copies = serving.Serving(indices, request["output"], run)
    crashes = 0
    while True:
        began = time.monotonic()
        code = run_mirrored(command, copies, tell)
        tell(f"grit serve ended with status {code}")
        try:
            keep(copies, last=True)
        except MirrorError as error:
            tell(f"the log was not copied: {error}")
        if not supervised or code == MISTAKE:
            return code
        if code in (0, INTERRUPTED):  # it ends so at SIGTERM alone
            return INTERRUPTED
        crashes = 1 if time.monotonic() - began > serving.STEADY_S else crashes + 1
        if crashes > serving.RESTARTS:
            return code
        tell(f"starting it again in {serving.pause(crashes):g} s")
        time.sleep(serving.pause(crashes))


def healthy() -> int:
    """Exit status 0 if the server on this machine answers that it is healthy."""
    try:
        port = int((RUN / "port").read_text())
    except FileNotFoundError:
        print("worker.py healthy: no server was started here", file=sys.stderr)
        return 1
    status, text = serving.answer(port, "/health")
    if status != 200:
        print(f"worker.py healthy: {status or 'no answer'}: {text}", file=sys.stderr)
    return int(status != 200)


def prepared(dry_run: bool) -> tuple[Callable[[str], None], Callable[[Sequence[str]], str]]:
    """How a run speaks, and how it runs other programs."""
    if dry_run:
        return (lambda text: None), print_only
    # It arrives with SIGTERM when a session ends, and would kill before anything is saved.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return (lambda text: print(f"worker.py: {text}", flush=True)), run_quietly


def fetched(folder: str, run: Callable[[Sequence[str]], str], dry_run: bool) -> Path:
    """A folder of the bucket on this disk."""
    inputs = HOME / "inputs" / as_name(folder)
    if not dry_run:
        inputs.mkdir(parents=True, exist_ok=True)
    # Files removed from the bucket since must not be read here.
    mirror_exactly = "--delete-unmatched-destination-objects"
    run(["gcloud", "storage", "rsync", "--recursive", mirror_exactly, folder, str(inputs)])
    return inputs


def grit_program() -> str:
    """The command `grit` of this machine."""
    installed = VENV / "bin" / "grit"
    return str(installed) if installed.exists() else shutil.which("grit") or "grit"


def run_mirrored(
    command: Sequence[str], mirror: Mirror | share.Shared | serving.Serving | None, tell
) -> int:
    """Runs the command, copies its output regularly and forwards SIGTERM to it."""
    children: list[subprocess.Popen] = []
    interrupted: list[int] = []

    def forward(number: int, frame: object) -> None:
        interrupted.append(number)
        for child in children:
            child.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = subprocess.Popen(command, env=environment())
        children.append(child)
        if interrupted:  # before the child was listed
            child.terminate()
        while True:
            try:
                code = child.wait(timeout=SYNC_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if mirror:
                    try:
                        keep(mirror)
                    except MirrorError as error:
                        tell(f"not copied this time: {error}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        code = 128 - code
    return INTERRUPTED if interrupted and code else code


def environment() -> dict[str, str]:
    """The environment with the installed platform. Without it, JAX warns when the platform is
    missing, and uses the CPU."""
    extra = INSTALLED.read_text().strip() if INSTALLED.exists() else ""
    return {**({"JAX_PLATFORMS": PLATFORMS[extra]} if extra in PLATFORMS else {}), **os.environ}


def as_name(url: str) -> str:
    """The name of the local folder for a bucket's."""
    return re.sub(r"[^-\w.]+", "_", url.removeprefix("gs://").rstrip("/"))


def save_last(mirror: Mirror | share.Shared, code: int, tell) -> int:
    """Copies the output once more, with retries: the machine may be gone in a minute."""
    for attempt in range(3):
        try:
            keep(mirror, last=code == 0)
            return code
        except MirrorError as error:
            tell(f"not copied: {error}")
            if attempt < 2:
                time.sleep(min(SYNC_EVERY_S, 10 * (attempt + 1)))
    return INTERRUPTED if code == INTERRUPTED else UNSAVED


def keep(mirror: Mirror | share.Shared | serving.Serving, last: bool = False) -> None:
    """Copies what is new to the bucket, with the log of a detached run."""
    mirror.sync(last)
    if (RUN / "log").exists():
        mirror.add(RUN / "log", f"logs/{detached.host()}.log")


def run_quietly(command: Sequence[str]) -> str:
    """Runs a command and returns its stdout; its stderr goes into the error."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise MirrorError(
            f"{' '.join(command[:3])}: {' '.join(done.stderr.split())[-300:] or done.returncode}"
        )
    return done.stdout


def print_only(command: Sequence[str]) -> str:
    print(shlex.join(command))
    return ""


if __name__ == "__main__":
    sys.exit(main())
