"""The report as plain text: aligned tables, at most 100 columns, no colours, nothing that steers a
terminal."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.quickstart.report import facts
from grit_jax.quickstart.report.facts import number, part, plain, score

WIDTH = 100
SAMPLES = 3


def terminal_report(report: Mapping[str, Any]) -> str:
    """The report for a terminal, a newline at its end. Text of documents keeps its characters; all
    else is ASCII."""
    blocks = [
        _wrapped(facts.headline(report) + " " + facts.origin(report)),
        _training(report),
        _retrieval(report),
        _language(report),
        _rag(report),
        _samples(report),
        _commands(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def columns(text: str) -> int:
    """How many terminal columns a text takes: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fitted(text: str, width: int) -> str:
    """One line of at most `width` columns, what is too long cut off with three dots."""
    text = " ".join(plain(text).split())
    if columns(text) <= width:
        return text
    while columns(text) > width - 3:
        text = text[:-1]
    return text.rstrip() + "..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Aligned columns: the first `words` to the left, numbers to the right."""
    widths = [max(columns(row[i]) for row in [head, *rows]) for i in range(len(head))]
    padded = (
        [
            cell + " " * (w - columns(cell)) if i < words else " " * (w - columns(cell)) + cell
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in [head, ["-" * w for w in widths], *rows]
    )
    return "\n".join(("  " + "  ".join(row)).rstrip() for row in padded)


def folded(command: str) -> str:
    """A shell command on lines that fit, joined by backslashes between its words, so that it can
    still be copied."""
    lines = [""]
    for word in re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""", command):
        if lines[-1] and columns(lines[-1]) + columns(word) + 7 > WIDTH:
            lines.append("")
        lines[-1] += " " * bool(lines[-1]) + word
    return "  " + " \\\n    ".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    text = plain(text).strip()
    width = max(
        WIDTH // 2, WIDTH - max(columns(text) - len(text), 0)
    )  # textwrap counts wide characters as one
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def _titled(title: str, *parts: str) -> str:
    said = [p for p in parts if p]
    return "\n".join([title.upper(), *said]) if said else ""


def _training(report: Mapping[str, Any]) -> str:
    training, said = part(report, "training"), []
    first, last = number(training, "loss_first"), number(training, "loss_last")
    if first is not None and last is not None:
        said += [f"loss {facts.decimal(first)} -> {facts.decimal(last)}"]
    tokens, seconds = number(training, "tokens"), number(training, "seconds")
    if tokens is not None:
        said += [
            f"{facts.count(tokens)} tokens"
            + (f", {facts.count(tokens / seconds)} a second" if seconds else "")
        ]
    return _titled("Training", _wrapped("; ".join(said), "  ") if said else "")


def _retrieval(report: Mapping[str, Any]) -> str:
    found = part(report, "retrieval")
    rows = [
        [label, *(score(number(found, s, k)) for k, _ in facts.RETRIEVAL_SCORES)]
        for s, label in facts.SYSTEMS
        if part(found, s)
    ]
    if not rows:
        return ""
    return _titled(
        "Finding",
        _wrapped(facts.retrieval_sentence(report), "  "),
        table(["search by", *(name for _, name in facts.RETRIEVAL_SCORES)], rows),
    )


def _language(report: Mapping[str, Any]) -> str:
    listed = (("untrained", "before"), ("base", "base"), ("trained", "after"))
    rows = [
        [name, facts.decimal(v)]
        for name, key in listed
        if (v := number(report, "language", f"perplexity_{key}")) is not None
    ]
    return (
        _titled(
            "Writing",
            _wrapped(facts.language_sentence(report), "  "),
            table(["model", "perplexity"], rows),
        )
        if rows
        else ""
    )


def _rag(report: Mapping[str, Any]) -> str:
    scores, searched = part(report, "rag"), facts.searched(report)
    chosen = [
        ("match", "match", score, scores),
        ("exact_match", "exact", score, scores),
        ("f1", "F1", score, scores),
        ("match", "searched", score, searched),
        ("seconds", "time", facts.latency, scores),
    ]
    chosen = [c for c in chosen if any(number(c[3], m.name, c[0]) is not None for m in facts.MODES)]
    if not chosen:
        return ""
    rows = [
        [
            m.name,
            m.question,
            m.document,
            *(text(number(tree, m.name, key)) for key, _, text, tree in chosen),
        ]
        for m in facts.MODES
    ]
    constant, note = number(report, "best_constant", "match"), ""
    if constant is not None:
        answer = fitted(part(report, "best_constant").get("answer") or "", 40)
        note = f'  The best constant answer, "{answer}", would score {score(constant)}.'
    return _titled(
        "Answering",
        _wrapped(facts.rag_sentence(report), "  "),
        table(["mode", "question", "document", *(name for _, name, _, _ in chosen)], rows, words=3),
        note,
        _wrapped(facts.index_sentence(report), "  "),
    )


def _samples(report: Mapping[str, Any]) -> str:
    shown = []
    for entry in [s for s in facts.items(report, "samples") if isinstance(s, Mapping)][:SAMPLES]:
        answers = part(entry, "answers")
        lines = [
            ("question", entry.get("question")),
            ("document", part(entry, "document").get("id")),
            ("gold", entry.get("gold")),
        ]
        said = [
            f"  {name:<16}{fitted(plain(value), WIDTH - 18)}"
            for name, value in lines
            if value is not None
        ]
        for mode in [m.name for m in facts.MODES if m.name in answers]:
            verdict = "right" if facts.is_right(entry, mode) else "wrong"
            said += [f"  {mode:<16}{verdict}  {fitted(plain(answers[mode]), WIDTH - 25)}".rstrip()]
        shown += ["\n".join(said)]
    return _titled("A few answers", "\n\n".join(shown))


def _commands(report: Mapping[str, Any]) -> str:
    commands = "\n".join(folded(plain(c)) for c in facts.items(report, "commands"))
    total = number(report, "seconds")
    return _titled(
        "What it ran" + (f", {facts.duration(total)} in all" if total is not None else ""), commands
    )
