"""What an index holds, compared with a corpus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.rag.corpus import Corpus
from grit_jax.rag.index_files import DOCUMENTS, IndexWriter, file_name, kept_rows, map_vectors
from grit_jax.rag.indexed_documents import document_line, indexed_document, indexed_line

ROWS_TOGETHER = 4096  # that are given other metadata and committed at once


@dataclasses.dataclass
class IndexContents:
    """What the index holds, compared with the corpus.

    Attributes:
      unchanged: ids of the corpus's documents that are indexed as they are.
      changed: rows and tokens, by id, of documents whose text differs in the corpus.
      other_metadata: rows and tokens, by id, of documents of which the metadata alone differ.
      missing: rows and tokens, by id, of documents that are not in the corpus.
      keys: of the record of each row that is not deleted.
      truncated: rows, not deleted, of documents that lost their end.
      deleted_keys: of the records of deleted rows.
    """

    unchanged: set[str] = dataclasses.field(default_factory=set)
    changed: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    other_metadata: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    missing: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    keys: dict[int, str] = dataclasses.field(default_factory=dict)
    truncated: set[int] = dataclasses.field(default_factory=set)
    deleted_keys: set[str] = dataclasses.field(default_factory=set)

    def delete(self, rows: Iterable[int]) -> None:
        """Takes note that rows were deleted."""
        for row in rows:
            self.deleted_keys.add(self.keys.pop(row))
            self.truncated.discard(row)

    def replace_metadata(self, writer: IndexWriter, corpus: Corpus) -> None:
        """Gives documents of which the metadata alone differ a new row; its vector and record are
        those of the old one."""
        if not self.other_metadata:
            return
        vectors = map_vectors(writer.path, writer.manifest)
        lines = JsonlFile(writer.path / file_name(DOCUMENTS, writer.manifest.generation))
        changed = list(self.other_metadata.items())
        for start in range(0, len(changed), ROWS_TOGETHER):
            part = changed[start : start + ROWS_TOGETHER]
            rows = [row for _, (row, _) in part]
            first, new = writer.manifest.rows, []
            for id, (row, _) in part:
                old = indexed_line(lines[row], lines.where(row))
                truncated = bool(old.get("truncated"))
                new.append(document_line(corpus.document(id), old["key"], old["tokens"], truncated))
            writer.append(vectors[rows], new, dict(entry for _, entry in part))
            self.delete(rows)
            self.keys |= {first + i: line["key"] for i, line in enumerate(new)}
            self.truncated |= {first + i for i, line in enumerate(new) if "truncated" in line}


def compare(writer: IndexWriter, corpus: Corpus | None, update: bool) -> IndexContents:
    """Compares the index with the corpus; without one, all of its documents are missing there.

    Raises:
      GritError: a document has changed, and `update` is not set.
    """
    contents, manifest = IndexContents(), writer.manifest
    if not manifest.rows:
        return contents
    lines = JsonlFile(writer.path / file_name(DOCUMENTS, manifest.generation))
    kept = set(kept_rows(writer.path, manifest).tolist())
    for row in range(manifest.rows):
        line = indexed_line(lines[row], lines.where(row))
        if row not in kept:
            contents.deleted_keys.add(line["key"])
            continue
        contents.keys[row] = line["key"]
        if line.get("truncated"):
            contents.truncated.add(row)
        document = indexed_document(line)
        digest = corpus.digests.get(document.id) if corpus is not None else None
        if corpus is None or digest is None:
            contents.missing[document.id] = (row, line["tokens"])
        elif digest == document.digest:
            contents.unchanged.add(document.id)
        elif update and document.content_equals(corpus.document(document.id)):
            contents.unchanged.add(document.id)
            contents.other_metadata[document.id] = (row, line["tokens"])
        elif update:
            contents.changed[document.id] = (row, line["tokens"])
        else:
            raise GritError(
                f"{corpus.where(document.id)}: document {document.id!r} has changed since it was"
                f" indexed in {writer.path}; replace it with --update, or choose another --output"
            )
    return contents
