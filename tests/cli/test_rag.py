"""What `grit index` and `grit ask` print and write when all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import run

pytestmark = pytest.mark.usefixtures("in_world")


TIMINGS = {"encode_query", "search", "rerank", "load", "prefill", "decode", "total"}


def test_index_and_ask(capsys, texts, tmp_path):
    index = f"index model --input corpus.jsonl --output {tmp_path}/index"
    made = run(capsys, f"{index} --json").json
    assert (made["documents"], made["encoded"], made["skipped"], made["kv"]) == (9, 9, 0, "native")
    assert made["bytes_kv"] > 0 and made["vectors"] == "exact"
    again = run(capsys, index).out
    assert (
        again.startswith("9 documents (0 tokens encoded in ") and "9 were indexed before" in again
    )

    ask = f"ask model --index {tmp_path}/index '{texts[4]}' --max-new-tokens 4"
    said = run(capsys, f"{ask} --mode doc --k 2 --json")
    assert said.json.keys() >= {"answer", "documents", "mode", "timings"} and said.lines == []
    assert [document.keys() for document in said.json["documents"]] == [{"id", "score"}] * 2
    first, second = said.json["documents"]
    assert first["id"] == "d4" and first["score"] > second["score"]
    assert said.json["mode"] == "doc" and said.json["timings"].keys() == TIMINGS
    assert all(seconds >= 0 for seconds in said.json["timings"].values())
    fewer = run(
        capsys, f"{ask} --mode doc --k 2 --search-precision int8 --search-dim 24 --json"
    ).json
    assert [document["id"] for document in fewer["documents"]] == [first["id"], second["id"]]
    assert fewer["documents"][0]["score"] == pytest.approx(first["score"], abs=2e-6)
    words = run(capsys, f"{ask} --search lexical --json").json
    assert words["documents"][0]["id"] == "d4" and words["documents"][0]["score"] > 1.5
    both = run(capsys, f"{ask} --search hybrid --fusion ranks --json").json
    assert both["documents"] == [{"id": "d4", "score": pytest.approx(1 / 61, abs=1e-6)}]
    assert run(capsys, f"{ask} --search hybrid --json").json["documents"][0]["score"] > 0.5
    judged = run(capsys, f"{ask} --k 2 --rerank 4 --json").json
    assert [d.keys() for d in judged["documents"]] == [{"id", "score", "search_score"}] * 2
    none = run(capsys, f"{ask} --mode none --json").json
    assert (none["documents"], none["mode"], none["timings"].keys()) == ([], "none", TIMINGS)
    auto = run(capsys, f"{ask} --json").json
    assert auto["mode"] not in ("auto", "none") and len(auto["documents"]) == 1  # the one used
    assert f"[{auto['mode']}, " in run(capsys, ask).out

    # Records that are gone are computed, with a warning; the answer is the same.
    for file in (tmp_path / "index" / "kv").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * file.stat().st_size)
    lost = run(capsys, f"{ask} --mode doc --k 2 --json")
    assert lost.json["answer"] == said.json["answer"] and "warning: document 'd4'" in lost.err
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    (tmp_path / "index" / "index.json").write_text(json.dumps({**manifest, "complete": False}))
    unfinished = run(capsys, f"{ask} --mode none")
    assert (
        unfinished.status == 0 and "warning" in unfinished.err and "not finished" in unfinished.err
    )


def test_an_index_that_is_compressed_elsewhere_and_kept_up_to_date(capsys, texts, tmp_path):
    index = f"--output {tmp_path}/index --kv int4 --store {tmp_path}/records --json"
    made = run(capsys, f"index model --input corpus.jsonl {index}").json
    assert (
        made["kv"] == "int4"
        and 0 < made["kv_ratio"] < 0.5
        and not (tmp_path / "index" / "kv").exists()
    )
    ask = f"ask model --index {tmp_path}/index '{texts[4]}' --max-new-tokens 4 --mode doc --json"
    said = run(capsys, ask)
    assert said.json["documents"][0]["id"] == "d4" and said.lines == []
    rows = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    rows = [
        {**row, "text": row["text"] + " Indeed."} if row["id"] == "d4" else row
        for row in rows
        if row["id"] != "d0"
    ]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = run(capsys, f"index model --input {tmp_path}/new.jsonl {index}")
    assert again.status == 2 and "--update" in again.err
    again = run(
        capsys, f"index model --input {tmp_path}/new.jsonl {index} --update --delete-missing"
    ).json
    assert [again[name] for name in ("documents", "encoded", "replaced", "deleted")] == [8, 1, 1, 1]
    assert run(capsys, ask).json["documents"][0]["id"] == "d4"


def test_an_index_without_records(capsys, tmp_path):
    made = run(
        capsys, f"index model --input corpus.jsonl --output {tmp_path}/index --kv none --json"
    )
    assert made.json["bytes_kv"] == 0
    said = run(
        capsys, f"ask model --index {tmp_path}/index Who? --mode doc --max-new-tokens 4 --json"
    )
    assert said.json["mode"] == "doc" and "warning" in said.err and "--kv none" in said.err


def test_the_receipt_of_an_index(capsys, tmp_path):
    index = f"index model --input corpus.jsonl --output {tmp_path}/index"
    assert run(capsys, f"{index} --json").json["quality"] is None  # so few documents: not unasked
    refused = run(capsys, f"{index} --quality-questions 3")
    assert refused.status == 2 and "at least 8, or 0" in refused.err
    made = run(capsys, f"{index} --quality-questions 8 --json").json
    receipt = json.loads((tmp_path / "index" / "quality.json").read_text())
    assert made["quality"] == receipt and receipt["questions"] == 8
    assert made["encoded"] == 0  # measured on the index as it is
    lines = run(capsys, f"{index} --quality-questions 8").out
    assert "points lost against reading the documents, over 8 questions" in lines
    ask = f"ask model --index {tmp_path}/index Who? --max-new-tokens 2"
    assert run(capsys, f"{ask} --mode doc --json").json["cache"] == "exact"
    assert run(capsys, f"{ask} --quality -1000 --json").json["mode"] == "doc-then-query"
    assert run(capsys, f"{ask} --quality nan").status == 2


def test_ask_and_eval_over_documents_that_fulfil_a_filter(capsys, tmp_path):
    lines = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()]
    rows = [line | {"metadata": {"n": i, "kind": "ab"[i % 2]}} for i, line in enumerate(lines)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = f"--index {tmp_path}/index"
    run(capsys, f"index model --input {tmp_path}/c.jsonl --output {tmp_path}/index")
    where = """--where 'n < 7 and kind == "b"'"""
    for search in ("dense", "hybrid"):
        ask = f"ask model {index} 'Title 4' --k 9 --max-new-tokens 1 --json --search {search}"
        found = run(capsys, f"{ask} --mode doc {where}").json
        assert sorted(document["id"] for document in found["documents"]) == ["d1", "d3", "d5"]
    none = run(capsys, f"{ask} --mode doc --where 'n > 9'")
    assert (none.json["documents"], none.json["mode"]) == ([], "none")
    assert "warning: no document fulfils the filter; answered without documents" in none.err
    rag = f"eval rag model --input rag.jsonl --modes doc --max-new-tokens 1 --json {index}"
    assert run(capsys, f"{rag} --search hybrid {where}").json.keys() == {"doc"}


def test_an_index_that_is_too_small_for_a_receipt_says_so(capsys, tmp_path):
    lines = [json.loads(line) for line in Path("corpus.jsonl").read_text().splitlines()][:3]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = f"index model --input {tmp_path}/few.jsonl --output {tmp_path}/index"
    made = run(capsys, f"{index} --quality-questions 8 --json")
    assert made.json["quality"] is None and "no quality receipt: it takes 8 documents" in made.err
    assert "receipt" not in run(capsys, index).err  # nobody asked for one
