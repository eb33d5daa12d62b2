"""A run on a slice of a fake cloud, from nothing to its end, through every setback that the cloud
has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fake_cloud import FAST, JOB, REPOSITORY, WHERE, expected_trace, program, until

pytestmark = pytest.mark.usefixtures("light")
WATCH = ["watch", "demo", *JOB, "--type=v5litepod-8", *WHERE, *FAST, "--backoff=0"]
RUN = ["run", "demo", *JOB, *WHERE, "--poll=0.1"]
DONE = ["absent", "idle", "running | training: 3/8", "exited 0"]
HALF_WAY = ["ACTIVE", "bucket/runs/mine/checkpoints/4/commit_success.txt"]


def test_from_nothing_through_a_failure_and_a_preemption_to_the_end(cloud):
    """Everything runs for real but the cloud: the code goes over, the run is detached, killed, and
    resumed elsewhere."""
    cloud.give_config("hang: 5\n")
    second = ["WAITING_FOR_RESOURCES", "PROVISIONING", HALF_WAY, "SUSPENDED"]
    cloud.play(states=[["WAITING_FOR_RESOURCES", "FAILED"], second, ["ACTIVE"]])
    said = cloud.tpu(*WATCH, "--poll=0.1", "--delete")
    assert said.status == 0, said.err
    begun = ["create", "status", "scp", "install", "status", "start"]
    looks = [
        ["status"],
        [],
    ]  # a quick run is half way, and the slice gone, before the first look at it
    assert cloud.story in [
        ["create", "delete", *begun, *look, "delete", *begun, "status", "delete"] for look in looks
    ]
    assert cloud.trace() == expected_trace()
    assert (cloud.bucket("runs/mine/model/grit.json")).exists()
    log = cloud.bucket("runs/mine/logs/w0.log").read_text()
    assert "resuming from step 4" in log and "training: 1/8" not in log
    states = [line.removeprefix("demo: ") for line in said.err.splitlines()]
    assert [s for s in states if s.split(":")[0].isupper()] == [
        "ABSENT",
        "WAITING_FOR_RESOURCES",
        "FAILED: no such reservation",
        "ABSENT",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
        "SUSPENDED",
        "ABSENT",
        "ACTIVE",
    ]
    assert (
        "is FAILED; attempt 1 of 10 in 0 s" in states
        and "is SUSPENDED; attempt 2 of 10 in 0 s" in states
    )
    assert states[-2:] == [
        "the run has finished; its model is in gs://bucket/runs/mine/model",
        "deleted",
    ]


# `grit`, but one that came from step 0 halts in step 50, so that the preemption finds it there on
# any machine.
HALTING_GRIT = """
import os, time
os.environ.setdefault("GLIBC_TUNABLES", "")  # or main() starts a plain `grit` in this one's place
from grit_jax.cli.main import main
from grit_jax.runtime.metrics import MetricsFile

begin, write = MetricsFile.__init__, MetricsFile.write

def begin_at(self, path, start_step=0):
    self.halts = start_step == 0
    begin(self, path, start_step)

def write_or_halt(self, step, values):
    if self.halts and step == 50:
        time.sleep(3600)
    write(self, step, values)

MetricsFile.__init__, MetricsFile.write = begin_at, write_or_halt
main()
"""


@pytest.mark.slow
def test_a_real_run_is_preempted_and_its_losses_are_those_of_a_whole_one(
    cloud, tmp_path, monkeypatch
):
    """As above, with `grit train` itself: a small model, its machine killed in the middle."""
    whole_run, halting = tmp_path / "whole-run", tmp_path / "bin" / "grit-to-install"
    program(whole_run, f'#!/bin/sh\nexec {sys.executable} -m grit_jax "$@"\n')
    program(halting, f"#!{sys.executable}\n{HALTING_GRIT}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    texts = [
        f"The {a} lies {b} the {c}."
        for a in ("stone", "river", "lamp")
        for b in ("on", "by")
        for c in ("hill", "sea", "road")
    ]
    lines = {
        "pairs": [
            {"query": a, "pos": [b], "neg": [c]} for a, b, c in zip(texts, texts[1:], texts[2:])
        ],
        "chats": [{"text": [a, b]} for a, b in zip(texts, texts[1:])],
        "documents": [{"id": str(n), "text": text} for n, text in enumerate(texts)],
    }
    config = {
        "model": {
            "shape": {
                "vocab_size": 512,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "tie_word_embeddings": True,
            },
            "dtype": "float32",
            "remat": "none",
        },
        "tokenizer": {"train_on": ["documents.jsonl"], "vocab_size": 400},
        "data": {
            "embedding": ["pairs.jsonl"],
            "generative": ["chats.jsonl"],
            "embedding_batch": 4,
            "generative_batch": 2,
            "query_max_length": 64,
            "passage_max_length": 64,
            "generative_max_length": 96,
        },
        "train": {"steps": 60, "checkpoint_every": 20},
        "output": str(tmp_path / "whole"),
    }
    cloud.give_config(json.dumps(config))
    for name, rows in lines.items():
        cloud.bucket(f"in/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run([whole_run, "train", cloud.bucket("in/my.yaml")], check=True)
    cloud.play(
        states=[
            [["ACTIVE", "bucket/runs/mine/checkpoints/40/commit_success.txt"], "SUSPENDED"],
            ["ACTIVE"],
        ]
    )
    said = cloud.tpu(*WATCH, "--poll=0.5")
    assert said.status == 0, said.err
    assert cloud.story.count("create") == 2
    assert "resuming from step 40" in cloud.bucket("runs/mine/logs/w0.log").read_text()
    clock = ("seconds", "tokens_per_s", "data_wait_s")
    whole = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    without = lambda trace: [{k: v for k, v in line.items() if k not in clock} for line in trace]
    assert len(whole) == 60 and without(cloud.trace()) == without(whole)


def test_a_run_fails_another_is_left_alone_and_stopped(cloud, monkeypatch):
    cloud.give_config("fail: 7\n")
    cloud.play()
    cloud.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = cloud.tpu(*RUN)
    assert said.status == 7
    assert "the run ended with status 7; its log is in gs://bucket/runs/mine/logs" in said.err
    assert "grit train ended with status 7" in cloud.bucket("runs/mine/logs/w0.log").read_text()
    assert "delete" not in cloud.story
    # The mistake is mended: the same command goes on from the checkpoint, here without a terminal.
    cloud.give_config("hang: 7\n")
    assert cloud.tpu(*RUN, "--detach", "--", "--train.steps", "100").status == 0
    log = cloud.root / "vm1" / "w0" / "grit" / "run" / "log"
    until(lambda: "training: 7/100" in log.read_text())
    assert "resuming from step 2" in log.read_text() and "training: 1/100" not in log.read_text()
    # From another computer, with another name there: the same run, in the same home directory.
    monkeypatch.setenv("USER", "another")
    assert "worker w0: running | training: 7/100" in cloud.tpu("status", "demo", *WHERE).out
    again = cloud.tpu(*RUN, "--detach", "--", "--train.steps", "9")
    assert again.status == 1 and "start failed on a worker (status 2" in again.err
    assert "another run is active" in (cloud.root / "ssh.log").read_text()
    # Its code is not touched either.
    mark = cloud.root / "vm1" / "w0" / "grit" / "code" / "mark"
    mark.touch()
    refused = cloud.tpu("install", "demo", *WHERE)
    assert refused.status == 1 and "could not install (status 2" in refused.err and mark.exists()
    assert "worker.py: a run is active here; stop it first" in (cloud.root / "ssh.log").read_text()
    assert cloud.tpu("stop", "demo", *WHERE).status == 0
    assert "worker w0: stopped" in cloud.tpu("status", "demo", *WHERE).out
    assert "grit train ended with status 143" in cloud.tpu("logs", "demo", "--lines=1", *WHERE).out
    assert cloud.tpu("install", "demo", *WHERE).status == 0 and not mark.exists()


def test_failed_requests_are_made_anew_and_the_pauses_grow_to_a_bound(played, pauses):
    played.play(states=[["FAILED"]] * 7 + [["ACTIVE"]], status=DONE)
    said = played.tpu(*[word for word in WATCH if "backoff" not in word], "--backoff=30")
    assert said.status == 0
    assert played.story.count("create") == 8 and played.story.count("delete") == 7
    assert [pause for pause in pauses if pause] == [30, 60, 120, 240, 480, 900, 900]
    assert "FAILED: no such reservation" in said.err


def test_a_run_seen_running_makes_the_pauses_short_again(played, pauses):
    status = [
        "absent",
        "idle",
        "running",
        "absent",
        "idle",
        "running",
        "absent",
        "idle",
        "exited 0",
    ]
    played.play(
        states=[["ACTIVE"] * 3 + ["SUSPENDED"], ["ACTIVE"] * 3 + ["SUSPENDED"], ["ACTIVE"]],
        status=status,
    )
    assert played.tpu(*WATCH, "--backoff=30").status == 0
    assert [pause for pause in pauses if pause] == [30, 30]


def test_retries_are_bounded(played, pauses):
    played.play(states=[["SUSPENDED"]])
    said = played.tpu(*WATCH, "--retries=2")
    assert said.status == 3
    assert played.story.count("create") == 3 and played.story.count("delete") == 2
    assert "2 retries are used up" in said.err and "it is not billed" in said.err
    assert "launch/tpu.py delete demo --project=my-project --zone=us-west4-a" in said.err


def test_a_lost_process_is_started_again_on_the_same_machine(played, pauses):
    played.play(
        status=["absent", "idle", "running", "lost", "running", "exited 143", "running", "exited 0"]
    )
    said = played.tpu(*WATCH)
    assert said.status == 0
    assert [word for word in played.story if word != "status"] == [
        "create",
        "scp",
        "install",
        "start",
        "stop",
        "start",
        "stop",
        "start",
    ]


def test_an_end_that_an_earlier_watch_saw_is_none_of_this_one(played, pauses):
    """A run that failed, its mistake mended since: the same command begins it again."""
    played.play(status=["exited 7", "running", "exited 0"])
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    assert played.tpu(*RUN).status == 0
    assert played.story.count("start") == 1 and "stop" not in played.story


def test_a_run_stopped_on_purpose_is_not_started_again(played, pauses):
    played.play(status=["absent", "idle", "running", "stopped"])
    assert played.tpu(*WATCH).status == 143
    assert played.story.count("start") == 1


def test_a_zone_without_capacity_is_asked_again(played, pauses):
    none_left = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone'
    played.play(fail={"create": [none_left, none_left, None]}, status=DONE, states=[["READY"]])
    said = played.tpu(*WATCH, "--vm")
    assert said.status == 0
    created = [call for call in played.calls if "tpu-vm create demo" in call]
    assert len(created) == 3 and all("--version=v2-alpha-tpuv5-lite" in call for call in created)


def test_a_preempted_vm_without_the_queue_is_created_anew(played, pauses):
    played.play(
        states=[["CREATING", "READY", "PREEMPTED"], ["READY"]],
        status=["absent", "absent", "idle", "exited 0"],
    )
    assert played.tpu(*WATCH, "--vm").status == 0
    deleted = [call for call in played.calls if "tpu-vm delete demo" in call]
    assert len(deleted) == 1 and "--force" not in deleted[0]


def test_all_hosts_count(played):
    """Four hosts: the run ends when all have ended, fails when one fails, and goes on when one was
    lost."""
    pod = [word.replace("v5litepod-8", "v5litepod-16") for word in WATCH]
    running = ["running"] * 4
    played.play(
        hosts=4,
        status=[
            "absent",
            "idle",
            running,
            ["exited 0", "running", "exited 0", "running"],
            "exited 0",
        ],
    )
    assert played.tpu(*pod).status == 0
    start = next(call for call in played.calls if "worker.py start" in call)
    assert "--worker=all" in start and "--direct" in start
    played.play(hosts=4, status=[running, running, ["running", "running", "exited 2", "running"]])
    (played.root / "slice.json").unlink()
    played.tpu("create", "demo", "--type=v5litepod-16", *WHERE)
    assert played.tpu(*pod).status == 2
    assert "worker.py stop" in played.calls[-1]
    played.play(
        hosts=4, status=[["running", "running", None, "running"], running, running, "exited 0"]
    )
    (played.root / "slice.json").unlink()
    played.tpu("create", "demo", "--type=v5litepod-16", *WHERE)
    said = played.tpu(*pod)
    assert said.status == 0 and "3 of 4 workers answered" in said.err
    # One machine is rebooted: its run is lost, and the others end as interrupted within a minute.
    left = ["exited 143", "exited 143", "lost", "exited 143"]
    played.play(hosts=4, status=[running, running, left, running, "exited 0"])
    (played.root / "slice.json").unlink()
    played.tpu("create", "demo", "--type=v5litepod-16", *WHERE)
    before = len(played.calls)
    said = played.tpu(*pod)
    assert said.status == 0 and "lost its run; attempt 1" in said.err
    assert [
        "stop" in c or "start" in c
        for c in played.calls[before:]
        if "worker.py st" in c and "status" not in c
    ] == [True] * 3


def test_a_pod_taken_away_goes_on_from_the_bucket(played, pauses):
    """Preempted in the middle: the slice is created anew, and every worker starts the same run on
    the same address."""
    pod = [word.replace("v5litepod-8", "v5litepod-16") for word in WATCH]
    played.play(
        hosts=4,
        states=[["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"], ["ACTIVE"]],
        status=["absent", "idle", ["running"] * 4, "absent", "idle", ["running"] * 4, "exited 0"],
    )
    said = played.tpu(*pod)
    assert said.status == 0 and "is SUSPENDED; attempt 1" in said.err
    starts = [call for call in played.calls if "worker.py start" in call]
    assert (
        len(starts) == 2
        and starts[0] == starts[1]
        and "--worker=all" in starts[0]
        and "--direct" in starts[0]
    )
    assert "rsync" not in " ".join(played.calls), (
        "nothing is mirrored: the run itself writes to the bucket"
    )


def test_output_that_is_on_the_machine_alone_keeps_it(played, pauses):
    played.play(status=["absent", "idle", "exited 75"])
    said = played.tpu(*WATCH, "--delete")
    assert said.status == 75 and "delete" not in played.story
    assert "on the machine only, which is kept" in said.err


@pytest.mark.parametrize(
    "state, costs",
    [("ACTIVE", "is billed until"), ("WAITING_FOR_RESOURCES", "billed once it becomes")],
)
def test_an_interrupt_says_what_is_left_and_how_to_be_rid_of_it(played, monkeypatch, state, costs):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("watch.time.sleep", interrupt)
    played.play(states=[[state]], status=["absent", "idle", "running"])
    said = played.tpu(*WATCH)
    assert said.status == 130
    assert f"demo was {state} when last seen" in said.err and costs in said.err
    assert "a run on it continues" in said.err
    assert "launch/tpu.py delete demo --project=my-project --zone=us-west4-a" in said.err
    assert "delete" not in played.story


def test_wait_ends_with_the_queue(played, pauses):
    played.play(
        states=[["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["FAILED"]]
    )
    wait = ["wait", "demo", *WHERE, *FAST]
    said = played.tpu(*wait)
    assert said.status == 2 and "there is no demo in us-west4-a; create it first" in said.err
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = played.tpu(*wait)
    assert said.status == 0 and said.err.split() == [
        "demo:",
        "ACCEPTED",
        "demo:",
        "WAITING_FOR_RESOURCES",
        "demo:",
        "PROVISIONING",
        "demo:",
        "ACTIVE",
    ]
    played.tpu("delete", "demo", *WHERE, "--yes")
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = played.tpu(*wait)
    assert said.status == 3 and "demo is FAILED: no such reservation" in said.err


def test_run_neither_creates_nor_recreates(played, pauses):
    said = played.tpu(*RUN)
    assert said.status == 2 and "create it first" in said.err
    played.play(
        states=[["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"]], status=["absent", "idle", "running"]
    )
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = played.tpu(*RUN)
    assert said.status == 3 and "tpu.py watch would create it again" in said.err
    assert played.story.count("create") == 1 and "delete" not in played.story


def test_exec_runs_on_all_workers_and_hands_back_the_status(cloud):
    cloud.play(hosts=2)
    cloud.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = cloud.tpu("exec", "demo", *WHERE, "--", "echo $HOSTNAME; exit 5")
    assert said.out.split() == ["w0", "w1"] and said.status == 5
    assert cloud.tpu("exec", "demo", *WHERE, "--", "printf", "%s|", "a b", "c").out == "a b|c|" * 2


def test_delete_asks(played, monkeypatch):
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = played.tpu("delete", "demo", *WHERE)
    assert said.status == 2 and "--yes" in said.err and "delete" not in played.story
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        "builtins.input",
        lambda question: "no" if "demo (ACTIVE)" in question else pytest.fail(question),
    )
    assert played.tpu("delete", "demo", *WHERE).status == 1 and "delete" not in played.story
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert played.tpu("delete", "demo", *WHERE).status == 0
    assert not json.loads((played.root / "slice.json").read_text())["there"]
    assert played.tpu("delete", "demo", *WHERE).status == 0  # there is nothing to do
