"""Hard negatives from an index: documents that a search ranks high for a query and that do not
answer it.

Documents are not encoded again: the search reads the index's vectors, and the judge continues from
its records. Each query depends on its own line, the options and the seed alone, so that a run that
was killed goes on with the same result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from grit_jax.data.formats import EmbeddingExample
from grit_jax.data.sources import open_source
from grit_jax.inference.model import GritLM
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.judge import Judge
from grit_jax.rag.manifest import MANIFEST, read_manifest
from grit_jax.rag.mining_options import MiningOptions, MiningSummary
from grit_jax.rag.mining_texts import (
    DocumentHashes,
    KnownPositives,
    encode_passages,
    encode_queries,
    inner_products,
    text_hash,
)
from grit_jax.rag.question_batch import RetrievedDocument
from grit_jax.rag.record_format import NATIVE
from grit_jax.rag.search.hybrid import Hits
from grit_jax.runtime.files import refuse_same_file, write_jsonl
from grit_jax.runtime.progress import progress
from grit_jax.runtime.resumable_file import resumable_file
from grit_jax.text.length import length_limit

QUERIES_TOGETHER = 512  # encoded, searched and committed at once: the most that a kill loses
SCORE_DIGITS = 4  # of the judge's scores, after the decimal point


def mine(
    model: GritLM,
    pairs: str | Path,
    index: Index,
    output: Path,
    options: MiningOptions = MiningOptions(),
    *,
    quiet: bool = False,
) -> MiningSummary:
    """Writes the lines of `pairs` with hard negatives from an index.

    A run that was killed continues when it is started again. Lines keep their other keys. A mined
    negative has the form of the line's first positive: a string, or a list with its instruction.

    Args:
      pairs: a source of lines `{"query", "pos", "neg"?}`: a JSONL file, a glob, or a prepared
        dataset.
      output: a JSONL file.

    Raises:
      GritError: an unreadable source, a bad line (`file:line`), an output that is an input or
        cannot be written, a vector that is not finite.
    """
    start = time.perf_counter()
    refuse_same_file(output, Path(pairs))
    known = KnownPositives(str(pairs))
    source = known.source
    identity = {
        "index": [index.manifest.index_id, index.manifest.generation, index.manifest.rows],
        "deleted documents": index.manifest.deleted,
        "input": source.digest,
        "options": json.loads(json.dumps(dataclasses.asdict(options))),
    }
    with resumable_file(output, identity) as file:
        first = file.state.get("queries", 0)
        summary = MiningSummary(**file.state) if file.state else MiningSummary()
        miner = _Miner(model, index, options, known, summary, quiet)
        with progress(len(source), "mine", "queries", initial=first, quiet=quiet) as bar:
            for begin in range(first, len(source), QUERIES_TOGETHER):
                numbers = range(begin, min(begin + QUERIES_TOGETHER, len(source)))
                lines = miner.mine(numbers)
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                file.append(text.encode(), summary.to_dict())
                bar.update(len(numbers))
    summary.seconds = round(time.perf_counter() - start, 3)
    return summary


@dataclasses.dataclass
class _Query:
    """A line under way.

    Attributes:
      number: of the line in the source, which seeds its draw.
      order: rows of the candidates that are left, in the order in which they are taken.
      negatives: rows that were taken, and their log-odds if there is a judge.
    """

    number: int
    line: dict[str, Any]
    example: EmbeddingExample
    order: list[int]
    negatives: list[int] = dataclasses.field(default_factory=list)
    odds: list[float] = dataclasses.field(default_factory=list)
    taken: int = 0  # how many of `order` were looked at


class _Miner:
    """Mines block after block, and counts."""

    def __init__(
        self,
        model: GritLM,
        index: Index,
        options: MiningOptions,
        known: KnownPositives,
        summary: MiningSummary,
        quiet: bool,
    ):
        self.model, self.index, self.options, self.known = model, index, options, known
        self.summary = summary
        self.max_length = length_limit(options.max_length, model.config.context_length)
        self.documents = DocumentHashes(index, quiet)
        self.judge = Judge(model, index) if options.judge is not None else None

    def mine(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The output lines of some lines of the source."""
        source, summary = self.known.source, self.summary
        examples: list[EmbeddingExample] = [source[number] for number in numbers]
        vectors, truncated = encode_queries(
            self.model, [example.query for example in examples], self.max_length
        )
        summary.queries += len(examples)
        summary.queries_truncated += truncated
        limits = self._limits(examples, vectors)
        texts = [example.query.text for example in examples]
        hits = self.index.find(texts, vectors, self.options.ranks[1], self.options.retrieval)
        queries = [
            _Query(
                number,
                json.loads(source.line(number)),
                example,
                self._candidates(number, example, found, vector, limit),
            )
            for number, example, found, vector, limit in zip(
                numbers, examples, hits, vectors, limits, strict=True
            )
        ]
        self._choose(queries)
        scores = self._scores(queries)
        lines = []
        for query, odds in zip(queries, scores, strict=True):
            if (line := self._line(query, odds)) is not None:
                lines.append(line)
        return lines

    def _limits(
        self, examples: Sequence[EmbeddingExample], vectors: Float[np.ndarray, "Q D"]
    ) -> Float[np.ndarray, " Q"]:
        """The highest score that a negative of each query may have."""
        margin, relative = self.options.margin, self.options.relative_margin
        limits = np.full(len(examples), np.inf)
        if margin is None and relative is None:
            return limits
        pairs = [(i, text.text) for i, example in enumerate(examples) for text in example.positives]
        rows = [self.documents.row(text) for _, text in pairs]
        stored = [n for n, row in enumerate(rows) if row is not None]
        missing = [n for n, row in enumerate(rows) if row is None]
        passages = np.zeros((len(pairs), vectors.shape[1]), np.float32)
        passages[stored] = self.index.vectors_at([rows[n] for n in stored])
        passages[missing] = encode_passages(
            self.model, [pairs[n][1] for n in missing], self.index.max_length
        )
        self.summary.positives_in_index += len(stored)
        self.summary.positives_encoded += len(missing)
        of = np.array([i for i, _ in pairs])
        positives = np.full(len(examples), np.inf)
        np.minimum.at(positives, of, inner_products(vectors[of], passages))
        if margin is not None:
            limits = np.minimum(limits, positives - margin)
        if relative is not None:
            limits = np.minimum(limits, positives - relative * np.abs(positives))
        return limits

    def _candidates(
        self,
        number: int,
        example: EmbeddingExample,
        hits: Hits,
        vector: Float[np.ndarray, " D"],
        limit: float,
    ) -> list[int]:
        """Rows that may become negatives of a query, in the order in which they are taken."""
        low, high = self.options.ranks
        rows = np.asarray(hits.rows[low:high], np.int64)
        hashes = self.documents.hashes[rows]
        self.summary.candidates += len(rows)
        known = self.documents.same(self.known.of(example.query.text))
        existing = np.array([text_hash(text.text) for text in example.negatives], np.uint64)
        first = np.zeros(len(rows), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        left = np.ones(len(rows), bool)
        for reason, drop in (
            ("a positive of the query", np.isin(hashes, known)),
            (
                "a negative of the line already",
                np.isin(hashes, existing) & (not self.options.replace),
            ),
            ("the query itself", hashes == np.uint64(text_hash(example.query.text))),
            ("the text of a better candidate", ~first),
            ("too close to the positive (margin)", self._above(rows, hits, vector, limit)),
        ):
            self._drop(reason, int(np.count_nonzero(drop & left)))
            left &= ~drop
        order = rows[left].tolist()
        if self.options.sampling == "random":
            random.Random(f"{self.options.seed} {number}").shuffle(order)
        return order

    def _above(
        self, rows: Int[np.ndarray, " n"], hits: Hits, vector: Float[np.ndarray, " D"], limit: float
    ) -> np.ndarray:
        """Which candidates score higher than a negative may."""
        if not math.isfinite(limit):
            return np.zeros(len(rows), bool)
        if self.options.retrieval.search == "dense":
            low, high = self.options.ranks
            return np.asarray(hits.scores[low:high], np.float64) > limit
        queries = np.broadcast_to(vector, (len(rows), len(vector)))
        return inner_products(queries, self.index.vectors_at(rows)) > limit

    def _choose(self, queries: Sequence[_Query]) -> None:
        """Takes negatives in the order of each query, as many as are asked for. With a judge, those
        that it refuses are replaced by the next ones."""
        wanted = self.options.negatives
        while pairs := [
            (query, row)
            for query in queries
            for row in query.order[query.taken : query.taken + wanted - len(query.negatives)]
        ]:
            odds = self._judged([(query.example.query.text, row) for query, row in pairs])
            for (query, row), value in zip(pairs, odds, strict=True):
                query.taken += 1
                if self.options.judge is not None and value > _logit(self.options.judge):
                    self._drop("relevant by the judge", 1)
                    continue
                query.negatives.append(row)
                query.odds.append(value)
        for query in queries:
            self.summary.not_needed += len(query.order) - query.taken

    def _judged(self, pairs: Sequence[tuple[str, int]]) -> list[float]:
        """The judge's log-odds of queries and rows; 0 without a judge."""
        if self.judge is None:
            return [0.0] * len(pairs)
        lines = [(query, row, self.index.documents[row]) for query, row in pairs]
        return self._log_odds(
            [
                (
                    query,
                    RetrievedDocument(
                        line["id"],
                        self.index.text(row),
                        row=row,
                        key=line["key"],
                        tokens=line["tokens"],
                    ),
                )
                for query, row, line in lines
            ]
        )

    def _log_odds(self, pairs: Sequence[tuple[str, RetrievedDocument]]) -> list[float]:
        assert self.judge is not None
        before = self.judge.computed
        odds = self.judge.log_odds(pairs)
        self.summary.judged += len(pairs)
        self.summary.records_computed += self.judge.computed - before
        return odds.tolist()

    def _scores(self, queries: Sequence[_Query]) -> list[list[float]]:
        """The judge's log-odds of each line's passages, in the order of its "pos" and "neg"; none
        without a judge."""
        if self.judge is None:
            return [[] for _ in queries]
        pairs, kept = [], []
        for query in queries:
            negatives = () if self.options.replace else query.example.negatives
            passages = [text.text for text in (*query.example.positives, *negatives)]
            kept.append(len(passages))
            for text in passages:
                pairs.append((query.example.query.text, self._document(text)))
        odds = self._log_odds(pairs)
        scores: list[list[float]] = []
        for query, count in zip(queries, kept, strict=True):
            own, odds = odds[:count], odds[count:]
            positives = own[: len(query.example.positives)]
            self.summary.positives_judged += len(positives)
            self.summary.positives_relevant += sum(value > 0 for value in positives)
            scores.append([round(value, SCORE_DIGITS) for value in (*own, *query.odds)])
        return scores

    def _document(self, text: str) -> RetrievedDocument:
        """A passage of a line, with its record if it is in the index."""
        row = self.documents.row(text)
        if row is None:
            return RetrievedDocument("a passage of the input", text)
        line = self.index.documents[row]
        return RetrievedDocument(
            line["id"], self.index.text(row), row=row, key=line["key"], tokens=line["tokens"]
        )

    def _line(self, query: _Query, scores: list[float]) -> dict[str, Any] | None:
        """A line of the output; None: it has no negative and is left out."""
        summary, line, example = self.summary, query.line, query.example
        mined = [self._passage(line["pos"][0], self.index.text(row)) for row in query.negatives]
        kept = [] if self.options.replace else line.get("neg") or []
        summary.negatives += len(mined)
        key = str(len(mined))
        summary.negatives_per_line[key] = summary.negatives_per_line.get(key, 0) + 1
        if not mined and not kept:
            summary.without_negatives += 1
            if not self.options.keep_without:
                return None
        summary.lines += 1
        summary.negatives_kept += len(kept)
        line = {**line, "neg": [*kept, *mined]}
        if scores:
            line["scores"] = scores
        elif example.scores is not None and (mined or self.options.replace):
            del line["scores"]
            summary.scores_removed += 1
        return line

    @staticmethod
    def _passage(positive: Any, text: str) -> Any:
        """A text in the form of a positive, with its instruction if it has one: a form of its own
        would tell a model which passages are negatives."""
        return [positive[0], text] if isinstance(positive, list) else text

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self.summary.dropped[reason] = self.summary.dropped.get(reason, 0) + count


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def mining_index(
    model: GritLM,
    pairs: str | Path,
    corpus: Path | None,
    folder: Path,
    *,
    records: bool,
    quiet: bool = False,
) -> None:
    """Makes or completes the index to mine from: each document is encoded once.

    Args:
      corpus: JSONL of documents; None: the distinct passages of `pairs`, which are written to
        `{folder}.jsonl`.
      folder: the index. One that exists keeps its kind of records.
      records: whether a new index keeps keys and values, which the judge reads.

    Raises:
      GritError: as `build_index`; or as `KnownPositives` for `pairs`.
    """
    if corpus is None:
        corpus = folder.with_name(f"{folder.name}.jsonl")
        write_jsonl(corpus, _passages(pairs))
    kind = NATIVE if records else "none"
    if (folder / MANIFEST).exists():
        kind = read_manifest(folder).kv
    build_index(model, corpus, folder, IndexOptions(kv=kind), quiet=quiet)


def _passages(pairs: str | Path) -> Iterator[dict[str, str]]:
    """The distinct passages of lines `{"query", "pos", "neg"?}`, as lines of a corpus."""
    seen: set[int] = set()
    source = open_source(pairs, "embedding")
    for number in range(len(source)):
        example = source[number]
        for text in (*example.positives, *example.negatives):
            if (key := text_hash(text.text)) not in seen:
                seen.add(key)
                yield {"id": f"{key:016x}", "text": text.text}
