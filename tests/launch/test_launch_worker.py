"""The run on its machine: it ends with a known status, its output in the bucket, and leaves nothing
behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_cloud import LAUNCH, LONG_S, REPOSITORY, end_run, expected_trace, program, until

OUTPUT = "gs://bucket/runs/mine"


@pytest.fixture
def worker(cloud, tmp_path, monkeypatch):
    """Runs `worker.py` as on a machine whose home is `tmp_path/home`, with `grit` on PATH; or
    starts it (`wait=False`)."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "bin" / "grit").symlink_to("grit-to-install")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HOSTNAME", "w0")
    cloud.give_config()

    def run(*words: str, wait: bool = True):
        command = [sys.executable, "-S", str(LAUNCH / "worker.py"), *words]
        if wait:
            return subprocess.run(command, capture_output=True, text=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, **pipes, text=True, start_new_session=True)

    run.home = home / "grit"
    yield run
    end_run(run.home)


def test_sigterm_is_handed_on_and_what_was_done_is_kept(cloud, worker):
    """As at a preemption, and in a container that is told to go."""
    cloud.give_config("hang: 5\n")
    child = worker("train", "gs://bucket/in/my.yaml", OUTPUT, wait=False)
    until(lambda: list(worker.home.glob("output/*/checkpoints/4")))
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=LONG_S)
    assert child.returncode == 143, said
    assert "grit train ended with status 143" in said
    assert max(int(folder.name) for folder in cloud.bucket("runs/mine/checkpoints").iterdir()) == 4
    again = worker("train", "gs://bucket/in/my.yaml", OUTPUT)
    assert again.returncode == 0 and "resuming from step 4" in again.stdout
    assert cloud.trace() == expected_trace()


SAVES = f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from grit_jax.runtime.preemption import PREEMPTED, on_sigterm
from grit_jax.runtime.supervision import watched

def work():
    with on_sigterm() as notice, notice.hold():
        print("ready", flush=True)
        while not notice.arrived:
            time.sleep(0.01)
        time.sleep(0.2)
        open(sys.argv[sys.argv.index("--output") + 1] + "/saved", "w")
    sys.exit(PREEMPTED)

watched(work)
"""


def test_a_session_that_ends_as_a_whole_is_saved(cloud, worker, tmp_path):
    """A machine that goes down: SIGTERM and SIGHUP to every process of the session, and handed on
    from each to the next."""
    (tmp_path / "bin" / "grit").unlink()
    program(tmp_path / "bin" / "grit", f"#!{sys.executable}\n{SAVES}")
    child = worker("train", "gs://bucket/in/my.yaml", OUTPUT, wait=False)
    assert (
        child.stdout.readline().startswith("worker.py: starting")
        and child.stdout.readline() == "ready\n"
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        os.killpg(child.pid, number)
    said, _ = child.communicate(timeout=LONG_S)
    assert child.returncode == 143, said
    assert cloud.bucket("runs/mine/saved").exists()


ENDS_WITH_42 = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


def test_a_run_that_ends_by_itself_at_sigterm_is_an_interrupted_one(worker, tmp_path):
    """Whatever status it chooses to end with: the launcher shall go on with it elsewhere."""
    (tmp_path / "bin" / "grit").unlink()
    # One process: a shell's `sleep &` may lose a signal between fork and exec, and holds our pipe
    # for an hour.
    program(tmp_path / "bin" / "grit", f"#!{sys.executable}\n{ENDS_WITH_42}")
    child = worker("train", "gs://bucket/in/my.yaml", OUTPUT, wait=False)
    assert (
        child.stdout.readline().startswith("worker.py: starting")
        and child.stdout.readline() == "ready\n"
    )
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=LONG_S)
    assert child.returncode == 143


def test_a_killed_supervisor_leaves_nothing_that_holds_the_tpu(cloud, worker):
    cloud.give_config("hang: 5\n")
    (worker.home / "venv").mkdir(parents=True)
    (worker.home / "venv" / "grit-installed").write_text("")
    assert worker("status").stdout == "grit-worker w0 idle\n"
    assert worker("start", "gs://bucket/in/my.yaml", OUTPUT).returncode == 0
    log = worker.home / "run" / "log"
    until(lambda: "training: 5/8" in log.read_text())
    assert worker("status").stdout == "grit-worker w0 running | training: 5/8\n"
    supervisor = int((worker.home / "run" / "pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: worker("status").stdout == "grit-worker w0 lost\n")
    orphans = [
        p
        for p in Path("/proc").glob("[0-9]*")
        if group_of(p) == supervisor and "train" in words_of(p)
    ]
    assert len(orphans) == 1
    assert worker("stop").returncode == 0
    until(lambda: group_of(orphans[0]) is None)


def test_whoever_looks_while_a_run_begins_does_not_stop_it(tmp_path, monkeypatch):
    """`status` tries the lock, too: it must not pass for a run, to others who look or to the run
    that begins."""
    import detached

    monkeypatch.setattr("detached.RUN", tmp_path)
    looking = (tmp_path / "lock").open("w")
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not detached.running()
    pauses: list[float] = []
    monkeypatch.setattr(
        "detached.time", types.SimpleNamespace(sleep=lambda s: (pauses.append(s), looking.close()))
    )
    held = detached.take_lock()
    assert len(pauses) == 1 and detached.running()
    with pytest.raises(BlockingIOError, match="another run holds it"):
        detached.take_lock()
    held.close()
    assert not detached.running()


def words_of(entry: Path) -> list[str]:
    """The command of a process that runs."""
    try:
        return (entry / "cmdline").read_text().split("\0")
    except OSError:
        return []


def group_of(entry: Path) -> int | None:
    """The process group of a process that runs."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[2])
    except OSError:
        return None


@pytest.mark.parametrize("config, status", [("{}", 75), ("fail: 9", 75)])
def test_output_that_cannot_be_copied_is_told(cloud, worker, config, status):
    """Whatever `grit train` said: with --delete the machine would go, and the run with it."""
    cloud.give_config(config)
    cloud.play(fail={"storage": [None, None, None] + ["HTTPError 403: no access"] * 2000})
    done = worker("train", "gs://bucket/in/my.yaml", OUTPUT)
    assert done.returncode == status
    assert (
        "grit train ended with status" in done.stdout
        and "not copied: gcloud storage rsync: " in done.stdout
    )


def test_a_configuration_of_the_checkout_and_an_output_elsewhere(worker, tmp_path):
    """On a shared file system nothing is copied."""
    done = worker(
        "train", "configs/quickstart_base.yaml", str(tmp_path / "out"), "--", "--train.steps", "2"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model" / "grit.json").exists()


def test_inputs_are_those_of_the_bucket_and_of_this_run(cloud, worker):
    """What was removed there is not read here, and what another configuration brought is left
    alone."""
    for name in ("in/old.jsonl", "other/my.yaml"):
        cloud.bucket(name).parent.mkdir(parents=True, exist_ok=True)
        cloud.bucket(name).write_text("{}")
    for folder in ("in", "other"):
        assert (
            worker("train", f"gs://bucket/{folder}/my.yaml", f"{OUTPUT}-{folder}").returncode == 0
        )
    cloud.bucket("in/old.jsonl").unlink()
    assert worker("train", "gs://bucket/in/my.yaml", f"{OUTPUT}-in").returncode == 0
    found = {
        str(path.relative_to(worker.home / "inputs")) for path in worker.home.glob("inputs/*/*")
    }
    assert found == {"bucket_in/my.yaml", "bucket_other/my.yaml"}


@pytest.mark.parametrize(
    "extra, given, platforms",
    [
        ("tpu", None, "tpu,cpu"),
        ("cuda", None, "cuda,cpu"),
        ("cpu", None, None),
        (None, None, None),
        ("tpu", "cpu", "cpu"),
    ],
)
def test_jax_is_told_what_was_installed_for(tmp_path, monkeypatch, extra, given, platforms):
    """Left to choose, it trains on the CPU of a machine whose accelerator fails."""
    import worker

    monkeypatch.setattr("worker.INSTALLED", tmp_path / "installed")
    if extra:
        (tmp_path / "installed").write_text(f"{extra}\n")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if given:
        monkeypatch.setenv("JAX_PLATFORMS", given)
    told = f"import os; raise SystemExit(os.environ.get('JAX_PLATFORMS') != {platforms!r})"
    assert worker.run_mirrored([sys.executable, "-S", "-c", told], None, print) == 0


@pytest.mark.parametrize(
    "gone, line", [("gcloud", "gcloud is not installed"), ("grit", "grit is not installed")]
)
def test_what_is_missing_is_told_in_a_line(worker, tmp_path, gone, line):
    (tmp_path / "bin" / gone).rename(tmp_path / "elsewhere")
    command = [
        sys.executable,
        "-S",
        str(LAUNCH / "worker.py"),
        "train",
        "gs://bucket/in/my.yaml",
        OUTPUT,
    ]
    where = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run(command, capture_output=True, text=True, env=where)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1


# ---- index and encode ----------------------------------------------------------------------------

INDEX = ["--verb=index", "--input=gs://bucket/in/corpus.jsonl"]


def give_corpus(cloud, *lines: str) -> None:
    cloud.bucket("in").mkdir(parents=True, exist_ok=True)
    cloud.bucket("in/corpus.jsonl").write_text("".join(line + "\n" for line in lines))
    cloud.bucket("model").mkdir(exist_ok=True)
    cloud.bucket("model/config.json").write_text("{}")


def test_an_index_is_kept_in_the_bucket_and_goes_on_on_another_machine(
    cloud, worker, tmp_path, monkeypatch
):
    give_corpus(cloud, "one", "two", "hang", "four", "five")
    # What a machine left that died before its index was copied.
    cloud.bucket("runs/mine/kv").mkdir(parents=True)
    cloud.bucket("runs/mine/kv/manifest.ocdbt").write_text("of another index")
    child = worker("train", "gs://bucket/model", OUTPUT, *INDEX, wait=False)
    index = cloud.bucket("runs/mine/index")
    documents = lambda: json.loads((index / "index.json").read_text())["documents"]
    until(lambda: (index / "index.json").exists() and documents() == 3)
    assert not cloud.bucket("runs/mine/kv").exists()
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=LONG_S)
    assert child.returncode == 143, said
    assert (index / "documents.jsonl").read_text() == "one\ntwo\nhang\n"
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    cloud.bucket("runs/mine/kv").mkdir(parents=True)  # now it is this index's
    done = worker("train", "gs://bucket/model", OUTPUT, *INDEX)
    assert done.returncode == 0 and "resuming from 3 documents" in done.stdout, done.stdout
    assert (index / "documents.jsonl").read_text().split() == ["one", "two", "hang", "four", "five"]
    assert documents() == 5 and cloud.bucket("runs/mine/kv").exists()


def test_a_worker_where_the_index_does_not_change_copies_nothing(cloud, tmp_path):
    """It has brought back what was in the bucket, which is older than what process 0 has copied
    since."""
    from share import Shared

    calls: list[list[str]] = []

    def run(command):
        calls.append(list(command))
        if "rsync" in command:
            (local / "index.json").write_text('{"documents": 2}')
        return ""

    local = tmp_path / "local"
    local.mkdir()
    shared = Shared("index", local, "gs://bucket/x", run)
    assert shared.restore() == 2
    calls.clear()
    shared.sync(last=True)
    assert calls == []
    (local / "index.json").write_text('{"documents": 3}')
    shared.sync()
    assert [command[2] for command in calls] == ["rsync", "cp"]


def test_vectors_are_in_the_bucket_at_the_end(cloud, worker):
    give_corpus(cloud, "one", "two")
    words = ["train", "org/model", OUTPUT, "--verb=encode", *INDEX[1:]]
    done = worker(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cloud.bucket("runs/mine/vectors.npy").read_text() == "ONE\nTWO\n"
