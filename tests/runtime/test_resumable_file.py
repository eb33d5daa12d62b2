"""An output file that is written block by block, and what is left of it after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.resumable_file import resumable_file

IDENTITY = {"input": "a", "options": {"k": [1, 2]}}


def write(path, first, last, identity=IDENTITY, fail=False):
    """Appends the numbers from `first`, or from where it was, to `last`; returns where it began."""
    with resumable_file(path, identity) as file:
        began = file.state.get("next", first)
        for number in range(began, last):
            file.append(f"{number}\n".encode(), {"next": number + 1})
        if fail:
            raise KeyboardInterrupt
    return began


def test_a_stopped_writer_goes_on_after_its_last_block(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(KeyboardInterrupt):
        write(path, 0, 3, fail=True)
    assert not path.exists()
    with open(tmp_path / ".out.txt.partial", "ab") as file:  # half a block that was not committed
        file.write(b"half")
    assert write(path, 0, 5) == 3
    assert path.read_text() == "0\n1\n2\n3\n4\n" and os.listdir(tmp_path) == ["out.txt"]


def test_a_killed_process_goes_on_after_its_last_block(tmp_path):
    path = tmp_path / "out.txt"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from grit_jax.runtime.resumable_file import resumable_file\n"
        f"with resumable_file(Path({str(path)!r}), {IDENTITY!r}) as file:\n"
        "    for n in range(4): file.append(f'{n}\\n'.encode(), {'next': n + 1})\n"
        "    file._file.write(b'lost'); file._file.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == -9 and not path.exists()
    assert write(path, 0, 6) == 4 and path.read_text() == "0\n1\n2\n3\n4\n5\n"


@pytest.mark.parametrize("damage", ["identity", "state", "bytes"])
def test_what_does_not_belong_together_is_made_again(tmp_path, damage, capsys):
    path = tmp_path / "out.txt"
    with pytest.raises(KeyboardInterrupt):
        write(path, 0, 3, fail=True)
    identity = IDENTITY
    if damage == "identity":
        identity = {**IDENTITY, "input": "b"}
    elif damage == "state":
        (tmp_path / ".out.txt.partial.json").write_text("{")
    else:
        (tmp_path / ".out.txt.partial").write_text("0\n")
    assert write(path, 7, 9, identity) == 7 and path.read_text() == "7\n8\n"
    said = {"identity": "made with another input;", "state": "cannot be", "bytes": "is shorter"}
    assert said[damage] in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tmp_path):
    with pytest.raises(GritError, match="is a folder; name a file"):
        write(tmp_path, 0, 1)
    (tmp_path / "file").touch()
    with pytest.raises(GritError, match="file/out: cannot be written"):
        write(tmp_path / "file" / "out", 0, 1)
    with (
        resumable_file(tmp_path / "out", IDENTITY),
        pytest.raises(GritError, match="out: another process is writing it"),
        resumable_file(tmp_path / "out", IDENTITY),
    ):
        pass


def test_a_stream_is_written_directly(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from grit_jax.runtime.resumable_file import resumable_file\n"
        "with resumable_file(Path('/dev/stdout'), {}) as file: file.append(b'1\\n', {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert json.loads(done.stdout) == 1
