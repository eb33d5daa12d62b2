"""The shell scripts, the container, SkyPilot's task and the README: each run or read for real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from accelerators import accelerator
from fake_cloud import LAUNCH, LONG_S, REPOSITORY, program
from machine import SHIPPED

from grit_jax.run_config import read_run_config

SLURM = str(LAUNCH / "slurm.sh")
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
MODULES = (
    "accelerators",
    "detached",
    "gke",
    "job",
    "machine",
    "mirror",
    "serving",
    "share",
    "shell",
    "watch",
)  # of tpu.py and worker.py


@pytest.mark.skipif(
    not shutil.which("shellcheck"),
    reason="shellcheck is not installed (apt-get install shellcheck)",
)
def test_shellcheck():
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_strict_and_can_be_run():
    assert [script.name for script in SCRIPTS] == ["slurm.sh", "startup.sh"]
    for script in [*SCRIPTS, LAUNCH / "tpu.py", LAUNCH / "worker.py"]:
        assert os.access(script, os.X_OK), script
        assert script.suffix == ".py" or "set -euo pipefail" in script.read_text()
    said = subprocess.run([LAUNCH / "startup.sh", "--dryrun"], capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr == "startup.sh: unknown argument --dryrun\n"


def test_startup_runs_what_it_prints(tmp_path, monkeypatch):
    """As on a worker, with programs that only note how they were called."""
    for name in ("sh", "systemctl"):
        program(
            tmp_path / name,
            f'#!/bin/bash\nprintf "%q " {name} "$@" | sed "s/ $//" >> {tmp_path}/calls; echo >>'
            f" {tmp_path}/calls\n",
        )
    where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    printed = subprocess.run(
        [LAUNCH / "startup.sh", "--dry-run"], capture_output=True, text=True, env=where
    )
    assert subprocess.run([LAUNCH / "startup.sh"], env=where).returncode == 0
    assert (tmp_path / "calls").read_text() == printed.stdout


# ---- Slurm ---------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of one node with four GPUs: `srun` runs its command once and notes its words;
    `scontrol` notes its own."""
    checkout = tmp_path / "checkout"
    (checkout / "grit_jax").mkdir(parents=True)
    program(
        checkout / ".venv" / "bin" / "grit",
        '#!/bin/bash\necho "grit $*"\necho "$JAX_PLATFORMS" > platforms\nexec sleep'
        ' "${FAKE_SLEEP:-0}"\n',
    )
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.chdir(tmp_path)
    program(
        tmp_path / "bin" / "srun",
        f'#!/bin/bash\necho "$@" >> {tmp_path}/srun\necho $$ > {tmp_path}/pid\nwhile [[ $1 == --*'
        ' ]]; do shift; done\n[ -z "${FAKE_STATUS:-}" ] || exit "$FAKE_STATUS"\nexec "$@"\n',
    )
    program(
        tmp_path / "bin" / "scancel",
        f'#!/bin/bash\n[ "$*" = "--signal=TERM 17" ] && kill -TERM "$(cat {tmp_path}/pid)"\n',
    )
    program(tmp_path / "bin" / "scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol\n')
    job = {
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "4",
    }
    for key, value in {**job, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def sbatch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SLURM, *words], capture_output=True, text=True)


def test_slurm_runs_on_one_node_and_hands_back_the_status(slurm, monkeypatch):
    done = sbatch("my.yaml", "--output", "/shared/out", "--train.steps", "3")
    assert (done.returncode, done.stdout) == (
        0,
        "grit train my.yaml --output /shared/out --train.steps 3\n",
    )
    assert "--nodes=1 --ntasks=4 " in (slurm / "srun").read_text()
    assert (slurm / "platforms").read_text() == "cuda,cpu\n"
    monkeypatch.setenv("FAKE_STATUS", "9")
    assert sbatch("my.yaml", "--output=/shared/out").returncode == 9
    assert not (slurm / "scontrol").exists()


def test_slurm_on_several_nodes_is_one_process_a_gpu(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert sbatch("my.yaml", "--output", "/shared/out").returncode == 0
    words = (slurm / "srun").read_text().split()
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--gpu-bind=none"} <= set(words)


def test_slurm_requeues_when_the_time_is_up(slurm, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "3600")
    for restarts, requeued in (("0", True), ("10", False)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        (slurm / "srun").unlink(missing_ok=True)
        (slurm / "scontrol").unlink(missing_ok=True)
        job = subprocess.Popen(
            [SLURM, "my.yaml", "--output", "/shared/out"], stdout=subprocess.PIPE, text=True
        )
        assert job.stdout is not None and job.stdout.readline().startswith("grit train")
        job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@120 does
        assert job.wait(LONG_S) == 143
        assert (slurm / "scontrol").exists() is requeued
    assert (
        "#SBATCH --signal=B:USR1@" in Path(SLURM).read_text()
        and "#SBATCH --requeue" in Path(SLURM).read_text()
    )


DRAINS = """#!/bin/bash
trap 'exit 0' TERM
echo "grit $*"
sleep 3600 > /dev/null &
wait
"""


def test_slurm_requeues_a_server_that_has_ended_well(slurm):
    """At the end of its time it answers what it has accepted, and ends with status 0."""
    program(slurm / "checkout" / ".venv" / "bin" / "grit", DRAINS)
    job = subprocess.Popen([SLURM, "serve", "model"], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdout.readline() == "grit serve model\n"
    assert not (slurm / "scontrol").exists()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(LONG_S) == 0 and (slurm / "scontrol").read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    "words, unset, line",
    [
        ([], "", "usage: sbatch launch/slurm.sh CONFIG --output DIR"),
        (["my.yaml"], "", "--output DIR is missing"),
        (["my.yaml", "--output", "x"], "SLURM_JOB_ID", "no Slurm job here; call it with sbatch"),
        (["my.yaml", "--output", "x"], "GRIT_VENV", "/nowhere/bin/grit is not there; make it"),
        (
            ["my.yaml", "--output", "x"],
            "SLURM_SUBMIT_DIR",
            "/ is not the checkout; call sbatch from its top",
        ),
    ],
)
def test_slurm_refuses(slurm, monkeypatch, words, unset, line):
    if unset == "SLURM_JOB_ID":
        monkeypatch.delenv(unset)
    elif unset:
        monkeypatch.setenv(unset, "/nowhere" if unset == "GRIT_VENV" else "/")
    done = sbatch(*words)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1


# ---- files for other tools -----------------------------------------------------------------------


def test_the_job_for_kuberay():
    from grit_jax.cli.main import build_parser

    job, claim = yaml.safe_load_all((LAUNCH / "ray.yaml").read_text())
    verb = shlex.split(job["spec"]["entrypoint"])
    args, rest = build_parser().parse_known_args(verb[1:])
    assert verb[0] == "grit" and not rest and (args.verb, args.ray) == ("index", "auto")
    assert args.shards.startswith("gs://") and args.store.startswith("gs://")
    cluster = job["spec"]["rayClusterSpec"]
    locked = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in locked
    head = cluster["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert str(args.output).startswith(mount["mountPath"])
    assert str(args.input).startswith(mount["mountPath"])
    assert head["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == head["containers"][0]["image"] == "IMAGE"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_container():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] not in "# "]
    copied = [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]
    assert set(copied) == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
        "grit_jax",
        "configs",
        "launch",
    }
    allowed = {
        line[1:]
        for line in (LAUNCH / "Dockerfile.dockerignore").read_text().split()
        if line.startswith("!")
    }
    assert allowed == set(copied) and all((REPOSITORY / source).exists() for source in copied)
    assert [rest for word, rest in steps if word == "USER"] == ["grit"]
    assert "JAX_PLATFORMS=$EXTRA,cpu" in [rest for word, rest in steps if word == "ENV"]
    after = [word for word, _ in steps][[word for word, _ in steps].index("USER") :]
    assert "RUN" not in after and "COPY" not in after
    assert "-c requirements.lock" in text
    froms = [rest for word, rest in steps if word == "FROM"]
    assert froms[0].startswith("python:3.11")
    assert {rest.split()[0] for rest in froms[1:]} == {"package"}
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {"tpu", "cuda"} <= set(extras)


def test_what_is_shipped_is_what_the_container_has():
    text = (LAUNCH / "Dockerfile.dockerignore").read_text()
    assert {f"!{part}" for part in SHIPPED} <= set(text.split())
    assert all((REPOSITORY / part).exists() for part in SHIPPED)


def test_the_skypilot_task():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    resources = task["resources"]
    slice_ = accelerator(resources["accelerators"].removeprefix("tpu-"))
    assert slice_.hosts == 1 and slice_.image == resources["accelerator_args"]["runtime_version"]
    assert (
        resources["use_spot"] is True
        and task["envs"]["CONFIG"] is None
        and task["envs"]["OUTPUT"] is None
    )


def test_every_command_of_the_readme(cloud, monkeypatch):
    """All that a newcomer pastes is understood: tpu.py and slurm.sh by a dry run, the rest as words
    of the shell."""
    text = (LAUNCH / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [
        line
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line and line[0] != "#"
    ]
    assert subprocess.run(["bash", "-n"], input="\n".join(commands), text=True).returncode == 0
    for name, value in {
        "PROJECT": "my-project",
        "ZONE": "us-west4-a",
        "BUCKET": "my-bucket",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "my-project")
    monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "us-west4-a")
    verbs = set()
    for command in commands:
        words = shlex.split(os.path.expandvars(command), comments=True)
        if words[0] == "launch/tpu.py":
            at = words.index("--") if "--" in words else len(words)
            said = cloud.tpu(
                *words[1:at], *([] if "--dry-run" in words else ["--dry-run"]), *words[at:]
            )
            assert said.status == 0, (command, said.err)
            verbs.add(words[1])
    assert verbs >= {
        "create",
        "wait",
        "install",
        "run",
        "watch",
        "status",
        "logs",
        "exec",
        "stop",
        "delete",
        "xpk",
        "tunnel",
    }
    assert cloud.calls == []


def test_the_inputs_of_the_readme_are_a_configuration(tmp_path):
    """Step 4 makes a YAML whose data lie beside it, as the corpus of `grit data pydocs` does."""
    command = next(
        line for line in (LAUNCH / "README.md").read_text().splitlines() if line.startswith("sed ")
    )
    (tmp_path / "inputs").mkdir()
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    config = read_run_config(tmp_path / "inputs" / "my.yaml")
    files = {
        Path(path).relative_to(tmp_path)
        for path in (*config.data.embedding, *config.data.generative, *config.data.cached)
    }
    assert {str(path.parent) for path in files} == {"inputs/pydocs/train"}
    assert {path.stem for path in files} == {
        "embedding_summary",
        "embedding_question",
        "generative",
        "rag",
    }


def test_the_readme_names_what_is_here():
    text = (LAUNCH / "README.md").read_text()
    for file in re.findall(r"`launch/([\w.]+)`", text):
        assert (LAUNCH / file).exists(), file
    for file in LAUNCH.iterdir():
        if file.is_file() and file.name not in ("README.md", "Dockerfile.dockerignore"):
            assert f"launch/{file.name}" in text or file.stem in MODULES, file
