"""What the runner of an engine's slots knows of its requests and of the calls under way."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.sharding import Mesh

from grit_jax.inference.engine_state import Chosen
from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.record_loader import RecordLoader
from grit_jax.inference.requests import GenerateRequest, GenerateResult, Pending
from grit_jax.types import AttentionMode

CHUNK = 256  # tokens of a prompt that are read in one call


@dataclasses.dataclass(frozen=True)
class RunnerOptions:
    """How all requests of an engine are decoded.

    Attributes:
      eos_ids: tokens that end an answer.
      mode: PREFIX reads a prompt bidirectionally, as a prefix language model was trained to.
      chunk: tokens of a prompt that are read in one call.
      return_logits: keep the logits of every new token.
      mesh: its devices share slots and heads; None is the default device.
      adapter_eos_ids: those of each adapter, in place of `eos_ids`.
    """

    eos_ids: tuple[int, ...] = ()
    mode: AttentionMode = AttentionMode.CAUSAL
    chunk: int = CHUNK
    return_logits: bool = False
    mesh: Mesh | None = None
    adapter_eos_ids: tuple[tuple[int, ...], ...] = ()

    def ends_of(self, adapter: int) -> tuple[int, ...]:
        """The tokens that end an answer by an adapter, or by the base (0)."""
        return self.adapter_eos_ids[adapter - 1] if adapter else self.eos_ids

    def eos_table(self, adapters: int) -> np.ndarray:
        """The tokens that end an answer, as `engine_steps.generate` takes them."""
        ends = [self.ends_of(adapter) or (-1,) for adapter in range(adapters + 1)]
        if not adapters:
            return np.asarray(ends[0], np.int32)
        table = np.full((len(ends), max(map(len, ends))), -1, np.int32)
        for row, own in zip(table, ends, strict=True):
            row[: len(own)] = own
        return table


@dataclasses.dataclass(eq=False)
class Job:
    """A request in a slot.

    Attributes:
      start: tokens in the slot's cache; prompts continue there.
      read: tokens of the prompt that were dispatched.
      loader: its records that are still to be inserted.
      planned: tokens of the answer that were dispatched, at most.
      live: False once it has ended for the host.
    """

    pending: Pending[GenerateResult]
    slot: int
    start: int = 0
    read: int = 0
    loader: RecordLoader | None = None
    planned: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    live: bool = True

    @property
    def request(self) -> GenerateRequest:
        return self.pending.request

    @property
    def rest(self) -> int:
        """Tokens of the prompt that are still to be dispatched."""
        return len(self.request.prompt) - self.read


@dataclasses.dataclass
class Call:
    """A dispatched call: what it returns, the job of each of its rows, and the steps planned."""

    chosen: Chosen
    jobs: dict[int, Job]
    steps: int
    is_prefill: bool
