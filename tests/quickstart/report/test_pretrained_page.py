"""The page of a pretrained model, from made-up reports only."""

from __future__ import annotations

import pytest
from html_page import Page, check_page
from pretrained_fixture import made_up_pretrained, made_up_pretrained_json
from report_fixture import HOSTILE, MODES

from grit_jax.quickstart.report import pretrained_html, write_pretrained_html


def hostile():
    tree = made_up_pretrained_json()
    samples = [tree["samples"][0] | {"question": HOSTILE, "gold": HOSTILE}]
    return made_up_pretrained(
        version=HOSTILE, model=tree["model"] | {"name": HOSTILE}, samples=samples
    )


def bare():
    """No training, no packages, no adapter."""
    tree = made_up_pretrained_json()
    return made_up_pretrained(
        training=None,
        model=tree["model"] | {"base": None},
        retrieval={"names": tree["retrieval"]["names"] | {"before": None}},
        language=tree["language"] | {"base": None, "before": None},
        rag_retrieved={},
    )


@pytest.mark.parametrize("report", [made_up_pretrained(), hostile(), bare()], ids=str)
def test_page_is_well_formed_and_needs_nothing_else(report):
    check_page(pretrained_html(report))


def test_page_says_everything(tmp_path):
    report = made_up_pretrained()
    write_pretrained_html(report, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    for mode in MODES:
        assert page.words.count(mode) >= 4 and f"{report.rag[mode].match:.3f}" in page.text
    for search in report.retrieval.values():
        for scores in (search.dense, search.bm25, search.hybrid, search.before):
            assert all(f"{value:.3f}" in page.text for value in scores.values())
    assert "the training configuration" in page.text
    for words in ("smollm2-grit", "11.1", "13.3", "12.2", "seed 4", "120 of 673 queries", "7.2"):
        assert words in page.text, words
    for command in report.commands:
        assert command in "".join(page.words)
    assert len([a for a in page.all("svg") if a.get("role") == "img"]) == 5
    plain = Page(pretrained_html(bare())).text
    assert "the training configuration" not in plain and "Held-out packages" not in plain
