"""Preference batches: which texts they hold, and where these are."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import preference_batches as rows
import pytest

from grit_jax.data.config import BatchNeeds, DataConfig
from grit_jax.data.pipeline import JointBatches
from grit_jax.data.preference import SingleAnswers, place_preference, preference_texts
from grit_jax.data.sources import open_source
from grit_jax.errors import GritError

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"good {i}", "rejected": f"bad {i}{' x' * i}"}
    for i in range(5)
]
LABELLED = [
    {"prompt": f"Other {i}?", "completion": f"answer {i}", "label": i % 2 == 0} for i in range(3)
]


@pytest.fixture()
def file(tmp_path):
    """Pairs and labelled answers in one file."""
    lines = [*PAIRS[:2], LABELLED[0], *PAIRS[2:], *LABELLED[1:]]
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def batches(tokenizer, loss, file, batch, **settings) -> JointBatches:
    config = DataConfig(
        preference=[file],
        preference_batch=batch,
        preference_max_length=128,
        row_multiple=1,
        **settings,
    )
    return JointBatches(config, tokenizer, seed=1, needs=BatchNeeds(preference=loss))


def texts(part, tokenizer) -> list[tuple[str, str, int]]:
    """Prompt, answer and row of each sequence, from the packed arrays."""
    found = []
    for number in range(part.sequences):
        here = (part.sequence == number) & (part.rows.segments > 0)
        (row,) = set(np.nonzero(here)[0].tolist())
        answer = here & (part.targets > 0)
        read = lambda mask: tokenizer.decode(part.rows.tokens[mask].tolist())
        found.append((read(here & ~answer), read(answer), row))
    return found


def test_dpo_has_pairs_in_one_row(tiny_tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in PAIRS))
    batch = batches(tiny_tokenizer, "dpo", str(path), 5)[0].preference
    assert batch.desirable is None and batch.mismatched is None
    found = texts(batch.text, tiny_tokenizer)
    by_prompt = {line["prompt"]: line for line in PAIRS}
    for chosen, rejected in zip(found[:5], found[5:], strict=True):
        assert chosen[0] == rejected[0] and chosen[2] == rejected[2]
        (line,) = [by_prompt[p] for p in by_prompt if p in chosen[0]]
        assert line["chosen"] in chosen[1] and line["rejected"] in rejected[1]
    assert batch.text.rows.tokens.shape[1] == 256  # two texts of the longest length
    # No token of a prompt is a target; the answer ends with the end of sequence.
    assert (
        batch.text.rows.tokens[batch.text.targets > 0].tolist().count(tiny_tokenizer.eos_id) == 10
    )


def test_kto_has_single_answers_and_those_of_others(tiny_tokenizer, file):
    """Eight lines with thirteen answers, of which each step of an epoch has others."""
    data = batches(tiny_tokenizer, "kto", file, 13)
    batch = data[0].preference
    labels = {line["completion"]: line["label"] for line in LABELLED}
    labels |= {line["chosen"]: True for line in PAIRS}
    labels |= {line["rejected"]: False for line in PAIRS}
    prompts = {line["completion"]: line["prompt"] for line in LABELLED}
    prompts |= {line[key]: line["prompt"] for line in PAIRS for key in ("chosen", "rejected")}
    found = texts(batch.text, tiny_tokenizer)
    answers = [next(a for a in sorted(labels, key=len, reverse=True) if a in f[1]) for f in found]
    assert sorted(answers) == sorted(labels)
    assert batch.desirable.tolist() == [labels[a] for a in answers]
    assert all(prompts[a] in f[0] for a, f in zip(answers, found, strict=True))
    other = texts(batch.mismatched, tiny_tokenizer)
    assert [f[0] for f in other] == [f[0] for f in found]
    assert [f[1] for f in other] == [found[i - 1][1] for i in range(13)]
    assert data.ids(0)["preference"][0].startswith(file)
    assert data.summary[0].used == 8 and data.epoch(1) == {"preference": 1}


def test_a_subset_of_lines_keeps_pairs_whole(tiny_tokenizer, file):
    data = batches(tiny_tokenizer, "kto", file, 4, num_samples={file: 3})
    lines = {where for step in range(20) for where in data.ids(step)["preference"]}
    assert len(lines) == 3


def test_answers_of_a_pair_are_two_examples(file):
    source = open_source(file)
    pairs = np.array([True, True, False, True, True, True, False, False])
    single = SingleAnswers(source, np.array([1, 2]), pairs[[1, 2]])
    assert len(single) == 3
    assert [(e.completion, e.desirable) for e in map(single.__getitem__, range(3))] == [
        ("good 1", True),
        ("bad 1 x", False),
        ("answer 0", True),
    ]
    assert [single.where(i) for i in range(3)] == [f"{file}:2", f"{file}:2", f"{file}:3"]


def test_dpo_needs_pairs(tiny_tokenizer, file):
    with pytest.raises(GritError, match=r"both.jsonl:3: no \"chosen\" and \"rejected\""):
        batches(tiny_tokenizer, "dpo", file, 2)
    skipping = batches(tiny_tokenizer, "dpo", file, 2, on_error="skip")
    assert sum(skipping.summary[0].skipped.values()) == 3


def test_long_texts_are_truncated_and_long_prompts_left_out(tiny_tokenizer, tmp_path):
    path = tmp_path / "long.jsonl"
    lines = [
        {"prompt": "short", "completion": "word " * 300, "label": True},
        {"prompt": "word " * 300, "completion": "a", "label": False},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = batches(tiny_tokenizer, "kto", str(path), 2)
    assert data.summary[0].filtered == {"the prompt fills preference_max_length (128)": 1}
    text = data[0].preference.text
    assert (text.rows.segments > 0).sum() == 2 * 128  # the usable one, twice


def test_batches_have_the_shapes_of_the_largest(tiny_tokenizer, file):
    data = batches(tiny_tokenizer, "kto", file, 3, balance_window=4)
    shapes = {
        (part.rows.tokens.shape, part.max_targets)
        for step in range(8)
        for part in (data[step].preference.text, data[step].preference.mismatched)
    }
    assert len({shape[1] for shape, _ in shapes}) == 1 and len(shapes) <= 2


def test_pairs_are_placed_by_their_length_together():
    """And every text has a segment of its own, where a row holds several pairs as well."""
    for length, num_rows in ((12, 5), (24, 3)):
        packing = dataclasses.replace(rows.packing(), row_length=length)
        placement = place_preference([*rows.MATCHED, *rows.OTHERS], 10, packing).text
        for pair in range(5):
            assert placement.row[pair] == placement.row[5 + pair]
            assert placement.index[5 + pair] == placement.index[pair] + 1
        places = set(zip(placement.row.tolist(), placement.index.tolist(), strict=True))
        assert len(places) == 10 and placement.num_rows == num_rows


@pytest.mark.parametrize("loss, count", [("kto", 6), ("dpo", 6)])
def test_texts_of_a_batch(loss, count, file):
    pairs = [open_source(file)[i] for i in (0, 1, 3)]
    source = SingleAnswers(open_source(file), np.arange(3), np.array([True, True, False]))
    examples = pairs if loss == "dpo" else [source[i] for i in range(5)] + [source[0]]
    drawn = preference_texts(examples, loss)
    assert drawn.count == count and len(drawn.answers) == (6 if loss == "dpo" else 12)
