"""The report as one HTML page that needs nothing but itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.report import facts
from grit_jax.report.charts import Bar, Reference, bars, curve, dots, escape, ticks
from grit_jax.report.facts import number, part, score
from grit_jax.report.samples import sample
from grit_jax.report.style import STYLE
from grit_jax.types import GritError

# The browser itself refuses whatever would come from outside the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='3' "
    "fill='%230a62a3'/%3E%3Cpath d='M4 11V8M8 11V4M12 11V6' stroke='white' stroke-width='2'/%3E%3C/svg%3E"
)
_SYSTEM_KINDS = {"trained": "main", "base": "soft", "untrained": "plain", "bm25": "other"}
_GROUP_KINDS = {facts.CLOSED: "plain", facts.ANEW: "other", facts.CACHED: "main"}
_UNIT = (0.0, 0.25, 0.5, 0.75, 1.0)
_UNIT_TEXTS = ("0", "", "0.5", "", "1")

FILES = {
    "report.html": "this page",
    "report.json": "every number on it",
    "train.yaml": "the training configuration; `grit train train.yaml` repeats it",
    "model/": "the model as a Hugging Face directory",
    "index/": "vectors and caches of the held-out documents",
    "data/train/*.jsonl": "what it was trained on",
    "data/heldout/{embedding,generative,rag}.jsonl": "what it was scored on",
}


def write_html(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes the page of a report and the metrics lines of its training; a reader never sees half a file.

    Raises:
      GritError: `path` cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html_report(report, metrics), encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise GritError(f"{path}: cannot be written ({error.strerror}); choose another output folder") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def html_report(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page as a string. The same report and metrics give the same page."""
    sections = "".join((
        _training(report, metrics), _retrieval(report), _language(report), _rag(report), _samples(report),
        _commands(report), _limits(report),
    ))  # fmt: skip
    version = f"grit_jax {escape(report['version'])}" if "version" in report else "grit_jax"
    seed = f" &#183; seed {escape(report['seed'])}" if "seed" in report else ""
    origin = facts.origin(report)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>GRIT quickstart report</title><link rel="icon" href="{escape(_ICON)}">'
        f'<style>{STYLE}</style></head>\n<body><div class="page"><header><p class="kicker">{version}{seed}</p>'
        f"<h1>One model that finds and&#160;answers</h1><p class=\"lede\">{escape(facts.headline(report))}</p>"
        + (f'<p class="origin">{escape(origin)}</p>' if origin else "")
        + f"{_tiles(report)}</header>\n<main>{sections}</main>\n"
        "<footer>Written by <code>grit quickstart</code>. This page is one file and loads nothing.</footer></div></body></html>\n"
    )


def _section(identity: str, heading: str, about: Sequence[str], body: str) -> str:
    if not body:
        return ""
    paragraphs = "".join(f"<p>{escape(p)}</p>" for p in about if p)
    return (
        f'<section aria-labelledby="{identity}"><div class="about"><h2 id="{identity}">{escape(heading)}</h2>{paragraphs}</div>'
        f'<div class="matter">{body}</div></section>\n'
    )


def _figure(drawing: str, title: str, note: str = "") -> str:
    return f"<figure><figcaption><strong>{escape(title)}</strong> <span>{escape(note)}</span></figcaption>{drawing}</figure>"


def _tiles(report: Mapping[str, Any]) -> str:
    ours, words = (number(report, "retrieval", s, "ndcg@10") for s in ("trained", "bm25"))
    doc, closed = (number(report, "rag", m, "match") for m in (facts.DOC_MODE, "none"))
    read = number(report, "rag", facts.PLAIN_MODE, "match")
    before, after = (number(report, "language", f"perplexity_{k}") for k in ("before", "after"))
    tiles = (
        (ours, score(ours), "nDCG@10 in search", f"BM25: {score(words)}" if words is not None else ""),
        (read, score(read), "answers right, document read", f"without it: {score(closed)}" if closed is not None else ""),
        (doc, score(doc), "answers right, document from cache", f"without it: {score(closed)}" if closed is not None else ""),
        (after, facts.decimal(after), "perplexity on held-out text", f"untrained: {facts.decimal(before)}" if before is not None else ""),
    )
    shown = "".join(
        f'<li class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><span class="than">{escape(than)}</span></li>'
        for known, value, name, than in tiles if known is not None
    )  # fmt: skip
    return f'<ul class="tiles">{shown}</ul>' if shown else ""


def _training(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    panels = ""
    for key, title, what in facts.LOSSES:
        points = [(s, v) for line in metrics if (s := number(line, "step")) is not None and (v := number(line, key)) is not None]
        if points:
            panels += _figure(curve(f"chart-{key}", title, what, points), title, what)
    body = f'<div class="panels">{panels}</div>' if panels else '<p class="note">No training steps were recorded.</p>'
    if panels:
        body += '<p class="note">Faint: every step. Bold: moving average; the number at its end is its last value.</p>'
    tokens, seconds = number(report, "training", "tokens"), number(report, "training", "seconds")
    layers, hidden = number(report, "model", "layers"), number(report, "model", "hidden")
    first, last = number(report, "training", "loss_first"), number(report, "training", "loss_last")
    shape = f"{facts.count(layers)} layers of {facts.count(hidden)}" if layers is not None and hidden is not None else None
    listed = (
        ("Documents", _count(report, "corpus", "documents")),
        ("to train on", _count(report, "corpus", "train")),
        ("held out", _count(report, "corpus", "held_out")),
        ("Characters", _count(report, "corpus", "characters")),
        ("Parameters", _count(report, "model", "parameters")),
        ("Shape", shape),
        ("Vocabulary", _count(report, "model", "vocab")),
        ("Steps", _count(report, "training", "steps")),
        ("Tokens", facts.count(tokens) if tokens is not None else None),
        ("Tokens a second", facts.count(tokens / seconds) if tokens is not None and seconds else None),
        ("Training time", facts.duration(seconds) if seconds is not None else None),
        ("Loss, first to last", f"{facts.decimal(first)} to {facts.decimal(last)}" if first is not None and last is not None else None),
    )
    terms = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in listed if v is not None)
    about = ("All losses train one set of weights in every step. Held-out documents were never trained on.",)
    return _section("training", "Training", about, body + (f'<dl class="facts">{terms}</dl>' if terms else ""))


def _count(report: Mapping[str, Any], *keys: str) -> str | None:
    value = number(report, *keys)
    return None if value is None else facts.count(value)


def _retrieval(report: Mapping[str, Any]) -> str:
    found = part(report, "retrieval")
    systems = [(key, name) for key, name in facts.SYSTEMS if part(found, key)]
    if not systems:
        return ""
    panels = ""
    for key, name in facts.RETRIEVAL_SCORES:
        rows = [Bar(label, number(found, s, key), score(number(found, s, key)), _SYSTEM_KINDS[s]) for s, label in systems]
        drawing = bars(f"chart-{key.replace('@', '-')}", f"Search, {name}", rows, width=300, label_width=68, axis=_UNIT, axis_texts=_UNIT_TEXTS)
        panels += _figure(drawing, name)
    head = "".join(f'<th scope="col" class="num">{name}</th>' for _, name in facts.RETRIEVAL_SCORES)
    rows = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(f'<td class="num">{score(number(found, s, k))}</td>' for k, _ in facts.RETRIEVAL_SCORES) + "</tr>"
        for s, label in systems
    )  # fmt: skip
    table = _table("Search scores", f'<tr><th scope="col">Search by</th>{head}</tr>', rows)
    about = (facts.retrieval_sentence(report), "recall@k: the share of queries whose document is among the first k. nDCG@10 also "
             "rewards standing higher. All from 0 to 1.")  # fmt: skip
    return _section("finding", "Finding", about, f'<div class="panels">{panels}</div><details><summary>The same as a table</summary>{table}</details>')


def _table(caption: str, head: str, rows: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="figures">'
        f"<caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
    )


def _language(report: Mapping[str, Any]) -> str:
    listed = (("untrained", "before", "plain"), ("base", "base", "soft"), ("trained", "after", "main"))
    rows = [Bar(name, v, facts.decimal(v), kind) for name, key, kind in listed
            if (v := number(report, "language", f"perplexity_{key}")) is not None and v > 0]  # fmt: skip
    if not rows:
        return ""
    drawing = dots("chart-perplexity", "Perplexity on held-out documentation", rows, width=400, label_width=68)
    about = (facts.language_sentence(report), "Perplexity: among how many equally likely next tokens the model is undecided. "
             "Lower is better. The axis is logarithmic.")  # fmt: skip
    return _section("writing", "Writing", about, _figure(drawing, "Perplexity on held-out documentation"))


def _rag(report: Mapping[str, Any]) -> str:
    scores, searched = part(report, "rag"), part(report, "rag_retrieved")
    if not any(part(scores, m.name) for m in facts.MODES):
        return ""
    closed, constant = number(scores, "none", "match"), number(report, "best_constant", "match")
    references = []
    if constant is not None:
        answer = facts.clip(facts.plain(part(report, "best_constant").get("answer")), 32)
        references += [Reference(constant, "constant", f'best constant answer, "{answer}": {score(constant)}')]
    if closed is not None:
        references += [Reference(closed, "closed", f"closed book (none): {score(closed)}")]

    def rows(key: str, text: Any) -> list[Bar]:
        return [Bar(m.name, v := number(scores, m.name, key), text(v), _GROUP_KINDS[m.group], m.group,
                    number(searched, m.name, key) if key == "match" else None,
                    f"{m.name}: {text(v)}; question {m.question}, document {m.document}") for m in facts.MODES]  # fmt: skip

    match = bars("chart-match", "Match score by mode", rows("match", score), width=400, label_width=116, axis=_UNIT,
                 axis_texts=_UNIT_TEXTS, references=references, mono=True)  # fmt: skip
    legend = "".join(f'<li><svg viewBox="0 0 24 14" aria-hidden="true"><line x1="0" y1="7" x2="24" y2="7" class="ref {r.kind}"/></svg>'
                     f"{escape(r.name)}</li>" for r in references)  # fmt: skip
    if any(number(searched, m.name, "match") is not None for m in facts.MODES):
        legend += ('<li><svg viewBox="0 0 24 14" aria-hidden="true"><path d="M12 1.5l5.5 5.5-5.5 5.5-5.5-5.5z" class="marker"/></svg>'
                   "document found by search instead of given</li>")  # fmt: skip
    panels = _figure(match + (f'<ul class="legend">{legend}</ul>' if legend else ""), "Match score", "share of answers that contain the right one")
    times = [v for m in facts.MODES if (v := number(scores, m.name, "seconds")) is not None]
    if times:
        axis = ticks(0.0, max(times) or 1.0, 3)
        drawing = bars("chart-seconds", "Seconds per question by mode", rows("seconds", facts.latency), width=400, label_width=116,
                       axis=axis, axis_texts=["0", *map(facts.latency, axis[1:])], mono=True)  # fmt: skip
        panels += _figure(drawing, "Time for one question", "on this machine")
    about = (facts.rag_sentence(report), "A mode says what the model reads and what it takes from a cache made earlier: its own "
             "states of the document from indexing, of the question from searching.", facts.index_sentence(report))  # fmt: skip
    return _section("answering", "Answering", about, f'<div class="panels two">{panels}</div>{_rag_table(scores, searched)}')


def _rag_table(scores: Mapping[str, Any], searched: Mapping[str, Any]) -> str:
    columns = [("match", "Match", score, scores), ("exact_match", "Exact", score, scores), ("f1", "F1", score, scores),
               ("match", "Match, searched", score, searched), ("seconds", "Time", facts.latency, scores)]  # fmt: skip
    columns = [c for c in columns if any(number(c[3], m.name, c[0]) is not None for m in facts.MODES)]
    head = '<tr><th scope="col">Mode</th><th scope="col">Question</th><th scope="col">Document</th>'
    head += "".join(f'<th scope="col" class="num">{name}</th>' for _, name, _, _ in columns) + "</tr>"
    rows, group = "", ""
    for mode in facts.MODES:
        if mode.group != group:
            group = mode.group
            rows += f'<tr class="band"><th scope="rowgroup" colspan="{len(columns) + 3}">{group}</th></tr>'
        rows += f'<tr><th scope="row"><code>{mode.name}</code></th><td>{mode.question}</td><td>{mode.document}</td>'
        rows += "".join(f'<td class="num">{text(number(tree, mode.name, key))}</td>' for key, _, text, tree in columns) + "</tr>"
    return _table("The seven modes", head, rows)


def _samples(report: Mapping[str, Any]) -> str:
    entries = [s for s in facts.items(report, "samples") if isinstance(s, Mapping)]
    about = ("The document is shown as the model had it. The right answer is marked where it stands. An answer counts as right "
             "when it contains the right one, capitals, punctuation and articles aside.",)  # fmt: skip
    return _section("samples", "A few answers", about, "".join(map(sample, entries)))


def _commands(report: Mapping[str, Any]) -> str:
    commands = "".join(f"<pre><code>{escape(c)}</code></pre>" for c in facts.items(report, "commands"))
    timings = {k: v for k in part(report, "timings") if (v := number(report, "timings", k)) is not None}
    if timings:
        longest = max(timings.values()) or 1.0
        rows = "".join(
            f'<tr><th scope="row">{escape(k)}</th><td class="num">{facts.duration(v)}</td><td class="share">'
            f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="{max(100 * v / longest, 0.4):.1f}" height="10" '
            'class="fill-plain"/></svg></td></tr>' for k, v in timings.items()
        )  # fmt: skip
        total = number(report, "seconds")
        caption = "Where the time went" + (f": {facts.duration(total)} in all" if total is not None else "")
        commands += (f'<div class="scroll"><table class="times"><caption>{caption}</caption><thead><tr><th scope="col">Stage</th>'
                     f'<th scope="col" class="num">Time</th><th scope="col">Share</th></tr></thead><tbody>{rows}</tbody></table></div>')  # fmt: skip
    files = part(report, "files") or FILES
    listed = "".join(f"<div><dt><code>{escape(k)}</code></dt><dd>{escape(v)}</dd></div>" for k, v in files.items())
    about = ("Everything this run did can be typed. One click selects a whole command.",) if commands else ()
    return _section("commands", "What it ran", about, commands) + _section(
        "files", "Where things are", ("Beside this page:",), f'<dl class="files">{listed}</dl>'
    )


def _limits(report: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts.limits(report))
    return _section("limits", "What these numbers do not say", (), f'<ul class="limits">{notes}</ul>')
