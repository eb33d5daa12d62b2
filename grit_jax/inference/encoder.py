"""Texts to vectors and document caches: one bidirectional pass over packed rows.

Each text is put into the embedding format and becomes a segment of a packed row. Its vector is
pooled from that segment alone. The keys and values of the same pass, cut out of the row, are the
record that later answers start from. No logits are computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from grit_jax.errors import GritError
from grit_jax.inference.placement import most_tokens
from grit_jax.inference.records import (
    Codec,
    KVRecord,
    PackedRecord,
    is_finite,
    token_axes,
    token_span,
)
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, RowBatch, pack_rows
from grit_jax.models.adapter_stack import choose
from grit_jax.models.cache import check_records
from grit_jax.models.config import ModelConfig
from grit_jax.models.embedding import embed_rows
from grit_jax.models.finite import describe_cause
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import embedding_width
from grit_jax.models.transformer import Params, Transformer
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.sharding import num_row_shards, put_rows, to_host
from grit_jax.text.chat import ChatFormat, PromptPart
from grit_jax.text.length import MAX_LENGTH, length_limit, warn_truncated
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import KV, AttentionMode, DocumentKV, Rows

IN_FLIGHT = 2  # batches dispatched to the device before the first result is fetched
# Only the beginning of a text far longer than the limit is tokenised: this many characters for each
# token, and a margin of tokens, because the last ones before a cut may differ.
CHARACTERS_PER_TOKEN, CUT_MARGIN = 10, 32


@dataclasses.dataclass
class Encoded:
    """The result of an encoding pass.

    Attributes:
      vectors: unit vectors in the order of the texts.
      caches: the record of each text (see `DocumentKV`), None unless they were asked for.
      tokens: tokens read, format included, padding not.
      seconds: of the whole call.
      truncated: how many texts were longer than `max_length` and lost their end.
    """

    vectors: Float[np.ndarray, "N D"]
    caches: list[KVRecord] | None
    tokens: int
    seconds: float
    truncated: int = 0


@dataclasses.dataclass
class FormattedTexts:
    """Token ids of texts in the embedding format.

    Attributes:
      ids: of each text, at most `max_length` of them.
      prompt: the number of tokens that are the format's (instruction and tags, and an end), the
        same for every text.
      pool_start: the number of leading tokens that mean pooling leaves out, the same for every
        text.
      max_length: the limit that was applied.
      truncated: indices of the texts that lost their end.
    """

    ids: list[list[int]]
    prompt: int
    pool_start: int
    max_length: int
    truncated: list[int]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The tokens around an embedding text; the other attributes are as in `FormattedTexts`."""

    head: list[int]
    end: list[int]
    prompt: int
    pool_start: int
    max_length: int

    @property
    def room(self) -> int:
        """Tokens of a text."""
        return self.max_length - len(self.head) - len(self.end)

    def around(self, bodies: Sequence[list[int]]) -> FormattedTexts:
        """Texts in the format, cut to their room."""
        return FormattedTexts(
            [self.head + body[: self.room] + self.end for body in bodies],
            self.prompt,
            self.pool_start,
            self.max_length,
            [i for i, body in enumerate(bodies) if len(body) > self.room],
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EncodedRows:
    """The unit vector of each segment of packed rows, and the keys (unrotated) and values of every
    token, plain or packed by a codec."""

    vectors: Float[Array, "B M d"]
    kv: KV | dict[str, Array] | None


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """What `encode_step` is compiled for, beside the model's configuration and the shapes.

    Attributes:
      pooling, mode: how the model embeds.
      segments_per_row: an upper bound of the texts in a row.
      return_kv: return the keys and values, too.
    """

    pooling: PoolingMethod
    mode: AttentionMode
    segments_per_row: int
    return_kv: bool = False


def _encode_rows(
    params: Params,
    rows: Rows,
    mask: Bool[Array, "B T"],
    codec: Codec | None = None,
    *,
    config: ModelConfig,
    options: EncodeOptions,
) -> EncodedRows:
    """`models.embedding.embed_rows`, and its keys and values packed by a codec."""
    params = choose(params, rows.adapters)
    embedded = embed_rows(
        Transformer(config, params),
        params,
        rows,
        mask,
        mode=options.mode,
        pooling=options.pooling,
        segments_per_row=options.segments_per_row,
        return_kv=options.return_kv,
    )
    kv = embedded.kv
    return EncodedRows(embedded.vectors, kv if codec is None or kv is None else codec.pack(kv))


encode_step = jax.jit(_encode_rows, static_argnames=("config", "options"))


class Encoder:
    """Encodes texts with one model.

    Args:
      params: weights, already placed (on the device, or sharded over `mesh`).
      chat: the format of an embedding text.
      mesh: its devices share the rows of a batch; None is the default device.
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
        # Tokens in one call of the compiled program for each part of the rows; None: by device.
        self.tokens_per_call: int | None = None
        self.row_multiple = num_row_shards(mesh) if mesh is not None else 1

    def encode(
        self,
        texts: Sequence[str],
        instruction: str = "",
        max_length: int = MAX_LENGTH,
        *,
        return_cache: bool = False,
        names: Sequence[str] | None = None,
        progress: bool = False,
        tokens_per_call: int | None = None,
    ) -> Encoded:
        """Vectors of texts in the embedding format, in the order given.

        The instruction and the tags are attended to, but `mean` and `weightedmean` do not pool
        them; an empty text is pooled over its last tag.

        Args:
          max_length: tokens kept of each text, BOS, instruction and tags included; the end is cut
            off, counted in `Encoded.truncated` and warned about. The default is lowered to the
            model's context where that is shorter.
          return_cache: also return the keys and values of each text, as host arrays (see
            `DocumentKV`).
          names: what to call each text in an error, its file and line say; None: `text 0`, ...
          tokens_per_call: tokens in one call of the compiled program; None chooses by device.

        Raises:
          GritError: an argument of another type, a `max_length` beyond the model's context, an
            instruction that leaves no room for a text, or a vector that is not finite.
        """
        start = time.perf_counter()
        formatted = self.format(texts, instruction, max_length)
        encoded = self.encode_ids(
            formatted.ids,
            [formatted.pool_start] * len(formatted.ids),
            return_cache=return_cache,
            names=names,
            progress=progress,
            tokens_per_call=tokens_per_call,
        )
        encoded.truncated = len(formatted.truncated)
        warn_truncated(encoded.truncated, len(formatted.ids), formatted.max_length)
        encoded.seconds = time.perf_counter() - start
        return encoded

    def encode_ids(
        self,
        ids: Sequence[Sequence[int]],
        pool_starts: Sequence[int] | None = None,
        *,
        return_cache: bool = False,
        codec: Codec | None = None,
        names: Sequence[str] | None = None,
        progress: bool = False,
        tokens_per_call: int | None = None,
    ) -> Encoded:
        """Vectors and caches of token ids that already carry their format.

        Args:
          pool_starts: the number of leading tokens of each text that mean pooling leaves out; None:
            none. The last token is always pooled.
          codec: packs the caches on the device (they are returned as `PackedRecord`); None leaves
            them plain.
          names: as in `encode`.

        Raises:
          GritError: a text without tokens, a vector that is not finite, or caches of a model whose
            documents cannot be cached.
        """
        start = time.perf_counter()
        if return_cache:
            check_records(self.config)
        names = names if names is not None else [f"text {i}" for i in range(len(ids))]
        for text, name in zip(ids, names, strict=True):
            if not len(text):
                raise GritError(f"{name} has no tokens")
        lengths = [len(text) for text in ids]
        texts = PackedTexts(
            ids,
            pool_starts if pool_starts is not None else [0] * len(ids),
            np.zeros((len(ids), self.width), np.float32),
            [None] * len(ids) if return_cache else None,
            codec,
        )
        batches = pack_rows(lengths, tokens_per_call or self.tokens_in_call(), self.row_multiple)
        in_flight: deque[tuple[RowBatch, EncodedRows]] = deque()
        with show_progress(sum(lengths), "encode", "tokens", quiet=not progress) as bar:

            def collect() -> None:
                batch, result = in_flight.popleft()
                texts.collect(batch, result)
                self._check_finite(texts, batch, names)
                bar.update(sum(lengths[i] for row in batch.texts for i in row))

            for batch in batches:
                in_flight.append((batch, self.dispatch(batch, texts)))
                if len(in_flight) >= IN_FLIGHT:
                    collect()
            while in_flight:
                collect()
        return Encoded(
            texts.vectors,
            texts.caches,
            sum(lengths),
            time.perf_counter() - start,
        )

    def format(
        self, texts: Sequence[str], instruction: str = "", max_length: int = MAX_LENGTH
    ) -> FormattedTexts:
        """Token ids of texts in the embedding format, cut to `max_length`.

        Raises:
          GritError: as `encode`.
        """
        texts = check_texts(texts)
        frame = self._frame(instruction, max_length)
        room = frame.room
        limit = CHARACTERS_PER_TOKEN * (room + CUT_MARGIN)
        bodies = self._bodies(instruction, [text[:limit] for text in texts])
        # The few texts whose beginning was too short for `room` tokens are tokenised whole.
        short = [
            i
            for i, ids in enumerate(bodies)
            if len(texts[i]) > limit and len(ids) < room + CUT_MARGIN
        ]
        for i, ids in zip(short, self._bodies(instruction, [texts[i] for i in short]), strict=True):
            bodies[i] = ids
        return frame.around(bodies)

    def format_ids(
        self, ids: Sequence[Sequence[int]], instruction: str = "", max_length: int = MAX_LENGTH
    ) -> FormattedTexts:
        """`format` of texts that are token ids already.

        Raises:
          GritError: a `max_length` beyond the model's context, or an instruction that leaves no
            room for a text.
        """
        return self._frame(instruction, max_length).around([list(text) for text in ids])

    def _frame(self, instruction: str, max_length: int) -> _Frame:
        if not isinstance(instruction, str):
            raise GritError(
                "instruction must be one string for all texts, got"
                f" {type(instruction).__name__}: {instruction!r:.60}"
            )
        max_length = length_limit(max_length, self.config.context_length)
        parts = self.chat.embed_parts(instruction, "")
        ending = [PromptPart(self.chat.embed_end, is_template=True)]
        *tags, last = self.tokenizer.encode_parts([parts])[0]
        head = [i for ids in tags for i in ids]
        end = self.tokenizer.encode_parts([ending])[0][0]
        prompt = len(head) + len(last) + len(end)
        if prompt >= max_length:
            raise GritError(
                f"instruction and tags take {prompt} tokens and max_length is {max_length}:"
                " nothing is left for a text; shorten the instruction or raise max_length"
            )
        pool_start = 0 if self.chat.pools_prompt else len(head) + len(last)
        return _Frame(head, end, prompt, pool_start, max_length)

    def _bodies(self, instruction: str, texts: Sequence[str]) -> list[list[int]]:
        # How a text is tokenised depends on the tag before it, and on nothing before that tag.
        prompts = [self.chat.embed_parts(instruction, text)[-2:] for text in texts]
        return [parts[-1] for parts in self.tokenizer.encode_parts(prompts)]

    def tokens_in_call(self) -> int:
        """Tokens in one call of the compiled program, for the devices in use."""
        platform = (
            self.mesh.devices.flat[0] if self.mesh is not None else jax.devices()[0]
        ).platform
        return (self.tokens_per_call or most_tokens(platform)) * self.row_multiple

    def dispatch(self, batch: RowBatch, texts: PackedTexts) -> EncodedRows:
        """Starts the computation of a batch without waiting for it."""
        rows, pooled = texts.lay_out(batch, self.tokenizer.pad_id)
        options = EncodeOptions(
            self.pooling,
            self.mode,
            batch.length // TOKENS_PER_SEGMENT,
            return_kv=texts.caches is not None,
        )
        # In prefix mode the pooled tokens are a block that sees all of itself, after a causal
        # instruction.
        if self.mode is AttentionMode.PREFIX:
            rows = dataclasses.replace(rows, blocks=pooled.astype(np.int32))
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            if self.mesh is not None:
                rows, pooled = put_rows((rows, pooled), self.mesh)
            return encode_step(
                self.params,
                rows,
                pooled,
                texts.codec,
                config=self.config,
                options=options,
            )

    def _check_finite(self, texts: PackedTexts, batch: RowBatch, names: Sequence[str]) -> None:
        """Raises GritError for vectors or caches of a batch that hold NaN or infinity."""
        numbers = sorted(i for row in batch.texts for i in row)
        checks = {"vector": lambda i: np.isfinite(texts.vectors[i]).all()}
        if (caches := texts.caches) is not None:
            checks["cache"] = lambda i: is_finite(caches[i])
        for part, finite in checks.items():
            if bad := [i for i in numbers if not finite(i)]:
                others = f" (and those of {len(bad) - 1} more texts)" if len(bad) > 1 else ""
                raise GritError(
                    f"{names[bad[0]]}: its {part} is not finite{others}:"
                    f" {describe_cause(self.params, self.config.dtype)}"
                )


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
      GritError: something else than a list of strings, its place named.
    """
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise GritError(
            f"texts must be a list of strings, got {type(texts).__name__}: {texts!r:.60}"
        )
    try:
        texts = list(texts)
    except TypeError:  # a NumPy array without axes
        raise GritError(f"texts must be a list of strings, got {texts!r:.60}") from None
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise GritError(f"text {i} must be a string, got {type(text).__name__}: {text!r:.60}")
    return texts


@dataclasses.dataclass
class PackedTexts:
    """The texts of one encoding pass, and their results as far as they have come.

    Attributes:
      ids, pool_starts, codec: as of `Encoder.encode_ids`.
      vectors: one row for each text.
      caches: the records, None unless they are asked for.
      adapters: of each text, for weights that have several; None: the one that is chosen.
    """

    ids: Sequence[Sequence[int]]
    pool_starts: Sequence[int]
    vectors: Float[np.ndarray, "N D"]
    caches: list[KVRecord | None] | None
    codec: Codec | None
    adapters: Sequence[int] | None = None

    def lay_out(self, batch: RowBatch, pad_id: int) -> tuple[Rows, Bool[np.ndarray, "B T"]]:
        """The packed rows of a batch, and the tokens that mean pooling averages."""
        shape = (batch.rows, batch.length)
        tokens = np.full(shape, pad_id, np.int32)
        positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        pooled = np.zeros(shape, bool)
        adapters = None if self.adapters is None else np.zeros(shape, np.int32)
        for row, texts in enumerate(batch.texts):
            for segment, (i, start, stop) in enumerate(self.spans(texts), 1):
                length = stop - start
                tokens[row, start:stop] = self.ids[i]
                positions[row, start:stop] = np.arange(length)
                segments[row, start:stop] = segment
                if adapters is not None and self.adapters is not None:
                    adapters[row, start:stop] = self.adapters[i]
                pooled[row, start + min(self.pool_starts[i], length - 1) : stop] = True
        return Rows(tokens, positions, segments, adapters=adapters), pooled

    def collect(self, batch: RowBatch, result: EncodedRows) -> None:
        """Waits for the vectors and caches of a batch and stores them."""
        vectors = to_host(result.vectors)
        for row, texts in enumerate(batch.texts):
            self.vectors[texts] = vectors[row, : len(texts)]
        if self.caches is None or result.kv is None:
            return
        # One transfer for the whole batch; each text gets arrays of its own, or it would keep the
        # whole batch alive.
        named = {"k": result.kv.k, "v": result.kv.v} if isinstance(result.kv, KV) else result.kv
        arrays = {name: to_host(array) for name, array in named.items()}
        axes = token_axes(self.codec)
        for row, texts in enumerate(batch.texts):
            for i, start, stop in self.spans(texts):
                own = {
                    name: array[(slice(None), row, *token_span(axes[name], start, stop))].copy()
                    for name, array in arrays.items()
                }
                tokens = np.asarray(self.ids[i], np.int32)
                self.caches[i] = (
                    DocumentKV(tokens, **own)
                    if self.codec is None
                    else PackedRecord(tokens, own, self.codec)
                )

    def spans(self, texts: Sequence[int]) -> list[tuple[int, int, int]]:
        """Number, first and last token (exclusive) of each text of a row."""
        stops = np.cumsum([len(self.ids[i]) for i in texts]).tolist()
        return [(i, stop - len(self.ids[i]), stop) for i, stop in zip(texts, stops, strict=True)]
