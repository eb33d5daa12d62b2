"""Data files without what evaluation sets hold: the lines that stay, what is said of the others, and
kills."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest

from grit_jax.data import decontamination, preparation
from grit_jax.data.contamination import DecontaminationOptions
from grit_jax.data.decontamination import decontaminate, matches_file, report_file
from grit_jax.data.preparation import PrepareOptions, prepare
from grit_jax.data.sources import open_lines
from grit_jax.errors import GritError

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"
CLOSE = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"
# Written as a person might: the lines that stay are to be the same bytes.
LINES = [
    '{"text": ["What is the first letter?",  "a"], "source": "x"}',
    '{"text": ["Go on", "They say ' + RUN + ' and more"]}',
    '{"text":["What is the last question?","z"]}',
    '{"text": ["Names?", "' + CLOSE + ' nu"]}',
    '{"text": ["gr\\u00fcn", "größer"]}',
    '{"text": "A document that nobody knows."}',
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    exam = [{"id": 1, "question": "What is the LAST question"}, {"text": RUN}, {"text": CLOSE}]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    return tmp_path


def options(folder, **more) -> DecontaminationOptions:
    return DecontaminationOptions((str(folder / "exam.jsonl"),), **more)


def test_what_is_left_and_what_was_removed(files):
    output = files / "clean.jsonl"
    report = decontaminate([files / "a.jsonl"], output, options(files), quiet=True)
    kept = [LINES[i] for i in (0, 4, 5)]
    assert output.read_text(encoding="utf-8") == "\n".join(kept) + "\n"
    assert report.dropped == {
        f"contaminated ({method} match)": 1 for method in ("ngram", "exact", "near")
    }
    assert (report.read, report.kept, report.kind) == (6, 3, "generative")
    assert report.sources == {str(files / "a.jsonl"): {"read": 6, "kept": 3}}
    assert report.contamination["files"] == {str(files / "exam.jsonl"): {"texts": 3, "matched": 3}}
    assert json.loads(report_file(output).read_text()) == report.to_dict()
    matches = [json.loads(line) for line in matches_file(output).open()]
    assert [(m["where"], m["part"], m["method"]) for m in matches] == [
        (f"{files}/a.jsonl:2", "text[1]", "ngram"),
        (f"{files}/a.jsonl:3", "text[0]", "exact"),
        (f"{files}/a.jsonl:4", "text[1]", "near"),
    ]
    assert matches[0]["excerpt"] == RUN
    assert f"against {files}/exam.jsonl: 3 of 3 texts were found" in str(report)


def test_it_keeps_what_prepare_keeps(files):
    (files / "b.jsonl.gz").write_bytes(gzip.compress((files / "a.jsonl").read_bytes()))
    sources, asked = [files / "*.gz", files / "a.jsonl"], options(files, ngram=5, share=0.2)
    decontaminate(sources, files / "clean.jsonl", asked, quiet=True)
    prepare(
        sources,
        files / "set",
        PrepareOptions(duplicates="keep", decontamination=asked),
        quiet=True,
    )
    lines = open_lines(files / "set")
    assert (files / "clean.jsonl").read_bytes().splitlines() == [*lines]
    assert (
        matches_file(files / "clean.jsonl").read_bytes()
        == (files / "set" / preparation.MATCHES).read_bytes()
    )
    decontaminate([files / "set"], files / "again.jsonl", asked, quiet=True)  # a prepared dataset
    assert (files / "again.jsonl").read_bytes() == (files / "clean.jsonl").read_bytes()


@pytest.mark.parametrize("stage", ["_stage", "write_file"])
def test_a_killed_run_continues_with_the_same_bytes(files, stage, monkeypatch):
    monkeypatch.setattr(preparation, "ROWS_TOGETHER", 2)
    decontaminate([files / "a.jsonl"], files / "whole.jsonl", options(files), quiet=True)
    owner = preparation.Preparation if stage == "_stage" else decontamination
    real, calls = getattr(owner, stage), itertools.count()

    def killed(*args):
        if next(calls) == (1 if stage == "_stage" else 0):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, stage, killed)
    output = files / "clean.jsonl"
    with pytest.raises(KeyboardInterrupt):
        decontaminate([files / "a.jsonl"], output, options(files), quiet=True)
    assert not output.exists() and (files / ".clean.jsonl.partial").exists()
    before = next(calls)
    report = decontaminate([files / "a.jsonl"], output, options(files), quiet=True)
    if stage == "_stage":  # the first block of four is not read again
        assert next(calls) - before - 1 == 3
    assert (report.read, report.kept) == (6, 3)
    assert output.read_bytes() == (files / "whole.jsonl").read_bytes()
    assert matches_file(output).read_bytes() == matches_file(files / "whole.jsonl").read_bytes()
    assert not (files / ".clean.jsonl.partial").exists()


def test_rows_that_cannot_be_used(files):
    with (files / "a.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(GritError, match=r"a\.jsonl:7: no known key"):
        decontaminate([files / "a.jsonl"], files / "x.jsonl", options(files), quiet=True)
    assert not (files / "x.jsonl").exists()
    report = decontaminate(
        [files / "a.jsonl"], files / "x.jsonl", options(files), on_error="skip", quiet=True
    )
    assert (report.read, report.kept) == (7, 3)


def test_errors(files):
    ask = lambda output, asked=None: decontaminate(
        [files / "a.jsonl"], output, asked or options(files), quiet=True
    )
    for name in ("a.jsonl", "exam.jsonl"):
        with pytest.raises(GritError, match=f"{name}: is an input as well"):
            ask(files / name)
    with pytest.raises(GritError, match="is a folder; name a file"):
        ask(files)
    with pytest.raises(GritError, match="/dev/stdout: name a file; the report and the matches"):
        ask("/dev/stdout")
    with pytest.raises(GritError, match="absent: no such file"):
        ask(files / "x.jsonl", DecontaminationOptions((str(files / "absent"),)))
    with pytest.raises(GritError, match="evaluation files with --against"):
        ask(files / "x.jsonl", DecontaminationOptions(()))
    (files / "all.txt").write_text("\n".join(LINES) + "\nwhat is the first letter\ngrün größer\n")
    one = DecontaminationOptions((str(files / "all.txt"),), ngram=1, least_words=1)
    with pytest.raises(GritError, match="no row is left; dropped: {'contaminated"):
        ask(files / "x.jsonl", one)
    assert not list(files.glob("x.jsonl*"))
