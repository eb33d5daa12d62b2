"""`grit serve` on a worker: its copies of what is in a bucket, its restarts, and its log.

The model, indices, adapters and the file of keys may be in a bucket. An index there that grows is
copied again every minute, and the server takes it up; the records of its documents, where they are
in the bucket as well (`grit index --store gs://...`), are read from there.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PORT, GRACE_S = 8000, 120  # the defaults of grit serve
# Flags of grit serve that name something to read; those but the last take NAME=PATH.
INDEX, ADAPTER, KEYS = "--index", "--adapter", "--api-keys"
MANIFEST = "index.json"
# For `gcloud storage rsync --exclude`: the manifest says what the other files hold.
ALL_BUT_MANIFEST = r"^(index\.json|\.lock)$|.*\.tmp$"
LOG_BYTES = 16 * 2**20  # of the log on this disk, after which a new one begins
RESTARTS = 5  # in a row, of a server that crashes
STEADY_S = 600.0  # a server that has run this long counts as started
LONGEST_PAUSE_S = 60.0

Run = Callable[[Sequence[str]], str]  # runs a command, returns its stdout, raises MirrorError


class IndexCopy:
    """A copy of an index in a bucket, on this disk."""

    def __init__(self, address: str, path: Path, run: Run):
        self.address, self.path, self._run = address.rstrip("/"), path, run
        self._manifest = path.with_name(f"{path.name}.manifest.json")

    def pull(self) -> bool:
        """Copies the index if it has changed; returns whether it has.

        The manifest is fetched before the other files and put in place after them, so that at any
        moment the files hold what it says: whoever writes an index writes its manifest last.
        """
        self._manifest.parent.mkdir(parents=True, exist_ok=True)
        self.fetch_manifest()
        here, new = self.path / MANIFEST, self._manifest.read_bytes()
        if here.exists() and here.read_bytes() == new:
            return False
        self.path.mkdir(exist_ok=True)
        self.fetch_files()
        self._manifest.replace(here)
        return True

    def fetch_manifest(self) -> None:
        """Copies the manifest beside the index."""
        self._run(["gcloud", "storage", "cp", f"{self.address}/{MANIFEST}", str(self._manifest)])

    def fetch_files(self) -> None:
        """Copies the other files."""
        exclude = f"--exclude={ALL_BUT_MANIFEST}"
        rsync = ["gcloud", "storage", "rsync", "--recursive", exclude]
        self._run([*rsync, self.address, str(self.path)])


class Serving:
    """What a server on this machine has in a bucket; has the methods of `mirror.Mirror` that a run
    needs.

    Args:
      output: where the log goes, gs://BUCKET/FOLDER; None: nowhere.
    """

    def __init__(self, indices: Sequence[IndexCopy], output: str | None, run: Run):
        self._indices, self._output, self._run = indices, output and output.rstrip("/"), run
        self._copied = 0  # bytes of the log that the bucket has

    def sync(self, last: bool = False) -> None:
        """Copies the indices that have grown."""
        for index in () if last else self._indices:
            index.pull()

    def add(self, file: Path, name: str) -> None:
        """Copies the log. One that is long is kept under another name, and begins anew."""
        size = file.stat().st_size
        if self._output is None or size == self._copied:
            return
        full = size > LOG_BYTES
        if full:
            stem, dot, ending = name.rpartition(".")
            name = f"{stem}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}{dot}{ending}"
        self._run(["gcloud", "storage", "cp", str(file), f"{self._output}/{name}"])
        if full:  # the server appends: what it writes from now on is at the beginning
            with file.open("r+b") as log:
                log.truncate()
        self._copied = 0 if full else size


def with_copies(flags: Sequence[str], copy: Callable[[str, str], Path]) -> list[str]:
    """The flags of grit serve with paths on this disk in the place of addresses in a bucket.

    Args:
      copy: makes a copy of an address that a flag names, and returns its path.
    """
    words: list[str] = []
    before = ""
    for word in flags:
        named = word.startswith("--")
        flag, equals, value = word.partition("=") if named else (before, "", word)
        name, between, address = value.rpartition("=") if flag != KEYS else ("", "", value)
        if flag in (INDEX, ADAPTER, KEYS) and address.startswith("gs://"):
            value = f"{name}{between}{copy(flag, address)}"
            word = f"{flag}={value}" if equals else value
        words.append(word)
        before = word if named and not equals else ""
    return words


def number(flags: Sequence[str], flag: str, default: int) -> int:
    """The value of a flag that takes a number, the last one if there are several."""
    found = re.findall(rf"(?:^|\s){flag}[=\s](\d+)(?=\s|$)", " ".join(flags))
    return int(found[-1]) if found else default


def pause(crashes: int) -> float:
    """Seconds to wait after so many crashes in a row."""
    return min(2.0 ** (crashes - 1), LONGEST_PAUSE_S)


def answer(port: int, path: str) -> tuple[int, str]:
    """The status and the text that the server on this machine answers; status 0: none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read(1000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def readiness(text: str) -> str:
    """The state that a reply to /ready names: ready, compiling or draining; loading where there is
    no reply yet."""
    try:
        return str(json.loads(text)["status"])
    except (ValueError, KeyError, TypeError):
        return "loading"
