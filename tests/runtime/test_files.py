"""Files appear whole or not at all, also when the writer is killed; JSON holds no NaN; locks."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.files import (
    home_path,
    is_stream,
    is_temporary,
    json_text,
    lock_folder,
    new_folder,
    read_json,
    refuse_same_file,
    write_file,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with write_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert is_temporary(temporary) and not is_temporary(path)
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    with pytest.raises(GritError, match="a.bin: cannot be written .* choose"), write_file(path):
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import sys, os, signal\n"
        "from grit_jax.runtime.files import write_file\n"
        "with write_file(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert process.returncode == -signal.SIGKILL and path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert is_temporary(left)


def test_a_link_stays_a_link_and_permissions_follow_the_umask(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new\r\n")
    assert link.is_symlink() and target.read_bytes() == b"new\r\n"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_an_existing_file_can_be_kept(tmp_path):
    path = tmp_path / "a"
    write_text(path, "first", overwrite=False)
    write_text(path, "second", overwrite=False)
    assert path.read_text() == "first" and names(tmp_path) == ["a"]


def test_threads_may_write_the_same_file(tmp_path):
    path, texts = tmp_path / "a", [str(i) * 100_000 for i in range(4)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and names(tmp_path) == ["a"]


def test_pipes_devices_and_descriptors_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join()
    assert read == [b"through the pipe"] and is_stream(pipe)
    write_text("/dev/null", "nothing")
    with (tmp_path / "log").open("w+b") as log:  # as `>(command)` or a redirected /dev/stdout
        log.write(b"before ")
        log.flush()
        write_text(f"/dev/fd/{log.fileno()}", "and after")
        log.seek(0)
        assert log.read() == b"before and after"
    assert names(tmp_path) == ["log", "pipe"]
    assert not is_stream(tmp_path) and not is_stream(tmp_path / "log")


@pytest.mark.parametrize("name", ["", None, 5, b"file"])
def test_what_is_no_path(name):
    with pytest.raises(GritError, match="a path must be a string that is not empty"):
        home_path(name)


def test_an_output_that_is_an_input(tmp_path):
    path, link, other = tmp_path / "a", tmp_path / "link", tmp_path / "b"
    path.touch()
    link.symlink_to(path)
    for output in (path, link, tmp_path / "." / "a"):
        with pytest.raises(GritError, match="is an input as well"):
            refuse_same_file(output, None, other, path)
    refuse_same_file(other, path, link)
    refuse_same_file(Path("/dev/null"), Path("/dev/null"))


@pytest.mark.parametrize(
    "path, words", [(".", "is a folder"), ("no/x", "no/x: cannot be written \\(No such file")]
)
def test_what_cannot_be_written(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GritError, match=words):
        write_text(path, "")


def test_json_as_written(tmp_path):
    value = {"name": "Zürich", "scores": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Zürich" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert write_jsonl(tmp_path / "a.jsonl", iter([value, {"b": 1}])) == 2
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [value, {"b": 1}]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_holds_no_number_that_is_not_finite(tmp_path, number):
    with pytest.raises(GritError, match=rf"^scores\.1\.ndcg is {number}, not a finite number"):
        json_text({"scores": [{"ndcg": 1.0}, {"ndcg": number}]})
    with pytest.raises(GritError, match=r"r.json: not written: loss is"):
        write_json(tmp_path / "r.json", {"loss": number})
    with pytest.raises(GritError, match=r"r.jsonl: not written: row 1: loss is"):
        write_jsonl(tmp_path / "r.jsonl", [{"loss": 1.0}, {"loss": number}])
    assert not names(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_json_that_is_no_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(GritError, match="a.json: (expected a JSON object|not valid JSON)"):
        read_json(tmp_path / "a.json")
    with pytest.raises(GritError, match="b.json: no such file"):
        read_json(tmp_path / "b.json")


def test_a_new_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        raise ZeroDivisionError
    assert not names(tmp_path)
    with (
        pytest.raises(GritError, match=f"^{tmp_path}/a/no/file: cannot be written"),
        new_folder(tmp_path / "a") as folder,
    ):
        write_text(folder / "no" / "file", "")
    with new_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
    assert names(tmp_path / "a") == ["file"]
    with pytest.raises(GritError, match="not empty"), new_folder(tmp_path / "a"):
        pass


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    with (
        lock_folder(tmp_path, "grit train"),
        pytest.raises(GritError, match="another grit train is writing here"),
        lock_folder(tmp_path, "grit train"),
    ):
        pass
    with lock_folder(tmp_path, "grit train"):  # released
        pass


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
