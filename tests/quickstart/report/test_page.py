"""The report page, from made-up reports only."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from pathlib import Path

import pytest
from html_page import Page, check_page
from report_fixture import MODES, made_up_hostile_report, made_up_metrics, made_up_report

from grit_jax.errors import GritError
from grit_jax.quickstart.report import Report, html_report, write_html
from grit_jax.quickstart.report.contents import RagScores
from grit_jax.quickstart.report.page import marked, unbroken, with_code
from grit_jax.quickstart.settings import QuickstartSettings

STYLE = (resources.files("grit_jax.quickstart.report") / "report.css").read_text()


def zeros() -> Report:
    """Nothing was answered, found or timed."""
    scores = {mode: RagScores(0.0, 0.0, 0.0, 0.0) for mode in MODES}
    nothing = dict.fromkeys(("recall@1", "recall@10", "ndcg@10"), 0.0)
    report = made_up_report()
    return dataclasses.replace(
        report,
        rag=scores,
        rag_retrieved={},
        retrieval=dataclasses.replace(report.retrieval, trained=nothing, untrained=nothing),
        training=dataclasses.replace(report.training, seconds=0.0),
        timings={"nothing": 0.0},
        samples=[],
        commands=[],
    )


@pytest.mark.parametrize(
    "report",
    [made_up_report(), made_up_hostile_report(), zeros()],
    ids=["whole", "hostile", "zero"],
)
@pytest.mark.parametrize("steps", [0, 1, 2, 1500])
def test_page_is_well_formed_and_needs_nothing_else(report, steps):
    text = html_report(report, made_up_metrics(steps))
    check_page(text)


def test_page_says_everything():
    report = made_up_report()
    page = Page(html_report(report, made_up_metrics()))
    for mode in MODES:
        assert page.words.count(mode) >= 4 and f"{report.rag[mode].match:.3f}" in page.text
    retrieval = report.retrieval
    for system in ("trained", "base", "untrained", "bm25", "hybrid"):
        scores = getattr(retrieval, system)
        assert all(f"{value:.3f}" in page.text for value in scores.values())
    for words in (
        "8,103 documents",
        "1.31 million parameters",
        "7.2 minutes",
        "2,144",
        "38.0",
        "21.8",
        "closed book (none): 0.018",
        'best constant answer, "dtype": 0.022',
        "document found by search",
        "312 MB",
        "One run, one seed (0)",
    ):
        assert words in page.text, words
    for command in report.commands:
        assert command in "".join(page.words)
    drawings = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(drawings) == 9 and all(a["aria-labelledby"] for a in drawings)
    assert all(a.get("scope") for a in page.all("th"))


def test_style_sheet_is_whole():
    assert STYLE.count("{") == STYLE.count("}") and STYLE.count("/*") == STYLE.count("*/")
    assert all(line.count('"') % 2 == 0 for line in STYLE.splitlines())
    used, set_ = (
        set(re.findall(pattern, STYLE)) for pattern in (r"var\((--[\w-]+)\)", r"(--[\w-]+):")
    )
    assert used == set_


def test_same_report_gives_same_page():
    assert html_report(made_up_report(), made_up_metrics()) == html_report(
        made_up_report(), made_up_metrics()
    )


def test_hostile_text_is_escaped_everywhere():
    text = html_report(made_up_hostile_report(), made_up_metrics(3))
    page = Page(text)
    assert (
        "<script" not in text
        and "</title>w" not in text
        and "\x1b" not in text
        and "\x00" not in text
    )
    assert page.all("b") == [{}] * 4  # the four tiles' own
    assert page.text.count("<script>alert('x')</script>") >= 9
    assert page.text.count("\N{ROCKET}") >= 7


def test_sections_stand_in_their_order():
    sections = re.findall(
        r'<section aria-labelledby="(\w+)"', html_report(made_up_report(), made_up_metrics())
    )
    assert sections == [
        "training",
        "finding",
        "writing",
        "answering",
        "samples",
        "commands",
        "files",
        "limits",
    ]
    assert "No training steps were recorded" in html_report(made_up_report(), [])


def test_a_short_run_says_so():
    report = made_up_report()
    short = dataclasses.replace(report, settings=QuickstartSettings(documents=9012, steps=600))
    words = "A short run: 9,012 documents and 600 steps"
    assert words in html_report(short, []) and words not in html_report(report, [])


def test_curves_show_only_recorded_losses():
    metrics = [{"step": s, "loss_gen": None if s == 1 else 2.0} for s in range(4)]
    page = Page(html_report(made_up_report(), metrics))
    identities = [a.get("id") for a in page.all("title")]
    assert "chart-loss_gen-t" in identities and "chart-loss_emb-t" not in identities
    assert "3 steps" in page.text


def test_answer_is_marked_as_whole_word_where_it_can_be():
    assert marked("reshape(shape)", "shape") == "reshape(<mark>shape</mark>)"
    assert marked("reshape", "shape") == "re<mark>shape</mark>"
    assert marked("a < b & c", "< b") == "a <mark>&lt; b</mark> &amp; c"
    assert marked("a.c abc", "a.c") == "<mark>a.c</mark> abc"
    assert marked("<i>nothing", "") == "&lt;i&gt;nothing"


def test_code_and_commands_are_marked_up_and_escaped():
    assert with_code("`a<b` and `") == "<code>a&lt;b</code> and `"
    assert unbroken("grit ask  'a & b'") == (
        "<span>grit</span> <span>ask</span>  <span>&#39;a</span> <span>&amp;</span> <span>b&#39;</span>"
    )


def test_written_page_is_whole_and_alone(tmp_path: Path):
    report = made_up_report()
    write_html(report, made_up_metrics(5), tmp_path / "report.html")
    write_html(report, made_up_metrics(5), str(tmp_path / "report.html"))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == html_report(report, made_up_metrics(5))


def test_unwritable_path_is_the_users_error(tmp_path: Path):
    with pytest.raises(GritError, match="cannot be written"):
        write_html(made_up_report(), [], tmp_path / "absent" / "report.html")


def test_a_report_of_a_version_without_hybrid_search():
    """Nothing is shown of it."""
    report = made_up_report()
    without = dataclasses.replace(
        report, retrieval=dataclasses.replace(report.retrieval, hybrid={})
    )
    page = Page(html_report(without, made_up_metrics()))
    assert "hybrid" in Page(html_report(report, made_up_metrics())).text
    assert "hybrid" not in page.text and "0.549" in page.text
