"""What fails without anybody's mistake: steps, ssh, the cloud's own answers, machines on their way
out, half of a pod.

`watch` bears it, and where it gives up, --delete leaves nothing that is billed.
"""

from __future__ import annotations

import sys

import pytest
from fake_cloud import FAST, JOB, WHERE
from shell import Shell, Unreachable

WATCH = ["watch", "demo", *JOB, "--type=v5litepod-8", *WHERE, *FAST, "--backoff=0"]
POD = [word.replace("v5litepod-8", "v5litepod-16") for word in WATCH]
DONE = ["absent", "idle", "running | training: 3/8", "exited 0"]
REFUSED = "255|[/usr/bin/ssh] exited with return code [255]."
TOO_OFTEN = (
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests' and limit 'Read requests"
    " per minute' of service 'tpu.googleapis.com' for consumer 'project_number:1403'."
)


def steps(cloud) -> list[str]:
    """What was done, looks aside."""
    return [word for word in cloud.story if word != "status"]


# ---- steps on the workers ------------------------------------------------------------------------


def test_a_step_that_fails_is_tried_again(played):
    """A download, a connection, a worker that is not ready: each costs a retry, none the slice."""
    fail = {"scp": ["1|lost connection"], "ssh": [None, None, REFUSED], "start": ["1|no"]}
    played.play(status=["absent", "absent", "absent", "idle", "idle", "exited 0"], fail=fail)
    said = played.tpu(*WATCH)
    assert said.status == 0, said.err
    assert steps(played) == ["create", "scp", "scp", "install", "scp", "install", "start", "start"]
    for attempt, what in enumerate(
        [
            "could not copy the code (status 1",
            "could not install (status 255",
            "start failed on a worker",
        ]
    ):
        assert f"demo: {what}" in said.err and f"attempt {attempt + 1} of 10 in 0 s" in said.err


def test_a_machine_taken_away_while_it_is_installed_is_replaced(played):
    played.play(
        status=["absent", "absent", "idle", "exited 0"],
        fail={"ssh": [None, REFUSED]},
        states=[["ACTIVE", "SUSPENDED"], ["ACTIVE"]],
    )
    assert played.tpu(*WATCH).status == 0
    assert steps(played) == [
        "create",
        "scp",
        "install",
        "delete",
        "create",
        "scp",
        "install",
        "start",
    ]


def test_a_step_that_always_fails_uses_up_the_retries_and_the_slice_is_given_back(played):
    played.play(status=["absent"], fail={"scp": ["1|lost connection"] * 9})
    said = played.tpu(*WATCH, "--retries=2", "--delete")
    assert said.status == 3 and "2 retries are used up (--retries)" in said.err
    assert said.err.count("could not copy the code") == 3 and "demo: deleted" in said.err
    assert steps(played) == ["create", "scp", "scp", "scp", "delete"] and "billed" not in said.err


def test_another_run_there_is_left_alone(played):
    """Status 2 of a worker: no retry, and no deletion of what is another's."""
    played.play(status=["idle"], fail={"start": ["2|another run is active here"]})
    said = played.tpu(*WATCH, "--delete")
    assert (
        said.status == 1
        and "start failed on a worker (status 2" in said.err
        and "attempt" not in said.err
    )
    assert steps(played) == ["create", "start"]


def test_a_stop_of_ours_is_not_taken_for_a_persons(played):
    """A lost run is stopped and started; the start fails, and the next look finds it stopped."""
    played.play(
        status=["absent", "idle", "running", "lost", "stopped", "exited 0"],
        fail={"start": [None, "1|no"]},
    )
    assert played.tpu(*WATCH).status == 0
    assert steps(played) == ["create", "scp", "install", "start", "stop", "start", "start"]


def test_a_command_that_does_not_end_is_no_answer():
    with pytest.raises(Unreachable, match="no answer within 0.05 s"):
        Shell("p", "z").show(
            [sys.executable, "-S", "-c", "import time; time.sleep(60)"], within_s=0.05
        )


# ---- no answer -----------------------------------------------------------------------------------


def test_ssh_that_fails_for_a_while_is_borne(played, pauses):
    played.play(
        status=DONE, fail={"ssh": [None, None, None, None, REFUSED, REFUSED, REFUSED, None]}
    )
    said = played.tpu(*WATCH, "--poll=10")
    assert said.status == 0 and played.story.count("create") == 1
    assert pauses == [10, 20, 40, 10]  # longer each time, then that of a run that is running


def test_a_node_that_goes_between_the_look_and_ssh_is_borne(played):
    gone = "NOT_FOUND: Resource 'projects/p/locations/z/nodes/demo' was not found"
    played.play(status=["absent", "idle", "exited 0"], fail={"ssh": [gone]})
    said = played.tpu(*WATCH)
    assert (
        said.status == 0
        and "there is no demo in us-west4-a of my-project; trying again" in said.err
    )


def test_a_machine_that_falls_silent_is_replaced(played, pauses):
    """Also where the first attempt to delete it is not answered."""
    played.play(
        status=["absent", "idle", "running", "absent", "idle", "exited 0"],
        fail={"ssh": [None] * 5 + [REFUSED] * 6, "delete": ["INTERNAL: not now"]},
    )
    said = played.tpu(*WATCH)
    assert said.status == 0
    assert "does not answer, though it is ACTIVE; attempt 2 of 10" in said.err
    assert (
        played.story.count("create") == 2
        and sum("delete demo" in call for call in played.calls) == 2
    )


def test_a_cloud_that_was_asked_too_often_does_not_cost_the_machine(played):
    """The slice is well and runs: only the questions about it are refused, for longer than silence
    is borne."""
    played.play(status=DONE, fail={"describe": [None] * 4 + [TOO_OFTEN] * 9})
    said = played.tpu(*WATCH)
    assert said.status == 0, said.err
    assert (
        "too many requests to the cloud (RESOURCE_EXHAUSTED: Quota exceeded for quota metric"
        in said.err
    )
    assert steps(played) == ["create", "scp", "install", "start"]


@pytest.mark.parametrize("delete", [False, True])
def test_a_machine_that_never_answered_is_not_blamed(played, clock, delete):
    """A firewall: a new machine would not answer either. It is not held for hours."""
    played.play(status=DONE, fail={"ssh": [REFUSED] * 99})
    said = played.tpu(*WATCH, "--poll=30", *["--delete"] * delete)
    assert (
        said.status == 3
        and "never answered ssh" in said.err
        and "firewall-rules create" in said.err
    )
    assert 1200 < sum(clock) < 2400
    assert steps(played) == ["create", *["delete"] * delete]
    assert ("is billed until it is deleted" in said.err) is not delete


def test_a_machine_that_was_there_before_is_not_torn_down_unheard(played, clock):
    """Its run may be well, and the way from here to it closed."""
    played.play(fail={"ssh": [REFUSED] * 99})
    played.tpu("create", "demo", "--type=v5litepod-8", *WHERE)
    said = played.tpu(*WATCH, "--poll=30", "--delete")
    assert (
        said.status == 3
        and "never answered ssh" in said.err
        and "is billed until it is deleted" in said.err
    )
    assert steps(played) == ["create"]


def test_a_slow_cloud_gives_a_new_machine_its_time_all_the_same(played, clock):
    """The minutes count from when it was found ACTIVE, and one look without an answer is not
    enough."""
    played.play(
        states=[["PROVISIONING"] * 90 + ["ACTIVE"]],
        status=["absent", "idle", "exited 0"],
        fail={"ssh": [REFUSED] * 3},
    )
    assert played.tpu(*WATCH, "--poll=30").status == 0


def test_the_slice_is_given_back_at_the_end_whatever_the_cloud_says_first(played):
    played.play(status=DONE, fail={"delete": ["INTERNAL: not now", TOO_OFTEN]})
    said = played.tpu(*WATCH, "--delete")
    assert said.status == 0 and said.err.endswith("demo: deleted\n")
    assert sum("delete demo" in call for call in played.calls) == 3


# ---- states --------------------------------------------------------------------------------------


def test_waiting_is_bounded(played, monkeypatch):
    hours = iter(range(0, 99))
    monkeypatch.setattr("watch.time.monotonic", lambda: 3600.0 * next(hours))
    played.play(states=[["WAITING_FOR_RESOURCES"]])
    said = played.tpu(*WATCH, "--wait-hours=5")
    assert said.status == 3 and "is WAITING_FOR_RESOURCES after 5 h; it keeps its place" in said.err
    assert "--valid-until-duration=360m" in next(
        call for call in played.calls if " create " in call
    )
    said = played.tpu("wait", "demo", *WHERE, "--wait-hours=2")
    assert said.status == 3 and "it keeps its place" in said.err
    said = played.tpu(
        *WATCH, "--wait-hours=5", "--delete"
    )  # or it would come when nobody looks any more
    assert (
        said.status == 3
        and "keeps its place" not in said.err
        and steps(played) == ["create", "delete"]
    )


def test_a_validity_of_ones_own_counts(played):
    said = played.tpu(*WATCH, "--create-flag=--valid-until-time=2030-01-01T00:00:00Z", "--dry-run")
    assert said.status == 0 and said.out.count("--valid-until-") == 1


def test_a_slice_on_its_way_out_is_waited_for(played, clock):
    """Every look at SUSPENDING costs nothing; the preemption costs one retry."""
    played.play(
        states=[["ACTIVE"] * 3 + ["SUSPENDING"] * 9 + ["SUSPENDED"], ["ACTIVE"]],
        status=["absent", "idle", "running", "absent", "idle", "exited 0"],
    )
    said = played.tpu(*WATCH, "--poll=30")
    assert (
        said.status == 0
        and said.err.count("; attempt ") == 1
        and "is SUSPENDED; attempt 1" in said.err
    )


def test_a_slice_that_never_gets_out(played, clock):
    played.play(states=[["STOPPING"], ["DELETING"]])
    said = played.tpu(*WATCH, "--poll=60")
    assert (
        said.status == 3
        and "is STOPPING; attempt 1" in said.err
        and steps(played) == ["create", "delete", "create"]
    )
    assert "has been DELETING for 1 h; look at it at https://console.cloud.google.com" in said.err
    assert 7200 <= sum(clock) < 7500


# ---- half of a pod -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost, then", [("lost", []), ("exited 143", []), ("absent", ["scp", "install"])]
)
def test_whoever_looks_after_half_a_run_begins_it_anew_on_all_workers(played, lost, then):
    """The others wait for the lost one: started alone, it would wait for them."""
    played.play(
        hosts=4,
        status=[["running", "running", lost, "running"], *(["idle"] if then else []), "exited 0"],
    )
    played.tpu("create", "demo", "--type=v5litepod-16", *WHERE)
    assert played.tpu(*POD).status == 0
    assert steps(played) == ["create", "stop", *then, "start"]


def test_a_whole_run_is_only_looked_after(played):
    played.play(hosts=4, status=["running", "exited 0"])
    played.tpu("create", "demo", "--type=v5litepod-16", *WHERE)
    assert played.tpu(*POD).status == 0
    assert steps(played) == ["create", "start"]  # which does nothing where it runs
