"""Programs that a model wrote, run in processes with limits.

A process has no environment, a temporary folder of its own, and limits on time, memory, files and
output. Python's audit hooks refuse network connections, other programs and writing outside the
folder. That stops accidents, not an attacker: code that is out to do harm can get around a hook in
its own process. Run what you do not trust in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

MEMORY = 2 * 2**30  # bytes of address space
FILE_SIZE = 16 * 2**20  # bytes of a file that it writes
WORKERS = 4

# What solutions may use without importing it, as in the bigcode harness.
IMPORTS = """\
import collections, copy, datetime, functools, hashlib, heapq, itertools, math, re, statistics
import string, sys
from collections import *
from typing import *
try:
    import numpy
    import numpy as np
except ImportError:
    pass
"""

# Runs the program on standard input; the last thing it does is to write the word that it was given
# to a file descriptor of its own. So a program that ends early, by whatever means, has not passed.
_LAUNCHER = """\
import os, sys
done, word, seconds, memory, size = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
source = sys.stdin.read()
del sys.argv[1:]
try:
    import resource
except ImportError:  # no POSIX
    resource = None
def limit(name, value):
    kind = getattr(resource, name, None)
    if kind is not None:
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            pass
limit('RLIMIT_CPU', seconds)
limit('RLIMIT_AS', memory)
limit('RLIMIT_FSIZE', size)
limit('RLIMIT_CORE', 0)
limit('RLIMIT_NOFILE', 64)
def guard():
    folder = os.path.realpath(os.getcwd()) + os.sep
    realpath, fsdecode = os.path.realpath, os.fsdecode
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    refused = ('socket.', 'subprocess.', 'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn',
               'os.fork', 'os.kill', 'os.chdir', 'signal.pthread_kill', 'ftplib.',
               'smtplib.', 'urllib.', 'http.', 'pty.', 'webbrowser.', 'os.startfile')
    changing = ('os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.chmod', 'os.chown', 'os.link',
                'os.symlink', 'os.truncate', 'os.utime', 'shutil.')
    def inside(path):
        if path is None or path == -1 or isinstance(path, int):
            return True
        return (realpath(fsdecode(path)) + os.sep).startswith(folder)
    def hook(event, args):
        if event == 'open':
            path, mode, flags = args
            if flags is not None and flags & writing and not inside(path):
                raise PermissionError('writing outside the folder of the program')
        elif event.startswith(refused):
            raise PermissionError(event + ' is not allowed')
        elif event.startswith(changing):
            if not all(inside(a) for a in args if isinstance(a, (str, bytes, os.PathLike))):
                raise PermissionError(event + ' outside the folder of the program')
    sys.addaudithook(hook)
guard()
exec(compile(source, 'program', 'exec'), {'__name__': '__main__'})
os.write(done, word.encode())
"""


def run_all(programs: Sequence[str], seconds: float) -> list[bool]:
    """Whether each program runs to its end without an error, several at a time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda program: runs(program, seconds), programs))


def runs(program: str, seconds: float, *, memory: int = MEMORY) -> bool:
    """Whether a Python program runs to its end without an error, within the limits.

    Args:
      seconds: of wall-clock time; what it has started is ended then.
      memory: bytes of address space, where the system limits them.
    """
    word = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="grit-code-") as folder,
        contextlib.ExitStack() as stack,
    ):
        read, write = os.pipe()
        stack.callback(os.close, read)
        limits = [str(int(seconds) + 1), str(memory), str(FILE_SIZE)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _LAUNCHER, str(write), word, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        os.set_blocking(read, False)
        try:
            said = os.read(read, len(word) + 1)
        except BlockingIOError:  # something that it started still has the pipe
            return False
        return process.returncode == 0 and said == word.encode()


def _environment(folder: str) -> dict[str, str]:
    """As little as Python starts with."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LANG") if name in os.environ}
    return kept | {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "OPENBLAS_NUM_THREADS": "1",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
