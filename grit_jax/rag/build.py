"""Making an index and keeping it up to date: each new document is read once, for its vector and its
record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.inference.encoder import Encoded
from grit_jax.inference.model import GritLM
from grit_jax.rag.codecs.codecs import KINDS, StoredCodec, calibrate, compression_of, sample_tokens
from grit_jax.rag.corpus import Corpus, CorpusDocument
from grit_jax.rag.index_files import (
    DOCUMENTS,
    FORMAT_VERSION,
    IndexWriter,
    file_name,
    indexed_line,
    living,
    store_path,
    writing,
)
from grit_jax.rag.record_format import NATIVE, RecordIdentity
from grit_jax.rag.search.milvus import choose, fill
from grit_jax.rag.store import DocumentStore, remove_store
from grit_jax.runtime.progress import progress, say

# A batch is what is committed at once and what a kill costs at most. Its records stand in memory
# twice.
BATCH_BYTES, LEAST_BATCH, MOST_BATCH = 128 << 20, 4096, 65536  # the last two in tokens
TOKENISED_TOGETHER = 256  # documents
# of the rows: from here on the living ones are copied to new files, and the dead ones' bytes freed
DEAD_SHARE = 0.25
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many are taken


@dataclasses.dataclass
class IndexSummary:
    """What a build did: documents, tokens and bytes are those of the whole index, `vectors` what
    searches it; `encoded`, `replaced`, `deleted` (documents), `tokens_encoded` and `seconds` those
    of this run. `bytes_kv` are those of the records, headers included; `kv_ratio` compares them
    with bfloat16 keys and values without any header."""

    documents: int
    encoded: int
    skipped: int
    replaced: int
    deleted: int
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
            (self.skipped, "were there"),
            (self.replaced, "replaced"),
            (self.deleted, "deleted"),
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
class _Batch:
    """Documents with their token ids; the first `prompt` of each are tags."""

    documents: list[CorpusDocument]
    ids: list[list[int]]
    prompt: int


@dataclasses.dataclass
class _Found:
    """What is in an index before a run.

    Attributes:
      same: ids of the corpus's documents that are there as they are.
      changed: rows and tokens, by id, of those that differ.
      missing: rows and tokens, by id, of documents that are not in the corpus.
      living, dead: keys of the records of the rows that count, and of those that do not any more.
    """

    same: set[str] = dataclasses.field(default_factory=set)
    changed: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    missing: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    living: dict[int, str] = dataclasses.field(default_factory=dict)
    dead: set[str] = dataclasses.field(default_factory=set)


def build_index(
    model: GritLM,
    corpus: str | Path,
    output: str | Path,
    *,
    kv: str = NATIVE,
    max_length: int = 4096,
    store: str | None = None,
    vectors: str | None = None,
    milvus: str | None = None,
    update: bool = False,
    delete_missing: bool = False,
    batch_tokens: int | None = None,
    quiet: bool = False,
) -> IndexSummary:
    """Encodes every document once: its vector and, unless `kv` is "none", its keys and values.

    Started again, it goes on where it was killed; documents that are in the index already are not
    read again, so a longer corpus is added to the index of a shorter one.

    Args:
      corpus: JSONL of `{"id", "title"?, "text"}`.
      kv: one of `compress.KINDS`, or "none".
      max_length: tokens of a document, tags included; what is beyond is not read.
      store: where records are kept, a path or a URL that TensorStore knows (`gs://bucket/path`), of
        this index alone; None: in the index's folder, or where they are.
      vectors: what searches them, "exact" or "milvus"; None: what does, of a new index exact. It
        can be changed later: nothing is encoded again.
      milvus: "embedded", in the index's folder, or the URI of a Milvus server; None: where it is.
      update: replaces documents whose text has changed; without it, that is an error.
      delete_missing: takes documents that the corpus does not have out of the index.
      batch_tokens: about how many are committed at once; None: by the size of their records.

    Raises:
      GritError: a bad line, an id that comes twice, a document that has changed since it was
        indexed (`file:line`), an output that is no index, another model's index, or cannot be
        written, or a Milvus that cannot be used.
    """
    start = time.perf_counter()
    if kv not in (*KINDS, "none"):
        raise GritError(f"--kv must be {', '.join(KINDS)} or none, is {kv!r}")
    max_length = min(max_length, model.config.max_position_embeddings)
    source, identity, output = Corpus(corpus), RecordIdentity.of(model), Path(output)
    settings: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "model": identity.to_json(),
        "pooling": model.pooling,
        "kv": kv,
        "dim": model.embedding_width,
        "max_length": max_length,
    }
    settings |= {"store": str(store)} if store is not None else {}
    with writing(output, settings, {"compression": None, "store": None}) as writer:
        choose(writer, vectors, milvus)
        found = _find(writer, source, update)
        records = _open_store(model, writer, identity, source, max_length)
        todo = (document for document in source if document.id not in found.same)
        batches = _batches(
            todo, model, max_length, batch_tokens or _batch_tokens(model, records is not None)
        )
        codec = records.codec if records is not None else None
        encoded = tokens = 0
        pending: Future[None] | None = None
        with (
            progress(
                len(source), "index", "documents", initial=len(found.same), quiet=quiet
            ) as bar,
            ThreadPoolExecutor(1) as background,  # the disk works while the next batch is encoded
        ):
            for batch in batches:
                starts = [batch.prompt] * len(batch.ids)
                made = model.encoder.encode_ids(
                    batch.ids, starts, return_cache=records is not None, codec=codec
                )
                if pending is not None:
                    pending.result()
                pending = background.submit(_commit, writer, records, batch, made, found)
                encoded, tokens = encoded + len(batch.ids), tokens + made.tokens
                bar.update(len(batch.ids))
            if pending is not None:
                pending.result()
        if found.missing and delete_missing:
            dead = dict(found.missing.values())
            writer.append(np.zeros((0, model.embedding_width)), [], dead)
            found.dead |= {found.living.pop(row) for row in dead}
        elif found.missing:
            say(
                f"{output}: {len(found.missing)} documents of the index are not in {corpus}; they"
                " stay in it (--delete-missing takes them out)"
            )
        records = _tidy(writer, records, found)
        fill(writer, quiet)
        writer.commit(complete=True)
        manifest, size = writer.manifest, records.size if records is not None else None
    c = model.config
    per_token = (
        size.bytes / (size.tokens * c.num_hidden_layers)
        if size is not None and size.tokens
        else 0.0
    )
    return IndexSummary(
        documents=manifest["documents"],
        encoded=encoded,
        skipped=len(found.same),
        replaced=len(found.changed),
        deleted=len(found.missing) if delete_missing else 0,
        tokens=manifest["tokens"],
        tokens_encoded=tokens,
        seconds=round(time.perf_counter() - start, 3),
        kv=kv,
        vectors="milvus" if manifest.get("milvus") else "exact",
        bytes_vectors=manifest["documents"] * model.embedding_width * 4,
        bytes_kv=size.bytes if size is not None else 0,
        bytes_per_token_per_layer=round(per_token, 1),
        kv_ratio=round(per_token / (2 * c.num_key_value_heads * (c.head_dim or 1) * 2), 4),
    )


def _find(writer: IndexWriter, corpus: Corpus, update: bool) -> _Found:
    """Compares the index with the corpus.

    Raises:
      GritError: a document has changed, and `update` is not set.
    """
    found, m = _Found(), writer.manifest
    if not m["rows"]:
        return found
    lines = JsonlFile(writer.path / file_name(DOCUMENTS, m["generation"]))
    alive = set(living(writer.path, m).tolist())
    for row in range(m["rows"]):
        line = indexed_line(lines[row], lines.where(row))
        if row not in alive:
            found.dead.add(line["key"])
            continue
        found.living[row] = line["key"]
        document, place = (
            CorpusDocument(line["id"], line["title"], line["text"]),
            (row, line["tokens"]),
        )
        digest = corpus.digests.get(document.id)
        if digest is None:
            found.missing[document.id] = place
        elif digest == document.digest:
            found.same.add(document.id)
        elif update:
            found.changed[document.id] = place
        else:
            raise GritError(
                f"{corpus.where(document.id)}: document {document.id!r} has changed since it was"
                f" indexed in {writer.path}; replace it with --update, or choose another --output"
            )
    return found


def _open_store(
    model: GritLM, writer: IndexWriter, identity: RecordIdentity, corpus: Corpus, max_length: int
) -> DocumentStore | None:
    """The records' store: of a new index an empty one, its codec calibrated on documents from all
    over the corpus."""
    m = writer.manifest
    if m["kv"] == "none":
        return None
    if m["generation"]:  # left by one that was killed after its change
        remove_store(store_path(writer.path, m, m["generation"] - 1))
    path = store_path(writer.path, m)
    if m["compression"] is not None:
        return DocumentStore.open(path, dataclasses.replace(identity, compression=m["compression"]))
    codec = None
    if m["kv"] != NATIVE:
        codec = calibrated(m["kv"], model, len(corpus), lambda at: corpus[at].content, max_length)
    identity = dataclasses.replace(identity, compression=compression_of(m["kv"], codec))
    store = DocumentStore.create(path, identity, codec)
    if store.size.records:
        raise GritError(f"{path}: holds the records of another index; choose another --store")
    writer.commit(compression=store.identity.compression)
    return store


def calibrated(
    kind: str, model: GritLM, documents: int, content: Callable[[int], str], max_length: int
) -> StoredCodec:
    """The codec of `kind` for a corpus, calibrated on documents evenly spread over it.

    Args:
      documents, content: how many there are, and the text `{title} {text}` of each.
    """
    ids: dict[int, list[int]] = {}
    tokens = sample_tokens(kind, model.config)
    for n in range(4 * documents):  # the sequence meets every document in time
        at = int(documents * (n * GOLDEN % 1))
        if at not in ids:
            ids[at] = model.encoder.format([content(at)], max_length=max_length).ids[0]
            tokens -= len(ids[at])
        if tokens <= 0:
            break
    sample = model.encoder.encode_ids(list(ids.values()), return_cache=True).caches
    assert sample is not None
    return calibrate(kind, sample)  # type: ignore[arg-type]


def _commit(
    writer: IndexWriter, store: DocumentStore | None, batch: _Batch, encoded: Encoded, found: _Found
) -> None:
    """Records first: a document that the index knows has its record in the store."""
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
        }
        for document, key, ids in zip(batch.documents, keys, batch.ids, strict=True)
    ]
    first = writer.manifest["rows"]
    dead = dict(
        found.changed[document.id] for document in batch.documents if document.id in found.changed
    )
    writer.append(encoded.vectors, lines, dead)
    found.dead |= {found.living.pop(row) for row in dead}
    found.living |= {first + n: key for n, key in enumerate(keys)}


def _tidy(writer: IndexWriter, store: DocumentStore | None, found: _Found) -> DocumentStore | None:
    """Removes records that no document has any more; where much is dead, frees the bytes of it
    all."""
    m = writer.manifest
    if store is not None and found.dead:
        store.delete_many(found.dead - set(found.living.values()))
    if m["dead"] <= DEAD_SHARE * m["rows"]:
        return store
    say(
        f"{writer.path}: {m['dead']} of {m['rows']} rows are of documents replaced or deleted;"
        " copying the others"
    )
    old = None
    if store is not None:
        old, path = store, store_path(writer.path, m, m["generation"] + 1)
        store = DocumentStore.create(path, old.identity, old.codec)
        old.copy_to(store, list(dict.fromkeys(found.living.values())))
    writer.next_generation()
    if old is not None:
        remove_store(old.path)
    return store


def _batches(
    documents: Iterable[CorpusDocument], model: GritLM, max_length: int, tokens: int
) -> Iterator[_Batch]:
    """Documents in the corpus's order, in batches of about so many tokens."""
    batch, size = _Batch([], [], 0), 0
    for group in _groups(documents, TOKENISED_TOGETHER):
        formatted = model.encoder.format(
            [document.content for document in group], max_length=max_length
        )
        batch.prompt = formatted.prompt
        for document, ids in zip(group, formatted.ids, strict=True):
            if batch.ids and size + len(ids) > tokens:
                yield batch
                batch, size = _Batch([], [], formatted.prompt), 0
            batch.documents.append(document)
            batch.ids.append(ids)
            size += len(ids)
    if batch.ids:
        yield batch


def _groups(documents: Iterable[CorpusDocument], size: int) -> Iterator[list[CorpusDocument]]:
    group: list[CorpusDocument] = []
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _batch_tokens(model: GritLM, records: bool) -> int:
    if not records:
        return MOST_BATCH
    c = model.config
    per_token = (
        2
        * c.num_hidden_layers
        * c.num_key_value_heads
        * (c.head_dim or 0)
        * (4 if c.dtype == "float32" else 2)
    )
    return min(max(BATCH_BYTES // per_token, LEAST_BATCH), MOST_BATCH)
