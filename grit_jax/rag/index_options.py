"""How an index is built, and what a build reports."""

from __future__ import annotations

import dataclasses
from typing import Any

from grit_jax.rag.corpus import OnError
from grit_jax.rag.record_format import NATIVE


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
      delete_missing: delete documents of the index that are not in the corpus; None: the corpus is
        a part of what the index holds, and nothing is said of the others.
      on_error: what a line of the corpus that is no document does: "fail" ends the build before it
        begins, "skip" leaves the line out and counts it.
      batch_tokens: about how many tokens are in a block, which is encoded and committed at once;
        None: by the size of their records.
      shards: where several processes put the blocks that they have encoded until process 0 has
        joined them: a folder or a URL that all of them see. None: `shards` in the index's folder.
    """

    kv: str = NATIVE
    max_length: int | None = None
    store: str | None = None
    vectors: str | None = None
    milvus: str | None = None
    update: bool = False
    delete_missing: bool | None = False
    on_error: OnError = "fail"
    batch_tokens: int | None = None
    shards: str | None = None


@dataclasses.dataclass
class IndexSummary:
    """What a build did.

    Attributes:
      documents, tokens: in the whole index.
      documents_truncated: of these documents, how many were longer than `max_length` and lost their
        end.
      max_length: tokens of a document.
      encoded, skipped, replaced, deleted: documents of this run; skipped ones were indexed before.
        What a killed run had encoded and this one put into the index counts as encoded.
      lines_skipped: lines of the corpus that are no documents, by reason (`on_error`).
      tokens_encoded, seconds: of this run.
      kv, vectors: how records are kept, and what searches the vectors.
      bytes_vectors, bytes_lexical, bytes_kv: in the whole index (`bytes_lexical`: of its BM25
        index); those of records include their headers.
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
    bytes_lexical: int
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
            f" {self.seconds:.1f} s{also}): vectors {self.bytes_vectors / 1e6:.1f} MB, BM25"
            f" {self.bytes_lexical / 1e6:.1f} MB, caches {self.bytes_kv / 1e6:.1f} MB"
            f"{kv if self.bytes_kv else ''}"
        )
