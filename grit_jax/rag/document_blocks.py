"""Documents in blocks, each of which is encoded and committed at once (`inference/blocks.py`)."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from grit_jax.inference.blocks import BlockEncoder, block_ranges, shard_name
from grit_jax.inference.model import GritLM
from grit_jax.inference.shards import EncodedRecord, Shard
from grit_jax.rag.codecs.codecs import codec_from_bytes
from grit_jax.rag.corpus import Corpus
from grit_jax.rag.record_format import RecordIdentity, document_key, encode_record

# A block is committed at once, and the most that a killed process loses. Its records are in memory
# twice.
BLOCK_BYTES, LEAST_BLOCK, MOST_BLOCK = 128 << 20, 4096, 65536  # the last two in tokens
MOST_DOCUMENTS = 8192  # in a block
# The bounds of blocks are by this estimate: tokenising the corpus in every process would cost what
# is gained by sharing it out.
BYTES_PER_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class DocumentSettings:
    """How a block of documents is encoded.

    Attributes:
      max_length: tokens of a document.
      compression: of the records (`RecordIdentity.compression`); None: there are none.
      calibration: of the codec, as bytes; `compression` has a hash of it.
    """

    max_length: int
    compression: str | None = None
    calibration: bytes = dataclasses.field(default=b"", repr=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        calibration = base64.b64encode(self.calibration).decode()
        return {**dataclasses.asdict(self), "calibration": calibration}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DocumentSettings:
        """Reads what `to_json` wrote."""
        return cls(**{**values, "calibration": base64.b64decode(values["calibration"])})

    def encoder(self, model: GritLM) -> BlockEncoder:
        """Encodes blocks with a model: vectors, and records as they are stored."""
        records = self.compression is not None
        identity = RecordIdentity.of(model, self.compression) if self.compression else None
        codec = (
            codec_from_bytes(self.calibration, self.compression, "the calibration of the plan")
            if self.compression is not None
            else None
        )

        def encode(texts: list[str], names: list[str]) -> Callable[[], Shard]:
            formatted = model.encoder.format(texts, max_length=self.max_length)
            encoded = model.encoder.encode_ids(
                formatted.ids,
                [formatted.pool_start] * len(formatted.ids),
                return_cache=records,
                codec=codec,
                names=names,
            )

            def pack() -> Shard:
                keys: list[str] = []
                stored: dict[str, EncodedRecord] = {}
                if identity is not None:
                    assert encoded.caches is not None
                    keys = [document_key(cache.tokens, identity) for cache in encoded.caches]
                    for key, cache in zip(keys, encoded.caches, strict=True):
                        if key not in stored:
                            data = encode_record(cache, identity)
                            stored[key] = EncodedRecord(len(cache.tokens), data)
                lengths = [len(ids) for ids in formatted.ids]
                return Shard(encoded.vectors, lengths, list(formatted.truncated), keys, stored)

            return pack

        return encode


@dataclasses.dataclass(frozen=True)
class DocumentBlocks:
    """The documents that are to be encoded, in blocks.

    Attributes:
      blocks: the numbers in the corpus of each block's documents.
      names: of the blocks' shards.
    """

    corpus: Corpus
    blocks: list[Sequence[int]]
    names: list[str]

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        numbers: Sequence[int],
        settings: DocumentSettings,
        model_identity: str,
        tokens: int,
    ) -> DocumentBlocks:
        """Documents in the corpus's order, in blocks of about `tokens` tokens."""
        sizes = (
            min(-(-corpus.sizes[number] // BYTES_PER_TOKEN), settings.max_length)
            for number in numbers
        )
        blocks = [
            numbers[block.start : block.stop]
            for block in block_ranges(sizes, tokens, MOST_DOCUMENTS)
        ]
        head = (repr(settings), model_identity)
        names = [shard_name(*head, *_digests(corpus, block)) for block in blocks]
        return cls(corpus, blocks, names)

    def texts(self, block: int) -> tuple[list[str], list[str]]:
        """The documents' texts, and what to call them in messages."""
        documents = [self.corpus[number] for number in self.blocks[block]]
        names = [f"{self.corpus.where(d.id)}: document {d.id!r}" for d in documents]
        return [document.content for document in documents], names


def _digests(corpus: Corpus, numbers: Sequence[int]) -> list[str | bytes]:
    ids = [corpus.id(number) for number in numbers]
    return [part for id in ids for part in (id, corpus.digests[id])]


def block_tokens(model: GritLM, records: bool) -> int:
    """Tokens of a block, by the size of their records; `records`: whether there are any."""
    if not records:
        return MOST_BLOCK
    config = model.config
    per_token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.head_dim or 0)
        * (4 if config.dtype == "float32" else 2)
    )
    return min(max(BLOCK_BYTES // per_token, LEAST_BLOCK), MOST_BLOCK)
