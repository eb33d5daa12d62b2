"""The report as plain text: aligned tables, at most 100 columns, no colours, nothing that steers a
terminal."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from grit_jax.quickstart.report import facts
from grit_jax.quickstart.report.contents import AnswersReport, Report
from grit_jax.quickstart.report.facts import RETRIEVAL_SCORES
from grit_jax.quickstart.report.wording import count, decimal, duration, latency, plain, score

WIDTH = 100
SAMPLES = 3


def terminal_report(report: Report) -> str:
    """The report for a terminal, a newline at its end. Text of documents keeps its characters; all
    else is ASCII."""
    blocks = [
        wrapped(facts.headline(report) + " " + facts.origin(report)),
        _training(report),
        _retrieval(report),
        _language(report),
        _rag(report),
        samples(report),
        commands(report),
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


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph on lines that fit."""
    text = plain(text).strip()
    # textwrap counts wide characters as one column.
    width = max(WIDTH // 2, WIDTH - max(columns(text) - len(text), 0))
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def titled(title: str, *parts: str) -> str:
    """A section: its title in capitals, then its parts."""
    return "\n".join([title.upper(), *parts])


def _training(report: Report) -> str:
    training = report.training
    rate = f", {count(training.tokens / training.seconds)} a second" if training.seconds else ""
    text = (
        f"loss {decimal(training.loss_first)} -> {decimal(training.loss_last)};"
        f" {count(training.tokens)} tokens{rate}"
    )
    return titled("Training", wrapped(text, "  "))


def _retrieval(report: Report) -> str:
    rows = [
        [label, *(score(scores[key]) for key, _ in RETRIEVAL_SCORES)]
        for label, scores in facts.searches(report.retrieval)
    ]
    return titled(
        "Finding",
        wrapped(facts.retrieval_sentence(report), "  "),
        table(["search by", *(name for _, name in RETRIEVAL_SCORES)], rows),
    )


def _language(report: Report) -> str:
    language = report.language
    rows = [
        ["untrained", decimal(language.perplexity_before)],
        ["base", decimal(language.perplexity_base)],
        ["trained", decimal(language.perplexity_after)],
    ]
    return titled(
        "Writing",
        wrapped(facts.language_sentence(report), "  "),
        table(["model", "perplexity"], rows),
    )


def _rag(report: Report) -> str:
    return titled(
        "Answering",
        wrapped(facts.rag_sentence(report), "  "),
        *answer_lines(report),
    )


def answer_lines(report: AnswersReport) -> list[str]:
    """The table of the seven modes, the best constant answer, and the index."""
    head = ["mode", "question", "document", "match", "exact", "F1", "searched", "time"]
    rows = []
    for mode in facts.MODES:
        scores, searched = report.rag[mode.name], report.rag_retrieved.get(mode.name)
        rows.append(
            [
                mode.name,
                mode.question,
                mode.document,
                score(scores.match),
                score(scores.exact_match),
                score(scores.f1),
                score(searched.match) if searched else "n/a",
                latency(scores.seconds),
            ]
        )
    constant = report.best_constant
    return [
        table(head, rows, words=3),
        f'  The best constant answer, "{fitted(constant.answer, 40)}", would score'
        f" {score(constant.match)}.",
        wrapped(facts.index_sentence(report), "  "),
    ]


def samples(report: AnswersReport) -> str:
    """A few questions with the answer of every mode."""
    blocks = []
    for sample in report.samples[:SAMPLES]:
        lines = [
            f"  {name:<16}{fitted(value, WIDTH - 18)}"
            for name, value in (
                ("question", sample.question),
                ("document", sample.document.id),
                ("gold", sample.gold),
            )
        ]
        for mode in facts.MODES:
            verdict = "right" if facts.is_right(sample, mode.name) else "wrong"
            answer = fitted(sample.answers[mode.name], WIDTH - 25)
            lines.append(f"  {mode.name:<16}{verdict}  {answer}".rstrip())
        blocks.append("\n".join(lines))
    return titled("A few answers", "\n\n".join(blocks))


def commands(report: AnswersReport) -> str:
    """What was run, as shell commands."""
    lines = "\n".join(folded(plain(command)) for command in report.commands)
    return titled(f"What it ran, {duration(report.seconds)} in all", lines)
