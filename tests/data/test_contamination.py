"""Evaluation texts in training texts: hand-made cases, and random ones against plain Python."""

from __future__ import annotations

import json
import random
import re

import pytest

from grit_jax.data.contamination import DecontaminationOptions, EvaluationTexts, example_parts
from grit_jax.data.formats import parse_line
from grit_jax.errors import GritError

PASSAGE = (
    "The tower was built by the company of Gustave Eiffel between 1887 and 1889 as the centerpiece"
    " of the World's Fair, and it is still the tallest structure of the city today."
)
QUERY = "who built the tower in Paris"


@pytest.fixture
def heldout(tmp_path):
    rows = [
        {"_id": "who built the tower yesterday", "query": ["Find the answer", QUERY]},
        {"query": "yes", "pos": [["", PASSAGE]], "metadata": {"note": "never look at this note"}},
    ]
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(evaluation, *texts):
    return [
        None if match is None else (match.method, match.against.partition(" ")[2])
        for match in evaluation.matches([("text", text) for text in texts])
    ]


def test_hand_made_cases(heldout):
    options = DecontaminationOptions((str(heldout),))
    evaluation = EvaluationTexts(options)
    assert evaluation.counts == {str(heldout): 3} and evaluation.too_short == 1  # "yes"
    words = PASSAGE.split()
    thirteen, twelve = " ".join(words[5:18]), " ".join(words[5:17])
    near = PASSAGE.replace("tallest", "highest")
    texts = {
        "Who built the TOWER, in Paris?": ("exact", "query"),
        "who built the tower in Lyon": None,
        f"It is said that {thirteen.upper()} or so": ("ngram", "pos"),
        f"It is said that {twelve}": None,
        near: ("ngram", "pos"),
        "yes": None,
        "never look at this note": None,
        "who built the tower yesterday": None,
        "Find the answer": None,
        "": None,
    }
    assert found(evaluation, *texts) == list(texts.values())
    [match] = evaluation.matches([("pos[0]", f"so {thirteen}!")])
    assert (match.part, match.file) == ("pos[0]", str(heldout)) and match.excerpt == thirteen
    assert match.against == f"{heldout}:2 pos"
    runs = len(re.findall(r"\w+", PASSAGE)) - 12
    assert match.score == pytest.approx(1 / runs, abs=1e-4)
    # Fewer words a run, and most of the runs: other answers.
    evaluation = EvaluationTexts(DecontaminationOptions((str(heldout),), ngram=8))
    assert found(evaluation, f"It is said that {twelve}") == [("ngram", "pos")]
    half = DecontaminationOptions((str(heldout),), share=0.9, similarity=0.7)
    assert found(EvaluationTexts(half), f"so {thirteen}", near) == [None, ("near", "pos")]
    asked = EvaluationTexts(DecontaminationOptions((str(heldout),), fields=("query",)))
    assert found(asked, PASSAGE, QUERY) == [None, ("exact", "query")]


def test_many_texts_against_plain_python(tmp_path):
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(30)]
    sentence = lambda low, high: [rng.choice(vocabulary) for _ in range(rng.randint(low, high))]
    evaluated = [sentence(1, 30) for _ in range(300)]
    trained = [sentence(1, 60) for _ in range(300)]
    for text in trained[:120]:  # some hold a part of an evaluation text, or all of it
        other = rng.choice(evaluated)
        start = rng.randrange(len(other))
        text[3:3] = other[start : start + rng.randint(1, 12)]
    trained += evaluated[:20] + [text[:-1] for text in evaluated[20:60]]
    path = tmp_path / "eval.txt"
    path.write_text("".join(" ".join(text) + "\n" for text in evaluated))
    evaluation = EvaluationTexts(DecontaminationOptions((str(path),), ngram=4, similarity=0.6))
    matches = evaluation.matches([("t", " ".join(text)) for text in trained])
    long = [text for text in evaluated if len(text) >= 3]
    runs = lambda text, n: {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    every = set().union(*(runs(text, 4) for text in long))
    counts = {"exact": 0, "ngram": 0, "none": 0}
    for text, match in zip(trained, matches, strict=True):
        if len(text) >= 3 and text in long:
            expected = "exact"
        elif runs(text, 4) & every:
            expected = "ngram"
            best = max(len(runs(text, 4) & runs(o, 4)) / max(len(runs(o, 4)), 1) for o in long)
            assert match.score == pytest.approx(best, abs=1e-4)
        else:
            expected = None
        counts[expected or "none"] += 1
        if expected is None and match is not None:
            assert match.method == "near"  # of texts too short to have a run
        else:
            assert (match and match.method) == expected
    assert min(counts.values()) >= 15


def test_near_duplicates_without_a_common_run(tmp_path):
    words = [f"w{i}" for i in range(200)]
    changed = ["new" if i % 40 == 39 else word for i, word in enumerate(words)]
    path = tmp_path / "eval.txt"
    path.write_text(" ".join(words) + "\n")
    options = DecontaminationOptions((str(path),), ngram=50, similarity=0.8)
    [match] = EvaluationTexts(options).matches([("t", " ".join(changed))])
    triples = lambda text: {tuple(text[i : i + 3]) for i in range(198)}
    shared = len(triples(words) & triples(changed)) / len(triples(words) | triples(changed))
    assert match.method == "near" and match.score == pytest.approx(shared, abs=1e-4)
    closer = DecontaminationOptions((str(path),), ngram=50, similarity=shared + 0.01)
    assert EvaluationTexts(closer).matches([("t", " ".join(changed))]) == [None]


def test_the_parts_of_examples():
    lines = {
        '{"query": ["i", "q"], "pos": ["p"], "neg": ["n", "m"]}': {
            "query": "q",
            "pos[0]": "p",
            "neg[0]": "n",
            "neg[1]": "m",
        },
        '{"text": ["u", "a"]}': {"text[0]": "u", "text[1]": "a"},
        '{"text": "d"}': {"text": "d"},
        '{"prompt": "p", "chosen": "c", "rejected": "r"}': {
            "prompt[0]": "p",
            "chosen": "c",
            "rejected": "r",
        },
        '{"prompt": "p", "completion": "c", "label": true}': {"prompt[0]": "p", "completion": "c"},
        '{"docs": ["d"], "text": ["q", "a"]}': {"docs[0]": "d", "text[0]": "q", "text[1]": "a"},
    }
    for line, parts in lines.items():
        assert dict(example_parts(parse_line(line, ""))) == parts


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ngram": 0}, "--ngram: expected at least 1 word, got 0"),
        ({"share": 1.5}, "--ngram-share: expected a number from 0 to 1, got 1.5"),
        ({"similarity": -1}, "--similarity: expected"),
        ({"fields": ("titel",)}, "no text of 3 words or more under titel to compare with"),
        ({"against": ("absent",)}, "absent: no such file"),
    ],
)
def test_options_that_make_no_sense(heldout, options, message):
    with pytest.raises(GritError, match=message):
        EvaluationTexts(DecontaminationOptions(**{"against": (str(heldout),), **options}))
