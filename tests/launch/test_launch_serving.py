"""A server on a slice: started, reached, its indices kept up to date, restarted, and stopped without
losing a request. `grit serve` is played by fake_grit, everything else is the real program."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import detached
import pytest
import serving
from fake_cloud import LAUNCH, LONG_S, WHERE, program, until

MODEL, OUTPUT = "gs://bucket/model", "gs://bucket/serving"
SERVE = [MODEL, "--verb=serve", f"--output={OUTPUT}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=LONG_S) as reply:
        return reply.read().decode()


def answers(port: int) -> bool:
    try:
        return bool(get(port, "/ready"))
    except OSError:
        return False


def grow(cloud, documents: int) -> None:
    """Writes an index of so many documents to the bucket, as `grit index` does: the manifest is the
    last file."""
    folder = cloud.bucket("index")
    folder.mkdir(exist_ok=True)
    (folder / "documents.jsonl").write_text("{}\n" * documents)
    (folder / "index.json.tmp").write_text(json.dumps({"documents": documents}))
    (folder / "index.json.tmp").replace(folder / "index.json")


@pytest.fixture
def slice_(cloud, light):
    """A slice that is there, a model and an index in the bucket."""
    cloud.bucket("model").mkdir()
    cloud.bucket("model/config.json").write_text("{}")
    grow(cloud, 3)
    assert cloud.tpu("create", "demo", "--type=v5litepod-1", *WHERE).status == 0
    return cloud


@pytest.mark.slow
def test_a_server_on_a_slice_from_the_start_to_the_end(slice_, tmp_path):
    port, local = free_port(), free_port()
    flags = ["--index", "docs=gs://bucket/index", "--port", str(port)]
    said = slice_.tpu("run", "demo", *SERVE, "--detach", *WHERE, "--", *flags)
    assert said.status == 0, said.err
    until(lambda: answers(port))
    assert (
        slice_.tpu("status", "demo", *WHERE)
        .out.splitlines()[1]
        .startswith("worker w0: running | ready | ")
    )

    command = [sys.executable, str(LAUNCH / "tpu.py"), "tunnel", "demo", f"--port={port}"]
    tunnel = subprocess.Popen(
        [*command, f"--local-port={local}", *WHERE], stderr=subprocess.PIPE, text=True
    )
    try:
        assert tunnel.stderr.readline() == (
            f"http://127.0.0.1:{local} leads to port {port} of demo; Ctrl-C ends the tunnel, the"
            " server continues\n"
        )
        until(lambda: answers(local))
        model, *words = json.loads(get(local, "/flags"))
        assert Path(model, "config.json").read_text() == "{}"
        assert words[words.index("--name") + 1] == MODEL
        copy = words[words.index("--index") + 1]
        assert copy.startswith(f"docs={slice_.root}")

        # What is added to the index in the bucket arrives; the files before the manifest.
        grow(slice_, 5)
        until(lambda: json.loads(get(local, "/index")) == {"documents": 5})
        documents = Path(copy.removeprefix("docs="), "documents.jsonl")
        assert documents.read_text() == "{}\n" * 5

        # A request that was accepted is answered after the stop.
        replies: list[str] = []
        request = threading.Thread(target=lambda: replies.append(get(local, "/slow")))
        request.start()
        home = next(slice_.root.glob("vm*/w0/grit"))
        until(lambda: "slow" in (home / "run" / "log").read_text())
        assert slice_.tpu("stop", "demo", *WHERE).status == 0
        request.join(LONG_S)
        assert replies == ["answered"]
    finally:
        for child in children(tunnel.pid):
            os.kill(child, signal.SIGKILL)
        tunnel.kill()
        tunnel.wait()
        tunnel.stderr.close()
    assert slice_.tpu("status", "demo", *WHERE).out.splitlines()[1] == "worker w0: stopped"
    log = slice_.bucket("serving/logs/w0.log").read_text()
    assert '{"path": "/slow"}' in log and "grit serve ended with status 0" in log


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def worker(cloud, tmp_path, monkeypatch):
    """Runs `worker.py` as on a machine whose home is `tmp_path/home`, with `grit` on PATH."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "bin" / "grit").symlink_to("grit-to-install")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HOSTNAME", "w0")
    monkeypatch.setenv("GRIT_HOME", str(home / "grit"))
    running: list[subprocess.Popen] = []

    def run(*words: str, wait: bool = True):
        command = [sys.executable, "-S", str(LAUNCH / "worker.py"), *words]
        if wait:
            return subprocess.run(command, capture_output=True, text=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running.append(subprocess.Popen(command, **pipes, text=True, start_new_session=True))
        return running[-1]

    run.home = home / "grit"
    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_server_that_crashes_is_started_again(cloud, worker, tmp_path):
    """SIGTERM without `stop` is no end of the server, but of its machine: the launcher starts it
    elsewhere."""
    port = free_port()
    started = worker("start", str(tmp_path), OUTPUT, "--verb=serve", "--", "--port", str(port))
    assert started.returncode == 0, started.stderr
    log = worker.home / "run" / "log"
    until(lambda: answers(port))
    with pytest.raises(OSError):
        get(port, "/crash")
    until(lambda: "worker.py: starting it again in 1 s\n" in log.read_text())
    until(lambda: answers(port))
    os.kill(int((worker.home / "run" / "pid").read_text()), signal.SIGTERM)
    until(lambda: (worker.home / "run" / "exit").exists())
    assert (worker.home / "run" / "exit").read_text() == "143"
    assert worker("status").stdout.startswith("grit-worker w0 exited 143 | ")


def test_a_server_that_crashes_again_and_again_is_given_up(worker, tmp_path, monkeypatch):
    (tmp_path / "bin" / "grit").unlink()
    program(tmp_path / "bin" / "grit", "#!/bin/sh\nexit ${FAKE_STATUS}\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import serving, worker;"
        "serving.pause = lambda crashes: 0.0; sys.exit(worker.main(sys.argv[1:]))"
    )
    words = ["serve", str(tmp_path), "--output", OUTPUT, "--supervised"]
    (worker.home / "run").mkdir(parents=True)
    for status, starts in (("7", 1 + serving.RESTARTS), ("2", 1)):
        monkeypatch.setenv("FAKE_STATUS", status)
        command = [sys.executable, "-S", "-c", code, str(LAUNCH), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == int(status), done.stderr
        assert done.stdout.count(f"grit serve ended with status {status}") == starts


def test_in_a_container(worker, tmp_path):
    """In the foreground: the log stays on the terminal, SIGTERM ends it with status 0, and a check
    of its health asks the server itself."""
    assert worker("healthy").returncode == 1
    port = free_port()
    process = worker("serve", str(tmp_path), "--", "--port", str(port), wait=False)
    until(lambda: answers(port))
    assert worker("healthy").returncode == 0
    (tmp_path / "ill").touch()
    ill = worker("healthy")
    assert ill.returncode == 1 and ill.stderr.startswith("worker.py healthy: 503: ")
    with pytest.raises(urllib.error.HTTPError):
        get(port, "/health")
    replies: list[str] = []
    request = threading.Thread(target=lambda: replies.append(get(port, "/slow")))
    request.start()
    lines = iter(process.stdout.readline, "")
    assert next(lines) == "ready: 3 programs compiled\n" and "slow\n" in lines
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LONG_S)
    request.join(LONG_S)
    assert process.returncode == 0 and replies == ["answered"]
    assert worker("healthy").stderr.startswith("worker.py healthy: no answer: ")


def test_keys_adapters_and_indices_from_the_bucket(cloud, worker, tmp_path):
    cloud.bucket("keys").write_text("secret\n")
    cloud.bucket("adapters/a").mkdir(parents=True)
    cloud.bucket("adapters/a/adapter_config.json").write_text("{}")
    grow(cloud, 3)
    port = free_port()
    words = [
        "--index",
        "docs=gs://bucket/index",
        "--api-keys",
        "gs://bucket/keys",
        "--adapter",
        "a=gs://bucket/adapters/a",
    ]
    worker("serve", str(tmp_path), "--", "--port", str(port), *words, wait=False)
    until(lambda: answers(port))
    flags = json.loads(get(port, "/flags"))
    keys = Path(flags[flags.index("--api-keys") + 1])
    assert keys.read_text() == "secret\n" and keys.stat().st_mode & 0o077 == 0
    adapter = flags[flags.index("--adapter") + 1]
    assert Path(adapter.removeprefix("a="), "adapter_config.json").exists()
    assert json.loads(get(port, "/index")) == {"documents": 3}
    grow(cloud, 5)
    until(lambda: json.loads(get(port, "/index")) == {"documents": 5})


def test_what_is_not_in_the_bucket_is_one_line(worker):
    done = worker("serve", "org/model", "--", "--index", "docs=gs://bucket/nothing")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("worker.py: gcloud storage cp: ")


def test_files_are_not_added_to_a_copy(worker):
    words = ["--index", "docs=gs://bucket/index", "--files=uploads"]
    done = worker("serve", "org/model", "--dry-run", "--", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "worker.py: --files: files would be added to a copy of gs://bucket/index and lost with it;"
        " leave it out, or name an index on this disk\n"
    )


def test_a_log_that_is_full_is_kept_and_begins_anew(tmp_path, monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(serving, "LOG_BYTES", 10)
    copies = serving.Serving([], OUTPUT, lambda command: calls.append(list(command)) or "")
    log = tmp_path / "log"
    with log.open("ab") as writer:
        for text, copied in ((b"12345", 1), (b"", 1), (b"67890123", 2), (b"new", 3)):
            writer.write(text)
            writer.flush()
            copies.add(log, "logs/w0.log")
            assert len(calls) == copied
    assert log.read_bytes() == b"new"
    assert [call[-1] for call in calls[::2]] == [f"{OUTPUT}/logs/w0.log"] * 2
    assert calls[1][-1].startswith(f"{OUTPUT}/logs/w0.{time.strftime('%Y')}")


def test_an_index_is_whole_at_any_moment(tmp_path):
    """Its manifest is fetched before the other files, which may be newer, and is put in place after
    them; an index that has not changed is left alone."""
    here, calls, bucket = tmp_path / "index", [], {"manifest": "1"}

    def run(command):
        calls.append(command[2])
        manifest = here / "index.json"
        if command[2] == "cp":
            Path(command[-1]).write_text(bucket["manifest"])
        else:
            assert not manifest.exists() or manifest.read_text() != bucket["manifest"]
            (here / "documents.jsonl").write_text(bucket["manifest"])
        return ""

    copy = serving.IndexCopy("gs://bucket/index", here, run)
    for manifest, changed in (("1", True), ("1", False), ("2", True)):
        bucket["manifest"] = manifest
        assert copy.pull() is changed
        assert (here / "index.json").read_text() == (here / "documents.jsonl").read_text()
    assert calls == ["cp", "rsync", "cp", "cp", "rsync"]


@pytest.mark.parametrize(
    "flags, seconds", [([], 240), (["--grace", "7"], 127), (["--grace=300", "--slots", "1"], 420)]
)
def test_stop_waits_for_the_requests(tmp_path, monkeypatch, flags, seconds):
    monkeypatch.setattr(detached, "RUN", tmp_path)
    (tmp_path / "request").write_text(json.dumps({"overrides": flags}))
    assert detached.stop_within_s() == detached.STOP_WITHIN_S
    (tmp_path / "port").write_text("8000")
    assert detached.stop_within_s() == seconds


@pytest.mark.parametrize(
    "words, line",
    [
        (["--type=v5litepod-16"], "a server runs on one host, and v5litepod-16 has 4"),
        (["--input=gs://bucket/x"], "--input is for --verb index and --verb encode"),
        (["--", "--port=0"], "--port 0: expected a number, by which the server is reached"),
    ],
)
def test_refusals(cloud, words, line):
    at = words.index("--") if "--" in words else len(words)
    given = ["--type=v6e-1", *words[:at], *WHERE, *words[at:]]
    said = cloud.tpu("watch", "demo", *SERVE, *given)
    assert said.status == 2 and line in said.err and len(said.err.splitlines()) == 1
    assert cloud.calls == []
    xpk = ["--type=v6e-1", "--cluster=c", "--docker-image=i:1"]
    said = cloud.tpu("xpk", "demo", *SERVE, *xpk, *WHERE)
    assert said.status == 2 and "a server on GKE is launch/serve.yaml" in said.err


def test_a_slice_of_several_hosts_that_is_there_is_refused(cloud):
    cloud.play(hosts=4, status=["idle"])
    assert cloud.tpu("create", "demo", "--type=v5litepod-16", *WHERE).status == 0
    said = cloud.tpu("run", "demo", *SERVE, "--detach", *WHERE)
    assert said.status == 2 and "v5litepod-16 has 4" in said.err
