"""The report page and the terminal report, from made-up reports only."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_fixture import HOSTILE, MODES, made_up_hostile_report, made_up_metrics, made_up_report

from grit_jax.errors import GritError
from grit_jax.pydocs import questions as spans
from grit_jax.quickstart.report import (
    charts,
    facts,
    html_report,
    samples,
    terminal,
    terminal_report,
    write_html,
)
from grit_jax.quickstart.report.style import STYLE
from grit_jax.text import rag_layouts as layouts

VOID = {"meta", "link", "br", "rect", "line", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Collects elements and text, and insists on nesting."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def without(*keys: str) -> dict[str, Any]:
    report = made_up_report()
    for key in keys:
        tree = report
        *path, last = key.split("/")
        for name in path:
            tree = tree[name]
        del tree[last]
    return report


INCOMPLETE = {
    "empty": {},
    "optional": without("retrieval/base", "language/perplexity_base", "rag_retrieved"),
    "no samples": without("samples", "commands", "timings", "index", "best_constant"),
    "no scores": without("retrieval", "language", "rag", "rag_questions"),
    "no counts": without("corpus", "model", "training", "seconds", "seed", "version"),
    "one mode": {**made_up_report(), "rag": {"doc": {"match": 0.5}}},
    "nulls": {
        **made_up_report(),
        "retrieval": {"trained": {"recall@1": None}, "bm25": None},
        "language": {"perplexity_before": None},
        "rag": {m: {"match": float("nan"), "seconds": None} for m in MODES},
        "samples": [None, {}],
        "training": None,
    },
    "zeros": {
        **made_up_report(),
        "rag": {m: {"match": 0.0, "seconds": 0.0} for m in MODES},
        "rag_questions": 0,
        "timings": {"nothing": 0.0},
        "language": {"perplexity_before": 1.0, "perplexity_after": 1.0},
    },
}


@pytest.mark.parametrize(
    "report", [made_up_report(), made_up_hostile_report(), *INCOMPLETE.values()]
)
@pytest.mark.parametrize("steps", [0, 1, 2, 1500])
def test_page_is_well_formed_and_needs_nothing_else(report, steps):
    text = html_report(report, made_up_metrics(steps))
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert not {"script", "iframe", "img", "object", "embed", "base", "form", "use", "image"} & {
        tag for tag, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "@import" not in text and "url(" not in text and "@font-face" not in text
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identities) == len(set(identities))
    for _, attributes in page.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(identities)
    text.encode("utf-8")
    assert "nan" not in re.findall(r'(?:x|y|width|height|cx|cy|points|d)="[^"]*?(nan|inf)', text)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_page_says_everything():
    report = made_up_report()
    page = Page(html_report(report, made_up_metrics()))
    for mode in MODES:
        assert page.words.count(mode) >= 4 and f"{report['rag'][mode]['match']:.3f}" in page.text
    for scores in (report["retrieval"][s] for s in ("trained", "base", "untrained", "bm25")):
        assert all(f"{value:.3f}" in page.text for value in scores.values())
    for said in (
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
        assert said in page.text, said
    for command in report["commands"]:
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
    assert page.text.count("\N{ROCKET}") >= 9


def test_missing_parts_leave_their_sections_out():
    def sections(report: dict[str, Any]) -> list[str]:
        return re.findall(r'<section aria-labelledby="(\w+)"', html_report(report, []))

    assert sections(made_up_report()) == [
        "training",
        "finding",
        "writing",
        "answering",
        "samples",
        "commands",
        "files",
        "limits",
    ]
    assert sections({}) == ["training", "files", "limits"]
    assert "base" not in Page(html_report(INCOMPLETE["optional"], [])).words
    assert "No training steps were recorded" in html_report(made_up_report(), [])


def test_curves_show_only_recorded_losses():
    metrics = [{"step": s, "loss_gen": None if s == 1 else 2.0} for s in range(4)] + [
        {"no": "step"}
    ]
    page = Page(html_report(made_up_report(), metrics))
    identities = [a.get("id") for a in page.all("title")]
    assert "chart-loss_gen-t" in identities and "chart-loss_emb-t" not in identities
    assert "3 steps" in page.text


def test_long_curves_stay_small_and_keep_their_spikes():
    points = [(float(s), 1.0) for s in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    drawing = charts.curve("c", "t", "w", points)
    assert len(drawing) < 20_000
    raw = re.search(r'points="([^"]*)" class="raw"', drawing)
    assert raw
    assert min(float(point.split(",")[1]) for point in raw[1].split()) < 20


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.031), (2.9, 3.1), (0, 12345), (5, 5), (0, 0)]
)
def test_ticks_cover_the_range_with_round_values(low, high):
    values = charts.ticks(low, high)
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9 and 2 <= len(values) <= 7
    assert len(set(charts.tick_texts(values))) == len(values)


def test_smoothing_keeps_constants_and_length():
    assert charts.smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert charts.smoothed([1.0]) == [1.0]
    assert charts.smoothed([]) == []


def test_answer_is_marked_as_whole_word_where_it_can_be():
    assert samples.marked("reshape(shape)", "shape") == ("reshape(<mark>shape</mark>)", True)
    assert samples.marked("reshape", "shape") == ("re<mark>shape</mark>", True)
    assert samples.marked("a < b & c", "< b") == ("a <mark>&lt; b</mark> &amp; c", True)
    assert samples.marked("nothing", "") == ("nothing", False)
    assert samples.marked("a.c abc", "a.c") == ("<mark>a.c</mark> abc", True)


def test_verdicts_follow_the_scores_definition():
    entry = {"gold": "The (shape)", "answers": {"doc": "it is SHAPE.", "none": "size"}}
    assert (
        facts.is_right(entry, "doc")
        and not facts.is_right(entry, "none")
        and not facts.is_right(entry, "query")
    )
    assert facts.is_right({**entry, "right": {"none": True}}, "none")
    assert facts.is_right({"gold": "''", "answers": {"doc": "''"}}, "doc") and not facts.is_right(
        {"gold": "''", "answers": {}}, "doc"
    )
    for text in ("The  (shape), an a", "'K'", "-1.5e-8", HOSTILE):
        assert facts.normalise(text) == spans.normalise(text)


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


# --- terminal ---
@pytest.mark.parametrize("report", [made_up_report(), *INCOMPLETE.values()])
def test_terminal_report_fits(report):
    text = terminal_report(report)
    assert text.endswith("\n") and "\n\n\n" not in text
    assert max(map(terminal.columns, text.splitlines()), default=0) <= terminal.WIDTH
    assert text.isascii()


def test_terminal_report_says_everything_and_aligns():
    report = made_up_report()
    text = terminal_report(report)
    lines = text.splitlines()
    for mode in MODES:
        row = next(
            line for line in lines if line.startswith(f"  {mode} ") and line.rstrip().endswith("ms")
        )
        assert f"{report['rag'][mode]['match']:.3f}" in row and len(row) == len(
            next(li for li in lines if li.startswith("  mode "))
        )
    assert "0.549" in text and "2,144" in text and "grit train runs/quickstart/train.yaml" in text
    assert "  doc-then-query  right  shape" in lines and "  none            wrong  dtype" in lines


def test_terminal_report_cannot_steer_the_terminal():
    report = made_up_hostile_report()
    report["samples"].reverse()
    text = terminal_report(report)
    assert "\x1b" not in text and "\x00" not in text
    text.encode("utf-8")
    assert all(
        terminal.columns(line) <= terminal.WIDTH
        for line in text.split("WHAT IT RAN")[0].splitlines()
    )


def test_long_commands_fold_between_words():
    command = (
        "grit ask "
        + "x" * 60
        + " 'a question with spaces, long enough to be folded' --mode doc --json"
    )
    folded = terminal.folded(command)
    assert all(len(line) <= terminal.WIDTH for line in folded.splitlines())
    assert folded.replace(" \\\n    ", " ").strip() == command
    assert terminal.folded("it's") == "  it's"


def test_wide_characters_count_twice():
    assert terminal.columns("\u65e5\u672c") == 4 and terminal.columns("e\u0301") == 1
    assert terminal.columns(terminal.fitted("\u65e5" * 80, 20)) <= 20


# --- files ---
def test_written_page_is_whole_and_alone(tmp_path: Path):
    report = json.loads(json.dumps(made_up_report()))
    write_html(report, made_up_metrics(5), tmp_path / "report.html")
    write_html(report, made_up_metrics(5), str(tmp_path / "report.html"))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == html_report(report, made_up_metrics(5))


def test_unwritable_path_is_the_persons_error(tmp_path: Path):
    with pytest.raises(GritError, match="cannot be written"):
        write_html({}, [], tmp_path / "absent" / "report.html")


def test_numbers_as_text():
    assert [facts.decimal(v) for v in (0.01234, 7.641, 31.24, 4321.4, None)] == [
        "0.0123",
        "7.64",
        "31.2",
        "4,321",
        "n/a",
    ]
    assert [facts.latency(v) for v in (0.0352, 0.352, 1.234)] == ["35.2 ms", "352 ms", "1.23 s"]
    assert [facts.duration(v) for v in (1.26, 59.7, 552, 3600, 7384)] == [
        "1.3 s",
        "1 min",
        "9 min 12 s",
        "1 h",
        "2 h 3 min",
    ]
    assert [facts.size(v) for v in (12, 34_500_000, 3e13)] == ["12 bytes", "34.5 MB", "30 TB"]
    assert [facts.millions(v) for v in (52_000, 912_345, 7.24e9)] == [
        "52,000",
        "0.912 million",
        "7.24 billion",
    ]
