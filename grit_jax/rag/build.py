"""Making an index and keeping it up to date: each new document is encoded once, for its vector and
its record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoded
from grit_jax.inference.model import GritLM
from grit_jax.rag.codecs.codecs import KINDS, StoredCodec, calibrate, compression_of, sample_tokens
from grit_jax.rag.corpus import Corpus, CorpusDocument, OnError
from grit_jax.rag.document_batches import DocumentBatch, batch_tokens, document_batches
from grit_jax.rag.document_length import default_max_length
from grit_jax.rag.index_files import (
    DOCUMENTS,
    IndexSettings,
    IndexWriter,
    file_name,
    indexed_line,
    kept_rows,
    writing,
)
from grit_jax.rag.manifest import keeps_records_inside, store_path
from grit_jax.rag.record_format import NATIVE, RecordIdentity
from grit_jax.rag.search.milvus import choose, fill
from grit_jax.rag.store import DocumentStore, claim_store, remove_store, store_owner
from grit_jax.runtime.files import home_path
from grit_jax.runtime.progress import progress, say
from grit_jax.text.length import length_limit

# Of the rows: with more deleted ones, the others are copied to new files, which frees the bytes.
DELETED_SHARE = 0.25
SAMPLED_RECORDS = 64  # looked up before a store without an identity is taken for this index's
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many are taken


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """How an index is built.

    Attributes:
      kv: how records are kept: one of `codecs.KINDS`, or "none".
      max_length: tokens of a document, tags included; the rest of a longer one is not indexed.
        None: what the index has, for a new one `default_max_length`.
      store: where records are kept: a path, or a URL that TensorStore knows (`gs://bucket/path`).
        A store belongs to one index. None: where they are, for a new index in its folder.
      vectors: what searches the vectors, "exact" or "milvus"; None: what does, for a new index
        exact. A change encodes nothing again.
      milvus: "embedded" (in the index's folder) or the URI of a Milvus server; None: where it is.
      update: replace documents whose text has changed; without it such a document is an error.
      delete_missing: delete documents of the index that are not in the corpus.
      on_error: what a line of the corpus that is no document does: "fail" ends the build before it
        begins, "skip" leaves the line out and counts it.
      batch_tokens: about how many tokens are committed at once; None: by the size of their records.
    """

    kv: str = NATIVE
    max_length: int | None = None
    store: str | None = None
    vectors: str | None = None
    milvus: str | None = None
    update: bool = False
    delete_missing: bool = False
    on_error: OnError = "fail"
    batch_tokens: int | None = None


@dataclasses.dataclass
class IndexSummary:
    """What a build did.

    Attributes:
      documents, tokens: in the whole index.
      documents_truncated: of these documents, how many were longer than `max_length` and lost their
        end.
      max_length: tokens of a document.
      encoded, skipped, replaced, deleted: documents of this run; skipped ones were indexed before.
      lines_skipped: lines of the corpus that are no documents, by reason (`on_error`).
      tokens_encoded, seconds: of this run.
      kv, vectors: how records are kept, and what searches the vectors.
      bytes_vectors, bytes_kv: in the whole index; those of records include their headers.
      bytes_per_token_per_layer, kv_ratio: of the records; the ratio is to bfloat16 keys and values
        without headers.
    """

    documents: int
    documents_truncated: int
    max_length: int
    encoded: int
    skipped: int
    replaced: int
    deleted: int
    lines_skipped: dict[str, int]
    tokens: int
    tokens_encoded: int
    seconds: float
    kv: str
    vectors: str
    bytes_vectors: int
    bytes_kv: int
    bytes_per_token_per_layer: float
    kv_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        counts = (
            (self.skipped, "were indexed before"),
            (self.replaced, "replaced"),
            (self.deleted, "deleted"),
            (self.documents_truncated, f"cut to {self.max_length} tokens"),
            (sum(self.lines_skipped.values()), "corpus lines skipped"),
        )
        also = "".join(f", {count} {what}" for count, what in counts if count)
        kv = f"; {self.bytes_per_token_per_layer:g} bytes of cache per token and layer"
        kv += f" ({self.kv}: {self.kv_ratio:.2f} of bfloat16)"
        return (
            f"{self.documents} documents ({self.tokens_encoded} tokens encoded in"
            f" {self.seconds:.1f} s{also}): vectors {self.bytes_vectors / 1e6:.1f} MB, caches"
            f" {self.bytes_kv / 1e6:.1f} MB{kv if self.bytes_kv else ''}"
        )


@dataclasses.dataclass
class _Contents:
    """What the index holds, compared with the corpus.

    Attributes:
      unchanged: ids of the corpus's documents that are indexed as they are.
      changed: rows and tokens, by id, of documents whose text differs in the corpus.
      missing: rows and tokens, by id, of documents that are not in the corpus.
      keys: of the record of each row that is not deleted.
      truncated: rows, not deleted, of documents that lost their end.
      deleted_keys: of the records of deleted rows.
    """

    unchanged: set[str] = dataclasses.field(default_factory=set)
    changed: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    missing: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    keys: dict[int, str] = dataclasses.field(default_factory=dict)
    truncated: set[int] = dataclasses.field(default_factory=set)
    deleted_keys: set[str] = dataclasses.field(default_factory=set)

    def delete(self, rows: Iterable[int]) -> None:
        """Takes note that rows were deleted."""
        for row in rows:
            self.deleted_keys.add(self.keys.pop(row))
            self.truncated.discard(row)


def build_index(
    model: GritLM,
    corpus: str | Path,
    output: str | Path,
    options: IndexOptions = IndexOptions(),
    *,
    quiet: bool = False,
) -> IndexSummary:
    """Encodes every document once: its vector and, unless `options.kv` is "none", its keys and
    values.

    A build that was killed continues when it is started again. Documents that are indexed already
    are not encoded again, so a longer corpus extends the index of a shorter one.

    Args:
      corpus: JSONL of `{"id", "title"?, "text"}`.
      output: the index's folder.

    Raises:
      GritError: a bad line, a repeated id, a document that has changed since it was indexed
        (`file:line`), a vector or record that is not finite, an output that is no index, is another
        model's or cannot be written, a store of another index, or a Milvus that cannot be used.
    """
    start = time.perf_counter()
    if options.kv not in (*KINDS, "none"):
        raise GritError(f"--kv: expected {', '.join(KINDS)} or none, got {options.kv!r}")
    source, output = Corpus(corpus, options.on_error), home_path(output)
    if source.skipped:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in source.skipped.items())
        say(f"warning: {corpus}: lines skipped: {source.skipped.total()} ({reasons:.300})")
    with writing(output, _settings(model, options)) as writer:
        choose(writer, options.vectors, options.milvus)
        contents = _compare(writer, source, options.update)
        store = _open_store(model, writer, source, contents)
        encoded, tokens = _add_documents(model, writer, store, source, contents, options, quiet)
        deleted = _delete_missing(writer, contents, corpus, options.delete_missing)
        store = _free_space(writer, store, contents)
        fill(writer, quiet)
        writer.commit(complete=True)
        summary = _summary(model, writer, store, contents)
    return dataclasses.replace(
        summary,
        encoded=encoded,
        skipped=len(contents.unchanged),
        replaced=len(contents.changed),
        deleted=deleted,
        lines_skipped=dict(source.skipped),
        tokens_encoded=tokens,
        seconds=round(time.perf_counter() - start, 3),
    )


def _settings(model: GritLM, options: IndexOptions) -> IndexSettings:
    context, length = model.config.context_length, options.max_length
    return IndexSettings(
        model=RecordIdentity.of(model).to_json(),
        pooling=model.pooling,
        kv=options.kv,
        dim=model.embedding_width,
        default_max_length=default_max_length(context),
        max_length=length_limit(length, context) if length is not None else None,
        store=str(options.store) if options.store is not None else None,
    )


def _compare(writer: IndexWriter, corpus: Corpus, update: bool) -> _Contents:
    """Compares the index with the corpus.

    Raises:
      GritError: a document has changed, and `update` is not set.
    """
    contents, manifest = _Contents(), writer.manifest
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
        document = CorpusDocument(line["id"], line["title"], line["text"])
        digest = corpus.digests.get(document.id)
        if digest is None:
            contents.missing[document.id] = (row, line["tokens"])
        elif digest == document.digest:
            contents.unchanged.add(document.id)
        elif update:
            contents.changed[document.id] = (row, line["tokens"])
        else:
            raise GritError(
                f"{corpus.where(document.id)}: document {document.id!r} has changed since it was"
                f" indexed in {writer.path}; replace it with --update, or choose another --output"
            )
    return contents


# ---- the document store --------------------------------------------------------------------------


def _open_store(
    model: GritLM, writer: IndexWriter, corpus: Corpus, contents: _Contents
) -> DocumentStore | None:
    """The index's document store: an existing one, or a new one whose codec is calibrated on
    documents from all over the corpus. None: the index keeps no records."""
    manifest = writer.manifest
    if manifest.kv == "none":
        return None
    identity, index_id = RecordIdentity.of(model), manifest.index_id
    if manifest.generation:  # left by a writer that was killed after it had changed over
        remove_store(store_path(writer.path, manifest, manifest.generation - 1), index_id)
    path = store_path(writer.path, manifest)
    if manifest.compression is not None:
        identity = dataclasses.replace(identity, compression=manifest.compression)
        store = DocumentStore.open(path, identity, index_id=index_id)
        _adopt(writer, store, contents)
        return store
    codec = None
    if manifest.kv != NATIVE:
        content = lambda number: corpus[number].content
        codec = calibrated(manifest.kv, model, len(corpus), content, manifest.max_length)
    identity = dataclasses.replace(identity, compression=compression_of(manifest.kv, codec))
    store = DocumentStore.create(path, identity, codec, index_id=index_id)
    writer.commit(compression=store.identity.compression)
    return store


def _adopt(writer: IndexWriter, store: DocumentStore, contents: _Contents) -> None:
    """Gives a store that an earlier version made the identity of its index.

    Raises:
      GritError: a store outside the index's folder that does not hold this index's records.
    """
    if store_owner(store.path) is not None:
        return
    keys = list(contents.keys.values())
    sample = keys[:: max(1, len(keys) // SAMPLED_RECORDS)]
    if not keeps_records_inside(writer.manifest) and not (sample and all(store.has_many(sample))):
        raise GritError(
            f"{store.path}: this document store does not say which index it belongs to and does not"
            f" hold the records of {writer.path}; give the right one with --store"
        )
    claim_store(store.path, writer.manifest.index_id)


def calibrated(
    kind: str, model: GritLM, documents: int, content: Callable[[int], str], max_length: int
) -> StoredCodec:
    """The codec of `kind` for a corpus, calibrated on documents evenly spread over it.

    Args:
      documents, content: how many there are, and the text `{title} {text}` of each.
    """
    ids: dict[int, list[int]] = {}
    tokens = sample_tokens(kind, model.config)
    for n in range(4 * documents):  # the sequence reaches every document in time
        number = int(documents * (n * GOLDEN % 1))
        if number not in ids:
            ids[number] = model.encoder.format([content(number)], max_length=max_length).ids[0]
            tokens -= len(ids[number])
        if tokens <= 0:
            break
    names = [f"document {number + 1} of the corpus" for number in ids]
    sample = model.encoder.encode_ids(list(ids.values()), return_cache=True, names=names).caches
    assert sample is not None
    return calibrate(kind, sample)


# ---- documents in and out ------------------------------------------------------------------------


def _add_documents(
    model: GritLM,
    writer: IndexWriter,
    store: DocumentStore | None,
    corpus: Corpus,
    contents: _Contents,
    options: IndexOptions,
    quiet: bool,
) -> tuple[int, int]:
    """Encodes and commits the documents that are new or have changed; how many they are, and their
    tokens."""
    todo = (document for document in corpus if document.id not in contents.unchanged)
    tokens_per_batch = options.batch_tokens or batch_tokens(model, store is not None)
    codec = store.codec if store is not None else None
    documents = tokens = 0
    pending: Future[None] | None = None
    with (
        progress(
            len(corpus), "index", "documents", initial=len(contents.unchanged), quiet=quiet
        ) as bar,
        ThreadPoolExecutor(1) as background,  # the disk works while the next batch is encoded
    ):
        for batch in document_batches(todo, model, writer.manifest.max_length, tokens_per_batch):
            encoded = model.encoder.encode_ids(
                batch.ids,
                [batch.pool_start] * len(batch.ids),
                return_cache=store is not None,
                codec=codec,
                names=[f"{corpus.where(d.id)}: document {d.id!r}" for d in batch.documents],
            )
            if pending is not None:
                pending.result()
            pending = background.submit(_commit, writer, store, batch, encoded, contents)
            documents, tokens = documents + len(batch.ids), tokens + encoded.tokens
            bar.update(len(batch.ids))
        if pending is not None:
            pending.result()
    return documents, tokens


def _commit(
    writer: IndexWriter,
    store: DocumentStore | None,
    batch: DocumentBatch,
    encoded: Encoded,
    contents: _Contents,
) -> None:
    """Writes records first: the record of a document in the index is always in the store."""
    if store is not None:
        assert encoded.caches is not None
        keys = store.put_many(encoded.caches)
    else:
        keys = [""] * len(batch.ids)
    lines = [
        {
            "id": document.id,
            "title": document.title,
            "text": document.text,
            "key": key,
            "tokens": len(ids),
            **({"truncated": True} if document.id in batch.truncated else {}),
        }
        for document, key, ids in zip(batch.documents, keys, batch.ids, strict=True)
    ]
    first = writer.manifest.rows
    replaced = dict(
        contents.changed[document.id]
        for document in batch.documents
        if document.id in contents.changed
    )
    writer.append(encoded.vectors, lines, replaced)
    contents.delete(replaced)
    contents.keys |= {first + i: key for i, key in enumerate(keys)}
    contents.truncated |= {first + i for i, line in enumerate(lines) if line.get("truncated")}


def _delete_missing(
    writer: IndexWriter, contents: _Contents, corpus: str | Path, delete: bool
) -> int:
    """Deletes the documents that are not in the corpus, or says that there are some; how many were
    deleted."""
    if not contents.missing:
        return 0
    if not delete:
        say(
            f"{writer.path}: {len(contents.missing)} documents of the index are not in {corpus};"
            " they stay in it (--delete-missing deletes them)"
        )
        return 0
    missing = dict(contents.missing.values())
    writer.append(np.zeros((0, writer.manifest.dim)), [], missing)
    contents.delete(missing)
    return len(missing)


def _free_space(
    writer: IndexWriter, store: DocumentStore | None, contents: _Contents
) -> DocumentStore | None:
    """Removes records that no document has any more; copies the index to new files where many of
    its rows are deleted. The store that is used from then on."""
    manifest = writer.manifest
    if store is not None and contents.deleted_keys:
        store.delete_many(contents.deleted_keys - set(contents.keys.values()))
    if manifest.deleted <= DELETED_SHARE * manifest.rows:
        return store
    say(
        f"{writer.path}: {manifest.deleted} of {manifest.rows} rows are of documents replaced or"
        " deleted; copying the others"
    )
    old = store
    if old is not None:
        path = store_path(writer.path, manifest, manifest.generation + 1)
        store = DocumentStore.create(path, old.identity, old.codec, index_id=manifest.index_id)
        old.copy_to(store, list(dict.fromkeys(contents.keys.values())))
    writer.next_generation()
    if old is not None:
        remove_store(old.path, manifest.index_id)
    return store


def _summary(
    model: GritLM, writer: IndexWriter, store: DocumentStore | None, contents: _Contents
) -> IndexSummary:
    """What the index holds; the counts of the run are 0."""
    manifest, config = writer.manifest, model.config
    size = store.size if store is not None else None
    per_token = (
        size.bytes / (size.tokens * config.num_hidden_layers)
        if size is not None and size.tokens
        else 0.0
    )
    bfloat16 = 2 * config.num_key_value_heads * (config.head_dim or 1) * 2
    return IndexSummary(
        documents=manifest.documents,
        documents_truncated=len(contents.truncated),
        max_length=manifest.max_length,
        encoded=0,
        skipped=0,
        replaced=0,
        deleted=0,
        lines_skipped={},
        tokens=manifest.tokens,
        tokens_encoded=0,
        seconds=0.0,
        kv=manifest.kv,
        vectors="milvus" if manifest.milvus is not None else "exact",
        bytes_vectors=manifest.documents * manifest.dim * 4,
        bytes_kv=size.bytes if size is not None else 0,
        bytes_per_token_per_layer=round(per_token, 1),
        kv_ratio=round(per_token / bfloat16, 4),
    )
