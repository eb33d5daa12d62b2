"""What reading a prompt and loading a record cost on this machine, measured once for an index and
kept beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import is_packed
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.index import Index
from grit_jax.rag.page_cache import drop_page_cache
from grit_jax.rag.router import RouteCosts, Work
from grit_jax.runtime.files import json_text, write_text
from grit_jax.types import DocumentKV

VERSION = 1  # of what is measured and how
# Measurements of each kind, after one that compiles: so many, or for so long. The quickest counts:
# other work on the machine only ever adds to it.
REPEATS, SECONDS = 25, 0.4
SHORT = 32  # tokens of the short prompt: the smallest bucket of prompts
LONG = {
    "cpu": 256,
    "gpu": 2048,
    "tpu": 2048,
}  # of the long one: enough to tell it from the short one
SAMPLE = 64  # documents looked at for a short and a long one to load
LONGEST = 4096  # tokens of the long one, where there is a choice


def costs_of(model: GritLM, index: Index) -> RouteCosts:
    """The costs found earlier on this machine; without any, measures them and keeps them in the
    index's folder.

    What is kept stays as it is, so that a question goes the same way whenever it is asked. Where
    the folder cannot be written, each `Asker` measures for itself.
    """
    path, work = index.path / f"costs-{_machine(model)}.json", Work.of(model.config)
    if (found := _kept(path, work)) is not None:
        return found
    costs = measure_costs(model, index)
    if index.kv != "none" and not math.isfinite(
        costs.load_seconds
    ):  # a store that cannot be read today
        return costs
    return _keep(path, costs) or costs


def measure_costs(model: GritLM, index: Index) -> RouteCosts:
    """Reads a short and a long prompt, and loads a short and a long record of the index as they
    come from the disk."""
    work = Work.of(model.config)
    long = LONG.get(jax.devices()[0].platform, LONG["gpu"])
    long = min(long, max(SHORT + 1, model.config.max_position_embeddings - 1))
    short = _read(model, SHORT)
    # Timers and other processes may hide a difference; nothing is free.
    seconds = max(_read(model, long) - short, 1e-6)
    flops = (work.reading(long) - work.reading(SHORT)) / seconds
    loads = _loads(index)
    if loads is None:
        start, slope, record = math.inf, math.inf, None
    else:
        (few, quick), (many, slow), record = loads
        # From documents alike in length the part that does not grow with them cannot be told.
        slope = max(slow - quick, 0.0) / (many - few) if many > 2 * few else slow / many
        start = max(quick - few * slope, 0.0)
    if record is None or len(record.tokens) < long:
        record = _blank(
            model, long
        )  # placing a few tokens costs as much as placing a bucket of them
    tokens = len(record.tokens)
    try:
        beside = work.reading(SHORT, tokens) - work.reading(SHORT)
        place = max(_read(model, SHORT, (record,)) - short - beside / flops, 0.0) / tokens
    except GritError:  # a model whose records cannot be read
        place = math.inf
    return RouteCosts(work, flops, start, slope, place)


def _read(model: GritLM, tokens: int, pieces: Sequence[Any] = ()) -> float:
    """Seconds for a prompt after records."""
    prompt, first_token = (
        [model.tokenizer.pad_id] * tokens,
        Sampling(max_new_tokens=1, ignore_eos=True),
    )

    def once() -> float:
        int8 = any(is_packed(piece) for piece in pieces)
        timings = model.generate_ids(
            [prompt], records=[pieces], sampling=first_token, int8_records=int8
        ).timings
        return timings.load + timings.prefill

    once()
    return _quickest(once)


def _loads(index: Index) -> tuple[tuple[int, float], tuple[int, float], Any] | None:
    """(tokens, seconds) of a short and of a long document's record, and the long one; None where
    none can be loaded."""
    if index.kv == "none":
        return None
    sample = [index.documents[row] for row in range(min(SAMPLE, len(index)))]
    by_length = sorted(sample, key=lambda document: document["tokens"])
    fitting = [document for document in by_length if document["tokens"] <= LONGEST] or by_length[:1]
    short = next((found for document in fitting if (found := _load(index, document["key"]))), None)
    long = next(
        (found for document in fitting[::-1] if (found := _load(index, document["key"]))), None
    )
    if short is None or long is None:
        return None
    return (len(short[1].tokens), short[0]), (len(long[1].tokens), long[0]), long[1]


def _load(index: Index, key: str) -> tuple[float, Any] | None:
    """Seconds from the disk to memory, and the record; None for one that cannot be used."""
    try:
        store = index.store
        record = store.fetch([key])[0]
    except GritError:
        return None
    if isinstance(record, GritError):
        return None

    def once() -> float:
        drop_page_cache(store.path)
        start = time.perf_counter()
        store.fetch([key])
        return time.perf_counter() - start

    return _quickest(once), record


def _quickest(once: Callable[[], float]) -> float:
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        seconds.append(once())
    return min(seconds)


def _blank(model: GritLM, tokens: int) -> DocumentKV:
    c = model.config
    kv = np.zeros(
        (c.num_hidden_layers, tokens, c.num_key_value_heads, c.head_dim), jnp.dtype(c.dtype)
    )
    return DocumentKV(np.zeros(tokens, np.int32), kv, kv)


def _machine(model: GritLM) -> str:
    """Names what the measurements depend on beside the index."""
    device = jax.devices()[0]
    mesh = dict(model.mesh.shape) if model.mesh is not None else None
    what = (
        VERSION,
        platform.node(),
        platform.machine(),
        os.cpu_count(),
        device.platform,
        device.device_kind,
        mesh,
        model.config.dtype,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _kept(path: Path, work: Work) -> RouteCosts | None:
    try:
        return RouteCosts(work, **json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _keep(path: Path, costs: RouteCosts) -> RouteCosts | None:
    """Writes the costs, whole or not at all. Where another process was faster, its costs are what
    counts."""
    values = dataclasses.asdict(costs)
    del values["work"]
    with contextlib.suppress(GritError):
        write_text(path, json_text(values), overwrite=False)
    return _kept(path, costs.work)
