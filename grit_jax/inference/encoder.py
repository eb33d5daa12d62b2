"""Texts to vectors and caches: one bidirectional pass over packed rows.

A text gets the embedding format, is packed with others into a row (its segment), and its vector is
pooled from that segment alone; the keys and values of the same pass, cut out of the row, are its
record for later answers. The vocabulary is never touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from grit_jax.errors import GritError
from grit_jax.inference.records import Codec, KVRecord, PackedRecord
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, Call, plan_calls
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.models.pooling import PoolingMethod, text_vectors
from grit_jax.models.projection import embedding_width
from grit_jax.models.transformer import Params, Transformer
from grit_jax.runtime.progress import Progress
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.sharding import num_row_shards, put_rows, to_host
from grit_jax.text.chat import ChatFormat
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import KV, AttentionMode, DocumentKV, Rows

# Tokens of one call where the caller does not say. On a CPU few, so that activations stay in its
# caches; elsewhere enough to keep the device busy.
TOKENS_PER_CALL = {"cpu": 1024, "gpu": 32768, "tpu": 32768}
IN_FLIGHT = 2  # calls handed to the device before the first result is fetched
WINDOW = 16384  # texts planned together by `stream`
# Of a text far longer than the limit only the beginning is tokenised: this many characters for a
# token, and some tokens more than needed, because the last ones before a cut may differ.
CHARACTERS_PER_TOKEN, CUT_MARGIN = 10, 32


@dataclasses.dataclass
class Encoded:
    """What an encoding pass gives: unit vectors in the order of the texts, and the caches if they
    were asked for.

    `tokens` counts what was read (formats included, padding not), `seconds` the whole call.
    """

    vectors: Float[np.ndarray, "N D"]
    caches: list[KVRecord] | None
    tokens: int
    seconds: float


@dataclasses.dataclass
class FormattedTexts:
    """Token ids of texts in the embedding format; the first `prompt` of each are instruction and
    tags."""

    ids: list[list[int]]
    prompt: int


@dataclasses.dataclass
class EncodedText:
    """One text out of `Encoder.stream`."""

    vector: Float[np.ndarray, " D"]
    cache: KVRecord | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class RowVectors:
    """Pooled and normalised segments of packed rows, and the keys (unrotated) and values of every
    token, plain or packed by a codec."""

    vectors: Float[Array, "R G D"]
    kv: KV | dict[str, Array] | None


def embed_rows(
    params: Params,
    rows: Rows,
    mask: Bool[Array, "R T"],
    codec: Codec | None = None,
    *,
    config: ModelConfig,
    pooling: PoolingMethod,
    mode: AttentionMode,
    segments_per_row: int,
    return_kv: bool = False,
) -> RowVectors:
    """One normalised float32 vector per segment of packed rows; `mask` marks the tokens that mean
    pooling averages."""
    model = Transformer(config, params)
    out = model(
        rows.tokens,
        rows.positions,
        rows.segments,
        mode=mode,
        return_kv=return_kv,
        blocks=rows.blocks,
    )
    vectors = text_vectors(params, out.hidden, rows.segments, mask, segments_per_row, pooling)
    return RowVectors(vectors, out.kv if codec is None or out.kv is None else codec.pack(out.kv))


encode_step = jax.jit(
    embed_rows, static_argnames=("config", "pooling", "mode", "segments_per_row", "return_kv")
)


class Encoder:
    """Encodes texts with one model.

    Args:
      params: weights, already where they belong (on the device, or sharded over `mesh`).
      chat: the format of an embedding text.
      mesh: rows are split over its devices; None is the default device.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        pooling: PoolingMethod = "mean",
        mode: AttentionMode = AttentionMode.BIDIRECTIONAL,
        mesh: Mesh | None = None,
    ):
        self.config = dataclasses.replace(config, remat="none")  # no backward pass here
        self.params, self.tokenizer, self.chat = params, tokenizer, chat
        self.pooling, self.mode, self.mesh = pooling, mode, mesh
        self.width = embedding_width(params, config.hidden_size)  # dimensions of a vector
        self._row_multiple = num_row_shards(mesh) if mesh is not None else 1

    def encode(
        self,
        texts: Sequence[str],
        instruction: str = "",
        max_length: int = 512,
        *,
        return_cache: bool = False,
        progress: bool = False,
        tokens_per_call: int | None = None,
    ) -> Encoded:
        """Vectors of texts in the embedding format, in the order given.

        The instruction and the tags are attended to but not pooled by `mean` and `weightedmean`
        (grit: contract 1.4); an empty text is pooled over its last tag.

        Args:
          max_length: tokens kept of each text, BOS, instruction and tags included; the end is cut
            off.
          return_cache: also the keys and values of each text, as host arrays (see `DocumentKV`).
          tokens_per_call: size of a call, None for a default that suits the device.

        Raises:
          GritError: something that is not a string, or an instruction that leaves no room for a
            text.
        """
        start = time.perf_counter()
        formatted = self.format(texts, instruction, max_length)
        encoded = self.encode_ids(
            formatted.ids,
            [formatted.prompt] * len(formatted.ids),
            return_cache=return_cache,
            progress=progress,
            tokens_per_call=tokens_per_call,
        )
        encoded.seconds = time.perf_counter() - start
        return encoded

    def encode_ids(
        self,
        ids: Sequence[Sequence[int]],
        pool_starts: Sequence[int] | None = None,
        *,
        return_cache: bool = False,
        codec: Codec | None = None,
        progress: bool = False,
        tokens_per_call: int | None = None,
    ) -> Encoded:
        """Vectors and caches of token ids that already carry their format.

        Args:
          pool_starts: how many leading tokens of each text mean pooling leaves out; None for none.
            The last token is always pooled.
          codec: packs the caches on the device (they come as `PackedRecord`); None leaves them
            plain.

        Raises:
          GritError: a text without tokens, or caches of a model whose documents cannot be cached.
        """
        start = time.perf_counter()
        if return_cache:
            check_records(self.config)
        empty = next((i for i, text in enumerate(ids) if not len(text)), None)
        if empty is not None:
            raise GritError(f"text {empty} has no tokens")
        starts = list(pool_starts) if pool_starts is not None else [0] * len(ids)
        lengths = [len(text) for text in ids]
        vectors = np.zeros((len(ids), self.width), np.float32)
        caches: list[KVRecord | None] | None = [None] * len(ids) if return_cache else None
        calls = plan_calls(lengths, tokens_per_call or self._tokens_per_call(), self._row_multiple)
        waiting: deque[tuple[Call, RowVectors]] = deque()
        with show_progress(sum(lengths), "encode", "tokens", quiet=not progress) as bar:
            for call in calls:
                waiting.append((call, self._dispatch(call, ids, starts, return_cache, codec)))
                if len(waiting) >= IN_FLIGHT:
                    self._collect(*waiting.popleft(), ids, vectors, caches, codec, bar)
            while waiting:
                self._collect(*waiting.popleft(), ids, vectors, caches, codec, bar)
        return Encoded(vectors, caches, sum(lengths), time.perf_counter() - start)  # type: ignore[arg-type]

    def stream(
        self,
        texts: Iterator[str],
        instruction: str = "",
        max_length: int = 512,
        *,
        return_cache: bool = False,
        window: int = WINDOW,
        tokens_per_call: int | None = None,
    ) -> Iterator[EncodedText]:
        """`encode` of an iterator of any length, in order; memory holds `window` texts (and their
        caches)."""
        texts = iter(texts)
        while batch := list(itertools.islice(texts, window)):
            encoded = self.encode(
                batch,
                instruction,
                max_length,
                return_cache=return_cache,
                tokens_per_call=tokens_per_call,
            )
            for i, vector in enumerate(encoded.vectors):
                yield EncodedText(vector, encoded.caches[i] if encoded.caches else None)

    def format(
        self, texts: Sequence[str], instruction: str = "", max_length: int = 512
    ) -> FormattedTexts:
        """Token ids of texts in the embedding format, cut to `max_length`, and the number of their
        tags.

        Raises:
          GritError: as `encode`.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise GritError(f"texts must be a list of strings, found {type(texts).__name__}")
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise GritError(f"text {i} is not a string but {type(text).__name__}: {text!r:.60}")
        if not isinstance(instruction, str):
            raise GritError(
                f"instruction must be one string for all texts, found {type(instruction).__name__}"
            )
        pieces = self.chat.embed_parts(instruction, "")[:-1]
        prompt = [i for part in self.tokenizer.encode_parts([pieces])[0] for i in part]
        if len(prompt) >= max_length:
            raise GritError(
                f"instruction and tags take {len(prompt)} tokens and max_length is {max_length}:"
                " nothing is left for a text; shorten the instruction or raise max_length"
            )
        room = max_length - len(prompt)
        limit = CHARACTERS_PER_TOKEN * (room + CUT_MARGIN)
        bodies = self._bodies(instruction, [text[:limit] for text in texts])
        short = [
            i
            for i, ids in enumerate(bodies)
            if len(texts[i]) > limit and len(ids) < room + CUT_MARGIN
        ]
        for i, ids in zip(short, self._bodies(instruction, [texts[i] for i in short]), strict=True):
            bodies[i] = ids
        return FormattedTexts([prompt + body[:room] for body in bodies], len(prompt))

    def _bodies(self, instruction: str, texts: Sequence[str]) -> list[list[int]]:
        # The last tag says how a text after it is tokenised; what stands before the tag is the same
        # for all.
        prompts = [self.chat.embed_parts(instruction, text)[-2:] for text in texts]
        return [pieces[-1] for pieces in self.tokenizer.encode_parts(prompts)]

    def _tokens_per_call(self) -> int:
        platform = (
            self.mesh.devices.flat[0] if self.mesh is not None else jax.devices()[0]
        ).platform
        return TOKENS_PER_CALL.get(platform, TOKENS_PER_CALL["gpu"]) * self._row_multiple

    def _dispatch(
        self,
        call: Call,
        ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        return_kv: bool,
        codec: Codec | None,
    ) -> RowVectors:
        """Lays the rows of a call out and starts it; the result is awaited in `_collect`."""
        shape = (call.rows, call.length)
        tokens = np.full(shape, self.tokenizer.pad_id, np.int32)
        positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, bool)
        for r, texts in enumerate(call.texts):
            a = 0
            for segment, i in enumerate(texts, start=1):
                b = a + len(ids[i])
                tokens[r, a:b] = ids[i]
                positions[r, a:b] = np.arange(b - a)
                segments[r, a:b] = segment
                mask[r, a + min(starts[i], b - a - 1) : b] = True
                a = b
        # In prefix mode what is pooled is the block that sees all of itself: a causal instruction,
        # then the sample.
        blocks = mask.astype(np.int32) if self.mode is AttentionMode.PREFIX else None
        batch = (Rows(tokens, positions, segments, blocks), mask)  # type: ignore[arg-type]
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            rows, pooled = batch if self.mesh is None else put_rows(batch, self.mesh)
            return encode_step(
                self.params,
                rows,
                pooled,
                codec,
                config=self.config,
                pooling=self.pooling,
                mode=self.mode,
                segments_per_row=call.length // TOKENS_PER_SEGMENT,
                return_kv=return_kv,
            )

    def _collect(
        self,
        call: Call,
        result: RowVectors,
        ids: Sequence[Sequence[int]],
        vectors: np.ndarray,
        caches: list[KVRecord | None] | None,
        codec: Codec | None,
        bar: Progress,
    ) -> None:
        found = to_host(result.vectors)
        for r, texts in enumerate(call.texts):
            vectors[texts] = found[r, : len(texts)]
        if caches is not None and result.kv is not None:
            # One transfer for the whole call; each text gets arrays of its own, or it would keep
            # the call alive.
            plain = {"k": result.kv.k, "v": result.kv.v} if isinstance(result.kv, KV) else result.kv
            arrays = {name: to_host(array) for name, array in plain.items()}
            for r, texts in enumerate(call.texts):
                a = 0
                for i in texts:
                    b = a + len(ids[i])
                    own = {name: array[:, r, a:b].copy() for name, array in arrays.items()}
                    tokens = np.asarray(ids[i], np.int32)
                    caches[i] = (
                        DocumentKV(tokens, **own)
                        if codec is None
                        else PackedRecord(tokens, own, codec)
                    )
                    a = b
        bar.update(sum(len(ids[i]) for texts in call.texts for i in texts))
