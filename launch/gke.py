"""Runs the job as a workload on a GKE cluster made by xpk: build the image, push it, submit."""

from __future__ import annotations

import shlex

from job import Job
from machine import REPOSITORY, Machine
from shell import LaunchError

IN_IMAGE = "/opt/grit"  # where the Dockerfile puts the checkout


def submit(
    machine: Machine, job: Job, cluster: str, image: str, *, slices: int, build: bool, retries: int
) -> int:
    """Submits a run on `slices` slices and returns; xpk prints where to look. The cluster restarts
    it after a preemption.

    Exit status 2 of `grit train`, a mistake in its input, is not restarted: xpk restarts on 42 and
    127 to 255 only.
    """
    assert machine.accelerator is not None
    train = shlex.join(["python3", f"{IN_IMAGE}/launch/worker.py", "train", *job.words()])
    # The platform of the TPU's hosts, wherever the image is built.
    build_it = ["docker", "build", "--platform=linux/amd64"]
    build_it += ["--file", str(REPOSITORY / "launch" / "Dockerfile"), "--build-arg", "EXTRA=tpu"]
    workload = [
        "xpk",
        "workload",
        "create",
        f"--project={machine.shell.project}",
        f"--zone={machine.shell.zone}",
        f"--cluster={cluster}",
        f"--workload={machine.name}",
        f"--tpu-type={machine.accelerator.name}",
        f"--num-slices={slices}",
        f"--docker-image={image}",
        f"--max-restarts={retries}",
        "--termination-grace-period-seconds=60",
        *(["--spot"] if machine.spot else []),
        *machine.create_flags,
        f"--command={train}",
    ]
    steps = (
        [[*build_it, "--tag", image, str(REPOSITORY)], ["docker", "push", image]] if build else []
    )
    for command in [*steps, workload]:
        if status := machine.shell.show(command):
            raise LaunchError(
                f"{' '.join(command[:3])} failed (status {status}; its output is above)", status
            )
    return 0
