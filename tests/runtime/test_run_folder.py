"""A run's output in an object store: what is copied, what is fetched, and what is said when it
cannot be."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import pytest

from grit_jax.errors import GritError
from grit_jax.runtime import run_folder as module
from grit_jax.runtime.run_folder import RunFolder
from grit_jax.train import export_checkpoint


@pytest.fixture
def store(monkeypatch, tmp_path):
    """An object store in memory: objects are written whole, there are no folders."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setattr(
        module, "_open_store", lambda address, extra: (memory, address.removeprefix("gs:/"))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    yield memory
    memory.store.clear()


def begun() -> RunFolder:
    output = RunFolder("gs://bucket/run")
    output.begin()
    return output


def failing(monkeypatch, memory, times: int, error: Exception) -> list[str]:
    """The store does not take what it is given for so many times; the names of what it was
    given."""
    given, put = [], type(memory).put_file

    def refuse(self, here, there, **how):
        given.append(there.removeprefix("/bucket/run/"))
        if len(given) <= times:
            raise error
        put(self, here, there, **how)

    monkeypatch.setattr(type(memory), "put_file", refuse)
    return given


def until(condition) -> None:
    """Returns once the condition holds."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def names(memory) -> set[str]:
    return {path.removeprefix("/bucket/run/") for path in memory.find("/bucket/run")}


def test_a_folder_is_the_output_itself(tmp_path):
    for address in (tmp_path / "run", f"file://{tmp_path}/run"):
        output = RunFolder(address)
        assert output.local == tmp_path / "run" and not output.remote
        assert output.checkpoints == str(tmp_path / "run" / "checkpoints")
        assert output.under("model") == tmp_path / "run" / "model" and not output.has_model(
            "grit.json"
        )
        output.begin(), output.copy_now_and_then(), output.copy(), output.fetch(), output.close()
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output = RunFolder("~/run")
    assert output.local == tmp_path / "run" and not output.remote
    assert (str(output), output.checkpoints) == (f"{tmp_path}/run", f"{tmp_path}/run/checkpoints")
    with pytest.raises(GritError, match=f"^{tmp_path}/run: no config.yaml there"):
        export_checkpoint("~/run", "~/out")
    assert not list(tmp_path.iterdir())


def test_what_one_machine_leaves_the_next_one_has(store, tmp_path, monkeypatch):
    first = RunFolder("gs://bucket/run/")
    first.begin()
    assert (
        first.checkpoints == "gs://bucket/run/checkpoints"
        and str(first.under("model")) == "gs://bucket/run/model"
    )
    metrics = first.local / "metrics.jsonl"
    metrics.write_text('{"step": 0}\n')
    (first.local / "tokenizer").mkdir()
    (first.local / "tokenizer" / "tokenizer.json").write_text("{}")
    (first.local / "model").mkdir()
    for name in ("grit.json", "model.safetensors"):
        (first.local / "model" / name).write_text(name)
    (first.local / ".metrics.jsonl.7-7.tmp").write_text("half")
    first.copy()
    assert names(store) == {"metrics.jsonl", "tokenizer/tokenizer.json"}
    with metrics.open("a") as file:
        file.write('{"step": 1}\n{"st')
    written = []
    monkeypatch.setattr(type(store), "put_file", lambda self, here, there: written.append(there))
    first.copy()
    assert written == ["/bucket/run/metrics.jsonl"], "what has not changed stays"
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "_open_store", lambda address, extra: (store, address.removeprefix("gs:/"))
    )
    first._copied.clear()
    first.copy()
    store.pipe("/bucket/run/checkpoints/2/state", b"large")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    second = RunFolder("gs://bucket/run")
    assert second.local != first.local
    second.begin()
    found = {
        str(path.relative_to(second.local)) for path in second.local.rglob("*") if path.is_file()
    }
    assert found == {"metrics.jsonl", "tokenizer/tokenizer.json"}, (
        "large things stay where they are"
    )
    assert (second.local / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def test_a_model_counts_once_it_is_whole(store, monkeypatch):
    output, order = RunFolder("gs://bucket/run"), []
    output.begin()
    (output.local / "model").mkdir()
    for name in ("config.json", "grit.json", "model.safetensors"):
        (output.local / "model" / name).write_text(json.dumps(name))
    put = type(store).put_file
    with monkeypatch.context() as patch:
        patch.setattr(
            type(store),
            "put_file",
            lambda self, a, b, **k: (order.append(Path(b).name), put(self, a, b, **k)),
        )
        output.copy_model("grit.json")
    assert (
        sorted(order) == ["config.json", "grit.json", "model.safetensors"]
        and order[-1] == "grit.json"
    )
    assert output.has_model("grit.json")
    output.unmark_model("grit.json"), output.unmark_model("grit.json")
    assert not output.has_model("grit.json") and "model/model.safetensors" in names(store)


def test_it_is_copied_now_and_then_and_at_the_end(store, monkeypatch):
    monkeypatch.setattr(module, "COPY_SECONDS", 0.01)
    output = RunFolder("gs://bucket/run")
    output.begin()
    output.copy_now_and_then()
    (output.local / "metrics.jsonl").write_text("1\n")
    until(lambda: names(store) == {"metrics.jsonl"})
    monkeypatch.setattr(module, "COPY_SECONDS", 1000)
    (output.local / "bad_batch.json").write_text("{}")
    output.close()
    assert names(store) == {"metrics.jsonl", "bad_batch.json"} and not output._copier.is_alive()


def test_only_process_0_copies(store, monkeypatch):
    monkeypatch.setattr(module, "is_first", lambda: False)
    output = RunFolder("gs://bucket/run")
    output.begin()
    output.copy_now_and_then()
    (output.local / "metrics.jsonl").write_text("1\n")
    output.copy(), output.close()
    assert names(store) == set()


@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError])
def test_a_store_that_does_not_take_it(store, monkeypatch, kind):
    output = begun()
    (output.local / "metrics.jsonl").write_text("1\n")
    output.copy_now_and_then()
    given = failing(
        monkeypatch, store, 1000, kind("403, caller does not have storage.objects.create\nmore")
    )
    words = r"^gs://bucket/run: cannot be written \(403, caller .*create\); look at the bucket"
    with pytest.raises(GritError, match=words):
        output.copy()
    assert given == 3 * ["metrics.jsonl"]
    with pytest.raises(GritError, match=words):
        output.close()


def test_failures_that_pass(store, monkeypatch):
    """The store is asked three times, after pauses that grow."""
    output, pauses = begun(), []
    monkeypatch.setattr(module, "PAUSES", (1.0, 5.0))
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    (output.local / "model").mkdir()
    for name in ("metrics.jsonl", "model/grit.json"):
        (output.local / name).write_text("{}")
        with monkeypatch.context() as patch:
            failing(patch, store, 2, OSError("503"))
            output.copy_model("grit.json") if "model" in name else output.copy()
    assert names(store) == {"metrics.jsonl", "model/grit.json"} and pauses == [1.0, 5.0, 1.0, 5.0]


def test_a_periodic_copy_that_fails_is_made_up_for(store, monkeypatch, capsys):
    monkeypatch.setattr(module, "COPY_SECONDS", 0.01)
    output = begun()
    (output.local / "metrics.jsonl").write_text("1\n")
    failing(monkeypatch, store, 6, RuntimeError("503"))  # two copies
    output.copy_now_and_then()
    until(lambda: names(store) == {"metrics.jsonl"})
    assert output._copier.is_alive()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(
        line.startswith("gs://bucket/run: cannot be written (503)") for line in told
    )
    output.close()


def test_files_that_others_take_away_meanwhile(store, monkeypatch):
    """Before they are looked at, before they are read, and with their folder."""
    output, scandir, put, files = begun(), os.scandir, type(store).put_file, module._files
    for name in ("wandb/early", "wandb/late", "z"):
        (output.local / name).parent.mkdir(exist_ok=True)
        (output.local / name).write_text(name)
    (output.local / "wandb" / "folder").mkdir()

    def look(folder):
        if Path(folder).name == "folder":
            os.rmdir(folder)
        return scandir(folder)

    def listed(folder):
        found = files(folder)
        (folder / "wandb" / "early").unlink()
        return found

    def read(self, here, there, **how):
        if here.endswith("late"):
            os.unlink(here)
        put(self, here, there, **how)

    monkeypatch.setattr(os, "scandir", look)
    monkeypatch.setattr(module, "_files", listed)
    monkeypatch.setattr(type(store), "put_file", read)
    output.copy()
    assert names(store) == {"z"}


def test_who_reads_leaves_a_run_under_way_alone(store, tmp_path, monkeypatch):
    """`grit export` on the machine that trains: the run's files stay where they are, and the
    reader's do not."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    run = begun()
    store.pipe("/bucket/run/model/grit.json", b"{}")
    with (run.local / "metrics.jsonl").open("w") as metrics:
        metrics.write("0\n1\n2\n"), metrics.flush()
        run.copy()
        metrics.write("3\n4\n"), metrics.flush()
        reader = RunFolder("gs://bucket/run", reads=True)
        reader.begin()
        assert (reader.local / "metrics.jsonl").read_text() == "0\n1\n2\n"
        (reader.local / "metrics.jsonl").write_text("")
        reader.copy(), reader.unmark_model("grit.json"), reader.close()
        assert store.cat(
            "/bucket/run/metrics.jsonl"
        ) == b"0\n1\n2\n" and "model/grit.json" in names(store)
        with pytest.raises(GritError, match=r"gs://bucket/run: no config\.yaml there"):
            export_checkpoint("gs://bucket/run", tmp_path / "out")
        assert not list((tmp_path / "temporary").iterdir()), "also after an error"
        metrics.write("5\n6\n7\n")
    run.copy()
    assert store.cat("/bucket/run/metrics.jsonl").split() == [b"%d" % step for step in range(8)]


def test_a_folder_that_is_read_stays(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    output = RunFolder(tmp_path, reads=True)
    output.begin(), output.close()
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    "address", ["gs://bucket", "gs:/bucket/run", "ftp://host/run", "gs:///run", "s3://bucket/run"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(
        GritError, match=f"output {address}: expected a folder, or gs://BUCKET/FOLDER"
    ):
        RunFolder(address)


def test_the_client_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        GritError, match=r"gs://bucket/run needs the extra 'gcs': pip install 'grit_jax\[gcs\]'"
    ):
        RunFolder("gs://bucket/run")
