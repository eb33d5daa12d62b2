"""The report of `grit quickstart --base MODEL` as one HTML page, from the parts of the other one."""

from __future__ import annotations

import os
from pathlib import Path

from markupsafe import Markup

from grit_jax.quickstart.report import facts, pretrained_facts
from grit_jax.quickstart.report.charts import Bar, BarStyle, bars, dots
from grit_jax.quickstart.report.page import (
    UNIT_AXIS,
    UNIT_TEXTS,
    environment,
    file_text,
    match_chart,
    references_of,
    seconds_chart,
)
from grit_jax.quickstart.report.pretrained_contents import PretrainedReport
from grit_jax.quickstart.report.wording import decimal, score
from grit_jax.runtime.files import write_text

_KINDS = {"dense": "main", "before": "soft", "bm25": "other", "hybrid": "plain"}
_SEARCH_BARS = BarStyle(370, 112, UNIT_AXIS, UNIT_TEXTS)


def write_pretrained_html(report: PretrainedReport, path: str | os.PathLike[str]) -> None:
    """Writes the page of a report.

    Raises:
      GritError: `path` cannot be written.
    """
    write_text(Path(path), pretrained_html(report))


def pretrained_html(report: PretrainedReport) -> str:
    """The page as a string. The same report gives the same page."""
    references = references_of(report)
    return (
        environment()
        .get_template("pretrained.html.j2")
        .render(
            report=report,
            facts=facts,
            own=pretrained_facts,
            style=Markup(file_text("report.css")),
            retrieval_charts=_retrieval_charts(report),
            perplexity_chart=_perplexity_chart(report),
            match_chart=match_chart(report, references),
            seconds_chart=seconds_chart(report),
            references=references,
        )
    )


def _retrieval_charts(report: PretrainedReport) -> list[tuple[str, Markup]]:
    """Name of a pool, and a chart of its nDCG."""
    charts = []
    for key, name, search in pretrained_facts.pools(report):
        rows = [
            Bar(label, scores["ndcg@10"], score(scores["ndcg@10"]), _KINDS[system])
            for system, label, scores in pretrained_facts.systems(search)
        ]
        charts.append((name, bars(f"chart-{key}", f"{name}, nDCG@10", rows, _SEARCH_BARS)))
    return charts


def _perplexity_chart(report: PretrainedReport) -> Markup:
    language = report.language
    rows = [
        Bar(name, value, decimal(value), kind)
        for name, value, kind in (
            ("base", language.base, "soft"),
            ("before", language.before, "plain"),
            ("model", language.model, "main"),
        )
        if value is not None
    ]
    title = "Perplexity on held-out documentation"
    return dots("chart-perplexity", title, rows, width=370, label_width=68)
