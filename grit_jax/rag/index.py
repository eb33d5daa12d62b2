"""The index of a corpus: vectors and documents' records from one pass over each document, and search over them."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.inference.encoder import Encoded
from grit_jax.inference.model import GritLM
from grit_jax.progress import progress, say
from grit_jax.rag.corpus import Corpus, CorpusDocument
from grit_jax.rag.index_files import DOCUMENTS, KV, NPY_HEADER, VECTORS, IndexWriter, read_manifest, writing
from grit_jax.rag.record import RecordIdentity
from grit_jax.rag.search import SearchResult, VectorSearch
from grit_jax.rag.store import DocumentStore
from grit_jax.types import GritError

FORMAT_VERSION = 1
# A batch is what is committed at once and what a kill costs at most. Its records stand in memory twice.
BATCH_BYTES, LEAST_BATCH, MOST_BATCH = 128 << 20, 4096, 65536  # the last two in tokens
TOKENISED_TOGETHER = 256  # documents

KVKind = Literal["native", "none"]


@dataclasses.dataclass
class IndexSummary:
    """What a build did: documents, tokens and bytes are those of the whole index, `encoded` (documents),
    `tokens_encoded` and `seconds` those of this run. Bytes are those in the files, headers included."""

    documents: int
    encoded: int
    skipped: int
    tokens: int
    tokens_encoded: int
    seconds: float
    kv: str
    bytes_vectors: int
    bytes_kv: int
    bytes_per_token_per_layer: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        kept = f", {self.skipped} were there" if self.skipped else ""
        kv = f"; {self.bytes_per_token_per_layer} bytes of cache per token and layer" if self.bytes_kv else ""
        return (
            f"{self.documents} documents ({self.tokens_encoded} tokens encoded in {self.seconds:.1f} s{kept}): "
            f"vectors {self.bytes_vectors / 1e6:.1f} MB, caches {self.bytes_kv / 1e6:.1f} MB{kv}"
        )


@dataclasses.dataclass
class _Batch:
    """Documents with their token ids; the first `prompt` of each are tags."""

    documents: list[CorpusDocument]
    ids: list[list[int]]
    prompt: int


def build_index(
    model: GritLM,
    corpus: str | Path,
    output: str | Path,
    *,
    kv: KVKind = "native",
    max_length: int = 4096,
    batch_tokens: int | None = None,
    quiet: bool = False,
) -> IndexSummary:
    """Encodes every document once: its vector and, unless `kv` is "none", its keys and values.

    Started again, it goes on where it was killed; documents that are in the index already are not read again, so a
    longer corpus is added to the index of a shorter one.

    Args:
      corpus: JSONL of `{"id", "title"?, "text"}`.
      max_length: tokens of a document, tags included; what is beyond is not read.
      batch_tokens: about how many are committed at once; None: by the size of their records.

    Raises:
      GritError: a bad line, an id that comes twice, a document that has changed since it was indexed (`file:line`),
        an output that is no index, another model's index, or cannot be written.
    """
    start = time.perf_counter()
    if kv not in ("native", "none"):
        raise GritError(f"--kv must be native or none, is {kv!r}")
    if max_length > model.config.max_position_embeddings:
        max_length = model.config.max_position_embeddings
    source, identity, output = Corpus(corpus), RecordIdentity.of(model), Path(output)
    settings = {
        "format": FORMAT_VERSION, "model": identity.to_json(), "pooling": model.pooling, "kv": kv,
        "dim": model.embedding_width, "max_length": max_length,
    }  # fmt: skip
    with writing(output, settings) as writer:
        # An index with documents has a store; one that has lost it must not get an empty one.
        new = not writer.manifest["documents"]
        store = DocumentStore.open(output / KV, identity, create=new) if kv == "native" else None
        skipped = _indexed(output, writer.manifest["documents"], source)
        todo = (document for document in source if document.id not in skipped)
        batches = _batches(todo, model, max_length, batch_tokens or _batch_tokens(model, store is not None))
        encoded = tokens = 0
        pending: Future[None] | None = None
        with (
            progress(len(source), "index", "documents", initial=len(skipped), quiet=quiet) as bar,
            ThreadPoolExecutor(1) as background,  # the disk works while the next batch is encoded
        ):
            for batch in batches:
                starts = [batch.prompt] * len(batch.ids)
                found = model.encoder.encode_ids(batch.ids, starts, return_cache=store is not None)
                if pending is not None:
                    pending.result()
                pending = background.submit(_commit, writer, store, identity, batch, found)
                encoded, tokens = encoded + len(batch.ids), tokens + found.tokens
                bar.update(len(batch.ids))
            if pending is not None:
                pending.result()
        writer.finish()
        manifest, size = writer.manifest, store.size if store is not None else None
    per_token = size.bytes / (size.tokens * model.config.num_hidden_layers) if size is not None and size.tokens else 0
    return IndexSummary(
        documents=manifest["documents"], encoded=encoded, skipped=len(skipped), tokens=manifest["tokens"],
        tokens_encoded=tokens, seconds=round(time.perf_counter() - start, 3), kv=kv,
        bytes_vectors=manifest["documents"] * model.embedding_width * 4,
        bytes_kv=size.bytes if size is not None else 0, bytes_per_token_per_layer=round(per_token),
    )  # fmt: skip


def _commit(
    writer: IndexWriter, store: DocumentStore | None, identity: RecordIdentity, batch: _Batch, found: Encoded
) -> None:
    """Records first: a document that the index knows has its record in the store."""
    if store is not None:
        assert found.caches is not None
        keys = store.put_many(found.caches)
    else:
        keys = [""] * len(batch.ids)
    lines = [
        {"id": document.id, "title": document.title, "text": document.text, "key": key, "tokens": len(ids)}
        for document, key, ids in zip(batch.documents, keys, batch.ids, strict=True)
    ]
    writer.append(found.vectors, lines)


def _batches(
    documents: Iterable[CorpusDocument], model: GritLM, max_length: int, tokens: int
) -> Iterator[_Batch]:
    """Documents in the corpus's order, in batches of about so many tokens."""
    batch, size = _Batch([], [], 0), 0
    for group in _groups(documents, TOKENISED_TOGETHER):
        formatted = model.encoder.format([document.content for document in group], max_length=max_length)
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
    per_token = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.head_dim or 0) * (4 if c.dtype == "float32" else 2)
    return min(max(BATCH_BYTES // per_token, LEAST_BATCH), MOST_BATCH)


def _indexed(output: Path, count: int, corpus: Corpus) -> set[str]:
    """Ids of the corpus's documents that are in the index.

    Raises:
      GritError: one of them has changed since.
    """
    if not count:
        return set()
    found, others = set(), 0
    lines = IndexedDocuments(output / DOCUMENTS, count)
    for row in range(count):
        line = lines[row]
        document = CorpusDocument(line["id"], line["title"], line["text"])
        digest = corpus.digests.get(document.id)
        if digest is None:
            others += 1
        elif digest != document.digest:
            raise GritError(
                f"{corpus.where(document.id)}: document {document.id!r} has changed since it was indexed in {output}; "
                "remove that index or choose another --output"
            )
        else:
            found.add(document.id)
    if others:
        say(f"{output}: {others} documents of the index are not in {corpus.path}; they stay in it")
    return found


class Index:
    """An index opened for reading, with the model that made it; see `open`.

    Attributes:
      path, kv ("native" or "none"), max_length (tokens of a document), documents: `documents[row]` is
        `{"id", "title", "text", "key", "tokens"}`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], model: GritLM):
        self.path, self.manifest, self._model = path, manifest, model
        self.kv: str = manifest["kv"]
        self.max_length: int = manifest["max_length"]
        self.documents = IndexedDocuments(path / DOCUMENTS, manifest["documents"])

    @classmethod
    def open(cls, path: str | Path, model: GritLM) -> Index:
        """Opens an index. One that is not finished opens too, with a warning and the documents that it has.

        Raises:
          GritError: no index there, an empty or damaged one, or one that another model, chat format, pooling or
            version of the format made.
        """
        path = Path(path)
        manifest = read_manifest(path)
        again = "make it again with: grit index"
        if manifest["format"] != FORMAT_VERSION:
            raise GritError(f"{path}: format {manifest['format']}, this version reads {FORMAT_VERSION}; {again}")
        difference = RecordIdentity.of(model).difference(manifest["model"])
        if difference is not None:
            raise GritError(f"{path}: this index was made by {difference}; {again}, with this model")
        if manifest["pooling"] != model.pooling or manifest["dim"] != model.embedding_width:
            raise GritError(f"{path}: this index was made with pooling {manifest['pooling']}; {again}, with this model")
        if not manifest["documents"]:
            raise GritError(f"{path}: there is no document in this index yet; run the same grit index again")
        if not manifest["complete"]:
            say(
                f"warning: {path}: this index is not finished ({manifest['documents']} documents so far); "
                "the same grit index, run again, goes on with it"
            )
        return cls(path, manifest, model)

    def __len__(self) -> int:
        return self.manifest["documents"]

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Memory-mapped float32 `[N, D]`, in the order of the documents."""
        try:
            return np.memmap(self.path / VECTORS, "<f4", "r", NPY_HEADER, (len(self), self.manifest["dim"]))
        except (OSError, ValueError) as error:
            raise GritError(f"{self.path / VECTORS}: cannot be read ({error}); make the index again") from None

    @functools.cached_property
    def store(self) -> DocumentStore:
        """The documents' records, opened when first needed."""
        return DocumentStore.open(self.path / KV, RecordIdentity.of(self._model))

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """Rows of the `k` best documents for query vectors `[Q, D]`, best first, with their inner products."""
        return self._search.search(queries, k)

    def text(self, document: int | str) -> str:
        """A document, by row or id, as it was encoded: `{title} {text}`."""
        line = self.documents[self._rows[document] if isinstance(document, str) else document]
        return CorpusDocument(line["id"], line["title"], line["text"]).content

    @functools.cached_property
    def _search(self) -> VectorSearch:
        return VectorSearch(self.vectors, self._model.mesh)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {self.documents[row]["id"]: row for row in range(len(self))}


class IndexedDocuments:
    """Documents by row, read from disk when asked for; only their places are in memory."""

    def __init__(self, path: Path, count: int):
        self._lines, self._count = JsonlFile(path), count
        if len(self._lines) < count:
            raise GritError(f"{path}: is cut short ({len(self._lines)} of {count} documents); make the index again")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            line = json.loads(self._lines[row])
            if not {"id", "title", "text"} <= line.keys():
                raise ValueError("no 'id', 'title' and 'text'")
            return line
        except (ValueError, AttributeError) as error:
            raise GritError(f"{self._lines.where(row)}: is damaged ({error}); make the index again") from None
