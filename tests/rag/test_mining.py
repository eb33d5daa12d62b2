"""Hard negatives: against a plain loop over all documents, and through kills."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_model import vector
from stored_rows import content, write_rows

from grit_jax.data.relevance import write_relevance_rows
from grit_jax.errors import GritError
from grit_jax.rag import mining
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.mining import mine, mining_index
from grit_jax.rag.mining_options import MiningOptions
from grit_jax.rag.search.hybrid import Retrieval

# 60 documents, of which the last ones repeat a text; vectors follow from the bytes.
ROWS = [
    *({"id": f"d{i}", "title": f"T{i}" * (i % 3 == 0), "text": f"text {i}"} for i in range(56)),
    *({"id": f"e{i}", "text": "said twice"} for i in range(4)),
]
LINES = [
    {"query": ["find", "q0"], "pos": [["", "text 4"]], "neg": [["", "text 5"]], "source": "x"},
    {"query": "q1", "pos": ["text 3", "text 7"]},  # document 3 has a title
    {"query": "q2", "pos": ["not in the index"], "scores": [1.5]},
    {"query": "text 8", "pos": ["text 9"], "neg": ["by hand"], "scores": [2.0, 1.0]},
    {"query": "q1", "pos": ["text 10"]},
    *({"query": f"q{i}", "pos": [f"text {i}"]} for i in range(5, 25)),
]
vector_of = lambda text: vector([256, *text.encode()]).astype(np.float64)


@pytest.fixture
def index(model, tmp_path):
    corpus = write_rows(tmp_path / "corpus.jsonl", ROWS)
    build_index(model, corpus, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    model.encoder.encoded.clear()
    return Index.open(tmp_path / "index", model)


@pytest.fixture
def pairs(tmp_path):
    return write_rows(tmp_path / "pairs.jsonl", LINES)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(passage):
    return passage[1] if isinstance(passage, list) else passage


def allowed(line, low, high, margin, relative):
    """What may be a negative of a line, by a plain loop; in the order of the search."""
    query = text_of(line["query"])
    document = lambda text: next(
        (content(row) for row in ROWS if text in (row["text"], content(row))), text
    )
    score = lambda text: float(vector_of(text) @ vector_of(query))
    ranking = sorted(map(content, ROWS), key=lambda text: -score(text))
    own = {document(text_of(p)) for o in LINES if text_of(o["query"]) == query for p in o["pos"]}
    own |= {text_of(p) for p in line.get("neg", [])} | {query}
    lowest = min(score(document(text_of(p))) for p in line["pos"])
    limit = min(
        np.inf if margin is None else lowest - margin,
        np.inf if relative is None else lowest - relative * abs(lowest),
    )
    left = [t for t in ranking[low:high] if t not in own and score(t) <= limit]
    return list(dict.fromkeys(left))


@pytest.mark.parametrize(
    "low, high, margin, relative",
    [(0, 60, None, 0.05), (0, 20, None, None), (5, 40, 0.2, None), (3, 60, 0.1, 0.3)],
)
def test_negatives_are_those_of_a_plain_loop(
    model, index, pairs, tmp_path, low, high, margin, relative
):
    options = MiningOptions(
        (low, high), margin, relative, negatives=4, sampling="top", keep_without=True
    )
    summary = mine(model, pairs, index, tmp_path / "out.jsonl", options, quiet=True)
    mined = rows_of(tmp_path / "out.jsonl")
    assert len(mined) == len(LINES) == summary.queries == summary.lines
    for line, row in zip(LINES, mined, strict=True):
        kept = line.get("neg", [])
        expected = allowed(line, low, high, margin, relative)[:4]
        assert row["neg"][: len(kept)] == kept
        assert [text_of(n) for n in row["neg"][len(kept) :]] == expected, line
        assert all(isinstance(n, list) == isinstance(line["pos"][0], list) for n in row["neg"])
        assert row["query"] == line["query"] and row["pos"] == line["pos"]
        assert row.get("source") == line.get("source")
    total = [allowed(line, low, high, margin, relative) for line in LINES]
    assert summary.negatives == sum(min(4, len(left)) for left in total)
    assert summary.not_needed == sum(max(0, len(left) - 4) for left in total)
    assert summary.candidates == len(LINES) * (min(high, 60) - low)
    counted = sum(summary.dropped.values()) + summary.negatives + summary.not_needed
    assert counted == summary.candidates
    if margin is not None or relative is not None:
        assert summary.positives_encoded == 1 and summary.positives_in_index == len(LINES)
    # Nothing but queries and the one positive that is not in the index was encoded.
    texts = {bytes(ids[1:]).decode() for ids in model.encoder.encoded}
    assert texts <= {text_of(line["query"]) for line in LINES} | {"not in the index"}


def test_random_negatives_are_a_seeded_draw_from_the_same_candidates(model, index, pairs, tmp_path):
    options = lambda seed: MiningOptions((0, 60), negatives=3, seed=seed)
    outs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mine(model, pairs, index, tmp_path / name, options(seed), quiet=True)
        outs.append(rows_of(tmp_path / name))
    first, again, other = outs
    assert first == again != other
    drawn = set()
    for row in first:
        line = next(o for o in LINES if o["query"] == row["query"] and o["pos"] == row["pos"])
        negatives = [text_of(n) for n in row["neg"][len(line.get("neg", [])) :]]
        left = allowed(line, 0, 60, None, 0.05)
        assert set(negatives) <= set(left) and len(negatives) == min(3, len(left))
        drawn |= {left.index(text) for text in negatives}
    assert max(drawn) > 10  # not the best ones alone


def test_lines_without_a_negative_and_scores(model, index, pairs, tmp_path):
    narrow = MiningOptions((0, 1), relative_margin=1.5, negatives=2)
    summary = mine(model, pairs, index, tmp_path / "out", narrow, quiet=True)
    rows = rows_of(tmp_path / "out")
    # Only the lines that bring a negative themselves are left; one of them loses nothing.
    assert [row["query"] for row in rows] == [["find", "q0"], "text 8"]
    assert rows[1]["scores"] == [2.0, 1.0] and summary.scores_removed == 0
    assert summary.without_negatives == len(LINES) - 2
    replaced = MiningOptions((0, 60), negatives=2, replace=True, keep_without=True)
    summary = mine(model, pairs, index, tmp_path / "all", replaced, quiet=True)
    rows = rows_of(tmp_path / "all")
    assert len(rows) == len(LINES) and not any("scores" in row for row in rows)
    assert summary.scores_removed == 2 and summary.negatives_kept == 0
    assert not any("by hand" in map(text_of, row["neg"]) for row in rows)


def test_a_killed_run_goes_on_with_the_same_output(model, index, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "QUERIES_TOGETHER", 4)
    options = MiningOptions((0, 60), negatives=3)
    whole = mine(model, pairs, index, tmp_path / "whole", options, quiet=True)
    encode, calls = mining.encode_queries, itertools.count()

    def killed(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(mining, "encode_queries", killed)
    with pytest.raises(KeyboardInterrupt):
        mine(model, pairs, index, tmp_path / "out", options, quiet=True)
    assert not (tmp_path / "out").exists()
    before = next(calls)
    resumed = mine(model, pairs, index, tmp_path / "out", options, quiet=True)
    assert next(calls) - before - 1 == -(-len(LINES) // 4) - 3  # three blocks were not done again
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    same = lambda summary: {k: v for k, v in summary.to_dict().items() if k != "seconds"}
    assert same(resumed) == same(whole)


def test_words_and_filters_choose_candidates(model, index, pairs, tmp_path):
    words = MiningOptions((0, 60), relative_margin=None, retrieval=Retrieval("lexical"))
    mine(model, pairs, index, tmp_path / "out", words, quiet=True)
    rows = rows_of(tmp_path / "out")
    rows = {text_of(row["query"]): row for row in rows}
    # "text 8" shares "text" with all documents but the last four, "q1" its number with one.
    assert len(rows["text 8"]["neg"]) == 9 and rows["q1"]["neg"] == ["text 1"]
    assert all("text" in text_of(n) for n in rows["text 8"]["neg"][1:])
    close = MiningOptions((0, 60), margin=0.0, relative_margin=None, retrieval=Retrieval("lexical"))
    mine(model, pairs, index, tmp_path / "out", close, quiet=True)
    [row] = (row for row in rows_of(tmp_path / "out") if row["query"] == "text 8")
    negatives = {text_of(n) for n in row["neg"][1:]}
    limit = vector_of("T9 text 9") @ vector_of("text 8")  # margins compare vectors all the same
    assert negatives and all(vector_of(n) @ vector_of("text 8") <= limit for n in negatives)


@pytest.mark.slow
def test_the_judge_drops_false_negatives_and_scores_the_rest(tiny_model, sentences, tmp_path):
    texts = list(dict.fromkeys(sentences))[:12]
    corpus = write_rows(
        tmp_path / "c.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    )
    lines = [{"query": text[:12], "pos": [text]} for text in texts[:4]]
    lines[0]["neg"] = ["by hand"]
    pairs = write_rows(tmp_path / "pairs.jsonl", lines)
    mining_index(tiny_model, pairs, corpus, tmp_path / "i", records=True, quiet=True)
    index = Index.open(tmp_path / "i", tiny_model)
    judge = mining.Judge(tiny_model, index)
    document = lambda text: mining.RetrievedDocument("", text)
    odds = lambda query, text: float(judge.log_odds([(query, document(text))])[0])
    every = {(line["query"], text): odds(line["query"], text) for line in lines for text in texts}
    bound = float(np.median(list(every.values())))
    options = MiningOptions(
        (0, 12), relative_margin=None, negatives=3, sampling="top", judge=1 / (1 + np.exp(-bound))
    )
    summary = mine(tiny_model, pairs, index, tmp_path / "out", options, quiet=True)
    assert summary.dropped["relevant by the judge"] > 0
    assert summary.positives_judged == 4 and summary.records_computed == 1  # that of "by hand"
    ranking = index.search(tiny_model.encode([line["query"] for line in lines]), 12).rows
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4
    for line, row, ranked in zip(lines, rows, ranking.tolist(), strict=True):
        others = [texts[i] for i in ranked if texts[i] not in line["pos"]]
        refused = [text for text in others if every[line["query"], text] <= bound]
        kept = line.get("neg", [])
        assert row["neg"] == [*kept, *refused[:3]]
        expected = [every[line["query"], text] for text in line["pos"]]
        expected += [odds(line["query"], text) for text in kept]
        expected += [every[line["query"], text] for text in refused[:3]]
        assert row["scores"] == pytest.approx(expected, abs=2e-3)
    # The output trains the judge, by the tool that makes its rows.
    assert write_relevance_rows(tmp_path / "out", tmp_path / "rows.jsonl", negatives=3) == sum(
        1 + min(3, len(row["neg"])) for row in rows
    )


def test_without_a_corpus_the_passages_of_the_input_are_mined(model, pairs, tmp_path):
    mining_index(model, pairs, None, tmp_path / "i", records=False, quiet=True)
    index = Index.open(tmp_path / "i", model)
    passages = {text_of(p) for line in LINES for p in (*line["pos"], *line.get("neg", []))}
    assert {index.text(row) for row in range(len(index))} == passages
    assert index.kv == "none" and len(index) == len(passages)
    mine(model, pairs, index, tmp_path / "out", quiet=True)
    assert all({text_of(n) for n in row["neg"]} <= passages for row in rows_of(tmp_path / "out"))
    model.encoder.encoded.clear()
    mining_index(model, pairs, None, tmp_path / "i", records=True, quiet=True)  # as it is
    assert not model.encoder.encoded


def test_an_output_that_is_the_input(model, index, pairs, tmp_path):
    with pytest.raises(GritError, match="pairs.jsonl: is an input as well"):
        mine(model, pairs, index, pairs)
    bad = write_rows(tmp_path / "bad.jsonl", [LINES[0], {"query": "q"}])
    with pytest.raises(GritError, match=r"bad.jsonl:2: the key \"pos\" is missing"):
        mine(model, bad, index, tmp_path / "out")


@pytest.mark.slow
def test_twenty_thousand_documents_killed_three_times(model, tmp_path):
    """SIGKILL at different blocks, with an index that is not in memory whole."""
    rows = [{"id": str(i), "text": f"document number {i}"} for i in range(20_000)]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    lines = [{"query": f"query {i}", "pos": [f"document number {7 * i}"]} for i in range(2_000)]
    write_rows(tmp_path / "pairs.jsonl", lines)
    build_index(model, corpus, tmp_path / "index", IndexOptions(kv="none"), quiet=True)
    code = (
        "import sys; from pathlib import Path; from fake_model import fake_model\n"
        "from grit_jax.rag import mining; from grit_jax.rag.index import Index\n"
        "mining.QUERIES_TOGETHER = 100; folder, out = map(Path, sys.argv[1:])\n"
        "model = fake_model(); index = Index.open(folder / 'index', model)\n"
        "options = mining.MiningOptions(relative_margin=None)\n"
        "mining.mine(model, folder / 'pairs.jsonl', index, out, options, quiet=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(name, kill_at=None):
        """Runs to the end, or until so many bytes are written; peak bytes of memory."""
        command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / name)]
        process = subprocess.Popen(command, env=environment)
        partial = tmp_path / f".{name}.partial"
        while kill_at is not None and process.poll() is None:
            if partial.exists() and partial.stat().st_size > kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)
        return usage.ru_maxrss * 1024

    peak = run("whole")
    for kill_at in (0, 150_000, 300_000):
        run("out", kill_at)
    assert not (tmp_path / "out").exists()
    assert run("out") < 1 << 30 and peak < 1 << 30
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(rows_of(tmp_path / "out")) == 2_000
