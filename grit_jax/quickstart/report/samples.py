"""The sample answers of the report page: question, document with the answer marked in it, what each
mode said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grit_jax.quickstart.report.charts import escape
from grit_jax.quickstart.report.facts import MODES, is_right, number, part, plain, score

_RIGHT = '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="M1.5 6.5l3 3 6-7"/></svg>right'
_WRONG = '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="M2 2l8 8M10 2l-8 8"/></svg>wrong'


def marked(text: str, answer: str) -> tuple[str, bool]:
    """`text` as HTML with every occurrence of `answer` marked, whole words if there are any;
    whether one was found."""
    answer = plain(answer).strip()
    text = plain(text)
    if not answer:
        return escape(text), False
    literal = re.escape(answer)
    spans = [m.span() for m in re.finditer(rf"(?<!\w){literal}(?!\w)", text)] or [
        m.span() for m in re.finditer(literal, text)
    ]
    pieces, at = [], 0
    for start, end in spans:
        pieces += [escape(text[at:start]), f"<mark>{escape(text[start:end])}</mark>"]
        at = end
    return "".join(pieces) + escape(text[at:]), bool(spans)


def with_code(text: str) -> str:
    """A question as HTML; what stands between backticks is shown as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def sample(entry: Mapping[str, Any]) -> str:
    """One sample as an article."""
    gold, document, answers = (
        plain(entry.get("gold")),
        part(entry, "document"),
        part(entry, "answers"),
    )
    rows = "".join(
        _answer(entry, mode.name, answers.get(mode.name)) for mode in MODES if mode.name in answers
    )
    table = (
        '<table class="answers"><caption>What each mode answered</caption><thead><tr><th'
        ' scope="col">Mode</th><th scope="col">Answer</th><th'
        f' scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    return (
        f'<article class="sample"><h3>{with_code(plain(entry.get("question")))}</h3>'
        f'<p class="gold">The answer is <code>{escape(gold)}</code></p>'
        "<div"
        f' class="pair">{_document(document, gold) if document else ""}{table if rows else ""}</div></article>'
    )


def _document(document: Mapping[str, Any], gold: str) -> str:
    body, found = marked(plain(document.get("text")), gold)
    points = number(document, "score")
    notes = f" <span>&#183; similarity {score(points)}</span>" if points is not None else ""
    notes += (
        ""
        if found
        else '<span class="absent">The answer does not stand in it word for word.</span>'
    )
    return (
        f'<figure class="document"><figcaption>Document <code>{escape(document.get("id"))}</code>'
        f"{notes}</figcaption>"
        f'<blockquote tabindex="0">{body}</blockquote></figure>'
    )


def _answer(entry: Mapping[str, Any], mode: str, answer: Any) -> str:
    right = is_right(entry, mode)
    shown = escape(answer) if plain(answer).strip() else '<span class="empty">nothing</span>'
    return (
        f'<tr><th scope="row"><code>{escape(mode)}</code></th><td class="answer">{shown}</td><td'
        ' class="verdict'
        f' {"is-right" if right else "is-wrong"}">{_RIGHT if right else _WRONG}</td></tr>'
    )
