"""What `grit data` prints and writes when all is well."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_world import run, write_lines

from grit_jax.cli.data import FORMATS
from grit_jax.data.dialects import DIALECTS
from grit_jax.data.sources import open_source

pytestmark = pytest.mark.usefixtures("in_world")


def test_formats_are_those_of_prepare():
    """Its module imports NumPy, the command line does not."""
    assert tuple(DIALECTS) == FORMATS[1:] and FORMATS[0] == "grit"


def test_distractors(capsys, tmp_path):
    out = tmp_path / "several.jsonl"
    said = run(
        capsys, f"data distractors --input rag.jsonl --corpus corpus.jsonl --k 2,3 --output {out}"
    )
    assert said.status == 0 and said.out == f"3 rows in {out}\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["docs"]) for row in rows] == [2, 3, 2]


def test_relevance(capsys, tmp_path):
    out = tmp_path / "relevance.jsonl"
    said = run(capsys, f"data relevance --input embedding.jsonl --rows 4 --output {out}")
    assert said.status == 0 and said.out == f"4 rows in {out}\n"
    labels = [json.loads(line)["text"][1] for line in out.read_text().splitlines()]
    assert labels == ["yes", "no", "yes", "no"]


def test_repeats(capsys, tmp_path):
    out = tmp_path / "repeats.jsonl"
    write_lines(
        tmp_path / "long.jsonl",
        {"id": "1", "title": "Counting", "text": " ".join(map(str, range(20)))},
    )
    said = run(capsys, f"data repeats --input {tmp_path}/long.jsonl --rows 5 --output {out}")
    assert (
        said.status == 0
        and said.out == f"5 rows in {out}\n"
        and len(out.read_text().splitlines()) == 5
    )


def test_decontaminate(capsys, tmp_path):
    exam = write_lines(tmp_path / "exam.jsonl", {"q": "nothing of this is in any text at all"})
    command = f"data decontaminate embedding.jsonl --output {tmp_path}/clean.jsonl"
    said = run(capsys, f"{command} --against {exam}")
    lines = said.out.splitlines()
    assert lines[0] == f"8 of 8 embedding examples in {tmp_path}/clean.jsonl"
    assert lines[1] == f"  against {exam}: 0 of 1 texts were found"
    assert (tmp_path / "clean.jsonl").read_bytes() == Path("embedding.jsonl").read_bytes()
    lines = Path("embedding.jsonl").read_text().splitlines()
    texts = [json.loads(line)["pos"][0][1] for line in lines]
    write_lines(tmp_path / "exam.jsonl", {"q": texts[2]})
    said = run(capsys, f"{command} --against {exam} --json --ngram 99")
    assert said.json["kept"] < 8 and said.json["first"] == {
        "contaminated (exact match)": "embedding.jsonl:3"
    }
    said = run(capsys, command)
    assert said.status == 2 and "required: --against" in said.err


def test_data(capsys, tmp_path, monkeypatch):
    said = run(capsys, f"data prepare embedding.jsonl embedding.jsonl --output {tmp_path}/set")
    assert said.status == 2 and "embedding.jsonl is listed twice; list it once" in said.err
    shutil.copy("embedding.jsonl", tmp_path / "copy.jsonl")
    said = run(
        capsys, f"data prepare embedding.jsonl {tmp_path}/copy.jsonl --output {tmp_path}/set"
    )
    first, *more = said.out.splitlines()
    assert first == f"8 embedding examples in {tmp_path}/set (16 rows read)"
    assert f"  dropped: 8: exact duplicate (first: {tmp_path}/copy.jsonl:1)" in more
    assert len(open_source(tmp_path / "set")) == 8
    keep = f"data prepare embedding.jsonl {tmp_path}/copy.jsonl --output {tmp_path}/all"
    said = run(capsys, f"{keep} --duplicates keep --tokenizer model --json")
    assert said.json["examples"] == 16 and said.json["duplicates"]["exact"] == 8
    tokens, characters = said.json["tokens"], said.json["characters"]
    assert tokens["query"]["texts"] == 16 and tokens["query"]["max"] < characters["query"]["max"]
    clean = f"data prepare embedding.jsonl --output {tmp_path}/clean --against generative.jsonl"
    said = run(capsys, f"{clean} --against-fields text --ngram 5 --languages en,unknown")
    assert said.status == 2 and "no row is left" in said.err

    packages = "--packages json,argparse,logging --held-out-packages csv"
    said = run(capsys, f"data pydocs --output {tmp_path}/corpus --seed 4 --documents 40 {packages}")
    first, origin, *files = said.out.splitlines()
    count = re.fullmatch(
        r"(\d+) documents: (\d+) to train on, (\d+) held out by name, (\d+) in packages that are"
        r" held out whole, (\d+) duplicates left out",
        first,
    )
    documents, *parts = map(int, count.groups())
    assert documents == sum(parts) == 40 and parts[2] == 3
    assert set(re.findall(r"(\w+) \d+", origin)) == {"json", "argparse", "logging", "csv"}
    for line in files:
        name, count = line.strip().removesuffix(" lines").split(": ")
        assert len(Path(name).read_text().splitlines()) == int(count)
    assert len(files) == 16
