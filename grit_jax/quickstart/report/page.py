"""The report as one HTML page that needs nothing but itself: no script, no font, no picture from
elsewhere.

`report.html.j2` holds the page, `report.css` its style; this module gives them the report, its
charts and a few filters.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grit_jax.quickstart.report import facts, wording
from grit_jax.quickstart.report.charts import (
    Bar,
    BarStyle,
    Reference,
    bars,
    curve,
    dots,
    escape,
    tick_texts,
    ticks,
)
from grit_jax.quickstart.report.contents import AnswersReport, RagScores, Report
from grit_jax.quickstart.report.wording import decimal, latency, plain, score
from grit_jax.runtime.files import write_text

# By their labels in `facts.SYSTEMS`.
_SYSTEM_KINDS = {
    "trained": "main",
    "base": "soft",
    "untrained": "plain",
    "BM25": "other",
    "hybrid": "main",
}
_GROUP_KINDS = {facts.CLOSED: "plain", facts.READ: "other", facts.CACHED: "main"}
UNIT_AXIS, UNIT_TEXTS = (0.0, 0.25, 0.5, 0.75, 1.0), ("0", "", "0.5", "", "1")
_SEARCH_BARS = BarStyle(280, 66, UNIT_AXIS, UNIT_TEXTS)
_MODE_BARS = BarStyle(370, 112, UNIT_AXIS, UNIT_TEXTS, mono=True)


def write_html(
    report: Report, metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
    """Writes the page of a report and of the metrics lines of its training.

    Raises:
      GritError: `path` cannot be written.
    """
    write_text(Path(path), html_report(report, metrics))


def html_report(report: Report, metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page as a string. The same report and metrics give the same page."""
    references = references_of(report)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            facts=facts,
            style=Markup(file_text("report.css")),
            losses=loss_charts(metrics),
            retrieval_charts=_retrieval_charts(report),
            perplexity_chart=_perplexity_chart(report),
            match_chart=match_chart(report, references),
            seconds_chart=seconds_chart(report),
            references=references,
        )
    )


def marked(text: str, answer: str) -> Markup:
    """`text` with every occurrence of `answer` in `<mark>`, as whole words if there are any."""
    text, answer = plain(text), plain(answer).strip()
    if not answer:
        return escape(text)
    literal = re.escape(answer)
    spans = [m.span() for m in re.finditer(rf"(?<!\w){literal}(?!\w)", text)] or [
        m.span() for m in re.finditer(literal, text)
    ]
    parts, end_before = [], 0
    for start, end in spans:
        parts += [escape(text[end_before:start]), Markup("<mark>%s</mark>") % text[start:end]]
        end_before = end
    return Markup("").join([*parts, escape(text[end_before:])])


def with_code(text: str) -> Markup:
    """`text` with what stands between backticks in `<code>`."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def unbroken(command: str) -> Markup:
    """A command whose words stay whole at a line's end; browsers break after hyphens otherwise."""
    return Markup(re.sub(r"\S+", lambda word: f"<span>{escape(word[0])}</span>", plain(command)))


# ---- charts --------------------------------------------------------------------------------------


def loss_charts(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Title, explanation and chart of each loss that the metrics hold."""
    charts = []
    for key, title, what in facts.LOSSES:
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        if points:
            charts.append((title, what, curve(f"chart-{key}", title, what, points)))
    return charts


def _retrieval_charts(report: Report) -> list[tuple[str, Markup]]:
    """Name and chart of each search score, by system."""
    charts = []
    for key, name in facts.RETRIEVAL_SCORES:
        rows = [
            Bar(label, scores[key], score(scores[key]), _SYSTEM_KINDS[label])
            for label, scores in facts.searches(report.retrieval)
        ]
        identity = f"chart-{key.replace('@', '-')}"
        drawing = bars(identity, f"Search, {name}", rows, _SEARCH_BARS)
        charts.append((name, drawing))
    return charts


def _perplexity_chart(report: Report) -> Markup:
    language = report.language
    rows = [
        Bar(name, value, decimal(value), kind)
        for name, value, kind in (
            ("untrained", language.perplexity_before, "plain"),
            ("base", language.perplexity_base, "soft"),
            ("trained", language.perplexity_after, "main"),
        )
    ]
    title = "Perplexity on held-out documentation"
    return dots("chart-perplexity", title, rows, width=370, label_width=68)


def references_of(report: AnswersReport) -> list[Reference]:
    """What a match score has to be above to mean anything."""
    constant, closed = report.best_constant, report.rag["none"].match
    answer = wording.clip(plain(constant.answer), 32)
    return [
        Reference(
            constant.match,
            "constant",
            f'best constant answer, "{answer}": {score(constant.match)}',
        ),
        Reference(closed, "closed", f"closed book (none): {score(closed)}"),
    ]


def match_chart(report: AnswersReport, references: Sequence[Reference]) -> Markup:
    """A bar for the match score of each mode."""
    rows = _mode_rows(report, lambda scores: scores.match, score, markers=True)
    title = "Match score by mode"
    return bars("chart-match", title, rows, _MODE_BARS, references)


def seconds_chart(report: AnswersReport) -> Markup:
    """A bar for the seconds per question of each mode."""
    longest = max(scores.seconds for scores in report.rag.values())
    axis = ticks(0.0, longest or 1.0, 3)
    texts = tick_texts(axis, " s") if longest >= 1 else tick_texts([1e3 * t for t in axis], " ms")
    rows = _mode_rows(report, lambda scores: scores.seconds, latency)
    title = "Seconds per question by mode"
    style = dataclasses.replace(_MODE_BARS, axis=axis, axis_texts=texts)
    return bars("chart-seconds", title, rows, style)


def _mode_rows(
    report: AnswersReport,
    value_of: Callable[[RagScores], float],
    text: Callable[[float], str],
    *,
    markers: bool = False,
) -> list[Bar]:
    """A bar for each mode, by group; markers show the value with a document found by search."""
    rows = []
    for mode in facts.MODES:
        value, searched = value_of(report.rag[mode.name]), report.rag_retrieved.get(mode.name)
        rows.append(
            Bar(
                mode.name,
                value,
                text(value),
                _GROUP_KINDS[mode.group],
                mode.group,
                value_of(searched) if markers and searched else None,
                f"{mode.name}: {text(value)}; question {mode.question}, document {mode.document}",
            )
        )
    return rows


# ---- the template --------------------------------------------------------------------------------


def environment() -> jinja2.Environment:
    """Escapes every value, and replaces what no screen shows, unless it is markup already."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(file_text),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for text in (wording.count, wording.duration, decimal, latency, score):
        environment.filters[text.__name__] = text
    for markup in (marked, with_code, unbroken):
        environment.filters[markup.__name__] = markup
    return environment


def file_text(name: str) -> str:
    """The text of a file beside this module, in a wheel as in a checkout."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
