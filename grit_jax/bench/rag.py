"""`grit bench rag`: how long an answer over a document takes, layout by layout, search and cold
loading included.

The samples are the paper's (GRIT, section 4 and table 7; `gritlm: rag/eval.py`): A is a question of
one token with a document of 4,000, B the reverse, 16 new tokens whatever the model says. Unlike
there, the record of the document comes from the disk within the time that counts.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grit_jax.bench.lower_bound import Rates, kv_bytes, measure_rates, weight_bytes
from grit_jax.bench.texts import TextMaker
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.answer import Asker
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagGenerator, RagPrompt
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.page_cache import drop_page_cache
from grit_jax.runtime.files import write_jsonl
from grit_jax.runtime.progress import progress
from grit_jax.text.rag_layouts import MODES, RagMode

Shape = Literal["A", "B"]
SHAPES: tuple[Shape, ...] = ("A", "B")
MEASURED: tuple[str, ...] = (*MODES, "auto")
SHORT_SIDE = 1  # tokens
CURVE = 5  # lengths of the curve, each twice the one before


@dataclasses.dataclass
class RagTiming:
    """One layout on one sample; seconds are medians over `repeats` answers, each the first over its
    document.

    Attributes:
      mode: a layout or `auto`; `used` is the layout that answered.
      query_tokens, doc_tokens: of the texts, without tags.
      ttft_s, total_s: from the question's text to the first, to the last token.
      search_s: encoding the question and finding the document. load_s: its record from the files to
        the device.
      least_s, most_s: the quickest and the slowest total.
      storage_bytes: what the layout needs of the index: nothing, vectors, or vectors and records.
      floor_s: the bytes that have to be read (the record once, weights and cache for every token)
        at this machine's rates; what has to be computed is not in it.
      cold: whether the store's files were out of the page cache before each answer.
    """

    mode: str
    shape: Shape
    kv: str
    query_tokens: int
    doc_tokens: int
    new_tokens: int
    ttft_s: float
    total_s: float
    search_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    least_s: float
    most_s: float
    repeats: int
    storage_bytes: int
    floor_s: float
    used: str
    cold: bool


@dataclasses.dataclass
class RagBench:
    """`table` are the timings at full length, `curve` those at all lengths."""

    table: list[RagTiming]
    curve: list[RagTiming]
    rates: Rates
    weight_bytes: int

    def rows(self) -> list[dict[str, Any]]:
        """The JSON of `grit bench rag`."""
        return [dataclasses.asdict(timing) for timing in self.table]


@dataclasses.dataclass(frozen=True)
class _Sample:
    shape: Shape
    long: int  # tokens of the long side
    question: str
    document: str
    index: Path

    @property
    def query_tokens(self) -> int:
        return SHORT_SIDE if self.shape == "A" else self.long

    @property
    def doc_tokens(self) -> int:
        return self.long if self.shape == "A" else SHORT_SIDE


@dataclasses.dataclass
class _Run:
    """Seconds of one answer."""

    total: float
    stages: dict[str, float]
    used: str
    new_tokens: int
    cold: bool


@dataclasses.dataclass(frozen=True)
class RagBenchOptions:
    """What `bench_rag` measures.

    Attributes:
      kv: how the index keeps documents' records.
      tokens: of the long side of a sample.
      new_tokens: of an answer.
      repeats: answers that are timed, after one that compiles.
      seed: of the texts.
      curve: measure shorter samples too, down to a sixteenth of `tokens`.
    """

    kv: str = "native"
    tokens: int = 4000
    new_tokens: int = 16
    repeats: int = 3
    seed: int = 0
    curve: bool = False


def bench_rag(
    model: GritLM,
    options: RagBenchOptions = RagBenchOptions(),
    *,
    folder: Path | None = None,
    quiet: bool = False,
) -> RagBench:
    """Times every layout and `auto` on both samples; programs are compiled before.

    Repeats go round all layouts and lengths, so that a slow moment of the machine affects all of
    them alike.

    Args:
      folder: where the indexes are while this runs; None: the system's folder for temporary files.

    Raises:
      GritError: more tokens than the model reads, or a tokenizer that cannot make such texts.
    """
    texts, tokens = TextMaker(model, options.seed), options.tokens
    check_length(model, texts, tokens, options.new_tokens)
    shortest = CURVE if options.curve else 1
    lengths = [tokens >> i for i in reversed(range(shortest)) if tokens >> i]
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as scratch:
        samples = [
            _sample(model, texts, options.kv, shape, long, Path(scratch))
            for long in lengths
            for shape in SHAPES
        ]
        runs = _run_all(model, samples, options, quiet)
        largest = max(samples, key=lambda sample: sample.doc_tokens)
        weights = weight_bytes(model.params, model.config)
        context = kv_bytes(model.config, tokens)
        rates = measure_rates(Index.open(largest.index, model).store.path, weights + context)
        timings = [
            _timing(model, options.kv, sample, mode, of_sample, rates, weights)
            for (sample, mode), of_sample in runs.items()
        ]
    table = [timing for timing in timings if max(timing.query_tokens, timing.doc_tokens) == tokens]
    return RagBench(table, timings if options.curve else [], rates, weights)


def _run_all(
    model: GritLM, samples: Sequence[_Sample], options: RagBenchOptions, quiet: bool
) -> dict[tuple[_Sample, str], list[_Run]]:
    """The timed answers of each sample and layout."""
    pairs = [(sample, mode) for sample in samples for mode in MEASURED]
    runs: dict[tuple[_Sample, str], list[_Run]] = {pair: [] for pair in pairs}
    turns = options.repeats + 1
    with progress(len(pairs) * turns, "bench rag", "answers", quiet=quiet) as bar:
        for turn in range(turns):
            for sample, mode in pairs[::-1] if turn % 2 else pairs:
                run = _answer(model, sample, mode, options.new_tokens)
                if turn:  # programs are compiled in the first turn
                    runs[sample, mode].append(run)
                bar.update(1, f"{mode} {sample.shape} {sample.long}")
    return runs


def _sample(
    model: GritLM, texts: TextMaker, kv: str, shape: Shape, long: int, folder: Path
) -> _Sample:
    """A question, and an index with the one document that it finds."""
    query, document = (SHORT_SIDE, long) if shape == "A" else (long, SHORT_SIDE)
    sample = _Sample(
        shape,
        long,
        texts.text(query, "question"),
        texts.text(document, "document"),
        folder / f"{shape}{long}",
    )
    corpus = folder / f"{shape}{long}.jsonl"
    write_jsonl(corpus, [{"id": "document", "text": sample.document}])
    tags = model.encoder.format([""]).prompt
    build_index(
        model, corpus, sample.index, IndexOptions(kv=kv, max_length=long + tags), quiet=True
    )
    return sample


def check_length(model: GritLM, texts: TextMaker, tokens: int, new_tokens: int) -> None:
    """That the model reads samples of so many tokens in every layout.

    Raises:
      GritError: it does not; the message says how many it reads.
    """
    tags, short = model.encoder.format([""]).prompt, texts.text(SHORT_SIDE)
    generator = RagGenerator(model, tags + SHORT_SIDE)
    longest = 0
    for mode in MODES:
        prompt = len(
            generator.continuations([RagPrompt(mode, short, (short,) if mode != "none" else ())])[0]
        )
        records = (mode in DOCUMENT_CACHES) + (mode in QUERY_CACHES)
        longest = max(
            longest, prompt + records * (tags + SHORT_SIDE) + tokens - SHORT_SIDE + new_tokens
        )
    most = model.config.context_length
    if longest > most:
        raise GritError(
            f"--tokens {tokens} and --new-tokens {new_tokens} make {longest} tokens with the"
            f" templates, this model reads {most}; take --tokens {tokens - longest + most} at most"
        )


def _answer(model: GritLM, sample: _Sample, mode: str, new_tokens: int) -> _Run:
    """One answer as by a server that has been running, over a document that nobody has asked for
    before."""
    index = Index.open(sample.index, model)
    index.search(np.zeros((1, model.embedding_width), np.float32), 1)  # vectors on the device
    asker, sampling = Asker(model, index), Sampling(max_new_tokens=new_tokens, ignore_eos=True)
    cold = drop_page_cache(index.store.path)
    start = time.perf_counter()
    answer = asker.ask(sample.question, mode, sampling=sampling)[0]
    total = time.perf_counter() - start
    if answer.warnings:
        raise GritError(f"{mode} on {sample.shape}: {answer.warnings[0]}")
    return _Run(total, answer.timings, answer.mode, answer.new_tokens, cold)


def _timing(
    model: GritLM,
    kv: str,
    sample: _Sample,
    mode: str,
    runs: Sequence[_Run],
    rates: Rates,
    weights: int,
) -> RagTiming:
    middle = lambda of: round(statistics.median(of(run) for run in runs), 6)
    used, new_tokens = runs[-1].used, runs[-1].new_tokens
    index = Index.open(sample.index, model)
    records, vectors = index.store.size.bytes, index.vectors.nbytes
    context = sample.query_tokens + (sample.doc_tokens if used != "none" else 0)
    floor = new_tokens * (weights + kv_bytes(model.config, context)) / rates.memory
    floor += records / rates.store if used in DOCUMENT_CACHES else 0.0
    return RagTiming(
        mode=mode,
        shape=sample.shape,
        kv=kv,
        query_tokens=sample.query_tokens,
        doc_tokens=sample.doc_tokens,
        new_tokens=new_tokens,
        ttft_s=middle(lambda run: run.total - run.stages["decode"]),
        total_s=middle(lambda run: run.total),
        search_s=middle(lambda run: run.stages["encode_query"] + run.stages["search"]),
        load_s=middle(lambda run: run.stages["load"]),
        prefill_s=middle(lambda run: run.stages["prefill"]),
        decode_s=middle(lambda run: run.stages["decode"]),
        least_s=round(min(run.total for run in runs), 6),
        most_s=round(max(run.total for run in runs), 6),
        repeats=len(runs),
        storage_bytes=_stored(mode, vectors, records),
        floor_s=round(floor, 6),
        used=used,
        cold=all(run.cold for run in runs),
    )


def _stored(mode: RagMode | str, vectors: int, records: int) -> int:
    if mode == "none":
        return 0
    return vectors + (records if mode in DOCUMENT_CACHES or mode == "auto" else 0)
