"""Retrieval tasks: queries, documents and graded judgements, from an embedding file or a folder.

A folder is laid out as BEIR's data sets, or as mteb's on the Hugging Face hub:

    corpus.jsonl, or corpus/*.parquet     {"_id" or "id", "title"?, "text"}
    queries.jsonl, or queries/*.parquet   {"_id" or "id", "text", "instruction"?, "domain"?}
    qrels/test.tsv, .jsonl or .parquet    query-id, corpus-id, score

Each file may be compressed with gzip or zstd. Of a corpus only the ids are in memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from grit_jax.data.formats import LineError, Text, check_unicode, titled
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evaluation.qrels import Judgements, read_qrels
from grit_jax.evaluation.retrieval import pool_of
from grit_jax.evaluation.row_files import SUFFIXES, Rows, open_rows
from grit_jax.runtime.progress import progress

MANY_DOCUMENTS = 200_000  # from here on checking a corpus takes seconds and shows its progress
QRELS_FOLDERS = ("qrels", "default", "data")  # mteb's data sets have used all three


@dataclasses.dataclass(frozen=True)
class Document:
    """A document of a corpus; `title` is None where the source has no titles."""

    title: str | None
    text: str

    @property
    def content(self) -> str:
        """The text that is encoded: `{title} {text}`, or the one that is not empty."""
        return titled(self.title or "", self.text)


class Documents(Protocol):
    """The documents of a task by number.

    Attributes:
      ids: of each document, all different.
    """

    ids: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Document: ...
    def __iter__(self) -> Iterator[Document]: ...


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """Queries that are to find their relevant documents.

    Attributes:
      name: of the file or folder.
      query_ids, queries: the queries that have judgements.
      domains: of each query; "" where the source names none.
      documents: what is searched.
      judgements: of each query: the grade of each judged document, by id.
      passages: the texts of the documents with their own instructions, where they have any (an
        embedding file); None: documents have no instruction.
      has_ids: whether ids are the source's. If not, they are row numbers: equal scores are then in
        the order of the rows, and every document is ranked.
      unjudged_queries: queries without judgements, which are left out.
      missing_queries: queries that have judgements and no text, which are left out.
      missing_documents: judged documents, of all queries, that the corpus lacks; the relevant ones
        count as not found.
    """

    name: str
    query_ids: list[str]
    queries: list[Text]
    domains: list[str]
    documents: Documents
    judgements: list[Judgements]
    passages: list[Text] | None = None
    has_ids: bool = True
    unjudged_queries: int = 0
    missing_queries: int = 0
    missing_documents: int = 0

    @property
    def without_relevant(self) -> int:
        """Queries none of whose judged documents is relevant; they score 0."""
        return sum(max(grades.values()) <= 0 for grades in self.judgements)


def read_task(path: Path, split: str = "test") -> RetrievalTask:
    """The retrieval task of an embedding file or of a folder.

    Args:
      split: of the judgements; a folder has a file for each.

    Raises:
      GritError: a file that is missing or cannot be read, a row of another form, an id that two
        rows share, or no query with judgements.
    """
    return read_folder(path, split) if path.is_dir() else read_pool(path)


def read_pool(path: Path) -> RetrievalTask:
    """The task of an embedding file: each row's query is to find the row's `pos` among all `pos`
    and `neg`. A row may name its `"domain"`.

    Raises:
      GritError: as `read_task`.
    """
    examples = read_examples(path, "embedding")
    pool = pool_of([examples[i] for i in range(len(examples))])
    domains = [
        _domain(json.loads(examples.line(i)), examples.where(i)) for i in range(len(examples))
    ]
    return RetrievalTask(
        path.name,
        [str(i) for i in range(len(pool.queries))],
        pool.queries,
        domains,
        PooledDocuments(pool.texts),
        [{str(number): 1 for number in relevant} for relevant in pool.relevant],
        passages=pool.texts,
        has_ids=False,
    )


def read_folder(folder: Path, split: str = "test") -> RetrievalTask:
    """The task of a folder; see the module's docstring for its files.

    Raises:
      GritError: as `read_task`.
    """
    documents = FolderDocuments(open_rows(_files(folder, "corpus", split)))
    queries: dict[str, tuple[Text, str]] = {}
    rows = open_rows(_files(folder, "queries", split))
    for number, row in enumerate(rows):
        place = rows.where(number)
        id = _id(row, place)
        if id in queries:
            raise LineError(place, f"the id {id!r} is that of an earlier query; ids must be unique")
        instruction = row.get("instruction")
        text = _string(row, ("text", "query"), place)
        if instruction is not None and not isinstance(instruction, str):
            raise LineError(place, f'"instruction" must be a string, got {instruction!r:.40}')
        queries[id] = (Text(instruction or None, text), _domain(row, place))
    qrels = read_qrels(_qrels(folder, split))
    judged = [id for id in queries if qrels.get(id)]
    if not judged:
        raise GritError(
            f"{folder}: no query has judgements in the split {split!r}; the ids of queries and"
            " judgements do not agree"
        )
    known = documents.numbers
    return RetrievalTask(
        folder.name or str(folder.resolve().name),
        judged,
        [queries[id][0] for id in judged],
        [queries[id][1] for id in judged],
        documents,
        [qrels[id] for id in judged],
        unjudged_queries=len(queries) - len(judged),
        missing_queries=len(qrels.keys() - queries.keys()),
        missing_documents=len({d for id in judged for d in qrels[id] if d not in known}),
    )


class PooledDocuments:
    """The passages of an embedding file, in memory; their ids are their numbers."""

    def __init__(self, texts: Sequence[Text]):
        self.ids = [str(number) for number in range(len(texts))]
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Document:
        return Document(None, self._texts[number].text)

    def __iter__(self) -> Iterator[Document]:
        return (self[number] for number in range(len(self)))


class FolderDocuments:
    """The documents of a corpus file, each read when it is needed.

    Attributes:
      numbers: of each document, by its id.

    Raises:
      GritError: a row of another form, or an id that two rows share.
    """

    def __init__(self, rows: Rows):
        self._rows = rows
        self.numbers: dict[str, int] = {}
        shown = progress(rows, "checking the corpus", "documents", quiet=len(rows) < MANY_DOCUMENTS)
        for number, row in enumerate(shown):
            place = rows.where(number)
            id = _id(row, place)
            _document(row, place)
            if id in self.numbers:
                raise LineError(
                    place,
                    f"the id {id!r} was used at {rows.where(self.numbers[id])}; ids must be unique",
                )
            self.numbers[id] = number
        self.ids = list(self.numbers)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Document:
        return _document(self._rows[number], self._rows.where(number))

    def __iter__(self) -> Iterator[Document]:
        for number, row in enumerate(self._rows):
            yield _document(row, self._rows.where(number))


def _document(row: dict[str, Any], place: str) -> Document:
    """A corpus row; its text may be empty, as some of BEIR's are."""
    title, text = row.get("title"), row.get("text")
    if not isinstance(text, str):
        raise LineError(place, f'expected a string as "text", got {text!r:.40}')
    if title is not None and not isinstance(title, str):
        raise LineError(place, f'"title" must be a string, got {title!r:.40}')
    check_unicode(text, place, "the text")
    check_unicode(title or "", place, "the title")
    return Document(title or "", text)


def _id(row: dict[str, Any], place: str) -> str:
    id = row.get("_id", row.get("id"))
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise LineError(place, f'expected a string as "_id" or "id", got {id!r:.40}')
    check_unicode(id, place, "the id")
    return id


def _string(row: dict[str, Any], names: Sequence[str], place: str) -> str:
    for name in names:
        if name in row:
            value = row[name]
            if not isinstance(value, str) or not value.strip():
                raise LineError(place, f'"{name}" must be a text, got {value!r:.40}')
            check_unicode(value, place, f'"{name}"')
            return value
    raise LineError(place, f"no {' or '.join(repr(name) for name in names)} in this row")


def _domain(row: dict[str, Any], place: str) -> str:
    """The query's domain: its own key, or one of its metadata."""
    metadata = row.get("metadata")
    domain = row.get("domain", metadata.get("domain") if isinstance(metadata, dict) else None)
    if domain is None:
        return ""
    if not isinstance(domain, str):
        raise LineError(place, f'"domain" must be a string, got {domain!r:.40}')
    return domain


def _files(folder: Path, role: str, split: str) -> list[Path]:
    """The files of a folder's corpus or queries."""
    for suffix in SUFFIXES:
        if (file := folder / f"{role}{suffix}").is_file():
            return [file]
    inside = _data_files(folder / role)
    chosen = [file for file in inside if _is_of(file, split)]
    chosen = chosen or [file for file in inside if _is_of(file, role)]
    if not chosen and len({_stem(file) for file in inside}) == 1:
        chosen = inside
    if chosen:
        return chosen
    if inside:
        raise GritError(
            f"{folder / role}: no file of the split {split!r}; there are:"
            f" {', '.join(sorted({_stem(file) for file in inside}))}"
        )
    raise GritError(
        f"{folder}: no {role}.jsonl and no {role}/*.parquet; expected a folder as BEIR's or mteb's:"
        " corpus.jsonl, queries.jsonl and qrels/test.tsv"
    )


def _qrels(folder: Path, split: str) -> list[Path]:
    """The files of a split's judgements."""
    splits: set[str] = set()
    for name in QRELS_FOLDERS:
        inside = _data_files(folder / name, (*SUFFIXES, ".tsv", ".tsv.gz", ".tsv.zst"))
        if chosen := [file for file in inside if _is_of(file, split)]:
            return chosen
        splits |= {_stem(file) for file in inside}
    for suffix in (".tsv", ".tsv.gz", ".tsv.zst", *SUFFIXES):
        if (file := folder / f"qrels{suffix}").is_file():
            return [file]
    if splits:
        raise GritError(
            f"{folder}: no judgements of the split {split!r}; there are: "
            f"{', '.join(sorted(splits))} (--split NAME)"
        )
    raise GritError(f"{folder}: no judgements; expected qrels/{split}.tsv")


def _data_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(tuple(suffixes)))


def _stem(file: Path) -> str:
    """A file's split: `test` of `test.tsv.gz` and of `test-00000-of-00002.parquet`."""
    return file.name.partition(".")[0].partition("-0")[0]


def _is_of(file: Path, split: str) -> bool:
    return _stem(file) == split
