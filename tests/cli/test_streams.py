"""Pipes, compressed files and descriptors as inputs and outputs of the verbs."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import zstandard
from cli_world import run

from grit_jax.cli.output import escape_unprintable, print_text

pytestmark = pytest.mark.usefixtures("in_world")


@pytest.fixture
def pipe():
    """Makes a pipe that gives `content`, by its name, as the shell's `<(command)` does."""
    read_ends = []

    def make(content: bytes) -> str:
        read, write = os.pipe()
        read_ends.append(read)
        threading.Thread(target=lambda: (os.write(write, content), os.close(write))).start()
        return f"/dev/fd/{read}"

    yield make
    for read in read_ends:
        os.close(read)


@pytest.fixture
def sink():
    """A pipe to write to, by its name, and a function that closes it and gives what came."""
    read, write = os.pipe()
    received = []
    reader = threading.Thread(target=lambda: received.append(open(read, "rb").read()))  # noqa: SIM115
    reader.start()

    def content() -> bytes:
        os.close(write)
        reader.join()
        return received[0]

    return f"/dev/fd/{write}", content


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_encode_reads_and_writes_pipes(capsys, world, tmp_path, pipe, sink, pack):
    source = pipe(pack((world / "texts.jsonl").read_bytes()))
    name, content = sink
    said = run(capsys, f"encode model --input {source} --output {name} --precision bfloat16")
    assert said.status == 0 and f"9 texts to {name}" in said.out
    vectors = np.load(io.BytesIO(content()))
    file = tmp_path / "x.npy"
    run(capsys, f"encode model --input texts.jsonl --output {file} --precision bfloat16")
    assert vectors.tobytes() == np.load(file).tobytes() and vectors.shape == (9, 48)


def test_texts_from_a_pipe_are_lines_where_told(capsys, sentences, pipe, tmp_path):
    source = pipe("\n".join([sentences[0], "", sentences[1]]).encode())
    output = tmp_path / "v.npy"
    run(capsys, f"encode model --input {source} --output {output} --input-format txt")
    assert np.load(output).shape[0] == 3


@pytest.mark.parametrize(
    "command, file",
    [
        ("generate model --max-new-tokens 2 --input", "prompts.jsonl"),
        ("eval perplexity model --input", "generative.jsonl"),
        ("eval retrieval model --input", "embedding.jsonl"),  # read twice: for BM25 as well
        ("data distractors --output {} --k 2 --input", "rag.jsonl"),
        ("data relevance --output {} --input", "embedding.jsonl"),
        ("data repeats --output {} --rows 3 --input", "corpus.jsonl"),
    ],
)
def test_verbs_read_pipes(capsys, world, pipe, tmp_path, command, file):
    output = tmp_path / "out"
    said = run(capsys, f"{command.format(output)} {file}")
    written = output.read_bytes() if output.exists() else None
    source = pipe(gzip.compress((world / file).read_bytes()))
    again = run(capsys, f"{command.format(output)} {source}")
    assert (said.status, again.status) == (0, 0) and said.out == again.out
    assert written is None or output.read_bytes() == written


def test_prepare_and_index_read_pipes(capsys, world, pipe, tmp_path):
    source = pipe((world / "generative.jsonl").read_bytes())
    assert run(capsys, f"data prepare {source} --output {tmp_path / 'set'}").status == 0
    source = pipe((world / "corpus.jsonl").read_bytes())
    said = run(capsys, f"index model --input {source} --output {tmp_path / 'i'} --json")
    lines = (world / "corpus.jsonl").read_text().splitlines()
    assert said.status == 0 and said.json["documents"] == len(lines)


@pytest.mark.parametrize(
    "command",
    [
        "encode model --input texts.jsonl --output texts.jsonl",
        "encode model --input texts.jsonl --output ./model/../texts.jsonl",
        "encode model --input texts.jsonl --output model/model.safetensors",
        "data distractors --input rag.jsonl --output rag.jsonl --k 2",
        "data distractors --input rag.jsonl --corpus corpus.jsonl --output corpus.jsonl --k 2",
        "data relevance --input embedding.jsonl --output embedding.jsonl",
        "data repeats --input corpus.jsonl --output corpus.jsonl --rows 3",
    ],
)
def test_an_output_that_is_an_input_is_refused(capsys, world, command):
    files = [*world.glob("*.jsonl"), world / "model" / "model.safetensors"]
    before = {path: path.read_bytes() for path in files}
    said = run(capsys, command)
    assert said.status == 2 and "is an input as well" in said.lines[0]
    assert before == {path: path.read_bytes() for path in files}


def test_standard_output_holds_the_file_alone(world, tmp_path):
    """The summary goes to standard error; the corpus is not ASCII, the terminal is."""
    line = json.dumps({"id": "1", "text": "é € " * 20}, ensure_ascii=False)
    (tmp_path / "c.gz").write_bytes(gzip.compress(line.encode()))
    grit = f"{sys.executable} -m grit_jax"
    command = (
        f"{grit} data repeats --rows 3 --input <(cat {tmp_path}/c.gz) --output /dev/stdout | cat"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:surrogateescape", "PYTHONUTF8": "0"},
        check=False,
    )
    assert b"3 rows in /dev/stdout" in done.stderr, done.stderr
    lines = done.stdout.decode("utf-8").splitlines()
    assert len(lines) == 3 and all(line.startswith('{"text": "') for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "grit_jax", "encode", "m", "--json", "--input", "x", "--output"]
        + ["/dev/stdout"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "both write to standard output" in done.stderr


def test_a_terminal_that_lacks_a_character(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    escape_unprintable()
    print_text("5 € \udce9")
    assert raw.getvalue() == b"5 \\u20ac \\udce9\n"
