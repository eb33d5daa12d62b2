"""The files of the corpus: answers that stand in their documents, no constant that guesses, the
same bytes again."""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from grit_jax.pydocs import corpus, passages
from grit_jax.pydocs.corpus import CorpusOptions, write_corpus
from grit_jax.pydocs.documents import Document, split_of
from grit_jax.pydocs.questions import MAX_ANSWER, Question, best_constant
from grit_jax.text.answer_matching import normalise_answer
from grit_jax.text.relevance import relevance_question

FILES = {
    "train": {
        "embedding_summary",
        "embedding_question",
        "generative",
        "copying",
        "rag",
        "recite",
        "relevance",
        "documents",
    },
    "heldout": {"embedding", "generative", "rag", "documents"},
    "heldout_packages": {"embedding", "generative", "rag", "documents"},
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Two packages, of 300 and of 60 documented functions, that share a vocabulary."""
    root = tmp_path_factory.mktemp("site")
    generator = random.Random(0)
    vocabulary = [
        f"{a}{b}"
        for a in ("ba", "ce", "di", "fo", "gu", "ha", "le")
        for b in ("rin", "tal", "mos", "vek", "pun")
    ]
    for package, module in [*(("forest", n) for n in range(10)), ("meadow", 10), ("meadow", 11)]:
        (root / package).mkdir(exist_ok=True)
        (root / package / "__init__.py").write_text("")
        source = ""
        for function in range(30):
            prose = [
                " ".join(generator.choice(vocabulary) for _ in range(words))
                for words in (8, 12, 12, 12)
            ]
            source += (
                f"def f{module}_{function}(first, second={generator.randint(2, 99999)},"
                " third=None):\n"
                f'    """{prose[0].capitalize()}.\n\n    '
                + ".\n    ".join(prose[1:])
                + '.\n    """\n'
            )
        (root / package / f"m{module}.py").write_text(source)
    return root


@pytest.fixture(scope="module")
def written(library, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(library))
        options = CorpusOptions(["forest", "absent_package"], ["meadow"])
        summary = write_corpus(out, 0, options, progress=False)
    return out, summary


def lines(out, name):
    return [
        json.loads(line)
        for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_files_and_counts(written):
    out, summary = written
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == {
        f"{side}/{name}.jsonl" for side, names in FILES.items() for name in names
    }
    assert all(len(lines(out, name)) == count > 0 for name, count in summary.rows.items())
    by_name = summary.train + summary.held_out + summary.dropped
    assert summary.documents == 360 == by_name + summary.held_out_in_packages
    assert summary.packages == {"forest": 300, "meadow": 60}
    assert summary.missing_packages == ("absent_package",)


def test_no_heldout_document_is_trained_on(written):
    out, _ = written
    assert all(split_of(line["id"]) == "train" for line in lines(out, "train/documents"))
    held = lines(out, "heldout/documents")
    assert held and all(split_of(line["id"]) == "heldout" for line in held)
    trained = "".join((out / "train" / f"{name}.jsonl").read_text() for name in FILES["train"])
    whole = lines(out, "heldout_packages/documents")
    assert whole and all(line["id"].startswith("meadow.") for line in whole)
    for line in held + whole:
        assert json.dumps(line["text"])[1:-1] not in trained and f"{line['id']} " not in trained


def test_relevance_rows_judge_training_passages(written):
    out, _ = written
    pairs = {
        (row["query"][1], passage): label
        for name in ("train/embedding_summary", "train/embedding_question")
        for row in lines(out, name)
        for key, label in (("pos", "yes"), ("neg", "no"))
        for _, passage in row[key]
    }
    rows = lines(out, "train/relevance")
    assert len(rows) > 50
    for row in rows:
        [passage], (question, label) = row["docs"], row["text"]
        query = question.split("Query: ")[1].split("\n\nAnswer with")[0]
        assert question == relevance_question(query) and pairs[query, passage] == label
    assert Counter(row["text"][1] for row in rows) == {"yes": len(rows) / 2, "no": len(rows) / 2}


def test_embedding_rows(written):
    out, _ = written
    strings = {f"{line['title']} {line['text']}" for line in lines(out, "train/documents")}
    for name, instruction in (
        ("train/embedding_summary", passages.SUMMARY_INSTRUCTION),
        ("train/embedding_question", passages.QUESTION_INSTRUCTION),
        ("heldout/embedding", passages.SUMMARY_INSTRUCTION),
    ):
        for row in lines(out, name):
            (asked, query), [(empty, positive)] = row["query"], row["pos"]
            assert asked == instruction and empty == "" and 1 <= len(row["neg"]) <= 4
            texts = [text for _, text in row["neg"]]
            assert positive not in texts and len(set(texts)) == len(texts)
            if name.endswith("question"):
                assert positive in strings and set(texts) <= strings
                assert positive.split(" ")[0] in query
            else:
                assert query not in positive


@pytest.mark.parametrize("name", ["train/rag", "heldout/rag"])
def test_answers_stand_in_their_documents(written, name):
    out, _ = written
    known = {
        f"{line['title']} {line['text']}" for line in lines(out, name.split("/")[0] + "/documents")
    }
    rows = lines(out, name)
    unaltered = 0
    for row in rows:
        [shown], (question, answer) = row["docs"], row["text"]
        assert answer in " ".join(shown.split()) and 0 < len(answer) <= MAX_ANSWER
        assert re.search(rf"`{re.escape(shown.split(' ')[0])}`", question)  # retrieval can find it
        unaltered += shown in known
    assert 0.4 < unaltered / len(rows) < 0.6 if name == "train/rag" else unaltered == len(rows)


def test_heldout_questions_cannot_be_guessed(written):
    out, summary = written
    rows = lines(out, "heldout/rag")
    constant, score = best_constant(rows)
    assert (constant, score) == summary.best_constant
    assert score * len(rows) <= max(1, corpus.MAX_SHARE * len(rows))
    assert max(Counter(row["docs"][0] for row in rows).values()) <= corpus.QUESTIONS_PER_DOCUMENT


def test_frequent_answers_are_capped():
    documents = [
        Document(
            f"p.f{i}",
            "function",
            f"f{i}(alpha, beta={7 if i % 2 else i + 1000})",
            (("alpha", None), ("beta", "7")),
            f"Item number {i} of some list that goes on.",
            "p",
        )
        for i in range(300)
    ]
    chosen = corpus.heldout_questions(documents, 0)
    answers = Counter(normalise_answer(q.answer) for q in chosen)
    assert len(chosen) > 100 and max(answers.values()) <= max(1, corpus.MAX_SHARE * len(chosen))


def test_same_seed_same_bytes_whatever_the_hash_seed(library, tmp_path):
    code = (
        "import sys; from pathlib import Path; from grit_jax.pydocs.corpus import CorpusOptions, write_corpus; "
        "options = CorpusOptions(['forest'], ['meadow'], documents=200); "
        "write_corpus(Path(sys.argv[1]), int(sys.argv[2]), options, progress=False); "
        "assert 'jax' not in sys.modules and 'forest' not in sys.modules"
    )
    contents = []
    for hash_seed, seed in ((1, 5), (2, 5), (2, 6)):
        out = tmp_path / f"{hash_seed}{seed}"
        paths = [str(Path(corpus.__file__).parents[2]), str(library)]
        subprocess.run(
            [sys.executable, "-c", code, str(out), str(seed)],
            check=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(hash_seed),
                "PYTHONPATH": os.pathsep.join(paths),
            },
        )
        contents.append({f.relative_to(out): f.read_bytes() for f in out.rglob("*.jsonl")})
    assert contents[0] == contents[1] != contents[2]


def test_too_few_documents_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="too few"):
        write_corpus(tmp_path, 0, CorpusOptions(["absent_package"], []), progress=False)


def test_options(library, tmp_path):
    """Numbers of documents, their length, and answers in sentences."""
    options = CorpusOptions(
        ["forest"], ["meadow"], [str(library)], documents=100, characters=150, sentences=True
    )
    summary = write_corpus(tmp_path, 0, options, progress=False)
    assert summary.packages == {"forest": 91, "meadow": 9}
    assert all(len(line["text"]) <= 150 for line in lines(tmp_path, "train/documents"))
    for name in ("train/rag", "heldout/rag", "heldout_packages/rag"):
        for row in lines(tmp_path, name):
            assert row["answer"] in " ".join(row["docs"][0].split())
            assert row["text"][1].endswith(".")
            assert normalise_answer(row["answer"]) in normalise_answer(row["text"][1])
    fewer = dataclasses.replace(options, documents=None, documents_per_package=80)
    summary = write_corpus(tmp_path / "fewer", 0, fewer, progress=False)
    assert summary.packages == {"forest": 80, "meadow": 60}


def test_no_text_of_a_whole_package_is_trained_on(tmp_path):
    """A function that a package took over from another one is dropped there."""
    doc = "Walks over the meadow until all of the many flowers have been seen at least twice."
    site = tmp_path / "site"
    for package in ("alpha", "omega"):
        (site / package).mkdir(parents=True)
        functions = [f'def walk():\n    """{doc}"""\n'] + [
            f'def {package}{n}(first=7{n}):\n    """Number {n} of {package}: '
            + f"{package} {n} " * 9
            + '"""\n'
            for n in range(80)
        ]
        (site / package / "__init__.py").write_text("\n".join(functions))
    options = CorpusOptions(["alpha"], ["omega"], [str(site)])
    write_corpus(tmp_path / "out", 0, options, progress=False)
    trained = {line["id"] for line in lines(tmp_path / "out", "train/documents")}
    whole = {line["id"] for line in lines(tmp_path / "out", "heldout_packages/documents")}
    assert "omega.walk" in whole and "alpha.walk" not in trained and trained


@pytest.mark.parametrize(
    "counts, kept",
    [
        ({"a": 90, "b": 20, "c": 5, "d": 5}, {"a": 10, "b": 10, "c": 5, "d": 5}),
        ({"a": 8, "b": 8, "c": 8}, {"a": 8, "b": 8, "c": 8}),
        ({"a": 8, "b": 3}, {"a": 8, "b": 3}),  # two kinds cannot have a third each
        ({}, {}),
    ],
)
def test_no_kind_has_more_than_its_share(counts, kept):
    questions = [
        Question(str(n), kind, "q", f"{kind} {n}", "d")
        for kind, count in counts.items()
        for n in range(count)
    ]
    found = corpus.balanced(questions, 1 / 3)
    assert Counter(q.kind for q in found) == kept
    assert [q for q in questions if q in found] == found  # the first ones, in order


def test_rare_kinds_come_first():
    """Of three kinds, the two of which there are fewest are asked."""
    plain = "Counts the {} trees of a forest.\n\nReturns:\n  The number of {} trees."
    raising = "\n\nRaises:\n  KeyError: If there are no {} trees."
    names = ["oak", "elm", "fir", "ash", "yew", "fig"]
    documents = [
        Document(
            f"p.{name}", "function", "", (), (plain + raising * (n < 2)).replace("{}", name), "p"
        )
        for n, name in enumerate(names)
    ]
    asked = corpus._real_questions(documents, 0, 2)
    for name in names[:2]:
        assert [q.kind for q in asked[f"p.{name}"]][:2] == ["raised when", "raised what"]
    assert all({q.kind for q in asked[f"p.{n}"]} == {"returns", "purpose"} for n in names[2:])
