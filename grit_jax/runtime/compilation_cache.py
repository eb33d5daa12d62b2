"""Compiled programs that are kept between commands, in the user's cache.

JAX's persistent compilation cache, which is off unless it is given a folder. A program is found by
what it computes, the compiler's version and options, and the kind of device. Programs for CPUs
contain instructions of the very CPU, so each kind has a folder of its own: a home directory may be
shared by several machines.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

from grit_jax.runtime.cache_folder import cache_folder

FOLDER = "JAX_COMPILATION_CACHE_DIR"
# What is set beside the folder: the least recently used programs are deleted beyond a size, and
# programs that compile at once are not worth a file. Read by JAX as it is imported.
SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}


def keep_compiled_programs(environment: MutableMapping[str, str]) -> None:
    """Adds the settings that keep programs to the environment of a process that has not imported
    JAX yet. A folder that is named there already is left alone, with its own settings."""
    if FOLDER in environment:
        return
    try:
        folder = cache_folder() / "compiled" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # no home, or one that cannot be written: programs are compiled anew
    if not os.access(folder, os.W_OK):
        return
    environment[FOLDER] = str(folder)
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)


def _machine() -> str:
    """A name for the kind of CPU."""
    kind = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:  # no Linux
        kind.append(platform.processor())
    else:
        # Of x86 the name and its instruction sets, of Arm the part and its features.
        kind += [
            line
            for line in lines
            if line.startswith(("model name", "flags", "CPU part", "Features"))
        ]
    return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:16]
