"""A corpus to be indexed: `{"id", "title"?, "text"}` a line, all of it checked before the first
document is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from grit_jax.data.formats import LineError, document_text
from grit_jax.data.lines import JsonlFile
from grit_jax.runtime.progress import progress

MANY_LINES = 200_000  # from here on checking takes seconds and shows its progress


@dataclasses.dataclass(frozen=True)
class CorpusDocument:
    """A document as it is written in the corpus."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """What is encoded: `{title} {text}`."""
        return f"{self.title} {self.text}" if self.title else self.text

    @property
    def digest(self) -> bytes:
        """16 bytes that change when title or text do."""
        return hashlib.blake2b(
            f"{len(self.title)} {self.title}{self.text}".encode(), digest_size=16
        ).digest()


class Corpus:
    """The documents of a JSONL file. Opening it checks every line; documents are read from disk
    when iterated.

    Raises:
      GritError: no such file, an empty one, a line that is not a document (`file:line: what is
        wrong`), or an id that two lines share (both are named).
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._lines = JsonlFile(path)
        self.digests: dict[str, bytes] = {}
        seen: dict[str, int] = {}
        shown = progress(
            self._lines, f"checking {path}", "lines", quiet=len(self._lines) < MANY_LINES
        )
        for number, line in enumerate(shown):
            document = parse_document(line, self._lines.where(number))
            if document.id in seen:
                first = self._lines.where(seen[document.id])
                raise LineError(
                    self._lines.where(number),
                    f"the id {document.id!r} stands at {first} already; ids must differ",
                )
            seen[document.id] = number
            self.digests[document.id] = document.digest

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[CorpusDocument]:
        for number, line in enumerate(self._lines):
            yield parse_document(line, self._lines.where(number))

    def __getitem__(self, number: int) -> CorpusDocument:
        return parse_document(self._lines[number], self._lines.where(number))

    def where(self, id: str) -> str:
        """`file:line` of a document."""
        return self._lines.where(list(self.digests).index(id))


def parse_document(line: str | bytes, where: str) -> CorpusDocument:
    """One line of a corpus.

    Raises:
      LineError (a GritError): `where: what is wrong`.
    """
    try:
        data = json.loads(line.decode("utf-8") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError) as error:
        raise LineError(where, f"not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise LineError(where, f"expected a JSON object, found {type(data).__name__}")
    id = data.get("id", data.get("_id"))  # BEIR's corpora write `_id`
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise LineError(
            where, 'expected {"id": ..., "title"?: ..., "text": ...} with a string as "id"'
        )
    if "text" not in data:
        raise LineError(where, f'document {id!r} has no "text"')
    document_text(data, where, f"document {id!r}")
    return CorpusDocument(id, data.get("title") or "", data["text"])
