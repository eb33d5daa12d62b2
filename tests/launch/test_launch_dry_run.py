"""`--dry-run` prints the commands that would run, one a line: compared with golden files, and with
what does run.

Written anew by: REWRITE_GOLDEN=1 python -m pytest tests/launch/test_launch_dry_run.py   (then look
at the difference)
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_cloud import FAST, HERE, JOB, LAUNCH, REPOSITORY, WHERE, Cloud

GOLDEN = HERE / "golden"
SPOT = ["--type=v5litepod-8", "--spot"]
INDEX = [
    "gs://bucket/model",
    "--verb=index",
    "--input=gs://bucket/in/corpus.jsonl",
    "--output=gs://bucket/index",
]
ENCODE = [
    "org/model",
    "--verb=encode",
    "--input=gs://bucket/in/texts.txt",
    "--output=gs://bucket/vectors",
]
SERVE = ["gs://bucket/runs/mine/model", "--verb=serve", "--output=gs://bucket/serving"]
SERVED = ["--index", "docs=gs://bucket/index", "--api-keys=gs://bucket/keys", "--slots", "32"]
CASES = {
    "create": ["tpu.py", "create", "demo", "--type=v6e-8", *WHERE],
    "create_reserved": [
        "tpu.py",
        "create",
        "demo",
        "--type=v5p-8",
        "--reserved",
        "--image=mine",
        *WHERE,
    ],
    "create_vm": [
        "tpu.py",
        "create",
        "demo",
        "--vm",
        *SPOT,
        "--service-account=grit@my-project.iam.gserviceaccount.com",
        "--create-flag=--network=my-net",
        *WHERE,
    ],
    "wait": ["tpu.py", "wait", "demo", *WHERE],
    "install": ["tpu.py", "install", "demo", *WHERE],
    "run": ["tpu.py", "run", "demo", *JOB, *WHERE, "--", "--train.steps", "100"],
    "run_detached": [
        "tpu.py",
        "run",
        "demo",
        "configs/quickstart_base.yaml",
        JOB[1],
        *WHERE,
        "--detach",
    ],
    "watch": ["tpu.py", "watch", "demo", *JOB, *SPOT, *WHERE, "--delete"],
    "watch_vm": ["tpu.py", "watch", "demo", "--vm", *JOB, *SPOT, *WHERE],
    "watch_pod": ["tpu.py", "watch", "demo", *JOB, "--type=v5p-128", *WHERE],
    "status": ["tpu.py", "status", "demo", *WHERE],
    "logs": ["tpu.py", "logs", "demo", "--follow", "--worker=1", *WHERE],
    "exec": ["tpu.py", "exec", "demo", *WHERE, "--", "df -h ~; free -g"],
    "stop": ["tpu.py", "stop", "demo", *WHERE],
    "delete": ["tpu.py", "delete", "demo", *WHERE],
    "delete_vm": ["tpu.py", "delete", "demo", "--vm", *WHERE],
    "xpk": [
        "tpu.py",
        "xpk",
        "demo",
        *JOB,
        "--type=v6e-4",
        "--spot",
        "--cluster=my-cluster",
        "--docker-image=us-docker.pkg.dev/my-project/grit/grit:1",
        *WHERE,
        "--",
        "--train.steps",
        "100",
    ],
    "xpk_slices": [
        "tpu.py",
        "xpk",
        "demo",
        *JOB,
        "--type=v6e-4",
        "--slices=2",
        "--cluster=my-cluster",
        "--docker-image=i:1",
        "--no-build",
        *WHERE,
        "--",
        "--mesh.data",
        "2",
    ],
    "run_index": ["tpu.py", "run", "demo", *INDEX, *WHERE, "--", "--kv", "int8"],
    "watch_encode": ["tpu.py", "watch", "demo", *ENCODE, "--type=v5p-128", *WHERE],
    "xpk_index": [
        "tpu.py",
        "xpk",
        "demo",
        *INDEX,
        "--type=v6e-16",
        "--cluster=my-cluster",
        "--docker-image=i:1",
        "--no-build",
        *WHERE,
    ],
    "worker_index": [
        "worker.py",
        "train",
        "gs://bucket/model",
        "gs://bucket/index",
        "--verb=index",
        "--input=gs://bucket/in/corpus.jsonl",
        "--",
        "--kv",
        "int8",
    ],
    "worker_encode": [
        "worker.py",
        "train",
        "org/model",
        "gs://bucket/vectors",
        "--verb=encode",
        "--input=gs://bucket/in/texts.txt",
    ],
    "slurm_index": [
        "SLURM_JOB_NUM_NODES=2",
        "slurm.sh",
        "index",
        "model",
        "--input",
        "c.jsonl",
        "--output=/shared/index",
    ],
    "run_serve": ["tpu.py", "run", "demo", *SERVE, "--detach", *WHERE, "--", *SERVED],
    "watch_serve": ["tpu.py", "watch", "demo", *SERVE, *SPOT, *WHERE, "--", *SERVED],
    "tunnel": ["tpu.py", "tunnel", "demo", "--local-port=8080", *WHERE],
    "worker_start_serve": [
        "worker.py",
        "start",
        SERVE[0],
        "gs://bucket/serving",
        "--verb=serve",
        "--",
        *SERVED,
    ],
    "worker_serve": ["worker.py", "serve", SERVE[0], "--", *SERVED],
    "worker_serve_hub": ["worker.py", "serve", "org/model", "--", "--host=0.0.0.0"],
    "slurm_serve": ["slurm.sh", "serve", "model", "--host=0.0.0.0", "--api-keys", "keys"],
    "worker_install": ["worker.py", "install"],
    "worker_install_cpu": ["worker.py", "install", "--extra=cpu"],
    "worker_train": [
        "worker.py",
        "train",
        *JOB[:1],
        "gs://bucket/runs/mine",
        "--",
        "--train.steps",
        "100",
    ],
    "worker_train_direct": [
        "worker.py",
        "train",
        "configs/quickstart_base.yaml",
        "gs://bucket/runs/mine",
        "--direct",
    ],
    "worker_start": [
        "worker.py",
        "start",
        *JOB[:1],
        "gs://bucket/runs/mine",
        "--",
        "--train.steps",
        "100",
    ],
    "worker_stop": ["worker.py", "stop"],
    "slurm": ["slurm.sh", "my.yaml", "--output", "/shared/my run", "--train.steps", "100"],
    "slurm_nodes": ["SLURM_JOB_NUM_NODES=2", "slurm.sh", "my.yaml", "--output=/shared/mine"],
    "startup": ["startup.sh"],
    "sky": [
        "sky",
        "jobs",
        "launch",
        "sky.yaml",
        "--env",
        f"CONFIG={JOB[0]}",
        "--env",
        "OUTPUT=gs://bucket/runs/mine",
        "--env",
        "OVERRIDES=--train.steps 100",
    ],
}


def script(words: list[str]) -> str:
    """The file of launch/ that a case is about."""
    return next(
        word
        for word in words
        if word.endswith((".py", ".sh", ".yaml")) and "/" not in word and word != "my.yaml"
    )


def dry_run(words: list[str], cloud: Cloud, home: Path) -> str:
    """What a script prints with --dry-run, the paths of this machine by names."""
    name = script(words)
    # A checkout that joins hosts where there are several, so that what this one does makes no
    # difference.
    nodes = [word for word in words if word.startswith("SLURM_JOB_NUM_NODES=")]
    package = home / "checkout" / "grit_jax"
    package.mkdir(parents=True)
    (package / "hosts.py").write_text("jax.distributed.initialize()" if nodes else "")
    where = {
        **os.environ,
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "GRIT_SYNC_SECONDS": "60",
        "PYTHON": f"{sys.executable} -S",
        "SLURM_SUBMIT_DIR": str(package.parent),
        **dict(word.split("=") for word in nodes),
    }
    words = words[words.index(name) + 1 :]
    at = words.index("--") if "--" in words else len(words)
    if name == "tpu.py":
        done = cloud.tpu(*words[:at], "--dry-run", *words[at:])
        said = (done.status, done.out, done.err)
    elif name == "sky.yaml":  # SkyPilot runs these two on its machine
        task = yaml.safe_load((LAUNCH / name).read_text())
        commands = [
            task["setup"].replace(" install", " install --dry-run"),
            task["run"].replace(" train", " train --dry-run"),
        ]
        text = "\n".join(commands).replace("python3", "$PYTHON")
        said = ran(
            ["bash", "-euc", text],
            cwd=REPOSITORY,
            env=where | dict(word.split("=", 1) for word in words[1::2]),
        )
    else:
        program = [sys.executable, "-S"] if name == "worker.py" else []
        options = (
            [*words[:at], "--dry-run", *words[at:]]
            if name == "worker.py"
            else ["--dry-run", *words]
        )
        said = ran([*program, str(LAUNCH / name), *options], cwd=home, env=where)
    assert (said[0], said[2]) == (0, "")
    text = said[1].replace(tempfile.gettempdir() + "/grit-", "TMP/grit-")
    return text.replace(str(home), "HOME").replace(str(REPOSITORY), "REPOSITORY")


def ran(command: list[str], **how: Any) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, **how)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("case", CASES)
def test_golden(case, cloud, tmp_path):
    name = script(CASES[case])
    typed = shlex.join(CASES[case]).replace(name, f"launch/{name}", 1)
    said = f"# {typed}\n{dry_run(CASES[case], cloud, tmp_path)}"
    golden = GOLDEN / f"{case}.txt"
    if "REWRITE_GOLDEN" in os.environ:
        golden.write_text(said)
    assert said == golden.read_text()


def test_golden_files_are_shell_commands_one_a_line():
    files = sorted(GOLDEN.glob("*.txt"))
    assert [file.stem for file in files] == sorted(CASES)
    programs = set()
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert lines, file
        programs |= {shlex.split(line)[0].rpartition("/")[2] for line in lines}
    assert programs == {
        "gcloud",
        "tar",
        "docker",
        "xpk",
        "srun",
        "sh",
        "systemctl",
        "python3",
        "uv",
        "grit",
        "kill",
    }
    everything = "\n".join(file.read_text() for file in files)
    assert subprocess.run(["bash", "-n"], input=everything, text=True).returncode == 0


@pytest.mark.parametrize("extra", [[], ["--vm"], ["--spot"]])
def test_what_is_printed_is_what_runs(played, extra):
    """A run without setbacks: the calls that reach gcloud are the lines of the dry run, word for
    word."""
    watch = ["watch", "demo", *JOB, "--type=v5litepod-8", *WHERE, *FAST, *extra, "--delete"]
    played.play(
        states=[["READY" if extra == ["--vm"] else "ACTIVE"]], status=["absent", "idle", "exited 0"]
    )
    printed = [
        line
        for line in played.tpu(*watch, "--dry-run").out.splitlines()
        if line.startswith("gcloud")
    ]
    assert played.calls == []
    assert played.tpu(*watch).status == 0
    assert played.calls == printed


def test_a_dry_run_runs_nothing(cloud):
    """Not even `gcloud config get-value`: what it would be asked for must be given."""
    said = cloud.tpu("watch", "demo", *JOB, *SPOT, "--zone=us-west4-a", "--dry-run")
    assert said.status == 2 and "no project is given" in said.err
    for words in CASES.values():
        if words[0] == "tpu.py":
            at = words.index("--") if "--" in words else len(words)
            assert cloud.tpu(*words[1:at], "--dry-run", *words[at:]).status == 0
    assert cloud.calls == []


@pytest.mark.parametrize("case", ["worker_serve", "worker_serve_hub", "slurm_serve"])
def test_grit_serve_takes_the_flags_that_it_is_started_with(case):
    from grit_jax.cli.main import build_parser

    lines = (GOLDEN / f"{case}.txt").read_text().splitlines()
    (words,) = [shlex.split(line) for line in lines if "grit serve " in line and line[0] != "#"]
    words = words[[word.rpartition("/")[2] for word in words].index("grit") + 1 :]
    args, rest = build_parser().parse_known_args(words)
    assert not rest and args.verb == "serve" and "gs://" not in args.model
    assert all("gs://" not in index for index in args.indices)
    if case == "worker_serve":
        assert args.name == SERVE[0] and args.indices[0].startswith("docs=HOME/")
        assert args.slots == 32 and args.api_keys.name == "bucket_keys"


@pytest.mark.parametrize("case", ["worker_index", "worker_encode", "slurm_index"])
def test_grit_takes_the_flags_that_it_is_started_with(case):
    from grit_jax.cli.main import build_parser

    lines = (GOLDEN / f"{case}.txt").read_text().splitlines()
    (words,) = [
        shlex.split(line)
        for line in lines
        if "grit index" in line or "grit encode" in line
        if not line.startswith("#")
    ]
    words = words[[word.rpartition("/")[2] for word in words].index("grit") + 1 :]
    args, rest = build_parser().parse_known_args(words)
    assert not rest and args.verb == words[0] and args.input and args.output
    assert case == "slurm_index" or args.shards.startswith("gs://bucket/")
