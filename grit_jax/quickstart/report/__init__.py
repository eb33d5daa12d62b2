"""The report of a quickstart: `Report` holds its numbers, and pure functions show them as one
self-contained HTML page and as plain text for the terminal."""

from grit_jax.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FORMAT": "contents",
        "PretrainedReport": "pretrained_contents",
        "Report": "contents",
        "html_report": "page",
        "pretrained_html": "pretrained_page",
        "pretrained_terminal_report": "pretrained_terminal",
        "terminal_report": "terminal",
        "write_html": "page",
        "write_pretrained_html": "pretrained_page",
    },
)
