"""The report of `grit quickstart --base MODEL` as plain text; see `terminal.py`."""

from __future__ import annotations

from grit_jax.quickstart.report import pretrained_facts
from grit_jax.quickstart.report.facts import RETRIEVAL_SCORES
from grit_jax.quickstart.report.pretrained_contents import PretrainedReport
from grit_jax.quickstart.report.terminal import (
    answer_lines,
    commands,
    samples,
    table,
    titled,
    wrapped,
)
from grit_jax.quickstart.report.wording import decimal, score


def pretrained_terminal_report(report: PretrainedReport) -> str:
    """The report for a terminal, a newline at its end."""
    blocks = [
        wrapped(pretrained_facts.headline(report) + " " + pretrained_facts.origin(report)),
        _retrieval(report),
        _language(report),
        titled(
            "Answering",
            wrapped(pretrained_facts.rag_sentence(report), "  "),
            *answer_lines(report),
        ),
        samples(report),
        commands(report),
        wrapped(pretrained_facts.cuts(report)),
    ]
    return "\n\n".join(blocks) + "\n"


def _retrieval(report: PretrainedReport) -> str:
    rows = [
        [name, label, *(score(scores[key]) for key, _ in RETRIEVAL_SCORES)]
        for _, name, search in pretrained_facts.pools(report)
        for _, label, scores in pretrained_facts.systems(search)
    ]
    return titled(
        "Finding",
        *(wrapped(text, "  ") for text in pretrained_facts.retrieval_sentences(report)),
        table(["pool", "search by", *(name for _, name in RETRIEVAL_SCORES)], rows, words=2),
    )


def _language(report: PretrainedReport) -> str:
    language = report.language
    rows = [
        [name, decimal(value)]
        for name, value in (
            ("base", language.base),
            ("before", language.before),
            ("model", language.model),
        )
        if value is not None
    ]
    return titled(
        "Writing",
        wrapped(pretrained_facts.language_sentence(report), "  "),
        table(["model", "perplexity"], rows),
    )
