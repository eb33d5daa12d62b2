"""`grit bench encode|decode|train`: tokens per second on random token ids."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from grit_jax.data.packing import (
    EmbeddingPacking,
    GenerativePacking,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.token_texts import TokenText
from grit_jax.inference.model import GritLM
from grit_jax.inference.sampling import Sampling
from grit_jax.runtime.progress import progress
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.training.throughput import count_tokens
from grit_jax.types import Batch

QUERY, PASSAGE = 32, 256  # tokens
PROMPT, NEW = 128, 64  # tokens of an answer
ROWS = (1, 8)  # answers decoded together
MIXED = 48  # requests of all lengths, which wait together for the slots of an engine
Results = dict[str, dict[str, Any]]


def bench_encode(
    model: GritLM, *, batch_tokens: int = 4096, repeats: int = 3, seed: int = 0
) -> Results:
    """Encodes short texts, long texts, texts of all lengths, and long texts with their keys and
    values."""
    rng = np.random.default_rng(seed)
    lengths = {
        "queries": [QUERY] * -(-batch_tokens // QUERY),
        "passages": (passages := [PASSAGE] * -(-batch_tokens // PASSAGE)),
        "mixed": rng.integers(8, 2 * PASSAGE, -(-batch_tokens // PASSAGE)).tolist(),
        "passages_with_kv": passages,
    }
    results: Results = {}
    for name in progress(lengths, "bench encode", "measurements"):
        ids = [_ids(rng, model, length) for length in lengths[name]]
        encode = functools.partial(model.encoder.encode_ids, ids, return_cache=name.endswith("kv"))
        results[name] = _rates(sum(lengths[name]), _seconds(encode, repeats), texts=len(ids))
    return results


def bench_decode(model: GritLM, *, repeats: int = 3, seed: int = 0) -> Results:
    """Decodes answers of 64 tokens to prompts of 128, one row and eight rows; EOS is ignored.

    `tokens_per_s` and `seconds` are of decoding alone, `prefill_tokens_per_s` is of reading the
    prompts. Of "mixed", 48 requests whose prompts have 2 to 128 tokens and whose answers 1 to 64,
    they are of the whole: new tokens over the time from the first prompt to the last answer.
    """
    rng, sampling = np.random.default_rng(seed), Sampling(max_new_tokens=NEW, ignore_eos=True)
    results: Results = {}
    for rows in progress(ROWS, "bench decode", "measurements"):
        prompts = [_ids(rng, model, PROMPT) for _ in range(rows)]
        timings = [
            model.generate_ids(prompts, sampling=sampling).timings for _ in range(repeats + 1)
        ][1:]
        prefill = rows * PROMPT / statistics.median(timing.prefill for timing in timings)
        results[f"rows_{rows}"] = _rates(
            rows * (NEW - 1),
            [timing.decode for timing in timings],  # the first new token comes with the prompt
            rows=rows,
            prefill_tokens_per_s=round(prefill, 1),
        )
    prompts = [_ids(rng, model, n) for n in rng.integers(2, PROMPT + 1, MIXED).tolist()]
    samplings = [
        Sampling(max_new_tokens=n, ignore_eos=True)
        for n in rng.integers(1, NEW + 1, MIXED).tolist()
    ]
    run = functools.partial(model.generate_ids, prompts, sampling=samplings)
    total = sum(sampling.max_new_tokens for sampling in samplings)
    results["mixed"] = _rates(total, _seconds(run, repeats), requests=MIXED)
    return results


def bench_train(
    model: GritLM, *, batch_tokens: int = 4096, repeats: int = 3, seed: int = 0
) -> Results:
    """Runs optimizer steps from these weights, as `grit train` does, with both losses and with each
    alone."""
    rng, mesh = np.random.default_rng(seed), make_mesh(MeshConfig())
    config = dataclasses.replace(model.config, remat="full")
    schedule = make_schedule(OptimizerConfig(), 1000)
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    pairs, texts = (max(1, batch_tokens // 2 // size) for size in (QUERY + PASSAGE, PASSAGE))
    passages = [_ids(rng, model, PASSAGE) for _ in range(pairs)]
    embedding = embedding_batch(
        [_ids(rng, model, QUERY) for _ in range(pairs)],
        passages,
        [0] * (2 * pairs),
        EmbeddingPacking(PASSAGE),
    )
    answers = [TokenText(_ids(rng, model, PASSAGE), np.arange(PASSAGE) > 0) for _ in range(texts)]
    generative = generative_batch(answers, GenerativePacking(PASSAGE))
    batches = {
        "joint": Batch(embedding, generative),
        "embedding": Batch(embedding),
        "generative": Batch(generative=generative),
    }
    results: Results = {}
    step = make_step(StepConfig(config, LossConfig(), model.pooling), optimizer, schedule)
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, jax.random.key(seed), mesh, model.params)
        for name in progress(batches, "bench train", "measurements"):
            batch, counted = put_rows(batches[name], mesh), count_tokens(batches[name])

            def train(batch=batch) -> None:
                nonlocal state
                state, metrics = step(state, batch)
                jax.block_until_ready((state, metrics))

            seconds = _seconds(train, repeats)
            results[name] = _rates(int(counted["tokens"]), seconds, padding=counted["padding"])
    return results


def lines(results: Results) -> Iterator[str]:
    """The results as lines of text."""
    for name, values in results.items():
        more = "".join(
            f", {key} {value}"
            for key, value in values.items()
            if key not in ("tokens_per_s", "seconds")
        )
        yield (
            f"{name:18s}{values['tokens_per_s']:>12,.1f} tokens/s  {values['seconds']:.3f} s{more}"
        )


def _seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of several calls, after one that compiles."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _rates(tokens: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    middle = statistics.median(seconds)
    return {
        "tokens_per_s": round(tokens / middle, 1),
        "seconds": round(middle, 6),
        "least_s": round(min(seconds), 6),
        "most_s": round(max(seconds), 6),
        "repeats": len(seconds),
        "tokens": tokens,
        **more,
    }


def _ids(rng: np.random.Generator, model: GritLM, tokens: int) -> list[int]:
    return rng.integers(0, model.config.vocab_size, tokens).tolist()
