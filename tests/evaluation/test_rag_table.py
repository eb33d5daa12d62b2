"""One table: which cases there are, and each of them as asking it alone would score."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from grit_jax.data.distractors import Distractors
from grit_jax.data.formats import CachedExample
from grit_jax.errors import GritError
from grit_jax.evaluation.rag import AnswerSettings, evaluate_rag
from grit_jax.evaluation.rag_table import RagSweep, RagVariant, evaluate_table
from grit_jax.inference.model import GritLM
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.answer import Asker
from grit_jax.rag.generator import RagGenerator, RagPrompt
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.text.answer_matching import score_answer
from grit_jax.text.rag_layouts import MODES

NEW = 4


@pytest.fixture(scope="module")
def rows(tiny_model, sentences):
    """Questions whose gold answer is the first word of what the model says: some match in some
    layouts."""
    asker, rows = Asker(tiny_model), []
    for i in range(8):
        question = sentences[100 + i][:40]
        mode, documents = ("doc", "query-doc")[i % 2], [sentences[i]]
        answer = asker.ask(question, mode, documents=[documents], max_new_tokens=NEW)[0].answer
        rows.append(
            CachedExample(tuple(documents), question, " ".join(answer.split()[:1]) or "nothing")
        )
    return rows


@pytest.fixture(scope="module")
def pool(sentences):
    return sentences[:20]


def scores_of(rows, answers) -> np.ndarray:
    found = [score_answer(answer, row.answer) for answer, row in zip(answers, rows, strict=True)]
    return np.array([[one.match, one.exact_match, one.f1] for one in found])


def test_cases_that_differ():
    everything = RagSweep(MODES, (1, 3), ("native", "int8"), ("running", "colliding")).variants()
    assert len(set(everything)) == len(everything)
    of = lambda mode: [
        (case.k, case.kv, case.positions) for case in everything if case.mode == mode
    ]
    assert of("none") == [(None, None, None)]
    assert of("doc-then-query") == of("query") == [(1, None, None), (3, None, None)]
    assert of("doc") == [
        (1, "native", None),
        (1, "int8", None),
        (3, "native", "running"),
        (3, "native", "colliding"),
        (3, "int8", "running"),
        (3, "int8", "colliding"),
    ]
    assert (
        len(of("query-doc")) == len(of("doc-query")) == 8
    )  # a query and a document are two records
    assert RagSweep(["doc"], (1,), ("native",), ("running", "colliding")).variants(2) == [
        RagVariant("doc", 1, "native", "running"),
        RagVariant("doc", 1, "native", "colliding"),
    ]
    assert [
        case.mode for case in RagSweep(MODES, (1,), ("native",), ("running",)).variants()
    ] == list(MODES)


def test_one_case_a_layout_is_what_evaluate_rag_says(tiny_model, rows):
    modes = ("none", "doc")
    table = evaluate_table(
        tiny_model, rows, RagSweep(modes), settings=AnswerSettings(max_new_tokens=NEW), quiet=True
    )
    expected = evaluate_rag(
        tiny_model, rows, modes, settings=AnswerSettings(max_new_tokens=NEW), quiet=True
    )
    found = table.by_mode()
    assert list(found) == list(modes) and table.corpus is None
    for mode in modes:
        assert {k: v for k, v in found[mode].items() if k not in ("seconds", "truncated")} == {
            k: v for k, v in expected[mode].items() if k != "seconds"
        }
    assert 0 < found["doc"]["match"] <= 1


def test_distractors_and_placements(tiny_model, rows, pool):
    """Golds are what the cases say in turn, so that each has its own score."""
    wanted = [
        RagVariant("none", None, None, None),
        *RagSweep(["query-doc"], (1, 3), ("native",), ("running", "colliding")).variants(),
    ]
    distractors, answers = Distractors(pool, 2), {}
    for case in wanted:
        generator = RagGenerator(tiny_model, positions=case.positions or "running")
        rag_prompts = []
        for row in rows:
            docs = () if case.mode == "none" else distractors.among(row, case.k).docs
            records = tuple(generator.records(docs)) if docs else ()
            rag_prompts.append(
                RagPrompt(
                    case.mode, row.question, docs, records, generator.records([row.question])[0]
                )
            )
        answers[case] = generator.generate(rag_prompts, Sampling(NEW)).answers
    rows = [
        dataclasses.replace(row, answer=answers[wanted[i % 5]][i] or "no")
        for i, row in enumerate(rows)
    ]
    table = evaluate_table(
        tiny_model,
        rows,
        RagSweep(("none", "query-doc"), (1, 3), ("native",), ("running", "colliding")),
        settings=AnswerSettings(max_new_tokens=NEW),
        corpus=pool,
        seed=2,
        quiet=True,
    )
    assert table.corpus == 20 and list(table.scores) == wanted
    for case, found in table.scores.items():
        np.testing.assert_allclose(found[:, :3], scores_of(rows, answers[case]))
        assert (found[:, 3] > 0).all()
    assert len({found[:, :3].tobytes() for found in table.scores.values()}) == 5


@pytest.mark.parametrize(
    "kv",
    [
        "int8",
        pytest.param("int4", marks=pytest.mark.slow),
        pytest.param("pca2", marks=pytest.mark.slow),
    ],
)
def test_compressed_records_are_those_of_an_index(tiny_model, rows, pool, tmp_path, kv):
    """Calibrated on the same corpus by `grit index`, written, and read from its store."""
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(pool))
    )
    build_index(
        tiny_model, corpus, tmp_path / "index", IndexOptions(kv=kv, max_length=512), quiet=True
    )
    index = Index.open(tmp_path / "index", tiny_model)
    keys = {pool[i]: line["key"] for i, line in enumerate(index.documents)}
    records = dict(zip(keys, index.store.fetch(list(keys.values())), strict=True))
    table = evaluate_table(
        tiny_model,
        rows,
        RagSweep(["doc"], kvs=["native", kv]),
        settings=AnswerSettings(max_new_tokens=NEW),
        corpus=corpus,
        quiet=True,
    )
    rag_prompts = [
        RagPrompt("doc", row.question, row.docs, tuple(records[text] for text in row.docs))
        for row in rows
    ]
    answers = RagGenerator(tiny_model).generate(rag_prompts, Sampling(NEW)).answers
    np.testing.assert_allclose(
        table.scores[RagVariant("doc", 1, kv, None)][:, :3], scores_of(rows, answers)
    )
    assert [case.kv for case in table.scores] == ["native", kv]


def test_an_index_brings_its_documents(tiny_model, rows, pool, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(pool))
    )
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    table = evaluate_table(
        tiny_model,
        rows,
        RagSweep(["doc"], (1, 2)),
        settings=AnswerSettings(max_new_tokens=NEW),
        index=index,
        quiet=True,
    )
    assert list(table.scores) == [
        RagVariant("doc", 1, "native", None),
        RagVariant("doc", 2, "native", "running"),
    ]
    for case, found in table.scores.items():
        answers = Asker(tiny_model, index).ask(
            [row.question for row in rows], "doc", k=case.k, max_new_tokens=NEW
        )
        np.testing.assert_allclose(
            found[:, :3], scores_of(rows, [answer.answer for answer in answers])
        )
    for varied, corpus_path in (
        ({"kvs": ["int8"]}, None),
        ({"placements": ["colliding"]}, None),
        ({}, corpus),
    ):
        with pytest.raises(
            GritError, match="--kv, --positions and --corpus apply to the rows' own documents"
        ):
            evaluate_table(
                tiny_model, rows, RagSweep(["doc"], **varied), index=index, corpus=corpus_path
            )


def test_questions_whose_documents_are_cut_are_counted(tiny_model, sentences):
    """Two of four questions have a document that is longer than `max_length`, one of them two."""
    long, short = [" ".join(sentences[i : i + 6]) for i in (0, 6, 12)], sentences[20:22]
    rows = [
        CachedExample((long[0], long[1]), "What is it?", "x"),
        CachedExample((short[0], short[1]), "Who is it?", "x"),
        CachedExample((long[0], short[0]), "Where is it?", "x"),
        CachedExample((short[1], short[0]), "When is it?", "x"),
    ]
    settings = AnswerSettings(max_new_tokens=1, max_length=64)
    with pytest.warns(UserWarning, match=r"^2 of 4 texts were cut to 64 tokens") as warned:
        table = evaluate_table(
            tiny_model, rows, RagSweep(["none", "doc", "query"]), settings=settings, quiet=True
        )
    assert len(warned) == 1
    assert [scores["truncated"] for scores in table.by_mode().values()] == [0, 2, 2]
    assert [row["truncated"] for row in table.to_dict()["rows"]] == [0, 2, 2]
    assert table.scores[RagVariant("doc", 1, "native", "running")][:, -1].tolist() == [1, 0, 1, 0]
    with pytest.warns(UserWarning, match=r"^2 of 4 texts were cut to 64 tokens"):
        evaluate_rag(tiny_model, rows, ["query"], settings=settings, quiet=True)


def test_documents_that_exceed_the_context_are_counted(tiny_model, sentences, tmp_path):
    """The context holds one of two documents beside the question: given with the row, or found in
    an index."""
    documents = [" ".join(sentences[i : i + 4]) for i in (0, 4)]
    length = max(len(ids) for ids in tiny_model.encoder.format(documents).ids)
    config = dataclasses.replace(tiny_model.config, max_position_embeddings=length + 80)
    short = GritLM(config, tiny_model.params, tiny_model.tokenizer, tiny_model.chat)
    rows = [CachedExample(tuple(documents), sentences[0][:20], "x")]
    settings = AnswerSettings(max_new_tokens=1)
    table = evaluate_table(short, rows, RagSweep(["doc"]), settings=settings, quiet=True)
    assert table.by_mode()["doc"]["truncated"] == 1
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(documents))
    )
    build_index(short, corpus, tmp_path / "index", IndexOptions(max_length=length), quiet=True)
    index = Index.open(tmp_path / "index", short)
    table = evaluate_table(
        short, rows, RagSweep(["doc"], (1, 2)), settings=settings, index=index, quiet=True
    )
    assert [row["truncated"] for row in table.rows()] == [0, 1]


@pytest.mark.slow
def test_windows_of_few_documents(tiny_model, rows, pool, monkeypatch):
    import grit_jax.evaluation.rag_table as module

    run = lambda: (
        evaluate_table(
            tiny_model,
            rows,
            RagSweep(["doc"], (1, 3)),
            settings=AnswerSettings(max_new_tokens=NEW),
            corpus=pool,
            quiet=True,
        ).scores
    )
    whole = run()
    monkeypatch.setattr(module, "WINDOW", 9)
    for case, found in run().items():
        np.testing.assert_allclose(found[:, :3], whole[case][:, :3])


def test_table_for_a_person(tiny_model, rows, pool, tmp_path):
    table = evaluate_table(
        tiny_model,
        rows,
        RagSweep(["none", "query"], (1, 2)),
        settings=AnswerSettings(max_new_tokens=NEW),
        corpus=pool,
        quiet=True,
    )
    lines = table.markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert [row[:4] for row in cells[2:]] == [
        ["none", "", "", ""],
        ["query", "1", "", ""],
        ["query", "2", "", ""],
    ]
    assert (
        len({len(line) for line in lines[:5]}) == 1
        and "8 questions" in lines[-1]
        and "those of 20" in lines[-1]
    )
    match = table.scores[RagVariant("query", 2, None, None)][:, 0].mean()
    assert cells[4][4] == f"{match:.3f}"
    table.write(tmp_path)
    assert (tmp_path / "table.md").read_text() == table.markdown()
    found = json.loads((tmp_path / "rag.json").read_text())
    assert (
        found == table.to_dict() and found["rows"][2]["match"] == match and found["questions"] == 8
    )


def test_mistakes_are_named(tiny_model, rows, sentences):
    for varied, words in (
        ({"modes": ["auto"]}, "unknown mode 'auto'"),
        ({"kvs": ["int5"]}, "unknown --kv 'int5'; known: native, int8"),
        ({"placements": ["apart"]}, "unknown --positions 'apart'"),
        ({"ks": (4,)}, "documents beside its own"),
    ):
        with pytest.raises(GritError, match=words):
            evaluate_table(tiny_model, rows, RagSweep(**varied), corpus=sentences[:2])
    with pytest.raises(GritError, match="no question"):
        evaluate_table(tiny_model, [])
