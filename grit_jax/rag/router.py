"""`auto`: which way of using documents is the quickest for this question, by the lengths of what is to be read.

Only ways in which every token of the answer's prompt attends to query and documents together, or to a record that it
was trained to read, are chosen among: the two layouts that put both records side by side lose most where the model was
not trained for them (grit: section 4.2), and are used when asked for by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from grit_jax.data.layouts import Mode
from grit_jax.models.config import ModelConfig

# In order of preference where they cost the same.
ROUTED: tuple[Mode, ...] = ("doc-then-query", "doc", "query")
TEMPLATE_TOKENS = 32  # of a continuation beside query and documents

# FLOP/s of a prefill and bytes/s from the store's files to the device. Those of a CPU follow from processor time
# measured on a busy machine (4.3e10 FLOP/s a core; records read from the page cache at 1.1 to 2.1 GB/s), taken for two
# cores. GPU and TPU are guesses, not measured: 40% of a chip's peak, and one NVMe disk.
PREFILL_FLOPS = {"cpu": 8e10, "gpu": 4e14, "tpu": 8e13}
LOAD_BYTES = {"cpu": 1.0e9, "gpu": 3.0e9, "tpu": 3.0e9}
LOAD_SECONDS = 1e-3  # of one batch of reads, however small


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the parts of an answer cost on one machine with one model."""

    prefill_tokens_per_s: float
    load_bytes_per_s: float
    bytes_per_token: float
    load_seconds: float = LOAD_SECONDS

    @classmethod
    def estimate(cls, config: ModelConfig, platform: str | None = None) -> Costs:
        """From the model's size and constants of the platform."""
        platform = platform or jax.devices()[0].platform
        flops = PREFILL_FLOPS.get(platform, PREFILL_FLOPS["gpu"])
        width = 4 if config.dtype == "float32" else 2
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * (config.head_dim or 0)
        return cls(
            flops / (2 * config.num_parameters), LOAD_BYTES.get(platform, LOAD_BYTES["gpu"]), numbers * width
        )


@dataclasses.dataclass(frozen=True)
class Route:
    """The chosen layout, and the estimated seconds of each."""

    mode: Mode
    seconds: dict[Mode, float]


def route(
    query_tokens: int,
    document_tokens: Sequence[int],
    costs: Costs,
    *,
    documents_stored: bool = True,
    query_recorded: bool = True,
    among: Sequence[Mode] = ROUTED,
) -> Route:
    """The cheapest of `among`: tokens still to be read against bytes to be loaded.

    Args:
      documents_stored: their records are in a store; else a layout that uses them encodes them first.
      query_recorded: the query's record is at hand, because the pass that embedded it for retrieval left it.
    """
    documents = sum(document_tokens)
    read = lambda tokens: (tokens + TEMPLATE_TOKENS) / costs.prefill_tokens_per_s
    load = costs.load_seconds + documents * costs.bytes_per_token / costs.load_bytes_per_s
    if not documents_stored:
        load = documents / costs.prefill_tokens_per_s
    query = 0.0 if query_recorded else query_tokens / costs.prefill_tokens_per_s
    known: dict[Mode, float] = {
        "none": read(query_tokens),
        "query-then-doc": read(query_tokens + documents),
        "doc-then-query": read(query_tokens + documents),
        "doc": load + read(query_tokens),
        "query": query + read(documents),
        "query-doc": query + load + read(0),
        "doc-query": query + load + read(0),
    }
    seconds = {mode: known[mode] for mode in among}
    return Route(min(seconds, key=seconds.__getitem__), seconds)
