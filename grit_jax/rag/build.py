"""Making an index and keeping it up to date: each new document is encoded once, for its vector and
its record."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.block_hosts import BlockCluster, agree, run_blocks, share_plan
from grit_jax.inference.blocks import (
    PREFIX,
    BlockJob,
    from_ranges,
    model_identity,
    shard_name,
    to_ranges,
)
from grit_jax.inference.model import GritLM
from grit_jax.inference.shards import Shard
from grit_jax.rag.codecs.codecs import (
    KINDS,
    StoredCodec,
    calibrate,
    compression_of,
    sample_tokens,
    to_bytes,
)
from grit_jax.rag.corpus import Corpus, spread
from grit_jax.rag.document_blocks import DocumentBlocks, DocumentSettings, block_tokens
from grit_jax.rag.document_length import default_max_length
from grit_jax.rag.index_contents import IndexContents, compare
from grit_jax.rag.index_files import RECEIPT, IndexSettings, IndexWriter, writing
from grit_jax.rag.index_options import IndexOptions, IndexSummary
from grit_jax.rag.indexed_documents import document_line
from grit_jax.rag.manifest import MANIFEST, keeps_records_inside, read_manifest, store_path
from grit_jax.rag.record_format import NATIVE, RecordIdentity
from grit_jax.rag.search import lexical
from grit_jax.rag.search.milvus import choose, fill
from grit_jax.rag.store import DocumentStore, claim_store, remove_store, store_owner
from grit_jax.runtime.blobs import BlobStore
from grit_jax.runtime.files import home_path
from grit_jax.runtime.hosts import errors_together, is_first
from grit_jax.runtime.progress import progress, say
from grit_jax.text.length import length_limit

SHARDS = "shards"  # in the index's folder, while several processes are at work
# Of the rows: with more deleted ones, the others are copied to new files, which frees the bytes.
DELETED_SHARE = 0.25
SAMPLED_RECORDS = 64  # looked up before a store without an identity is taken for this index's


def build_index(
    model: GritLM,
    corpus: str | Path,
    output: str | Path,
    options: IndexOptions = IndexOptions(),
    *,
    quiet: bool = False,
    cluster: BlockCluster | None = None,
) -> IndexSummary:
    """Encodes every document once: its vector and, unless `options.kv` is "none", its keys and
    values.

    A build that was killed continues when it is started again. Documents that are indexed already
    are not encoded again, so a longer corpus extends the index of a shorter one.

    On several hosts all processes call it: each encodes its share of the blocks, and process 0
    writes the index, which is the one that a single process writes.

    Args:
      corpus: JSONL of `{"id", "title"?, "text", "metadata"?}`. An empty file empties an index that
        is there, if `options.delete_missing` says so, and is an error otherwise.
      output: the index's folder.
      cluster: encodes the blocks instead of this process.

    Raises:
      GritError: a bad line, a repeated id, a document that has changed since it was indexed
        (`file:line`), a vector or record that is not finite, an output that is no index, is another
        model's or cannot be written, a store of another index, a Milvus that cannot be used, or
        processes that differ in any of it.
    """
    start = time.perf_counter()
    if options.kv not in (*KINDS, "none"):
        raise GritError(f"--kv: expected {', '.join(KINDS)} or none, got {options.kv!r}")
    output = home_path(output)
    with errors_together():
        emptied = bool(options.delete_missing) and _was_filled(output)
        source = Corpus(corpus, options.on_error, may_be_empty=emptied)
        settings, identity = _settings(model, options), model_identity(model)
    if source.skipped:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in source.skipped.items())
        say(f"warning: {corpus}: lines skipped: {source.skipped.total()} ({reasons:.300})")
    agree(
        {
            **{f"--{key.replace('_', '-')}": v for key, v in dataclasses.asdict(options).items()},
            "--output": output.name,
            "--dtype": model.dtype,
            "model": shard_name(identity).removeprefix(PREFIX),
            "corpus": f"{len(source)} documents, content {source.digest}",
        }
    )
    shared = jax.process_count() > 1 or cluster is not None
    place = options.shards or str(output / SHARDS)
    shards = BlobStore(place) if shared or options.shards or Path(place).is_dir() else None
    with contextlib.ExitStack() as opened:
        build: _Build | None = None
        plan: dict[str, Any] | None = None
        with errors_together():
            if is_first():
                writer = opened.enter_context(writing(output, settings))
                build = _Build.start(model, writer, source, options)
                plan = build.plan(shards)
        plan = share_plan(shards, plan)
        encoding = DocumentSettings.from_json(plan["settings"])
        blocks = DocumentBlocks.of(
            source, from_ranges(plan["documents"]), encoding, identity, plan["tokens"]
        )
        with progress(
            len(source),
            "index",
            "documents",
            initial=len(source) - sum(map(len, blocks.blocks)),
            quiet=quiet,
        ) as bar:

            def commit(block: int, shard: Shard) -> None:
                assert build is not None
                build.commit(blocks.blocks[block], shard)
                bar.update(len(blocks.blocks[block]))

            def finish() -> dict[str, Any]:
                assert build is not None
                bar.close()
                summary = build.finish(corpus, quiet)
                if shards is not None:
                    shards.delete(blocks.names)  # also what was written after it was joined
                    if options.shards is None:
                        shutil.rmtree(place, ignore_errors=True)
                summary.seconds = round(time.perf_counter() - start, 3)
                return summary.to_dict()

            job = BlockJob(blocks.names, blocks.texts, commit, durable=True)
            missing = from_ranges(plan["missing"])
            result = run_blocks(job, encoding, model, missing, shards, finish, cluster)
    return IndexSummary(**result)


def delete_documents(
    model: GritLM, path: str | Path, ids: Collection[str], *, quiet: bool = False
) -> int:
    """Deletes documents of an index, with their vectors, records and words; it may become empty.

    Args:
      ids: of the documents; unknown ones are left out.

    Returns:
      How many were deleted.

    Raises:
      GritError: there is no index, or as `build_index`.
    """
    path = home_path(path)
    before = read_manifest(path)
    with writing(path, _settings(model, IndexOptions(kv=before.kv))) as writer:
        contents = compare(writer, None, update=False)
        rows = dict(row for id, row in contents.missing.items() if id in ids)
        if not rows:
            return 0
        store = _existing_store(model, writer)
        writer.append(np.zeros((0, writer.manifest.dim)), [], rows)
        contents.delete(rows)
        _free_space(writer, store, contents)
        fill(writer, quiet)
        lexical.update(writer, quiet)
        _forget_emptied(writer)
        writer.commit(complete=before.complete)
    return len(rows)


class _Build:
    """The one writer of an index, at work.

    Attributes:
      encoded, tokens: documents that this run has added, and their tokens.
    """

    def __init__(
        self,
        model: GritLM,
        writer: IndexWriter,
        corpus: Corpus,
        contents: IndexContents,
        options: IndexOptions,
    ):
        self.model, self.writer, self.corpus = model, writer, corpus
        self.contents, self.options = contents, options
        self.store = _open_store(model, writer, corpus, contents)
        self.encoded = self.tokens = 0

    @classmethod
    def start(
        cls, model: GritLM, writer: IndexWriter, corpus: Corpus, options: IndexOptions
    ) -> _Build:
        """Compares the index with the corpus, and opens its document store."""
        choose(writer, options.vectors, options.milvus)
        contents = compare(writer, corpus, options.update)
        build = cls(model, writer, corpus, contents, options)
        contents.replace_metadata(writer, corpus)
        return build

    def plan(self, shards: BlobStore | None) -> dict[str, Any]:
        """What is to be encoded and how, as JSON; shards that do not belong to it are removed."""
        store, model = self.store, self.model
        settings = DocumentSettings(
            self.writer.manifest.max_length,
            store.identity.compression if store is not None else None,
            to_bytes(store.codec) if store is not None else b"",
        )
        unchanged = self.contents.unchanged
        numbers = [n for n, id in enumerate(self.corpus.digests) if id not in unchanged]
        tokens = self.options.batch_tokens or block_tokens(model, store is not None)
        blocks = DocumentBlocks.of(self.corpus, numbers, settings, model_identity(model), tokens)
        there = set(shards.names(PREFIX)) if shards is not None else set()
        if shards is not None and self.options.shards is None:
            shards.delete(there - set(blocks.names))
        missing = [block for block, name in enumerate(blocks.names) if name not in there]
        return {
            "settings": settings.to_json(),
            "documents": to_ranges(numbers),
            "tokens": tokens,
            "missing": to_ranges(missing),
        }

    def commit(self, numbers: Sequence[int], shard: Shard) -> None:
        """Puts a block into the index. Records first: the record of a document in the index is
        always in the store."""
        if self.store is not None:
            self.store.put_encoded(shard.records)
        contents, documents = self.contents, [self.corpus[number] for number in numbers]
        keys, truncated = shard.keys or [""] * len(documents), set(shard.truncated)
        lines = [
            document_line(document, key, length, i in truncated)
            for i, (document, key, length) in enumerate(
                zip(documents, keys, shard.lengths, strict=True)
            )
        ]
        first = self.writer.manifest.rows
        replaced = dict(
            contents.changed[document.id]
            for document in documents
            if document.id in contents.changed
        )
        self.writer.append(shard.vectors, lines, replaced)
        contents.delete(replaced)
        contents.keys |= {first + i: key for i, key in enumerate(keys)}
        contents.truncated |= {first + i for i in truncated}
        self.encoded, self.tokens = self.encoded + len(lines), self.tokens + sum(shard.lengths)

    def finish(self, corpus: str | Path, quiet: bool) -> IndexSummary:
        """Deletes what is to be deleted, frees its space, and says that the index is complete."""
        writer, contents = self.writer, self.contents
        deleted = _delete_missing(writer, contents, corpus, self.options)
        store = _free_space(writer, self.store, contents)
        fill(writer, quiet)
        lexical.update(writer, quiet)
        _forget_emptied(writer)
        writer.commit(complete=True)
        return dataclasses.replace(
            _summary(self.model, writer, store, contents),
            encoded=self.encoded,
            skipped=len(contents.unchanged),
            replaced=len(contents.changed) + len(contents.other_metadata),
            deleted=deleted,
            lines_skipped=dict(self.corpus.skipped),
            tokens_encoded=self.tokens,
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


# ---- the document store --------------------------------------------------------------------------


def _open_store(
    model: GritLM, writer: IndexWriter, corpus: Corpus, contents: IndexContents
) -> DocumentStore | None:
    """The index's document store: an existing one, or a new one whose codec is calibrated on
    documents from all over the corpus. None: the index keeps no records."""
    manifest = writer.manifest
    if manifest.kv == "none":
        return None
    store = _existing_store(model, writer)
    if store is not None:
        _adopt(writer, store, contents)
        return store
    identity, index_id = RecordIdentity.of(model), manifest.index_id
    path, codec = store_path(writer.path, manifest), None
    if manifest.kv != NATIVE:
        content = lambda number: corpus[number].content
        codec = calibrated(manifest.kv, model, len(corpus), content, manifest.max_length)
    identity = dataclasses.replace(identity, compression=compression_of(manifest.kv, codec))
    store = DocumentStore.create(path, identity, codec, index_id=index_id)
    writer.commit(compression=store.identity.compression)
    return store


def _existing_store(model: GritLM, writer: IndexWriter) -> DocumentStore | None:
    """The index's document store; None: there is none (yet)."""
    manifest, index_id = writer.manifest, writer.manifest.index_id
    if manifest.kv == "none":
        return None
    if manifest.generation:  # left by a writer that was killed after it had changed over
        remove_store(store_path(writer.path, manifest, manifest.generation - 1), index_id)
    if manifest.compression is None:
        return None
    identity = RecordIdentity.of(model, manifest.compression)
    return DocumentStore.open(store_path(writer.path, manifest), identity, index_id=index_id)


def _adopt(writer: IndexWriter, store: DocumentStore, contents: IndexContents) -> None:
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
    for number in spread(documents):
        ids[number] = model.encoder.format([content(number)], max_length=max_length).ids[0]
        tokens -= len(ids[number])
        if tokens <= 0:
            break
    names = [f"document {number + 1} of the corpus" for number in ids]
    sample = model.encoder.encode_ids(list(ids.values()), return_cache=True, names=names).caches
    assert sample is not None
    return calibrate(kind, sample)


# ---- documents out ------------------------------------------------------------------------


def _delete_missing(
    writer: IndexWriter, contents: IndexContents, corpus: str | Path, options: IndexOptions
) -> int:
    """Deletes the documents that are not in the corpus, or says that there are some; how many were
    deleted."""
    if not contents.missing or options.delete_missing is None:
        return 0
    if not options.delete_missing:
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
    writer: IndexWriter, store: DocumentStore | None, contents: IndexContents
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


def _forget_emptied(writer: IndexWriter) -> None:
    """Removes the receipt of an index that has lost all of its documents: it says nothing of those
    that may be added."""
    if not writer.manifest.documents:
        (writer.path / RECEIPT).unlink(missing_ok=True)


def _was_filled(path: Path) -> bool:
    """Whether there is an index that has, or had, documents."""
    return (path / MANIFEST).exists() and read_manifest(path).was_filled


def _summary(
    model: GritLM, writer: IndexWriter, store: DocumentStore | None, contents: IndexContents
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
        bytes_lexical=lexical.lexical_bytes(writer.path, manifest),
        bytes_kv=size.bytes if size is not None else 0,
        bytes_per_token_per_layer=round(per_token, 1),
        kv_ratio=round(per_token / bfloat16, 4),
    )
