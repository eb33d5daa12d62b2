"""The errors a user sees. Imports nothing of the package, so that the command line starts
quickly."""

from __future__ import annotations

import re


class GritError(Exception):
    """A mistake of the person at the keyboard: its message says what, where and what to do.

    The command line prints it as one line and exits with status 2; any other exception is a bug of
    ours.
    """


def out_of_memory(error: BaseException) -> str | None:
    """What XLA says of a device's memory that does not hold a program or an array, shortened; None:
    another failure."""
    text = str(error)
    # The first word tells of messages that are too long, too; a kernel that fills a core's own
    # memory is a bug of ours.
    if (
        "RESOURCE_EXHAUSTED" not in text
        or not re.search("memory|allocat", text)
        or "memory space vmem" in text
    ):
        return None
    return text[text.index("RESOURCE_EXHAUSTED") :].splitlines()[0][:200].rstrip(". ")
