"""`grit serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from live_server import Client


@contextlib.contextmanager
def running(
    directory: str | Path, *arguments: str
) -> Iterator[tuple[subprocess.Popen, Client, list[str]]]:
    """`grit serve` on a free port, its client, and the lines that it has printed."""
    command = [sys.executable, "-m", "grit_jax", "serve", str(directory), "--port", "0"]
    environment = os.environ | {"GLIBC_TUNABLES": ""}
    with subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if line.startswith("serving "):
                    break
            port = int(lines[-1].rsplit(":", 1)[1])
            reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
            reader.start()
            yield process, Client(port), lines
            reader.join(60)
        finally:
            process.kill()
