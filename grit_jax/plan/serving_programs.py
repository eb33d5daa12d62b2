"""The programs that run a trained model, lowered for a mesh of devices that may be absent: encode
documents with their records, read a chunk of a prompt, insert a record, decode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grit_jax.inference.encoder import EncodeOptions, encode_step
from grit_jax.inference.engine_state import EngineShape, LastChunk, PromptChunk, empty_state
from grit_jax.inference.engine_steps import (
    STEPS,
    empty_state_step,
    generate_step,
    insert_records_step,
    prefill_layer_step,
    prefill_step,
)
from grit_jax.inference.placement import Dtype, compute_dtype
from grit_jax.inference.records import SHORTEST_RECORDS, LayerRecords
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, bucket
from grit_jax.inference.sampling import SamplingRows, SlotSettings
from grit_jax.inference.slot_jobs import CHUNK
from grit_jax.inference.slot_runner import prompt_bucket
from grit_jax.models.config import ModelConfig
from grit_jax.models.int8 import INT8_WEIGHTS, abstract_int8
from grit_jax.models.parameters import parameter_shapes, stack_indices
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.slot_cache import KEY_BLOCK, Span
from grit_jax.plan.programs import (
    LoweredProgram,
    bytes_per_chip,
    lower,
    place,
    replicated,
    result_shapes,
    shape_of,
    weight_shardings,
)
from grit_jax.sharding import fitted_sharding, num_row_shards, row_shardings
from grit_jax.types import AttentionMode, Rows


@dataclasses.dataclass(frozen=True)
class ServingSizes:
    """What the programs are compiled for.

    Attributes:
      slots: of the engine; `capacity`: tokens of a slot.
      document_tokens, question_tokens: the longest of each.
      encode_tokens: tokens of documents that each share of the mesh takes at once.
    """

    slots: int
    capacity: int
    document_tokens: int
    question_tokens: int
    encode_tokens: int


@dataclasses.dataclass(frozen=True)
class ServingModel:
    """The model that is run: its shape, the dtype of its weights, and how it embeds."""

    config: ModelConfig
    dtype: Dtype
    pooling: PoolingMethod = "mean"
    mode: AttentionMode = AttentionMode.BIDIRECTIONAL

    def __post_init__(self) -> None:
        computed = compute_dtype(self.dtype, "tpu")
        config = dataclasses.replace(self.config, dtype=computed, remat="none")
        object.__setattr__(self, "config", config)

    def params(self, mesh: Mesh) -> dict[str, Any]:
        """The weights as shapes with shardings."""
        params = {}
        for name, shape in parameter_shapes(self.config).items():
            quantised = self.dtype == "int8" and name in INT8_WEIGHTS
            weight = abstract_int8(name, shape) if quantised else shape_of(shape, self.config.dtype)
            params[name] = place(weight, weight_shardings(name, weight, mesh))
        return params


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with its arguments as shapes and its static arguments.

    Attributes:
      trips, steps: see `programs.LoweredProgram`.
    """

    function: Any
    arguments: Sequence[Any]
    static: dict[str, Any]
    trips: tuple[int, ...] = ()
    steps: int = 1


class ServingPrograms:
    """The programs by name (`table`), for one mesh. `lower` makes one of them ready to compile."""

    def __init__(self, model: ServingModel, mesh: Mesh, sizes: ServingSizes):
        self.model, self.mesh, self.sizes = model, mesh, sizes
        self.config, self.shares = model.config, num_row_shards(mesh)
        self.params = model.params(mesh)
        self.state = engine_state(self.config, mesh, EngineShape(sizes.slots, sizes.capacity))
        self.table: dict[str, Callable[[], Program]] = {
            "encode": self._encode,
            "prefill": self._prefill,
            "insert_layer": self._insert_layer,
            "prefill_layer": self._prefill_layer,
            "decode": self._decode,
        }

    def lower(self, name: str) -> LoweredProgram:
        """A program of the table."""
        program = self.table[name]()
        lowered = lower(program.function, self.mesh, *program.arguments, **program.static)
        return dataclasses.replace(lowered, trips=program.trips, steps=program.steps)

    @property
    def encoded_rows(self) -> tuple[int, int]:
        """Rows of a call that encodes documents, and their length."""
        T = bucket(self.sizes.document_tokens)
        rows = max(1, self.sizes.encode_tokens // T) * self.shares
        return rows, T

    @property
    def chunk(self) -> int:
        """Tokens of a chunk of a prompt."""
        return min(CHUNK, self.sizes.capacity)

    @property
    def blocks(self) -> int:
        """Blocks of keys of a full slot, which attention reads one after the other."""
        return math.ceil(self.sizes.capacity / KEY_BLOCK)

    def _encode(self) -> Program:
        """Documents to vectors and records."""
        rows, T = self.encoded_rows
        ids, mode = shape_of((rows, T)), self.model.mode
        blocks = ids if mode is AttentionMode.PREFIX else None
        batch = (Rows(ids, ids, ids, blocks), shape_of((rows, T), bool))
        options = EncodeOptions(self.model.pooling, mode, T // TOKENS_PER_SEGMENT, return_kv=True)
        return Program(
            encode_step,
            (self.params, *place(batch, row_shardings(batch, self.mesh))),
            {"config": self.config, "options": options},
        )

    def _prefill(self) -> Program:
        """A chunk of a prompt in one slot of each share."""
        return Program(
            prefill_step,
            (self.params, self.state, *self._chunk(self.chunk)),
            {"config": self.config},
            trips=(math.ceil(self.blocks / 2),),  # of the chunks of a prompt on average
        )

    def _insert_layer(self) -> Program:
        """One layer of a document's record into a slot."""
        c, S = self.config, bucket(self.sizes.document_tokens, SHORTEST_RECORDS)
        shape = (1, c.num_key_value_heads, S, c.head_dim)
        arrays = {
            "k": shape_of((*shape[:2], c.head_dim, S), c.dtype),
            "v": shape_of(shape, c.dtype),
        }
        positions, records = shape_of((self.shares, S)), (LayerRecords(arrays, None),)
        given = replicated((shape_of(()), positions, self._span(), records), self.mesh)
        static = {"config": c, "local_rope": c.layer_kinds[0].local_rope}
        return Program(insert_records_step, (self.state, *given, None), static)

    def _prefill_layer(self) -> Program:
        """One layer of a question over what its slot holds."""
        c, tokens = self.config, min(self.sizes.question_tokens, self.chunk)
        T = min(prompt_bucket(tokens), self.sizes.capacity)
        chunk, _ = self._chunk(T)
        x = shape_of((self.shares, T, c.hidden_size), c.dtype)
        indices = {name: shape_of(()) for name in stack_indices(self.params, c.layer_kinds, 0)}
        x = place(x, row_shardings(x, self.mesh))
        given = replicated((shape_of(()), indices), self.mesh)
        return Program(
            prefill_layer_step,
            (self.params, self.state, x, chunk, *given),
            {"config": c, "kind": c.layer_kinds[0]},
            trips=(math.ceil(self.sizes.document_tokens / KEY_BLOCK),),
        )

    def _decode(self) -> Program:
        """Tokens in all slots; its costs are those of one of the steps of a call."""
        given = replicated((shape_of(()), shape_of((1,)), shape_of((), bool)), self.mesh)
        arguments = (self.params, self.state, *given)
        trips = (STEPS, self.blocks)
        return Program(generate_step, arguments, {"config": self.config}, trips, STEPS)

    def _span(self) -> Span:
        each = shape_of((self.shares,))
        return Span(each, each, each)

    def _chunk(self, tokens: int) -> tuple[PromptChunk, LastChunk]:
        P = self.shares
        ids, flags = shape_of((P,)), shape_of((P,), bool)
        numbers = shape_of((P,), jnp.float32)
        sampling = SamplingRows(numbers, numbers, ids, shape_of((P,), jnp.uint32))
        settings = SlotSettings(sampling, ids, flags)
        chunk = PromptChunk(shape_of((P, tokens)), self._span())
        return replicated((chunk, LastChunk(flags, settings, shape_of((1,)))), self.mesh)


def engine_state(config: ModelConfig, mesh: Mesh, shape: EngineShape) -> Any:
    """The engine's state, as shapes with the shardings that the compiler chooses."""
    return result_shapes(lower(empty_state_step, mesh, config=config, shape=shape))


def slot_bytes(config: ModelConfig, mesh: Mesh, capacity: int) -> int:
    """Bytes on one chip of a slot of its share: keys and values, whose heads are split along
    `tensor`, and numbers of the slot, which are not."""
    shares = num_row_shards(mesh)
    state = jax.eval_shape(lambda: empty_state(config, EngineShape(shares, capacity)))
    axes = (None, "rows", "kv_heads", None, None)
    sharding = lambda x: fitted_sharding(axes if x.ndim > 2 else (None,) * x.ndim, x.shape, mesh)
    sizes = jax.tree.map(
        lambda x: bytes_per_chip(place(x, sharding(x))) // (1 if x.ndim > 2 else shares), state
    )
    return sum(jax.tree.leaves(sizes))
