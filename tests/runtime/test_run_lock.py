"""One run at a time: a lock on a folder, a marker where there are no locks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime import run_lock
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.runtime.run_lock import StoreMarker, folder_lock

OTHER = json.dumps({"host": "another-machine", "process": 7, "renewed": 3})


class Store:
    """An object; `then` are the texts that another run writes, one at each look."""

    def __init__(self, text: str | None = None, *then: str | None):
        self.text, self.then = text, list(then)

    def read(self) -> str | None:
        text = self.text
        if self.then:
            self.text = self.then.pop(0)
        return text

    def write(self, text: str) -> None:
        self.text = text

    def remove(self) -> None:
        self.text = None


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0)


def marker(store: Store) -> StoreMarker:
    return StoreMarker("gs://bucket/run", store.read, store.write, store.remove)


def test_a_marker_is_left_renewed_and_taken_away():
    store = Store()
    mine = marker(store)
    mine.take(patience=0)
    first = json.loads(store.text)
    assert first["host"] == socket.gethostname() and first["process"] == os.getpid()
    mine.renew()
    assert json.loads(store.text) == first | {"renewed": first["renewed"] + 1}
    mine.release()
    assert store.text is None
    store.text = OTHER
    mine.release()
    assert store.text == OTHER, "another run's stays"


def test_a_run_that_renews_its_marker_keeps_others_away(capsys):
    renewed = OTHER.replace("3}", "4}")
    with pytest.raises(
        GritError, match="another grit train .process 7 on another-machine. is writing here; wait"
    ):
        marker(Store(OTHER, OTHER, renewed)).take(patience=600)
    assert "process 7 on another-machine wrote here last; waiting up to 600 s" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("then", [[], [None]], ids=["is not renewed", "goes away"])
def test_a_run_that_ended_does_not(then):
    store = Store(OTHER, *then)
    marker(store).take(patience=0 if not then else 600)
    assert json.loads(store.text)["process"] == os.getpid()


def test_one_of_this_machine_that_was_killed_is_not_waited_for(capsys):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], text=True, capture_output=True
    )
    text = json.dumps({"host": socket.gethostname(), "process": int(gone.stdout), "renewed": 1})
    for left in (text, "not JSON"):
        store = Store(left)
        marker(store).take(patience=600)
        assert json.loads(store.text)["process"] == os.getpid()
    assert capsys.readouterr().err == ""


def test_a_folder_is_held_until_it_is_closed(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    with pytest.raises(GritError, match="another grit train is writing here"):
        second.lock()
    first.close()
    second.lock()
    second.close()
    RunFolder(tmp_path, reads=True).lock()


def test_the_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from grit_jax.runtime.run_lock import folder_lock\n"
        "held = folder_lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(GritError, match="another grit train"):
        folder_lock(tmp_path)
    process.kill()
    process.wait()
    folder_lock(tmp_path).close()
