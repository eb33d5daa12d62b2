"""Data files of many formats to one tfds dataset: converted, checked, filtered, without duplicates.

The work is in three stages, each of which a killed run continues:

1. Rows are read, converted and checked. Usable ones are staged as lines, with the hashes by which
   they are compared.
2. Duplicates are found among the hashes.
3. What is left is written shard by shard.

Nothing but hashes is in memory for all rows (`near_duplicates.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from grit_jax.data.contamination import DecontaminationOptions, EvaluationTexts, example_parts
from grit_jax.data.dataset_files import NAME, VERSION, shard_path, write_dataset_info, write_shard
from grit_jax.data.dialects import convert, dialect_of
from grit_jax.data.formats import (
    KIND_OF_TYPE,
    EmbeddingExample,
    Example,
    Kind,
    LabelledAnswer,
    LineError,
    parse_line,
)
from grit_jax.data.languages import LANGUAGES, language_of
from grit_jax.data.lines import OnError, check_kind
from grit_jax.data.near_duplicates import exact_duplicates, near_duplicates
from grit_jax.data.preparation_report import (
    LengthCounts,
    PreparationReport,
    contamination_report,
)
from grit_jax.data.raw_rows import RawRow, iter_rows
from grit_jax.data.sources import PreparedLines, source_units
from grit_jax.data.staging import STAGED, Staging, staging_folder
from grit_jax.data.word_hashes import SHINGLE, Grams, min_hash_bands, ngrams_of, words_of
from grit_jax.errors import GritError
from grit_jax.runtime.files import home_path, is_stream, read_json, write_json
from grit_jax.runtime.progress import progress

Duplicates: TypeAlias = Literal["keep", "exact", "near"]
ROWS_TOGETHER = 2000  # converted and staged at once: the most that a kill loses
SHARD_BYTES = 256 << 20  # of lines
MOST_REASONS = 100  # that are counted apart; some of them quote the row
REPORT, MATCHES = "report.json", "contamination.jsonl"


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What a dataset is made of.

    Attributes:
      kind: what all rows must be; None: what the first one is.
      dialect: the format of the rows (`dialects.py`), or "auto".
      instruction: of queries in a format that has none.
      on_error: "stop" at the first bad row, or "skip" and count it.
      duplicates: which rows are dropped: none ("keep"), those whose texts are equal to an earlier
        row's ("exact"; of an embedding row, query and positives), or those that are close to it as
        well ("near").
      similarity: the least Jaccard similarity of close rows, in word triples.
      languages: examples in other languages are dropped; empty: none is.
      min_characters, max_characters: of all texts of an example, negatives aside.
      decontamination: what examples are compared with; those with a match are dropped.
      tokenizer: a name for `count_tokens` of `prepare`, which the report then has.
    """

    kind: Kind | None = None
    dialect: str = "auto"
    instruction: str = ""
    on_error: OnError = "stop"
    duplicates: Duplicates = "exact"
    similarity: float = 0.8
    languages: tuple[str, ...] = ()
    min_characters: int = 0
    max_characters: int | None = None
    decontamination: DecontaminationOptions | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.languages if name not in LANGUAGES]:
            raise GritError(
                f"--languages: {unknown[0]!r} is not known; known: {', '.join(LANGUAGES)}"
            )
        if not 0 <= self.similarity <= 1:
            raise GritError(f"--similarity: expected a number from 0 to 1, got {self.similarity}")


def prepare(
    sources: Sequence[str | Path],
    output: str | Path,
    options: PrepareOptions = PrepareOptions(),
    *,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    quiet: bool = False,
) -> PreparationReport:
    """Writes the examples of `sources`, in order, as one tfds dataset under `output`.

    `output` also gets `report.json` and, with decontamination, `contamination.jsonl`, a line for
    each match. The dataset appears whole or not at all; a killed run continues when it is started
    again.

    Args:
      sources: JSONL, JSON arrays or parquet, plain or compressed; globs; prepared datasets.
      count_tokens: the numbers of tokens of texts; None: the report has characters alone.

    Raises:
      GritError: a source that cannot be read, a bad row (`file:line`), no usable row, rows of
        different kinds, or an `output` that already holds a dataset or cannot be written.
    """
    start = time.perf_counter()
    output = home_path(output)
    if output.exists() and not output.is_dir():
        raise GritError(f"{output}: a file; name a folder for the prepared dataset")
    if output.is_dir() and any(output.glob("**/dataset_info.json")):
        raise GritError(
            f"{output}: already holds a prepared dataset; remove it or name another folder"
        )
    if not sources:
        raise GritError("data prepare: no source named")
    units = source_units(sources, "data prepare")
    with staging_folder(output, source_identity(units, options), "grit data prepare") as staging:
        run = Preparation(units, options, staging, quiet)
        run.read()
        drop = run.find_duplicates()
        report = run.write(drop, count_tokens)
        report.seconds = round(time.perf_counter() - start, 3)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / REPORT, report.to_dict())
        if options.decontamination is not None:
            shutil.copyfile(staging.matches_path, output / MATCHES)
        os.replace(staging.folder / NAME, output / NAME)
    return report


def source_identity(
    units: Sequence[tuple[str, Path | PreparedLines]], options: PrepareOptions
) -> dict[str, Any]:
    """Everything that the output depends on."""
    decontamination = options.decontamination
    against = [Path(name) for name in decontamination.against] if decontamination else []
    files = [unit if isinstance(unit, Path) else Path(unit.name) for _, unit in units]
    stamps: list[Any] = []
    for path in (*files, *against):
        if path.exists() and not is_stream(path):
            status = path.stat()
            stamps.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
        else:  # a pipe is not there a second time
            stamps.append([str(path), uuid.uuid4().hex if is_stream(path) else ""])
    values = {"files": stamps, "options": dataclasses.asdict(options)}
    return json.loads(json.dumps(values))


@dataclasses.dataclass(frozen=True)
class _Row:
    """A usable row on its way to the staging area."""

    source: int
    place: str
    line: bytes
    example: Example
    content: str
    language: str


class Preparation:
    """A preparation at work; its stages are called in their order.

    Args:
      compare: hash the rows' texts, by which duplicates are found.
    """

    def __init__(
        self,
        units: Sequence[tuple[str, Path | PreparedLines]],
        options: PrepareOptions,
        staging: Staging,
        quiet: bool,
        *,
        compare: bool = True,
    ):
        self.units, self.options, self.staging, self.quiet = units, options, staging, quiet
        self.compare = compare
        self.names = list(dict.fromkeys(name for name, _ in units))
        # Of this run and of those that were killed; a dictionary that JSON can hold.
        self.state: dict[str, Any] = staging.state or {
            "unit": 0,
            "row": 0,
            "kind": options.kind,
            "read": {name: 0 for name in self.names},
            "formats": {},
            "dropped": {},
            "first": {},
        }
        self._problem: str | None = None

    # ---- stage 1 ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Stages the usable rows of all sources."""
        state = self.state
        if state.get("done"):
            return
        comparing = self.options.decontamination
        self.evaluation = EvaluationTexts(comparing) if comparing is not None else None
        if self.evaluation is not None:
            state["evaluation"] = dict(self.evaluation.counts)
            state["too_short"] = self.evaluation.too_short
        done = sum(state["read"].values())
        with progress(None, "reading", "rows", initial=done, quiet=self.quiet) as bar:
            for number in range(state["unit"], len(self.units)):
                name, unit = self.units[number]
                skip = state["row"]
                block: list[RawRow] = []
                for index, raw in enumerate(_rows_of(unit)):
                    if index < skip:
                        continue
                    block.append(raw)
                    if len(block) == ROWS_TOGETHER:
                        bar.update(self._stage(name, block, number, index + 1))
                        block = []
                bar.update(self._stage(name, block, number + 1, 0))
        if not self.staging.rows:
            raise GritError(
                f"{', '.join(self.names)}: no usable row; the first problem: {self._problem}"
                if self._problem
                else f"{', '.join(self.names)}: no row is left; dropped: {state['dropped']}"
            )
        state["done"] = True
        self.staging.commit(state)

    def _stage(self, name: str, block: Sequence[RawRow], unit: int, row: int) -> int:
        """Converts and stages rows; the next ones begin at `row` of `unit`."""
        source = self.names.index(name)
        rows = [usable for raw in block if (usable := self._usable(source, raw)) is not None]
        rows = self._decontaminated(rows)
        staged = np.zeros(len(rows), STAGED)
        if self.compare:
            grams = ngrams_of(words_of([row.content for row in rows]), SHINGLE, whole=True)
            staged["bands"] = min_hash_bands(grams)
            staged["exact"] = [_key(row.example) for row in rows]
        staged["language"] = [LANGUAGES.index(row.language) for row in rows]
        staged["source"] = source
        self.state["read"][name] += len(block)
        self.state["unit"], self.state["row"] = unit, row
        self.staging.append(staged, [(row.place, row.line) for row in rows], self.state)
        return len(block)

    def _usable(self, source: int, raw: RawRow) -> _Row | None:
        """A row that fulfils what the options ask for; others are counted."""
        options, state = self.options, self.state
        try:
            value = raw.json()
            if not isinstance(value, dict):
                raise LineError(raw.place, f"expected a JSON object, got {type(value).__name__}")
            dialect = dialect_of(value) if options.dialect == "auto" else options.dialect
            line = convert(value, raw.place, options.dialect, options.instruction)
            same = raw.line is not None and line == value
            text = (
                raw.line
                if same
                else json.dumps(line, ensure_ascii=False, default=str).encode(
                    "utf-8", "surrogatepass"
                )
            )
            example = parse_line(text, raw.place)
            kind = KIND_OF_TYPE[type(example)]
            check_kind(kind, state["kind"], raw.place)
        except LineError as error:
            if options.on_error == "stop":
                raise
            self._problem = self._problem or str(error)
            self._drop(error.reason, raw.place)
            return None
        state["kind"] = kind
        _count(state["formats"], dialect or "grit")
        parts = [text for part, text in example_parts(example) if not part.startswith("neg")]
        content = "\n".join(parts)
        language = language_of(content)
        characters = sum(map(len, parts))
        if options.languages and language not in options.languages:
            self._drop(f"language {language}", raw.place)
        elif characters < options.min_characters:
            self._drop(f"fewer than {options.min_characters} characters", raw.place)
        elif options.max_characters is not None and characters > options.max_characters:
            self._drop(f"more than {options.max_characters} characters", raw.place)
        else:
            return _Row(source, raw.place, text, example, content, language)
        return None

    def _decontaminated(self, rows: list[_Row]) -> list[_Row]:
        """The rows without a match; the others are counted and their matches written."""
        if self.evaluation is None or not rows:
            return rows
        parts = [example_parts(row.example) for row in rows]
        matches = iter(self.evaluation.matches([part for own in parts for part in own]))
        clean = []
        for row, own in zip(rows, parts, strict=True):
            found = [match for _ in own if (match := next(matches)) is not None]
            for match in found:
                self.staging.add_match({"where": row.place, **match.to_dict()})
            if found:
                self._drop(f"contaminated ({found[0].method} match)", row.place)
            else:
                clean.append(row)
        return clean

    def _drop(self, reason: str, place: str) -> None:
        dropped = self.state["dropped"]
        reason = reason if reason in dropped or len(dropped) < MOST_REASONS else "other reasons"
        _count(self.state["dropped"], reason)
        self.state["first"].setdefault(reason, place)

    # ---- stage 2 ---------------------------------------------------------------------------------

    def find_duplicates(self) -> np.ndarray:
        """For each staged row 1 if it is an exact duplicate, 2 if it is close to an earlier row,
        else 0."""
        path = self.staging.folder / "duplicates.npy"
        if path.exists():
            return np.load(path)
        staged = self.staging.staged()
        exact = exact_duplicates(np.ascontiguousarray(staged["exact"]))
        rows = np.flatnonzero(~exact)
        near = near_duplicates(staged["bands"], rows, self._shingles, self.options.similarity)
        kinds = exact.astype(np.uint8)
        kinds[near] = 2
        temporary = path.with_name(".duplicates.npy")
        np.save(temporary, kinds)
        os.replace(temporary, path)
        return kinds

    def _shingles(self, rows: Sequence[int]) -> Grams:
        lines = self.staging.read(rows)
        parts = (example_parts(parse_line(line, place)) for line, place in lines)
        contents = ["\n".join(t for name, t in own if not name.startswith("neg")) for own in parts]
        return ngrams_of(words_of(contents), SHINGLE, whole=True)

    # ---- stage 3 ---------------------------------------------------------------------------------

    def write(
        self, kinds: np.ndarray, count_tokens: Callable[[list[str]], list[int]] | None
    ) -> PreparationReport:
        """Writes the shards that are missing; returns the report."""
        drop = {"keep": kinds > 2, "exact": kinds == 1, "near": kinds > 0}[self.options.duplicates]
        staged = self.staging.staged()
        rows = np.flatnonzero(~drop)
        sizes = np.cumsum(staged["size"][rows], dtype=np.int64)
        shard_of = (sizes - 1) // SHARD_BYTES if len(rows) else sizes
        bounds = np.flatnonzero(np.diff(shard_of, prepend=-1))
        shards = [part for part in np.split(rows, bounds) if len(part)]
        folder = self.staging.folder / NAME / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        characters, tokens, size = LengthCounts(), LengthCounts(), 0
        with progress(len(rows), "writing", "examples", quiet=self.quiet) as bar:
            for number, part in enumerate(shards):
                path = shard_path(folder, number, len(shards))
                facts = self.staging.folder / f"shard-{number}.json"
                if not (path.exists() and facts.exists()):
                    lengths = (LengthCounts(), LengthCounts())
                    written = write_shard(path, self._records(part, lengths, count_tokens, bar))
                    write_json(
                        facts,
                        {
                            "bytes": written,
                            "characters": lengths[0].to_json(),
                            "tokens": lengths[1].to_json(),
                        },
                    )
                else:
                    bar.update(len(part))
                known = read_json(facts)
                size += known["bytes"]
                characters.update(LengthCounts(known["characters"]))
                tokens.update(LengthCounts(known["tokens"]))
        write_dataset_info(folder, [len(part) for part in shards], size)
        return self._report(kinds, rows, (characters, tokens), (len(shards), size))

    def _records(
        self,
        rows: np.ndarray,
        lengths: tuple[LengthCounts, LengthCounts],
        count_tokens: Callable[[list[str]], list[int]] | None,
        bar: Any,
    ) -> Iterator[tuple[bytes, str]]:
        """The records of a shard; counts the lengths of their texts."""
        for start in range(0, len(rows), ROWS_TOGETHER):
            block = self.staging.read(rows[start : start + ROWS_TOGETHER])
            named = [
                (part.partition("[")[0] if not part.startswith("text[") else _role(part), text)
                for line, place in block
                for part, text in example_parts(parse_line(line, place))
            ]
            for part, text in named:
                lengths[0].add(part, len(text))
            if count_tokens is not None:
                counts = count_tokens([text for _, text in named])
                for (part, _), count in zip(named, counts, strict=True):
                    lengths[1].add(part, count)
            yield from block
            bar.update(len(block))

    def _report(
        self,
        kinds: np.ndarray,
        rows: np.ndarray,
        lengths: tuple[LengthCounts, LengthCounts],
        dataset: tuple[int, int],
    ) -> PreparationReport:
        state, staged = self.state, self.staging.staged()
        dropped, first = dict(state["dropped"]), dict(state["first"])
        names = {"exact": ("exact",), "near": ("exact", "near"), "keep": ()}
        duplicates = {"exact": 0, "near": 0}
        for code, name in ((1, "exact"), (2, "near")):
            own = np.flatnonzero(kinds == code)
            duplicates[name] = len(own)
            if len(own) and name in names[self.options.duplicates]:
                dropped[f"{name} duplicate"] = len(own)
                first[f"{name} duplicate"] = self.staging.read(own[:1])[0][1]
        languages = np.bincount(staged["language"][rows], minlength=len(LANGUAGES)).tolist()
        return PreparationReport(
            kind=state["kind"],
            examples=len(rows),
            read=sum(state["read"].values()),
            sources=self.sources(rows),
            formats=state["formats"],
            dropped=dropped,
            first=first,
            duplicates=duplicates,
            languages={n: count for n, count in zip(LANGUAGES, languages, strict=True) if count},
            characters=lengths[0].summary(),
            tokens=lengths[1].summary(),
            contamination=self.contamination(),
            shards=dataset[0],
            bytes=dataset[1],
        )

    def sources(self, rows: np.ndarray) -> dict[str, dict[str, int]]:
        """Rows read of each source, and how many of `rows` are from it."""
        kept = np.bincount(self.staging.staged()["source"][rows], minlength=len(self.names))
        return {
            name: {"read": self.state["read"][name], "kept": count}
            for name, count in zip(self.names, kept.tolist(), strict=True)
        }

    def contamination(self) -> dict[str, Any]:
        """What was found of evaluation sets; empty if nothing was compared."""
        if self.options.decontamination is None:
            return {}
        return contamination_report(
            self.staging.matches_path, self.state["evaluation"], self.state["too_short"]
        )


def _rows_of(unit: Path | PreparedLines) -> Iterator[RawRow]:
    if isinstance(unit, Path):
        return iter_rows(unit)
    return (RawRow(unit.where(i), unit[i]) for i in range(len(unit)))


def _key(example: Example) -> int:
    """A hash of an example's texts, negatives aside, and of its query's instruction or its label:
    white space counts once."""
    parts = [text for name, text in example_parts(example) if not name.startswith("neg")]
    if isinstance(example, EmbeddingExample):
        parts.append(example.query.instruction or "")
    elif isinstance(example, LabelledAnswer):
        parts.append(str(example.desirable))
    content = "\x1f".join(" ".join(part.split()) for part in parts)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def _role(part: str) -> str:
    """Turns by who speaks: `text[0]` is the user."""
    return "assistant" if int(part[5:-1]) % 2 else "user"


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
