"""A corpus to index: `{"id", "title"?, "text", "metadata"?}` a line, all checked before the
first is encoded."""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from grit_jax.data.formats import LineError, check_unicode, document_text, parse_json, titled
from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.runtime.progress import progress

OnError: TypeAlias = Literal["fail", "skip"]

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many are taken
MANY_LINES = 200_000  # from here on checking takes seconds and shows its progress


@dataclasses.dataclass(frozen=True)
class CorpusDocument:
    """A document as it is written in the corpus. `metadata` is what filters see (`filters.py`)."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def content(self) -> str:
        """The text that is encoded: `{title} {text}`, or the one that is not empty."""
        return titled(self.title, self.text)

    def content_equals(self, other: CorpusDocument) -> bool:
        """Whether title and text are those of another document."""
        return (self.title, self.text) == (other.title, other.text)

    @property
    def digest(self) -> bytes:
        """16 bytes that change when title, text or metadata do."""
        content = hashlib.blake2b(
            f"{len(self.title)} {self.title}{self.text}".encode(), digest_size=16
        )
        if self.metadata:
            content.update(json.dumps(self.metadata, sort_keys=True).encode())
        return content.digest()


class Corpus:
    """The documents of a JSONL file.

    Opening it checks every line; documents are read from disk when iterated.

    Args:
      on_error: "fail" raises at the first line that is not a document; "skip" skips such lines.
      may_be_empty: a file without a line is a corpus without documents.

    Attributes:
      digests: of each document, by id.
      sizes: bytes of each document's title and text, in order.
      skipped: lines that were left out, by reason.

    Raises:
      GritError: no such file, no document in it, a line that is not a document (`file:line: what is
        wrong`), or an id that two lines share (both are named).
    """

    def __init__(self, path: str | Path, on_error: OnError = "fail", *, may_be_empty: bool = False):
        self.path = str(path)
        self.digests: dict[str, bytes] = {}
        self.sizes = array.array("q")
        self.skipped: collections.Counter[str] = collections.Counter()
        self._lines = JsonlFile(path, may_be_empty=may_be_empty)
        self._numbers: dict[str, int] = {}  # of the documents' lines, by id
        first_error: LineError | None = None
        shown = progress(
            self._lines, f"checking {path}", "lines", quiet=len(self._lines) < MANY_LINES
        )
        for number, line in enumerate(shown):
            try:
                self._add(number, parse_document(line, self._lines.where(number)))
            except LineError as error:
                if on_error == "fail":
                    raise
                self.skipped[error.reason] += 1
                first_error = first_error or error
        if first_error and not self.digests:
            raise GritError(f"{path}: no usable line; the first problem: {first_error}")

    def _add(self, number: int, document: CorpusDocument) -> None:
        if document.id in self._numbers:
            first = self._lines.where(self._numbers[document.id])
            error = LineError(
                self._lines.where(number),
                f"duplicate id {document.id!r}, first used at {first}; ids must be unique",
            )
            error.reason = "an id of an earlier line"  # counted together
            raise error
        self._numbers[document.id] = number
        self.digests[document.id] = document.digest
        self.sizes.append(len(document.content.encode("utf-8", "surrogatepass")))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[CorpusDocument]:
        return (self._document(number) for number in self._numbers.values())

    def __getitem__(self, index: int) -> CorpusDocument:
        return self._document(self._order[index])

    def document(self, id: str) -> CorpusDocument:
        """The document with an id."""
        return self._document(self._numbers[id])

    def id(self, number: int) -> str:
        """The id of document `number`."""
        return self._ids[number]

    @property
    def digest(self) -> str:
        """A hash of all documents in their order."""
        content = hashlib.blake2b(digest_size=16)
        for id, digest in self.digests.items():
            content.update(len(id).to_bytes(8, "little") + id.encode() + digest)
        return content.hexdigest()

    @functools.cached_property
    def _ids(self) -> list[str]:
        return list(self._numbers)

    @functools.cached_property
    def _order(self) -> list[int]:
        return list(self._numbers.values())

    def _document(self, number: int) -> CorpusDocument:
        return parse_document(self._lines[number], self._lines.where(number))

    def where(self, id: str) -> str:
        """`file:line` of a document."""
        return self._lines.where(self._numbers[id])


def parse_document(line: str | bytes, place: str) -> CorpusDocument:
    """One line of a corpus.

    Raises:
      LineError (a GritError): `place: what is wrong`.
    """
    data = parse_json(line, place)
    if not isinstance(data, dict):
        raise LineError(place, f"expected a JSON object, got {type(data).__name__}")
    id = data.get("id", data.get("_id"))  # BEIR's corpora write `_id`
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise LineError(
            place,
            'expected {"id": ..., "title"?: ..., "text": ..., "metadata"?: ...} with a string as'
            ' "id"',
        )
    check_unicode(id, place, "the id")
    if "text" not in data:
        raise LineError(place, 'the document has no "text"')
    document_text(data, place, "the document")
    return CorpusDocument(id, data.get("title") or "", data["text"], _metadata(data, place))


def spread(documents: int) -> Iterator[int]:
    """Numbers of documents, each once, in an order in which the first few are from all over.

    >>> import itertools
    >>> list(itertools.islice(spread(100), 5))
    [0, 61, 23, 85, 47]
    """
    seen: set[int] = set()
    for n in range(4 * documents):  # reaches (nearly) every number
        number = int(documents * (n * GOLDEN % 1))
        if number not in seen:
            seen.add(number)
            yield number
    yield from (number for number in range(documents) if number not in seen)


def _metadata(data: dict[str, Any], place: str) -> dict[str, Any]:
    metadata = data.get("metadata")
    if metadata is None:
        return {}
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise LineError(place, "the metadata has NaN or infinity, which JSON lacks") from None
    if not isinstance(metadata, dict):
        raise LineError(place, f'"metadata" must be an object, got {text:.40}')
    check_unicode(text, place, "the metadata")
    return metadata
