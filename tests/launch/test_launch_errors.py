"""Whatever is wrong, in what was typed or in the cloud, ends in one line and a status, before
anything is rented."""

from __future__ import annotations

import pytest
from fake_cloud import FAST, JOB, WHERE

CREATE = ["create", "demo", "--type=v5litepod-8"]
WATCH = ["watch", "demo", *JOB, "--type=v5litepod-8", *FAST, "--backoff=0", *WHERE]


def one_line(said, status: int) -> str:
    """The line that was said, announcements aside."""
    lines = [
        line
        for line in said.err.splitlines()
        if ": requesting " not in line and line != "demo: ABSENT"
    ]
    assert said.status == status, said
    assert len(lines) == 1 and "Traceback" not in said.err, said.err
    return lines[0]


@pytest.mark.parametrize(
    "words, line",
    [
        (
            [*CREATE[:2], "--type=v5e-8", *WHERE],
            "--type v5e-8: no such accelerator type; did you mean v5litepod-8?",
        ),
        (
            [*CREATE[:2], "--type=h100", *WHERE],
            "no such accelerator type; expected one like v2-128",
        ),
        (
            [*CREATE[:2], "--type=v5litepod-10", *WHERE],
            "the number counts chips); near it: v5litepod-1, v5litepod-4, v5litepod-8",
        ),
        (
            [*CREATE[:2], "--type=v5p-100", *WHERE],
            "counts cores, two per chip); near it: v5p-16, v5p-32, v5p-64, v5p-128",
        ),
        (
            [*CREATE[:2], "--type=tpu7x-8", *WHERE],
            "no default image for tpu7x-8; give one with --image",
        ),
        (
            [*CREATE, "--project=my-project", "--zone=us-west4"],
            "that is a region; a zone has a letter more, as in us-west4-a",
        ),
        ([*CREATE, "--project=my-project", "--zone=Nevada"], "zones look like us-central1-a"),
        (
            [*CREATE, "--zone=us-west4-a"],
            (
                "no project is given; use --project, $CLOUDSDK_CORE_PROJECT, or: gcloud"
                " config set core/project"
            ),
        ),
        (
            [*CREATE, "--project=my-project"],
            (
                "no zone is given; use --zone, $CLOUDSDK_COMPUTE_ZONE, or: gcloud config"
                " set compute/zone"
            ),
        ),
        (
            ["create", "Demo", "--type=v5litepod-8", *WHERE],
            "Demo: a name has lower-case letters, digits and dashes",
        ),
        (
            ["run", "demo", "configs/gritlm_7b.yaml", "--verb=index", JOB[1], *WHERE],
            "expected a model, gs://BUCKET/FOLDER or a hub id, got configs/gritlm_7b.yaml",
        ),
        (
            ["run", "demo", "org/model", "--verb=encode", JOB[1], *WHERE],
            "--verb encode needs --input gs://BUCKET/FILE, got none",
        ),
        (
            ["run", "demo", *JOB, "--input=gs://bucket/c.jsonl", *WHERE],
            "--input is for --verb index and --verb encode",
        ),
        (
            [
                *["run", "demo", "org/model", "--verb=index", "--input=gs://bucket/c.jsonl"],
                *[JOB[1], *WHERE, "--", "--shards", "x"],
            ],
            "--shards is set by the launcher; leave it out",
        ),
        ([*CREATE, "--spot", "--reserved", *WHERE], "--spot or --reserved, not both"),
        ([*CREATE, *WHERE, "--", "x"], "create takes no arguments after --"),
        (["exec", "demo", *WHERE], "nothing to run: exec NAME -- COMMAND"),
        (["create", "demo", *WHERE], "the following arguments are required: --type"),
        (["creat", "demo"], "invalid choice: 'creat'"),
        ([*WATCH[:2], "my.yaml", *WATCH[3:]], "put the file and its data in a bucket"),
        ([*WATCH[:2], "configs/none.yaml", *WATCH[3:]], "configs/none.yaml: no such file"),
        ([*WATCH[:2], "gs://bucket/my.yaml", *WATCH[3:]], "expected gs://BUCKET/FOLDER/NAME.yaml"),
        (
            [*WATCH[:3], "--output=runs/mine", *WATCH[4:]],
            "expected gs://BUCKET/FOLDER, got",
        ),
        (
            [*WATCH[:3], "--output=gs://bucket/in/out", *WATCH[4:]],
            "is inside the folder of gs://bucket/in/my.yaml",
        ),
        (
            [*WATCH[:3], "--output=gs://bucket/in", *WATCH[4:]],
            "is inside the folder of gs://bucket/in/my.yaml",
        ),
        (
            [
                "xpk",
                "demo",
                *JOB,
                "--type=v6e-4",
                "--slices=0",
                "--cluster=c",
                "--docker-image=i",
                *WHERE,
            ],
            "--slices: must be at least 1, got 0",
        ),
        ([*WATCH, "--", "--output", "x"], "--output is set by the launcher"),
    ],
)
def test_what_was_typed(played, words, line):
    assert line in one_line(played.tpu(*words), 2)
    assert not [call for call in played.calls if "config get-value" not in call]


@pytest.mark.parametrize(
    "failure, status, line",
    [
        (
            (
                "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud"
                " auth login"
            ),
            2,
            "gcloud has no valid credentials; run: gcloud auth login",
        ),
        (
            "There was a problem refreshing your current auth tokens: Reauthentication failed.",
            2,
            "gcloud has no valid credentials",
        ),
        (
            (
                "PERMISSION_DENIED: Cloud TPU API has not been used in project 1403 before or it is"
                " disabled. SERVICE_DISABLED"
            ),
            2,
            (
                "the Cloud TPU API is off in my-project; run: gcloud services enable"
                " tpu.googleapis.com --project=my-project"
            ),
        ),
        (
            (
                "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been"
                " exceeded. Limit: 0 in zone us-west4-a."
            ),
            2,
            (
                "the quota of my-project does not allow it (RESOURCE_EXHAUSTED: Quota limit"
                " 'TPUV5sLitepod"
            ),
        ),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", 2, "it needs roles/tpu.admin"),
        (
            "NOT_FOUND: Location us-west4-a is not found or access is unauthorized.",
            2,
            "us-west4-a has no TPUs, or my-project",
        ),
        (
            "CONSUMER_INVALID: Project 'my-project' not found or deleted.",
            2,
            "there is no project my-project for this account",
        ),
        (
            "INVALID_ARGUMENT: accelerator type v5litepod-8 is not available",
            2,
            "types that us-west4-a has: v5litepod-4, v5litepod-8",
        ),
        (
            'There is no more capacity in the zone "us-west4-a"',
            2,
            "us-west4-a has no free capacity now",
        ),
        (
            (
                'SSH Key is not present in the SSH agent. Please run "ssh-add'
                ' /home/me/.ssh/google_compute_engine" to add it, and try again.'
            ),
            2,
            "run: ssh-add ~/.ssh/google_compute_engine",
        ),
        (
            (
                "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests' and limit"
                " 'Read requests per minute'"
            ),
            1,
            "too many requests",
        ),
        (
            "INTERNAL: a server error\nnobody has seen before",
            1,
            "queued-resources create: INTERNAL: a server error nobody has seen before",
        ),
    ],
)
def test_what_the_cloud_refuses(played, failure, status, line):
    played.play(fail={"create": [failure]})
    assert line in one_line(played.tpu(*CREATE, *WHERE), status)
    if (
        status == 2 and "capacity" not in failure
    ):  # a watch ends as well: trying again would not help
        played.play(fail={"create": [failure] * 9})
        assert line in one_line(played.tpu(*WATCH), 2)


def test_a_name_that_exists(played):
    assert played.tpu(*CREATE, *WHERE).status == 0
    line = one_line(played.tpu(*CREATE, *WHERE), 2)
    assert line.startswith(
        "tpu.py create: demo already exists in us-west4-a; choose another name, continue with it"
    )
    said = played.tpu(*[word.replace("v5litepod-8", "v5litepod-4") for word in WATCH])
    assert said.status == 2 and "demo already exists as v5litepod-8, not v5litepod-4" in said.err


@pytest.mark.parametrize(
    "words",
    [
        [*CREATE, *WHERE],
        [*CREATE, "--zone=us-west4-a"],
        WATCH,
        ["exec", "demo", *WHERE, "--", "ls"],
    ],
)
def test_no_gcloud(cloud, monkeypatch, words):
    monkeypatch.setenv("PATH", "/nowhere")
    line = one_line(cloud.tpu(*words), 2)
    assert line.endswith(
        "gcloud is not installed or not on PATH; see https://cloud.google.com/sdk/docs/install"
    )


def test_the_environment_and_gclouds_configuration_are_asked_in_turn(played, monkeypatch):
    (played.root / "config.json").write_text(
        '{"core/project": "configured", "compute/zone": "us-east5-b"}'
    )
    assert played.tpu("status", "demo").status == 0
    assert "--project=configured --zone=us-east5-b" in played.calls[-1]
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "from-environment")
    assert played.tpu("status", "demo", "--zone=us-east5-a").status == 0
    assert "--project=from-environment --zone=us-east5-a" in played.calls[-1]


def test_a_step_of_the_installation_fails(played):
    played.tpu(*CREATE, *WHERE)
    played.play(fail={"ssh": [None, "1|"]}, status=["absent"])
    said = played.tpu("run", "demo", *JOB, *FAST, *WHERE)
    assert (
        said.status == 1 and "demo: could not install (status 1; its output is above)" in said.err
    )
    assert "it stays, and is billed until it is deleted" in said.err
