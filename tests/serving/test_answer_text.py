"""Text of a growing answer, and stop strings across tokens."""

from __future__ import annotations

import random

import pytest

from grit_jax.serving.answer_text import AnswerText


@pytest.mark.parametrize("seed", range(20))
def test_any_division_gives_the_text_before_the_first_stop(tiny_tokenizer, sentences, seed):
    draw = random.Random(seed)
    text = sentences[seed] + " \u2603 na\u00efve " + sentences[seed + 1]
    ids = tiny_tokenizer.encode(text)
    decoded = tiny_tokenizer.decode(ids)
    stops = [decoded[i : i + draw.randint(1, 6)] for i in (draw.randrange(len(decoded)), 40)]
    stops = draw.choice([stops, [stops[0], "never \u2602"], ["never \u2602"]])
    places = [decoded.find(stop) for stop in stops if stop in decoded]
    expected = decoded[: min(places)] if places else decoded
    answer, parts = AnswerText(tiny_tokenizer, stops), []
    place = 0
    while place < len(ids) and not answer.stopped:
        size = draw.randint(1, 4)
        parts.append(answer.write(ids[place : place + size]))
        place += size
        assert expected.startswith("".join(parts))  # nothing is taken back
    parts.append(answer.finish())
    assert "".join(parts) == expected and answer.stopped == bool(places)


def test_only_what_may_be_a_stop_is_held_back(tiny_tokenizer):
    answer = AnswerText(tiny_tokenizer, ["END"])
    assert answer.write(tiny_tokenizer.encode("xxE")) == "xx"
    assert answer.write(tiny_tokenizer.encode("N")) == ""
    assert answer.write(tiny_tokenizer.encode("t")) == "ENt"
