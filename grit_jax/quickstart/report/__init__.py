"""The report of a quickstart: `Report` holds its numbers, and pure functions show them as one
self-contained HTML page and as plain text for the terminal."""

from __future__ import annotations

from grit_jax.quickstart.report.contents import FORMAT, Report
from grit_jax.quickstart.report.page import html_report, write_html
from grit_jax.quickstart.report.terminal import terminal_report

__all__ = ["FORMAT", "Report", "html_report", "terminal_report", "write_html"]
