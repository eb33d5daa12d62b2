"""Pipes and compressed files: their content, in any order and as often as needed."""

from __future__ import annotations

import gzip
import json
import os
import threading

import pytest
import zstandard

from grit_jax.data.lines import JsonlFile
from grit_jax.data.spool import spooled
from grit_jax.errors import GritError

TWO = b'{"text": "a"}\n\n{"text": "\xc3\xa9"}\n'


PACKED = {
    "plain": TWO,
    "gzip": gzip.compress(TWO),
    "gzip members": gzip.compress(TWO[:9]) + gzip.compress(TWO[9:]),
    "zstd": zstandard.compress(TWO),
    "zstd frames": zstandard.compress(TWO[:9]) + zstandard.compress(TWO[9:]),
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("kind", ["file", "fifo", "pipe"])
def test_compressed_files_and_pipes(tmp_path, packed, kind):
    """Told by the content, not by the name; a pipe can be opened again, as `grit eval` does."""
    path = tmp_path / "f.jsonl"
    if kind == "file":
        path.write_bytes(packed)
    else:
        if kind == "fifo":
            os.mkfifo(path)
            writer = threading.Thread(target=path.write_bytes, args=(packed,))
        else:  # the shell's <(zcat f.gz)
            read, write = os.pipe()
            path = f"/dev/fd/{read}"
            writer = threading.Thread(target=lambda: (os.write(write, packed), os.close(write)))
        writer.start()
    for _ in range(2):
        lines = JsonlFile(path)
        assert [json.loads(lines[i])["text"] for i in (1, 0)] == ["é", "a"]
        assert lines.where(1) == f"{path}:3" and list(lines) == [lines[0], lines[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["f.jsonl"] * (kind != "pipe")
    if kind == "pipe":
        os.close(read)


def test_a_large_compressed_file(tmp_path):
    path, content = tmp_path / "f", b"".join(b'{"text": "%d"}\n' % i for i in range(200_000))
    for compress in (gzip.compress, zstandard.compress):
        path.write_bytes(compress(content))
        lines = JsonlFile(path)
        assert len(lines) == 200_000 and lines[123_456] == b'{"text": "123456"}\n'


def test_only_what_cannot_be_read_in_place_is_copied(tmp_path):
    """The copy has no name, so that nothing is left of it when the process is killed."""
    plain, packed = tmp_path / "plain.gz", tmp_path / "packed.txt"  # suffixes do not count
    plain.write_bytes(TWO)
    packed.write_bytes(gzip.compress(TWO))
    assert spooled(plain) is None
    copy = spooled(packed)
    copy.seek(0)
    assert copy.read() == TWO and os.fstat(copy.fileno()).st_nlink == 0
    copy.close()
    with pytest.raises(OSError):
        spooled(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\x08rest",
        gzip.compress(TWO * 99, mtime=0)[:-9],
        zstandard.compress(TWO * 99)[:-1],
        zstandard.compress(TWO) + zstandard.compress(TWO)[:-1],
        b"\x28\xb5\x2f\xfd" + b"x" * 99,
    ],
    ids=["gzip", "gzip-cut", "zstd-cut", "zstd-second-frame-cut", "zstd"],
)
def test_damaged_data_are_an_error(tmp_path, content):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(GritError, match="the compressed data are damaged or cut short") as error:
        spooled(path)
    assert str(error.value).startswith(f"{path}: ")
