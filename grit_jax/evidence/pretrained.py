"""`grit evidence --base MODEL`: the claims on a pretrained model, by parts that a machine of two
cores can afford one at a time.

`documents`, `codecs` and `prompts` score a model that is trained already. Every part leaves its
scores in the output folder row by row, so that a killed run goes on with the same command, and more
questions are added to those that are there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grit_jax import __version__
from grit_jax.data.formats import CachedExample, EmbeddingExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evidence.answers import (
    AnswerScores,
    Questions,
    codec_cases,
    codec_costs,
    document_cases,
    document_costs,
    score_cases,
)
from grit_jax.evidence.pretrained_tables import markdown
from grit_jax.evidence.prompt_variants import (
    ANSWER_VARIANTS,
    answer_report,
    score_prompts,
    score_search,
    search_report,
)
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.model import GritLM
from grit_jax.models.hf.sources import resolve
from grit_jax.pydocs.corpus import CorpusOptions, prepare_corpus
from grit_jax.quickstart.pretrained import model_of
from grit_jax.quickstart.run import Clock
from grit_jax.runtime.files import is_temporary, read_json, writable_folder, write_json, write_text
from grit_jax.runtime.progress import say

PARTS = ("documents", "codecs", "prompts")
CORPUS_SEED = 0
DOCUMENT_CHARACTERS = 500  # of a document of the corpus that is made here; longer ones are cut
SETTINGS_FILE = "settings.json"  # in the output folder: what it was started with
FILES = (
    "heldout/embedding",
    "heldout/rag",
    "heldout/documents",
    "train/embedding_summary",
    "train/rag",
)


@dataclasses.dataclass(frozen=True)
class PretrainedOptions:
    """The flags of `grit evidence --base MODEL`.

    Attributes:
      base: the pretrained model: a directory, a hub id or a known name.
      model: the trained model that is scored; None: the shipped adapter of the base.
      data: the folder of a corpus (`grit data pydocs --sentences`); None: made in the output folder
        from the packages of this machine.
      questions: held-out questions that are answered, at most.
      queries: held-out queries that are searched for, at most.
    """

    base: str
    model: str | None = None
    data: Path | None = None
    questions: int = 64
    queries: int = 128


def run_pretrained_evidence(
    out: Path, options: PretrainedOptions, part: str = "all"
) -> dict[str, Any]:
    """Runs what `out` lacks of a part, or of all parts; returns what `out/evidence.json` holds,
    the parts that earlier runs left there included.

    Raises:
      GritError: an unknown part, no such model, a corpus without the files that are needed, a
        folder that holds something else or cannot be written.
    """
    if part not in (*PARTS, "all"):
        raise GritError(f"--part: with --base, must be {', '.join(PARTS)} or all, got '{part}'")
    run = _Run(out, options)
    resolve(run.model_name)  # what is no model is an error before anything is written
    if options.data is not None:
        _check_data(options.data)
    _claim(out, options)
    report: dict[str, Any] = {"version": __version__, "base": options.base, "data": str(run.data)}
    report["corpus"] = _corpus(run)
    previous = out / "evidence.json"
    done = read_json(previous) if previous.exists() else {}
    report |= {name: done[name] for name in PARTS if name in done}
    makers: dict[str, Callable[[_Run], dict[str, Any]]] = {
        "documents": _documents,
        "codecs": _codecs,
        "prompts": _prompts,
    }
    clock = Clock(out / "timings.json")
    for name in PARTS if part == "all" else (part,):
        say(f"evidence: {name}")
        with clock(name):
            report[name] = makers[name](run)
        report[name]["seconds"] = clock.seconds[name]
        report["commands"] = commands(out, options, [n for n in PARTS if n in report])
        write_text(out / "table.md", markdown(report))
        write_json(previous, report)
    return report


class _Run:
    """What the parts of a run share; models are opened when a part first needs them."""

    def __init__(self, out: Path, options: PretrainedOptions):
        self.out, self.options = out, options
        self.data = options.data if options.data is not None else out / "data"

    @functools.cached_property
    def model_name(self) -> str:
        """The trained model that is scored."""
        return self.options.model or model_of(self.options.base)

    @functools.cached_property
    def model(self) -> GritLM:
        """The same, opened."""
        return GritLM.from_pretrained(self.model_name, dtype="auto", mesh="auto")

    @functools.cached_property
    def weights(self) -> str:
        """Hash of its weights."""
        return self.model.weights_hash

    def scores(self, name: str, *files: str) -> ScoreFile:
        """The file of the model's scores of one kind, of rows from these files of the corpus."""
        folder = self.out / "scores" / f"{Path(self.model_name).name}-{self.weights[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = _digest(*(self.data / f"{file}.jsonl" for file in files))
        return ScoreFile(folder / f"{name}.json", {"weights": self.weights, "rows": rows})

    @functools.cached_property
    def questions(self) -> Questions:
        """All held-out questions."""
        return Questions.read(self.data / "heldout")

    def asked(self) -> Questions:
        """The questions that are answered."""
        return dataclasses.replace(
            self.questions, examples=self.questions.examples[: self.options.questions]
        )

    def counts(self, used: int) -> dict[str, Any]:
        """How many questions were used, for the report."""
        return {"questions": used, "questions_all": len(self.questions.examples)}


# ---- parts ---------------------------------------------------------------------------------------


def _documents(run: _Run) -> dict[str, Any]:
    """Layouts over one and several documents, in both orders."""
    asked, cases = run.asked(), document_cases()
    scores = run.scores("answers", "heldout/rag", "heldout/documents")
    score_cases(run.model, cases, asked, scores)
    answers = AnswerScores([scores], len(asked.examples))
    return {
        "model": run.model_name,
        **run.counts(len(asked.examples)),
        "scores": answers.summary(cases),
        "costs": document_costs(answers),
    }


def _codecs(run: _Run) -> dict[str, Any]:
    """Compressed records beside native ones."""
    asked, cases = run.asked(), codec_cases()
    scores = run.scores("answers", "heldout/rag", "heldout/documents")
    score_cases(run.model, cases, asked, scores)
    answers = AnswerScores([scores], len(asked.examples))
    return {
        "model": run.model_name,
        **run.counts(len(asked.examples)),
        "scores": answers.summary(cases),
        "costs": codec_costs(answers),
    }


def _prompts(run: _Run) -> dict[str, Any]:
    """Instructions and examples in prompts."""
    source = read_examples(run.data / "heldout/embedding.jsonl", "embedding")
    queries: list[EmbeddingExample] = [
        source[i] for i in range(min(len(source), run.options.queries))
    ]
    example = read_examples(run.data / "train/embedding_summary.jsonl", "embedding")[0]
    found = run.scores("search", "heldout/embedding", "train/embedding_summary")
    score_search(run.model, queries, example, found)
    asked = run.asked().examples
    answered = run.scores("prompts", "heldout/rag", "train/rag")
    score_prompts(run.model, asked, _examples(run.data / "train/rag.jsonl"), answered)
    return {
        "model": run.model_name,
        "search": search_report(found, len(queries)) | {"queries_all": len(source)},
        "answers": answer_report(answered, len(asked)) | run.counts(len(asked)),
    }


def _examples(path: Path) -> list[CachedExample]:
    """The first questions of a training file over one document each, as many as a prompt shows."""
    count = max(prompt.shots for prompt in ANSWER_VARIANTS.values())
    source = read_examples(path, "cached")
    rows: list[CachedExample] = [source[i] for i in range(min(len(source), 10 * count))]
    examples = [row for row in rows if len(row.docs) == 1]
    if len(examples) < count:
        raise GritError(
            f"{path}: expected {count} questions over one document among its first lines, got"
            f" {len(examples)}"
        )
    return examples[:count]


# ---- the folder ----------------------------------------------------------------------------------


def _check_data(data: Path) -> None:
    """Raises GritError unless a folder holds the files that are needed of a corpus."""
    missing = [f"{name}.jsonl" for name in FILES if not (data / f"{name}.jsonl").is_file()]
    if missing:
        raise GritError(
            f"--data {data}: {missing[0]} is missing; expected a corpus made by: grit data pydocs"
            f" --sentences --output {data}"
        )


def _corpus(run: _Run) -> dict[str, Any]:
    """Makes the corpus where none was given; its counts, as far as they are known."""
    if run.options.data is None:
        options = CorpusOptions(characters=DOCUMENT_CHARACTERS, sentences=True)
        counts = prepare_corpus(run.data, CORPUS_SEED, options)
        _check_data(run.data)
        return counts
    counts_file = run.data / "corpus.json"
    return read_json(counts_file) if counts_file.exists() else {}


def _claim(out: Path, options: PretrainedOptions) -> None:
    """Marks an empty folder as this run's, or checks that it is.

    Raises:
      GritError: the folder holds something else or was started with other settings, or cannot be
        written.
    """
    writable_folder(out)
    settings = {
        "base": options.base,
        "data": None if options.data is None else str(options.data.absolute()),
    }
    try:
        names = {path.name for path in out.iterdir() if not is_temporary(path)}
        path = out / SETTINGS_FILE
        if names and SETTINGS_FILE not in names:
            raise GritError(
                f"{out}: the folder is not empty and holds no evidence of a pretrained model;"
                " choose another --out"
            )
        if not names:
            write_json(path, settings)
    except OSError as error:
        raise GritError(
            f"{out}: cannot be used as output folder ({error.strerror}); choose another --out"
        ) from None
    before = read_json(path)
    for name, value in settings.items():
        if before.get(name) != value:
            with_flag = lambda setting, name=name: (
                f"without --{name}" if setting is None else f"with --{name} {setting}"
            )
            raise GritError(
                f"{out} was started {with_flag(before.get(name))}, not {with_flag(value)}; choose"
                " another --out"
            )


def _digest(*files: Path) -> str:
    """Hash of the content of files."""
    content = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as stream:
            content.update(hashlib.file_digest(stream, "blake2b").digest())
    return content.hexdigest()


def commands(out: Path, options: PretrainedOptions, parts: Sequence[str]) -> list[str]:
    """What makes these parts again, as shell commands."""
    lines = []
    if options.data is None:
        lines.append(
            f"grit data pydocs --output {shlex.quote(str(out / 'data'))} --seed {CORPUS_SEED}"
            f" --characters {DOCUMENT_CHARACTERS} --sentences"
        )
    flags = f"--base {shlex.quote(options.base)}"
    if options.model is not None:
        flags += f" --model {shlex.quote(options.model)}"
    if options.data is not None:
        flags += f" --data {shlex.quote(str(options.data))}"
    flags += f" --questions {options.questions} --queries {options.queries}"
    return lines + [
        f"grit evidence {flags} --part {part} --out {shlex.quote(str(out))}" for part in parts
    ]
