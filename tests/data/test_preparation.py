"""Data files of every format to one dataset: what is kept, what is dropped and why, and kills."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from grit_jax.data import preparation
from grit_jax.data.contamination import DecontaminationOptions
from grit_jax.data.preparation import PrepareOptions, prepare
from grit_jax.data.sources import open_lines, open_source
from grit_jax.errors import GritError


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def lines_of(folder):
    """Place and value of every record of a prepared dataset."""
    lines = open_lines(folder)
    return {lines.where(i): json.loads(lines[i]) for i in range(len(lines))}


def same(report):
    return {key: value for key, value in report.to_dict().items() if key != "seconds"}


def test_many_formats_and_containers_become_one_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "ROWS_TOGETHER", 3)
    monkeypatch.setattr(preparation, "SHARD_BYTES", 300)
    files = {
        "a.jsonl": jsonl({"query": f"a{i}", "pos": [f"pa{i}"]} for i in range(5)),
        "b.jsonl.gz": gzip.compress(
            jsonl(
                {"query": ["I;", f"b{i}"], "pos": ["J;", f"pb{i}"], "task_id": 1} for i in range(4)
            )
        ),
        "c.json.zst": zstandard.compress(
            json.dumps([{"anchor": f"c{i}", "positive": f"pc{i}"} for i in range(4)]).encode()
        ),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = [
        {"query": f"d{i}", "pos": [f"pd{i}"], "neg": [f"n{i}"], "prompt": "P"} for i in range(4)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    report = prepare([f"{tmp_path}/[a-d].*"], tmp_path / "out", PrepareOptions(instruction="Find"))
    expected = {
        **{f"a.jsonl:{i + 1}": {"query": f"a{i}", "pos": [f"pa{i}"]} for i in range(5)},
        **{
            f"b.jsonl.gz:{i + 1}": {"query": ["I;", f"b{i}"], "pos": [["J;", f"pb{i}"]], "neg": []}
            for i in range(4)
        },
        **{
            f"c.json.zst: row {i + 1}": {
                "query": ["Find", f"c{i}"],
                "pos": [["", f"pc{i}"]],
                "neg": [],
            }
            for i in range(4)
        },
        **{
            f"d.parquet: row {i + 1}": {
                "query": ["P", f"d{i}"],
                "pos": [["", f"pd{i}"]],
                "neg": [["", f"n{i}"]],
            }
            for i in range(4)
        },
    }
    expected = {f"{tmp_path}/{place}": line for place, line in expected.items()}
    assert list(lines_of(tmp_path / "out").items()) == list(expected.items())
    assert report.formats == {"grit": 5, "medi": 4, "triplet": 4, "bge": 4}
    assert report.sources == {f"{tmp_path}/[a-d].*": {"read": 17, "kept": 17}}
    assert (report.kind, report.examples, report.read) == ("embedding", 17, 17)
    assert report.shards > 2 and report.dropped == {}
    assert len(list((tmp_path / "out").glob("**/*.array_record-*"))) == report.shards
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_dict()
    assert report.characters["neg"] == {
        "texts": 4, "total": 8, "mean": 2, "min": 2, "p5": 2, "p50": 2, "p95": 2, "p99": 2, "max": 2,
    }  # fmt: skip
    assert not list(tmp_path.glob(".*"))
    # A prepared dataset is a source as well, and goes through without a change.
    prepare([tmp_path / "out"], tmp_path / "again")
    assert lines_of(tmp_path / "again") == expected
    assert open_source(tmp_path / "again").digest == open_source(tmp_path / "out").digest


LONG = (
    "the quick brown fox jumps over the lazy dog while seven wizards quietly brew potions at dawn"
)
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": LONG}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": LONG}]},  # same
    {"text": ["Hi ", LONG]},  # the same but for white space
    {"text": ["Hi", LONG.replace("dawn", "dusk")]},  # close
    {"text": ["Hi", "Der Hund ist nicht auf dem Dach und die Katze auch nicht."]},
    {"text": ["Hi"]},
    {"text": ["What is the capital of France, and why?", "It is Paris."]},
    {"text": ["a", "b"]},
    {"prompt": "What is the answer to the last question of the exam?", "completion": "It is 42."},
]


@pytest.mark.parametrize("duplicates, kept", [("keep", 8), ("exact", 6), ("near", 5)])
def test_what_is_dropped_and_why(tmp_path, duplicates, kept):
    (tmp_path / "chats.jsonl").write_bytes(jsonl(CHATS))
    options = PrepareOptions(on_error="skip", duplicates=duplicates)
    report = prepare([tmp_path / "chats.jsonl"], tmp_path / "out", options)
    numbers = [int(place.rpartition(":")[2]) for place in lines_of(tmp_path / "out")]
    dropped = {"keep": set(), "exact": {2, 3}, "near": {2, 3, 4}}[duplicates]
    assert numbers == [n for n in range(1, 10) if n not in dropped | {6}]
    assert report.examples == len(numbers) == kept
    assert report.duplicates == {"exact": 2, "near": 1}
    reasons = {"exact duplicate": 2} if duplicates != "keep" else {}
    reasons |= {"near duplicate": 1} if duplicates == "near" else {}
    odd = '"text" has an odd number of turns (1); expected [user, assistant, ...] in pairs'
    assert report.dropped == {**reasons, odd: 1}
    assert report.first[odd] == f"{tmp_path}/chats.jsonl:6"
    assert report.languages["de"] == 1 and sum(report.languages.values()) == kept
    if duplicates != "keep":
        assert report.first["exact duplicate"].endswith("chats.jsonl:2")


def test_languages_and_lengths(tmp_path):
    (tmp_path / "chats.jsonl").write_bytes(jsonl(CHATS))
    options = PrepareOptions(
        on_error="skip", languages=("en",), min_characters=20, max_characters=80
    )
    report = prepare([tmp_path / "chats.jsonl"], tmp_path / "out", options)
    assert [place[-1] for place in lines_of(tmp_path / "out")] == ["7", "9"]
    dropped = {reason: n for reason, n in report.dropped.items() if "odd" not in reason}
    assert dropped == {"more than 80 characters": 4, "language de": 1, "language unknown": 1}
    assert report.characters["user"]["max"] == 52 and set(report.characters) == {
        "user",
        "assistant",
    }


def test_decontamination(tmp_path):
    (tmp_path / "chats.jsonl").write_bytes(jsonl(CHATS))
    exam = {"id": "q1", "question": "What is the answer to the last question of the exam?"}
    passage = {"text": f"They say that {LONG[:79]} and so on and so on for ever."}
    (tmp_path / "exam.jsonl").write_bytes(jsonl([exam, passage]))
    options = PrepareOptions(
        on_error="skip",
        duplicates="keep",
        decontamination=DecontaminationOptions((str(tmp_path / "exam.jsonl"),), ngram=8),
    )
    report = prepare([tmp_path / "chats.jsonl"], tmp_path / "out", options)
    assert [place[-1] for place in lines_of(tmp_path / "out")] == ["5", "7", "8"]
    assert report.dropped["contaminated (ngram match)"] == 4
    assert report.dropped["contaminated (exact match)"] == 1
    assert report.contamination == {
        "files": {str(tmp_path / "exam.jsonl"): {"texts": 2, "matched": 2}},
        "too_short": 0,
        "methods": {"exact": 1, "ngram": 4},
        "parts": {"text": 5},
    }
    matches = [json.loads(line) for line in (tmp_path / "out" / "contamination.jsonl").open()]
    assert [match["where"][-1] for match in matches] == ["1", "2", "3", "4", "9"]
    assert matches[-1] | {"excerpt": ""} == {
        "where": f"{tmp_path}/chats.jsonl:9",
        "part": "text[0]",
        "method": "exact",
        "against": f"{tmp_path}/exam.jsonl:1 question",
        "file": f"{tmp_path}/exam.jsonl",
        "text": 0,
        "score": 1.0,
        "excerpt": "",
    }
    assert matches[0]["excerpt"] == " ".join(LONG.split()[:8])


def many(count, seed=0):
    """Rows of which some repeat others."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        if rows and rng.random() < 0.1:
            rows.append(rng.choice(rows))
            continue
        words = [f"w{rng.randrange(500)}" for _ in range(rng.randint(4, 30))]
        if rows and rng.random() < 0.1:
            question, answer = rng.choice(rows)["text"]
            rows.append({"text": [question, f"{answer} changed"]})
            continue
        rows.append({"text": [f"question {number}", " ".join(words)]})
    return rows


@pytest.mark.parametrize("stage", ["_stage", "_shingles", "write_shard"])
def test_a_killed_run_continues_with_the_same_dataset(tmp_path, stage, monkeypatch):
    monkeypatch.setattr(preparation, "ROWS_TOGETHER", 20)
    monkeypatch.setattr(preparation, "SHARD_BYTES", 4000)
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(many(150, seed)))
    names = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    options = PrepareOptions(
        duplicates="near",
        decontamination=DecontaminationOptions((str(tmp_path / "c.txt"),), ngram=4),
    )
    text = many(150)[7]["text"][1]
    (tmp_path / "c.txt").write_text(f"{text}\n")
    whole = prepare(names, tmp_path / "whole", options)
    assert whole.duplicates["exact"] > 10 and whole.duplicates["near"] > 3 and whole.shards > 3
    owner = preparation if stage == "write_shard" else preparation.Preparation
    real, calls = getattr(owner, stage), itertools.count()

    def killed(*args):
        if next(calls) == (0 if stage == "_shingles" else 2):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, stage, killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(names, tmp_path / "out", options)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").exists()
    before = next(calls)
    report = prepare(names, tmp_path / "out", options)
    done_again = next(calls) - before - 1
    if stage == "_stage":
        assert done_again == 2 * (150 // 20 + 1) - 2
    elif stage == "write_shard":
        assert done_again == whole.shards - 2
    assert same(report) == same(whole)
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    files = lambda name: sorted((tmp_path / name).rglob("*array_record-*"))
    for one, other in zip(files("out"), files("whole"), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_other_input_starts_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparation, "ROWS_TOGETHER", 2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(many(9)))
    find = preparation.Preparation.find_duplicates
    monkeypatch.setattr(preparation.Preparation, "find_duplicates", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([path], tmp_path / "out")
    monkeypatch.setattr(preparation.Preparation, "find_duplicates", find)
    path.write_bytes(jsonl(many(5)))
    report = prepare([path], tmp_path / "out", PrepareOptions(duplicates="keep"))
    assert report.examples == 5 and "starting again" in capsys.readouterr().err


def test_reasons_that_quote_the_row_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "MOST_REASONS", 2)
    rows = [{"text": ["a", "b"]}, *({"text": [f"a{i}", i]} for i in range(9))]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    report = prepare([tmp_path / "a.jsonl"], tmp_path / "out", PrepareOptions(on_error="skip"))
    assert len(report.dropped) == 3 and report.dropped["other reasons"] == 7


def test_preference_rows_are_told_apart_by_their_answers_and_labels(tmp_path):
    rows = [
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "completion": "c", "label": False},
        {"prompt": "p", "completion": "d", "label": True},
        {"prompt": "p", "chosen": "c", "rejected": "d"},
        {"prompt": "p", "chosen": "d", "rejected": "c"},
        {"prompt": "p ", "chosen": "d", "rejected": "c"},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    report = prepare([tmp_path / "a.jsonl"], tmp_path / "out")
    assert (report.kind, report.examples) == ("preference", 5)
    assert set(report.characters) == {"prompt", "completion", "chosen", "rejected"}
    assert list(lines_of(tmp_path / "out").values()) == rows[:5]


def test_nothing_usable(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"colour": "red"}, [1]]))
    with pytest.raises(GritError, match="a.jsonl:1: no known key"):
        prepare([path], tmp_path / "out")
    with pytest.raises(GritError, match="no usable row; the first problem: .*a.jsonl:1: no known"):
        prepare([path], tmp_path / "out", PrepareOptions(on_error="skip"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.slow
def test_twenty_thousand_rows_killed_four_times(tmp_path):
    """SIGKILL at different stages; memory is that of the imports and a few dozen bytes a row."""
    (tmp_path / "in.jsonl").write_bytes(jsonl(many(20_000)))
    command = [sys.executable, "-m", "grit_jax", "data", "prepare", str(tmp_path / "in.jsonl")]
    command += ["--duplicates", "near", "--output"]

    def run(name, kill_at=None):
        """Runs to the end, or until a file of the staging area fulfils `kill_at`; peak bytes."""
        process = subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.DEVNULL)
        while kill_at is not None and process.poll() is None:
            if kill_at(tmp_path / f".{name}.partial"):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)
        return usage.ru_maxrss * 1024

    size = lambda name, least: (
        lambda folder: (folder / name).exists() and (folder / name).stat().st_size > least
    )
    peak = run("whole")
    run("out", size("lines", 0))
    run("out", size("lines", 2_000_000))
    run("out", size("state.json", 0))
    run("out", lambda folder: bool(list(folder.glob("grit_dataset/*/.*"))))
    assert not (tmp_path / "out").exists()
    assert run("out") < 1 << 30 and peak < 1 << 30
    files = lambda name: sorted((tmp_path / name).rglob("*array_record-*"))
    assert [f.name for f in files("out")] == [f.name for f in files("whole")]
    for one, other in zip(files("out"), files("whole"), strict=True):
        assert one.read_bytes() == other.read_bytes()
    reports = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "whole")
    ]
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}
    assert reports[0]["read"] == 20_000 and reports[0]["duplicates"]["near"] > 1000
