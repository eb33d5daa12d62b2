"""The report of a quickstart: one self-contained HTML page, and the same in plain text for the
terminal.

Pure functions of the report dictionary (what `report.json` holds) and of the metrics lines. Every
part of the dictionary may be missing: what is not there is not shown.
"""

from __future__ import annotations

from grit_jax.quickstart.report.page import html_report, write_html
from grit_jax.quickstart.report.terminal import terminal_report

__all__ = ["html_report", "terminal_report", "write_html"]
