"""Numbers and other people's text as readable text."""

from __future__ import annotations

import re
from typing import Any


def plain(value: Any) -> str:
    """Text that any screen can show: control characters (ESC would steer a terminal) and lone
    surrogates replaced."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
        "\N{REPLACEMENT CHARACTER}",
        text,
    )


def count(value: float) -> str:
    """12345 -> '12,345'."""
    return f"{value:,.0f}"


def millions(value: float) -> str:
    """1234567 -> '1.23 million'; small ones in full."""
    return (
        f"{value / 1e9:.3g} billion"
        if value >= 1e9
        else f"{value / 1e6:.3g} million"
        if value >= 1e5
        else count(value)
    )


def score(value: float) -> str:
    """A fraction from 0 to 1 with three decimals."""
    return f"{value:.3f}"


def decimal(value: float) -> str:
    """A number of any size with three or four digits that matter: 0.0123, 7.64, 31.2, 4,321."""
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3g}"
    )


def latency(value: float) -> str:
    """Seconds of one answer: '35.2 ms' or '1.23 s'."""
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.0f} ms"
        if value >= 0.1
        else f"{value * 1e3:.1f} ms"
    )


def duration(value: float) -> str:
    """Seconds of a long job: '9 min 12 s'."""
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds if not hours else 0, "s"))
    return " ".join(f"{n} {unit}" for n, unit in parts if n)


def minutes(value: float) -> str:
    """Seconds in words: 'half a minute', '9 minutes'."""
    if value < 90:
        return f"{value:.0f} seconds"
    return f"{value / 60:.1f} minutes" if value < 600 else f"{value / 60:.0f} minutes"


def size(value: float) -> str:
    """Bytes: '34.5 MB' (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def clip(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."
