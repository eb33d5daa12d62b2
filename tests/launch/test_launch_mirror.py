"""The output folder in the bucket: a machine that dies at any instant leaves whole checkpoints
only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mirror import MARK, Mirror, MirrorError

OUTPUT = "gs://bucket/runs/mine"


def write_checkpoint(local: Path, step: int, keep: int = 2) -> None:
    """What `grit train` leaves at a step: metrics up to it, then the checkpoint under its final
    name."""
    (local / "checkpoints").mkdir(parents=True, exist_ok=True)
    (local / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n}) + "\n" for n in range(step))
    )
    (local / "config.yaml").write_text("{}")
    folder = local / "checkpoints" / f"{step}.tmp"
    (folder / "state" / "d").mkdir(parents=True)
    (folder / "state" / "d" / "shard").write_text(f"state {step}")
    (folder / "state" / MARK).write_text("")
    (folder / MARK).write_text("")
    folder.rename(local / "checkpoints" / str(step))
    for old in sorted(
        (int(f.name) for f in (local / "checkpoints").iterdir() if f.name.isdecimal()), reverse=True
    )[keep:]:
        shutil.rmtree(local / "checkpoints" / str(old))


@pytest.fixture
def bucket(cloud):
    """Runs a storage command in this process; `left` counts those that still run before the machine
    dies."""

    def run(command):
        if run.left == 0:
            raise SystemExit("the machine is gone")
        run.left -= 1
        done = cloud.gcloud(command)
        if done.returncode:
            raise MirrorError(done.stderr)
        run.done.append(command)
        return done.stdout

    run.left, run.done = 10**9, []
    return run


def test_the_machine_may_die_between_any_two_commands(cloud, bucket, tmp_path):
    """Whenever it dies, the next machine finds a whole checkpoint, the metrics that lead to it, and
    no model."""
    deaths = 0
    for left in range(100):
        shutil.rmtree(cloud.bucket("runs"), ignore_errors=True)
        local, reached = tmp_path / f"machine{left}", 0
        mirror = Mirror(local, OUTPUT, bucket)
        bucket.left = left
        try:
            for step in (2, 4, 6):
                write_checkpoint(local, step)
                (local / "model").mkdir(exist_ok=True)
                (local / "model" / "grit.json").write_text("half of it")
                mirror.sync(last=step == 6)
                reached = step
        except SystemExit:
            deaths += 1
        bucket.left = 10**9
        new = tmp_path / f"new{left}"
        found = Mirror(new, OUTPUT, bucket).restore()
        assert (found or 0) in (reached, reached + 2)
        assert not (new / "model").exists()
        assert {f.name for f in (new / "checkpoints").glob("*")} == (
            {str(found)} if found else set()
        )
        if found:
            assert (
                new / "checkpoints" / str(found) / "state" / "d" / "shard"
            ).read_text() == f"state {found}"
            assert len((new / "metrics.jsonl").read_text().splitlines()) >= found
        if reached == 6:
            break
    assert deaths > 10 and reached == 6
    assert sorted(f.name for f in cloud.bucket("runs/mine/checkpoints").iterdir()) == [
        "4",
        "6",
    ]  # dropped here and there
    assert cloud.bucket("runs/mine/model/grit.json").exists()


def test_what_is_as_new_here_is_not_fetched(bucket, tmp_path):
    write_checkpoint(tmp_path / "a", 4)
    Mirror(tmp_path / "a", OUTPUT, bucket).sync()
    write_checkpoint(tmp_path / "a", 6)
    bucket.done.clear()
    assert Mirror(tmp_path / "a", OUTPUT, bucket).restore() == 6
    assert {command[2] for command in bucket.done} == {"ls"}
    assert Mirror(tmp_path / "b", OUTPUT, bucket).restore() == 4
    # A round without news copies no checkpoint again.
    mirror = Mirror(tmp_path / "b", OUTPUT, bucket)
    mirror.restore()
    bucket.done.clear()
    mirror.sync()
    assert not [command for command in bucket.done if "checkpoints/" in command[-1]]


def test_a_checkpoint_that_the_run_drops_meanwhile_is_copied_whole(cloud, bucket, tmp_path):
    """Steps may be faster than copies: the bucket must get on all the same."""
    local = tmp_path / "a"

    def train_on(command):
        if command[2] == "rsync" and "commit_success" in command[4]:
            for step in (train_on.step + 2, train_on.step + 4, train_on.step + 6):
                write_checkpoint(local, step)
            train_on.step += 6
        return bucket(command)

    train_on.step = 2
    write_checkpoint(local, 2)
    mirror = Mirror(local, OUTPUT, train_on)
    for _ in range(3):
        mirror.sync()
    assert Mirror(tmp_path / "b", OUTPUT, bucket).restore() == 14
    assert (
        tmp_path / "b" / "checkpoints" / "14" / "state" / "d" / "shard"
    ).read_text() == "state 14"
    assert sorted(f.name for f in cloud.bucket("runs/mine/checkpoints").iterdir()) == ["14", "8"]
    assert not list(tmp_path.glob("*.copying"))


def test_a_checkpoint_dropped_while_it_is_linked_is_left(bucket, tmp_path, monkeypatch):
    """What is linked may be half of it, without any error; the newer one is taken instead."""
    local = tmp_path / "a"
    write_checkpoint(local, 2)
    really = shutil.copytree

    def copytree(source, target, **how):
        monkeypatch.setattr("shutil.copytree", really)
        write_checkpoint(local, 4)
        (source / "state" / "d" / "shard").unlink()  # the run has begun to remove it
        really(source, target, **how)

    monkeypatch.setattr("shutil.copytree", copytree)
    Mirror(local, OUTPUT, bucket).sync()
    assert Mirror(tmp_path / "b", OUTPUT, bucket).restore() == 4
    assert not [command for command in bucket.done if command[-1].endswith("checkpoints/2")]


def test_what_cannot_be_removed_stops_nothing(cloud, bucket, tmp_path):
    def run(command):
        if command[2] == "rm":
            raise MirrorError("no")
        return bucket(command)

    mirror = Mirror(tmp_path / "a", OUTPUT, run)
    for step in (2, 4, 6, 8):
        write_checkpoint(tmp_path / "a", step)
        mirror.sync()
    (cloud.bucket("runs/mine/checkpoints/6") / MARK).unlink()
    assert Mirror(tmp_path / "b", OUTPUT, run).restore() == 8
    mirror = Mirror(tmp_path / "c", OUTPUT, bucket)  # one that can tidies up
    assert mirror.restore() == 8
    mirror.sync()
    assert sorted(f.name for f in cloud.bucket("runs/mine/checkpoints").iterdir()) == ["4", "8"]


def test_halves_that_dead_machines_left_are_removed(cloud, bucket, tmp_path):
    write_checkpoint(tmp_path / "a", 4)
    Mirror(tmp_path / "a", OUTPUT, bucket).sync()
    for step in ("2", "6"):
        (cloud.bucket(f"runs/mine/checkpoints/{step}/state")).mkdir(parents=True)
        cloud.bucket(f"runs/mine/checkpoints/{step}/state/shard").write_text("half")
    assert Mirror(tmp_path / "b", OUTPUT, bucket).restore() == 4
    assert [f.name for f in cloud.bucket("runs/mine/checkpoints").iterdir()] == ["4"]


def test_an_empty_disk_removes_nothing_from_the_bucket(cloud, bucket, tmp_path):
    write_checkpoint(tmp_path / "a", 4)
    Mirror(tmp_path / "a", OUTPUT, bucket).sync()
    (tmp_path / "b").mkdir()
    mirror = Mirror(tmp_path / "b", OUTPUT, bucket)
    mirror.restore()
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    mirror.sync()
    assert cloud.bucket("runs/mine/checkpoints/4/commit_success.txt").exists()


def test_a_bucket_that_cannot_be_read_is_no_empty_one(cloud, bucket, tmp_path):
    cloud.play(fail={"storage": ["HTTPError 403: no access"]})
    with pytest.raises(MirrorError, match="403"):
        Mirror(tmp_path, OUTPUT, bucket).restore()
