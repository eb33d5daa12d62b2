"""The modes and judgements of a report."""

from __future__ import annotations

import dataclasses

from report_fixture import MODES, made_up_report

from grit_jax.quickstart.report import facts
from grit_jax.text import rag_layouts as layouts


def test_verdicts_are_the_match_score():
    sample = dataclasses.replace(
        made_up_report().samples[0],
        gold="The (shape)",
        answers={"doc": "it is SHAPE.", "none": "size"},
    )
    assert facts.is_right(sample, "doc") and not facts.is_right(sample, "none")


def test_modes_are_the_layouts():
    assert sorted(m.name for m in facts.MODES) == sorted(layouts.MODES) == sorted(MODES)
    for mode in facts.MODES:
        if mode.name == "none":
            continue
        kinds = {text.kind for text in layouts.compose(mode.name, "q", ["d"]).cached}
        assert (
            (mode.document == "from cache") == ("document" in kinds) == (mode.group == facts.CACHED)
        )
        assert (mode.question == "from cache") == ("query" in kinds)
