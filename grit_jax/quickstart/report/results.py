"""The scores of the report page: search, language, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grit_jax.quickstart.report import facts
from grit_jax.quickstart.report.charts import Bar, Reference, bars, dots, escape, tick_texts, ticks
from grit_jax.quickstart.report.elements import figure, note, section, table
from grit_jax.quickstart.report.facts import number, part, score

_SYSTEM_KINDS = {"trained": "main", "base": "soft", "untrained": "plain", "bm25": "other"}
_GROUP_KINDS = {facts.CLOSED: "plain", facts.ANEW: "other", facts.CACHED: "main"}
_UNIT: Any = {"axis": (0.0, 0.25, 0.5, 0.75, 1.0), "axis_texts": ("0", "", "0.5", "", "1")}
_SWATCH = '<svg viewBox="0 0 24 14" aria-hidden="true">'
_DIAMOND = '<path d="M12 1.5l5.5 5.5-5.5 5.5-5.5-5.5z" class="marker"/>'


def finding(report: Mapping[str, Any]) -> str:
    """Search: trained against base, untrained and BM25."""
    found = part(report, "retrieval")
    systems = [(key, name) for key, name in facts.SYSTEMS if part(found, key)]
    if not systems:
        return ""
    panels = ""
    for key, name in facts.RETRIEVAL_SCORES:
        lengths = [
            Bar(label, v := number(found, s, key), score(v), _SYSTEM_KINDS[s])
            for s, label in systems
        ]
        identity = f"chart-{key.replace('@', '-')}"
        panels += figure(
            bars(identity, f"Search, {name}", lengths, width=280, label_width=66, **_UNIT), name
        )
    head = "".join(f'<th scope="col" class="num">{name}</th>' for _, name in facts.RETRIEVAL_SCORES)
    rows = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(
            f'<td class="num">{score(number(found, s, k))}</td>' for k, _ in facts.RETRIEVAL_SCORES
        )
        + "</tr>"
        for s, label in systems
    )
    numbers = table("Search scores", f'<tr><th scope="col">Search by</th>{head}</tr>', rows)
    terms = note(
        "recall@k: the share of queries whose document is among the first k. nDCG@10 also rewards"
        " standing higher."
    )
    body = (
        f'<div class="panels">{panels}</div>{terms}<details><summary>The same as a'
        f" table</summary>{numbers}</details>"
    )
    return section("finding", "Finding", (facts.retrieval_sentence(report),), body)


def writing(report: Mapping[str, Any]) -> str:
    """Perplexity before and after."""
    listed = (
        ("untrained", "before", "plain"),
        ("base", "base", "soft"),
        ("trained", "after", "main"),
    )
    rows = [
        Bar(name, v, facts.decimal(v), kind)
        for name, key, kind in listed
        if (v := number(report, "language", f"perplexity_{key}")) is not None and v > 0
    ]
    if not rows:
        return ""
    drawing = dots(
        "chart-perplexity", "Perplexity on held-out documentation", rows, width=370, label_width=68
    )
    terms = note(
        "Perplexity: among how many equally likely next tokens the model is undecided. Lower is"
        " better. The axis is logarithmic."
    )
    body = figure(drawing, "Perplexity on held-out documentation") + terms
    return section("writing", "Writing", (facts.language_sentence(report),), body)


def answering(report: Mapping[str, Any]) -> str:
    """The seven modes: how often right, how quick, and what each reads from a cache."""
    scores, searched = part(report, "rag"), facts.searched(report)
    if not any(part(scores, m.name) for m in facts.MODES):
        return ""
    closed, constant = number(scores, "none", "match"), number(report, "best_constant", "match")
    references = []
    if constant is not None:
        answer = facts.clip(facts.plain(part(report, "best_constant").get("answer")), 32)
        references += [
            Reference(constant, "constant", f'best constant answer, "{answer}": {score(constant)}')
        ]
    if closed is not None:
        references += [Reference(closed, "closed", f"closed book (none): {score(closed)}")]

    def rows(key: str, text: Any) -> list[Bar]:
        return [
            Bar(
                m.name,
                v := number(scores, m.name, key),
                text(v),
                _GROUP_KINDS[m.group],
                m.group,
                number(searched, m.name, key) if key == "match" else None,
                f"{m.name}: {text(v)}; question {m.question}, document {m.document}",
            )
            for m in facts.MODES
        ]

    shape: Any = {"width": 370, "label_width": 112, "mono": True}
    lengths = rows("match", score)
    match = bars(
        "chart-match", "Match score by mode", lengths, references=references, **shape, **_UNIT
    )
    legend = "".join(
        f'<li>{_SWATCH}<line x1="0" y1="7" x2="24" y2="7" class="ref'
        f' {r.kind}"/></svg>{escape(r.name)}</li>'
        for r in references
    )
    if any(bar.marker is not None for bar in lengths):
        legend += f"<li>{_SWATCH}{_DIAMOND}</svg>document found by search instead of given</li>"
    match += f'<ul class="legend">{legend}</ul>' if legend else ""
    panels = figure(match, "Match score", "share of answers that contain the right one")
    times = [v for m in facts.MODES if (v := number(scores, m.name, "seconds")) is not None]
    if times:
        axis = ticks(0.0, max(times) or 1.0, 3)
        axis_texts = (
            tick_texts(axis, " s")
            if max(times) >= 1
            else tick_texts([1000 * t for t in axis], " ms")
        )
        lengths = rows("seconds", facts.latency)
        drawing = bars(
            "chart-seconds",
            "Seconds per question by mode",
            lengths,
            axis=axis,
            axis_texts=axis_texts,
            **shape,
        )
        panels += figure(drawing, "Time for one question", "on this machine")
    terms = note(
        "A mode says what the model reads for each question and what it takes from a cache made"
        " earlier: its own states of the document from indexing, of the question from searching."
    )
    body = f'<div class="panels two">{panels}</div>{_rag_table(scores, searched)}{terms}'
    return section(
        "answering", "Answering", (facts.rag_sentence(report), facts.index_sentence(report)), body
    )


def _rag_table(scores: Mapping[str, Any], searched: Mapping[str, Any]) -> str:
    columns = [
        ("match", "Match", score, scores),
        ("seconds", "Time", facts.latency, scores),
        ("exact_match", "Exact", score, scores),
        ("f1", "F1", score, scores),
        ("match", "Match, searched", score, searched),
    ]
    columns = [
        c for c in columns if any(number(c[3], m.name, c[0]) is not None for m in facts.MODES)
    ]
    head = '<tr><th scope="col">Mode</th><th scope="col">Question</th><th scope="col">Document</th>'
    head += (
        "".join(f'<th scope="col" class="num">{name}</th>' for _, name, _, _ in columns) + "</tr>"
    )
    rows, group = "", ""
    for mode in facts.MODES:
        if mode.group != group:
            group = mode.group
            rows += (
                '<tr class="band"><th scope="rowgroup"'
                f' colspan="{len(columns) + 3}">{group}</th></tr>'
            )
        rows += (
            "<tr><th"
            f' scope="row"><code>{mode.name}</code></th><td>{mode.question}</td><td>{mode.document}</td>'
        )
        cells = (text(number(tree, mode.name, key)) for key, _, text, tree in columns)
        rows += "".join(f'<td class="num">{cell}</td>' for cell in cells) + "</tr>"
    return table("The seven modes", head, rows)
