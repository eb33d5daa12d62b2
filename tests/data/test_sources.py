"""The same examples from JSONL, from globs, and from a prepared tfds dataset."""

import json
import pickle
import subprocess
import sys

import pytest

from grit_jax.data.formats import parse_line
from grit_jax.data.sources import open_lines, open_source, prepare
from grit_jax.errors import GritError


@pytest.fixture
def folder(tmp_path):
    for name, count in (("b", 3), ("a", 5)):
        lines = [
            {"query": ["i", f"{name}{n} é"], "pos": [["", "p"]], "neg": ["n"]} for n in range(count)
        ]
        text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_glob_is_its_files_in_order(folder):
    source = open_source(f"{folder}/*.jsonl")
    assert [source[i].query.text for i in range(len(source))] == [
        *(f"a{n} é" for n in range(5)),
        *(f"b{n} é" for n in range(3)),
    ]
    assert source.where(6) == f"{folder}/b.jsonl:3"


def test_prepared_dataset_has_the_same_examples(folder, capsys):
    written = prepare([f"{folder}/*.jsonl"], folder / "out")
    assert capsys.readouterr().out == ""
    plain = open_source(f"{folder}/*.jsonl")
    for source in (
        written,
        open_source(folder / "out"),
        open_source(f"tfds:{folder}/out", "embedding"),
    ):
        assert source.kind == "embedding" and len(source) == 8
        assert [source[i] for i in range(8)] == [plain[i] for i in range(8)]
        assert [source.where(i) for i in range(8)] == [plain.where(i) for i in range(8)]
    lines = pickle.loads(pickle.dumps(open_lines(folder / "out")))
    assert parse_line(lines[3], "") == plain[3]
    assert list((folder / "out").glob("**/*array_record*"))


def test_prepare_refuses_what_it_should(folder):
    (folder / "text.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(GritError, match=r"text\.jsonl:2: "):
        prepare([folder / "text.jsonl"], folder / "out")
    with pytest.raises(GritError, match="an embedding example in a generative file"):
        prepare([folder / "a.jsonl"], folder / "out", kind="generative")
    with pytest.raises(GritError, match="no source named"):
        prepare([], folder / "out")
    with pytest.raises(GritError, match="a file; name a folder"):
        prepare([folder / "a.jsonl"], folder / "b.jsonl")
    assert not (folder / "out").exists()
    result = prepare([folder / "text.jsonl"], folder / "out", on_error="skip")
    assert len(result) == 1 and result.skipped.total() == 1
    with pytest.raises(GritError, match="already holds a prepared dataset"):
        prepare([folder / "a.jsonl"], folder / "out")


@pytest.mark.parametrize(
    "name, message",
    [
        ("", r"a folder without a prepared dataset; name its files"),
        ("/*.nothing", "no file matches"),
        ("/nothing.jsonl", "no such file"),
    ],
)
def test_names_with_nothing_behind_them(folder, name, message):
    with pytest.raises(GritError, match=message):
        open_source(f"{folder}{name}")


def test_tfds_names_that_do_not_exist():
    with pytest.raises(
        GritError, match=r"^tfds:no_such_data: cannot be opened as a tfds dataset [^\n]*$"
    ):
        open_source("tfds:no_such_data")


def test_neither_tensorflow_nor_anything_heavy_is_imported():
    code = """import sys, grit_jax.data.pipeline
heavy = ("tensorflow", "tensorflow_datasets", "grain", "sentencepiece", "torch")
print([module for module in heavy if module in sys.modules])"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
