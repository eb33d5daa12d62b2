"""The same examples from JSONL, from globs, and from a prepared tfds dataset."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from grit_jax.data.formats import parse_line
from grit_jax.data.preparation import PrepareOptions, prepare
from grit_jax.data.sources import open_lines, open_source, open_sources, source_units
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
    report = prepare([f"{folder}/*.jsonl"], folder / "out")
    assert (report.kind, report.examples) == ("embedding", 8)
    assert capsys.readouterr().out == ""
    plain = open_source(f"{folder}/*.jsonl")
    for source in (
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
        prepare([folder / "a.jsonl"], folder / "out", PrepareOptions(kind="generative"))
    with pytest.raises(GritError, match="no source named"):
        prepare([], folder / "out")
    with pytest.raises(GritError, match="a file; name a folder"):
        prepare([folder / "a.jsonl"], folder / "b.jsonl")
    assert not (folder / "out").exists()
    result = prepare([folder / "text.jsonl"], folder / "out", PrepareOptions(on_error="skip"))
    assert result.examples == 1 and sum(result.dropped.values()) == 1
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


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.jsonl", "a.jsonl"], "data.embedding: .*a.jsonl is listed twice; list it once"),
        (["a.jsonl", "./sub/../a.jsonl"], "a.jsonl and .*sub/../a.jsonl are the same data"),
        (["a.jsonl", "b.jsonl", "link.jsonl"], r"a.jsonl and .*link.jsonl .* \(.*/a.jsonl\)"),
        (["a.jsonl", "hard.jsonl"], "a.jsonl and .*hard.jsonl are the same data"),
        (["out", "tfds:out"], "out and tfds:.*out are the same data"),
        (["out", "out/grit_dataset/1.0.0"], "out and .*1.0.0 are the same data"),
    ],
)
def test_a_file_that_is_listed_twice_is_an_error(folder, names, message):
    """It would meet its own examples as negatives, whatever it is called."""
    (folder / "sub").mkdir()
    (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
    os.link(folder / "a.jsonl", folder / "hard.jsonl")
    if "out" in names:
        prepare([folder / "b.jsonl"], folder / "out")
    paths = [
        f"tfds:{folder}/{name[5:]}" if name.startswith("tfds:") else f"{folder}/{name}"
        for name in names
    ]
    with pytest.raises(GritError, match=message):
        open_sources(paths, "data.embedding")


@pytest.mark.parametrize(
    "names, sizes, said",
    [
        (["*.jsonl", "a.jsonl"], {"*.jsonl": 3, "a.jsonl": 5}, "1 of the 2 files that"),
        (["[ab].jsonl", "*.jsonl"], {"[ab].jsonl": 8}, "2 of the 2 files that"),
        (["a*", "b*", "[bc].jsonl"], {"a*": 5, "b*": 3}, "1 of the 1 files that"),
        (["**/*.jsonl"], {"**/*.jsonl": 8}, ""),
    ],
)
def test_overlapping_globs_read_each_file_once(folder, capsys, names, sizes, said):
    opened = open_sources([f"{folder}/{name}" for name in names], "data.embedding")
    assert {source.name.removeprefix(f"{folder}/"): len(source) for source in opened} == sizes
    err = capsys.readouterr().err
    assert (said in err and "each file is read once" in err) if said else err == ""


def test_links_that_one_glob_matches_beside_their_file_are_left_out(folder, capsys):
    (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
    (source,) = open_sources([f"{folder}/*.jsonl"], "data.embedding")
    assert len(source) == 8 and "1 of the 3 files" in capsys.readouterr().err


def test_copies_are_read_with_a_warning(folder, capsys):
    (folder / "copy.jsonl").write_bytes((folder / "a.jsonl").read_bytes() + b"\n")
    names = [f"{folder}/{name}.jsonl" for name in ("a", "b", "copy")]
    assert [len(source) for source in open_sources(names, "data.embedding")] == [5, 3, 5]
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.jsonl and" in line and "copy.jsonl hold the same 5 lines" in line


def test_prepare_does_not_write_a_file_twice(folder):
    with pytest.raises(GritError, match="data prepare: .*a.jsonl is listed twice"):
        prepare([folder / "a.jsonl", folder / "a.jsonl"], folder / "out")


def test_the_digest_is_that_of_the_lines_in_their_order(folder):
    prepare([f"{folder}/*.jsonl"], folder / "out")
    source = open_source(f"{folder}/*.jsonl")
    assert (source.num_lines, source.digest) == (8, open_source(folder / "out").digest)
    (folder / "b.jsonl").write_bytes(b"\r\n".join((folder / "b.jsonl").read_bytes().split(b"\n")))
    assert open_source(f"{folder}/*.jsonl").digest == source.digest, "line ends do not count"
    lines = (folder / "a.jsonl").read_text().split("\n\n")
    for other in (lines[::-1], lines[1:], [lines[0].replace("a0", "a9"), *lines[1:]]):
        (folder / "a.jsonl").write_text("\n".join(other))
        assert open_source(f"{folder}/*.jsonl").digest != source.digest


def test_units_are_files_and_datasets_in_order(folder):
    prepare([folder / "b.jsonl"], folder / "out")
    units = source_units([f"{folder}/*.jsonl", f"{folder}/out"], "data prepare")
    paths = [str(getattr(unit, "name", unit)) for _, unit in units]
    assert paths == ["a.jsonl", "b.jsonl", f"{folder}/out"]
    units = source_units([f"{folder}/a.jsonl", f"{folder}/*.jsonl"], "data prepare")
    assert [unit.name for _, unit in units] == ["a.jsonl", "b.jsonl"]
