"""The report as one HTML page that needs nothing but itself: no script, no font, no picture from
elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.quickstart.report import facts
from grit_jax.quickstart.report.charts import curve, escape
from grit_jax.quickstart.report.elements import figure, note, section
from grit_jax.quickstart.report.facts import number, part, score
from grit_jax.quickstart.report.results import answering, finding, writing
from grit_jax.quickstart.report.samples import sample, with_code
from grit_jax.quickstart.report.style import STYLE
from grit_jax.runtime.files import write_text

# The browser itself refuses whatever would come from outside the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%230a62a3'/%3E"
    "%3Cpath d='M4 11V8M8 11V4M12 11V6' stroke='white' stroke-width='2'/%3E%3C/svg%3E"
)

FILES = {
    "report.html": "this page",
    "report.json": "every number on it",
    "train.yaml": "the training configuration; `grit train train.yaml` repeats it",
    "model/": "the model as a Hugging Face directory",
    "index/": "vectors and caches of the held-out documents",
    "data/train/*.jsonl": "what it was trained on",
    "data/heldout/{embedding,generative,rag}.jsonl": "what it was scored on",
}


def write_html(
    report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
    """Writes the page of a report and the metrics lines of its training; a reader never sees half a
    file.

    Raises:
      GritError: `path` cannot be written.
    """
    write_text(Path(path), html_report(report, metrics))


def html_report(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page as a string. The same report and metrics give the same page."""
    sections = _training(report, metrics) + finding(report) + writing(report) + answering(report)
    sections += _samples(report) + _commands(report) + _limits(report)
    version = f"grit_jax {escape(report['version'])}" if "version" in report else "grit_jax"
    seed = f" &#183; seed {escape(report['seed'])}" if "seed" in report else ""
    origin = facts.origin(report)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta'
        f' http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"><meta name="viewport"'
        ' content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light'
        ' dark"><meta name="referrer" content="no-referrer"><title>GRIT quickstart'
        ' report</title><link rel="icon"'
        f' href="{escape(_ICON)}"><style>{STYLE}</style></head>\n<body><div class="page"><header><p'
        f' class="kicker">{version}{seed}</p><h1>One model that finds and&#160;answers</h1><p'
        f' class="lede">{escape(facts.headline(report))}</p>'
        + (f'<p class="origin">{escape(origin)}</p>' if origin else "")
        + f"{_tiles(report)}</header>\n<main>{sections}</main>\n<footer>Written by <code>grit"
        " quickstart</code>. This page is one file and loads"
        " nothing.</footer></div></body></html>\n"
    )


def _tiles(report: Mapping[str, Any]) -> str:
    ours, words = (number(report, "retrieval", s, "ndcg@10") for s in ("trained", "bm25"))
    doc, closed = (number(report, "rag", m, "match") for m in (facts.DOC_MODE, "none"))
    read = number(report, "rag", facts.PLAIN_MODE, "match")
    before, after = (number(report, "language", f"perplexity_{k}") for k in ("before", "after"))
    tiles = (
        (ours, score, "nDCG@10 in search", "BM25", words),
        (read, score, "answers right, document read", "without it", closed),
        (doc, score, "answers right, document from cache", "without it", closed),
        (after, facts.decimal, "perplexity on held-out text", "untrained", before),
    )
    shown = "".join(
        f'<li class="tile"><b>{text(value)}</b><span>{name}</span>'
        + (f'<span class="than">{other}: {text(than)}</span>' if than is not None else "")
        + "</li>"
        for value, text, name, other, than in tiles
        if value is not None
    )
    return f'<ul class="tiles">{shown}</ul>' if shown else ""


def _training(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    panels = ""
    for key, title, what in facts.LOSSES:
        points = [
            (s, v)
            for line in metrics
            if (s := number(line, "step")) is not None and (v := number(line, key)) is not None
        ]
        if points:
            panels += figure(curve(f"chart-{key}", title, what, points), title, what)
    body = (
        f'<div class="panels">{panels}</div>'
        if panels
        else note("No training steps were recorded.")
    )
    if panels:
        body += note(
            "Faint: every step. Bold: moving average; the number at its end is its last value."
        )
    tokens, seconds = number(report, "training", "tokens"), number(report, "training", "seconds")
    layers, hidden = number(report, "model", "layers"), number(report, "model", "hidden")
    first, last = number(report, "training", "loss_first"), number(report, "training", "loss_last")
    shape = (
        f"{facts.count(layers)} layers of {facts.count(hidden)}"
        if layers is not None and hidden is not None
        else None
    )
    listed = (
        ("Documents", _count(report, "corpus", "documents")),
        ("Training documents", _count(report, "corpus", "train")),
        ("Held-out documents", _count(report, "corpus", "held_out")),
        ("Characters", _count(report, "corpus", "characters")),
        ("Parameters", _count(report, "model", "parameters")),
        ("Shape", shape),
        ("Vocabulary", _count(report, "model", "vocab")),
        ("Steps", _count(report, "training", "steps")),
        ("Tokens", facts.count(tokens) if tokens is not None else None),
        (
            "Tokens a second",
            facts.count(tokens / seconds) if tokens is not None and seconds else None,
        ),
        ("Training time", facts.duration(seconds) if seconds is not None else None),
        (
            "Loss, first to last",
            (
                f"{facts.decimal(first)} to {facts.decimal(last)}"
                if first is not None and last is not None
                else None
            ),
        ),
    )
    terms = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in listed if v is not None
    )
    about = (
        "All losses train one set of weights together. Held-out documents were never trained on.",
    )
    return section(
        "training", "Training", about, body + (f'<dl class="facts">{terms}</dl>' if terms else "")
    )


def _count(report: Mapping[str, Any], *keys: str) -> str | None:
    value = number(report, *keys)
    return None if value is None else facts.count(value)


def _samples(report: Mapping[str, Any]) -> str:
    entries = [s for s in facts.items(report, "samples") if isinstance(s, Mapping)]
    about = (
        (
            "The document is shown as the model had it. The right answer is marked where it stands."
            " An answer counts as right when it contains the right one, capitals, punctuation and"
            " articles aside."
        ),
    )
    return section("samples", "A few answers", about, "".join(map(sample, entries)))


def _unbroken(command: str) -> str:
    """A command as HTML whose words stay whole where a line ends: browsers break after hyphens
    otherwise."""
    return re.sub(r"\S+", lambda word: f"<span>{escape(word[0])}</span>", command)


def _commands(report: Mapping[str, Any]) -> str:
    commands = "".join(
        f"<pre><code>{_unbroken(facts.plain(c))}</code></pre>"
        for c in facts.items(report, "commands")
    )
    timings = {
        k: v for k in part(report, "timings") if (v := number(report, "timings", k)) is not None
    }
    if timings:
        whole = sum(timings.values()) or 1.0
        rows = "".join(
            f'<tr><th scope="row">{escape(k)}</th><td class="num">{facts.duration(v)}</td>'
            f'<td class="num">{v / whole:.0%}</td><td class="share" aria-hidden="true">'
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none">'
            f'<rect width="{100 * v / whole:.1f}" height="10" class="fill-plain"/></svg></td></tr>'
            for k, v in timings.items()
        )
        total = number(report, "seconds")
        caption = "Where the time went" + (
            f": {facts.duration(total)} in all" if total is not None else ""
        )
        commands += (
            f'<div class="scroll"><table class="times"><caption>{caption}</caption><thead><tr><th'
            ' scope="col">Stage</th><th scope="col" class="num">Time</th><th scope="col"'
            f' class="num">Share</th><td></td></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    files = part(report, "files") or FILES
    listed = "".join(
        f"<div><dt><code>{escape(k)}</code></dt><dd>{with_code(facts.plain(v))}</dd></div>"
        for k, v in files.items()
    )
    about = (
        ("Everything this run did can be typed. One click selects a whole command.",)
        if commands
        else ()
    )
    return section("commands", "What it ran", about, commands) + section(
        "files", "Where things are", ("Beside this page:",), f'<dl class="files">{listed}</dl>'
    )


def _limits(report: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{with_code(limit)}</li>" for limit in facts.limits(report))
    return section(
        "limits", "What these numbers do not say", (), f'<ul class="limits">{notes}</ul>'
    )
