"""A model for the actors of a Ray cluster, which say what they encode and take a while for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from grit_jax.inference.model import GritLM


def load_slowly(model: Path, log: Path, seconds: float) -> GritLM:
    """Opens a model whose encoder writes `process names...` a line to `log` before it encodes."""
    opened = GritLM.from_pretrained(model)
    encode_ids = opened.encoder.encode_ids

    def slowly(ids, *args, names=None, **options):
        if names and not names[0].endswith("of the corpus"):
            with open(log, "a") as file:
                words = [name.rpartition(" ")[2] for name in names]
                file.write(" ".join([str(os.getpid()), *words]) + "\n")
            time.sleep(seconds)
        return encode_ids(ids, *args, names=names, **options)

    opened.encoder.encode_ids = slowly  # type: ignore[method-assign]
    return opened


def entries(log: Path) -> list[list[str]]:
    """The lines of a log."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []
