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
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.index import Index
from grit_jax.rag.page_cache import drop_page_cache
from grit_jax.rag.router import PassWork, RouteCosts
from grit_jax.runtime.files import json_text, write_text
from grit_jax.types import DocumentKV

VERSION = 1  # of what is measured and how
# Measurements of each kind, after one that compiles: at most this many, or this many seconds. The
# quickest counts, because other work on the machine only adds to it.
REPEATS, SECONDS = 25, 0.4
SHORT = 32  # tokens of the short prompt: the smallest bucket of prompts
# Tokens of the long prompt: enough to differ measurably from the short one.
LONG = {"cpu": 256, "gpu": 2048, "tpu": 2048}
SAMPLE = 64  # documents among which a short and a long one are chosen to load
LONGEST = 4096  # tokens of the long document, where there is a choice


def load_costs(model: GritLM, index: Index) -> RouteCosts:
    """The costs measured earlier on this machine; if there are none, measures them and writes them
    to the index's folder.

    Written costs are not measured again, so that the same question always takes the same route. If
    the folder cannot be written to, each `Asker` measures for itself.
    """
    path, work = index.path / f"costs-{_machine(model)}.json", PassWork.of(model.config)
    if (written := _read_costs(path, work)) is not None:
        return written
    costs = measure_costs(model, index)
    if index.kv != "none" and not math.isfinite(costs.load_seconds):
        return costs  # the store cannot be read, today
    return _write_costs(path, costs) or costs


def measure_costs(model: GritLM, index: Index) -> RouteCosts:
    """Measures reading a short and a long prompt, and loading a short and a long record."""
    work = PassWork.of(model.config)
    long = LONG.get(jax.devices()[0].platform, LONG["gpu"])
    long = min(long, max(SHORT + 1, model.config.context_length - 1))
    short = _read(model, SHORT)
    # Noise may hide the difference; the cost is never 0.
    seconds = max(_read(model, long) - short, 1e-6)
    flops = (work.reading(long) - work.reading(SHORT)) / seconds
    loads = _loads(index)
    if loads is None:
        start, slope, record = math.inf, math.inf, None
    else:
        (few, quick), (many, slow), record = loads
        # From documents of similar length the constant part cannot be estimated.
        slope = max(slow - quick, 0.0) / (many - few) if many > 2 * few else slow / many
        start = max(quick - few * slope, 0.0)
    if record is None or len(record.tokens) < long:
        # Placing a few tokens costs as much as placing a bucket of them.
        record = _zero_record(model, long)
    tokens = len(record.tokens)
    try:
        beside = work.reading(SHORT, tokens) - work.reading(SHORT)
        place = max(_read(model, SHORT, (record,)) - short - beside / flops, 0.0) / tokens
    except GritError:  # a model whose records cannot be read
        place = math.inf
    return RouteCosts(work, flops, start, slope, place)


def _read(model: GritLM, tokens: int, records: Sequence[KVRecord] = ()) -> float:
    """Seconds for a prompt after records."""
    prompt, first_token = (
        [model.tokenizer.pad_id] * tokens,
        Sampling(max_new_tokens=1, ignore_eos=True),
    )

    def once() -> float:
        int8 = any(record.codec is not None for record in records)
        timings = model.generate_ids(
            [prompt], records=[records], sampling=first_token, int8_records=int8
        ).timings
        return timings.load + timings.prefill

    once()
    return _quickest(once)


def _loads(index: Index) -> tuple[tuple[int, float], tuple[int, float], Any] | None:
    """(tokens, seconds) of a short and of a long document's record, and the long record; None if no
    record can be loaded."""
    if index.kv == "none":
        return None
    sample = [index.documents[row] for row in range(min(SAMPLE, len(index)))]
    by_length = sorted(sample, key=lambda document: document["tokens"])
    fitting = [document for document in by_length if document["tokens"] <= LONGEST] or by_length[:1]
    loaded = (_load(index, document["key"]) for document in fitting)
    short = next(filter(None, loaded), None)
    loaded = (_load(index, document["key"]) for document in fitting[::-1])
    long = next(filter(None, loaded), None)
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


def _zero_record(model: GritLM, tokens: int) -> DocumentKV:
    c = model.config
    heads = (c.num_hidden_layers, c.num_key_value_heads)
    k = np.zeros((*heads, c.head_dim, tokens), jnp.dtype(c.dtype))
    return DocumentKV(np.zeros(tokens, np.int32), k, k.swapaxes(2, 3))


def _machine(model: GritLM) -> str:
    """A hash of what the measurements depend on besides the index."""
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
        model.dtype,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _read_costs(path: Path, work: PassWork) -> RouteCosts | None:
    """Costs from a file; null is infinity, which JSON does not have."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        numbers = {
            name: math.inf if value is None else float(value) for name, value in values.items()
        }
        return RouteCosts(work, **numbers)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write_costs(path: Path, costs: RouteCosts) -> RouteCosts | None:
    """Writes the costs and returns what the file then holds: the costs of another process that was
    faster, or None if the folder cannot be written to."""
    values = dataclasses.asdict(costs)
    del values["work"]
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    with contextlib.suppress(GritError):
        write_text(path, json_text(finite), overwrite=False)
    return _read_costs(path, costs.work)
