"""The pieces that every section of the report page is built from."""

from __future__ import annotations

from collections.abc import Sequence

from grit_jax.quickstart.report.charts import escape


def section(identity: str, heading: str, about: Sequence[str], body: str) -> str:
    """A section with its heading and words beside the matter, '' where there is no matter."""
    if not body:
        return ""
    paragraphs = "".join(f"<p>{escape(p)}</p>" for p in about if p)
    return (
        f'<section aria-labelledby="{identity}"><div class="about"><h2'
        f' id="{identity}">{escape(heading)}</h2>{paragraphs}</div><div'
        f' class="matter">{body}</div></section>\n'
    )


def figure(drawing: str, title: str, what: str = "") -> str:
    """A drawing under its name."""
    caption = f"<strong>{escape(title)}</strong> <span>{escape(what)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def note(text: str) -> str:
    """Small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(caption: str, head: str, rows: str) -> str:
    """A table of numbers that scrolls by itself where the page is narrow."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table'
        ' class="figures">'
        f"<caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
    )
