"""`grit evidence --base MODEL`: the claims on a pretrained model, by parts that a machine of two
cores can afford one at a time.

`documents`, `codecs` and `prompts` score a model that is trained already; `joint` and `cached`
train variants of the base for a few steps. Every part leaves its scores in the output folder row by
row, so that a killed run goes on with the same command, and more questions are added to those that
are there.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grit_jax import __version__
from grit_jax.data.formats import CachedExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evidence.answers import (
    AnswerScores,
    codec_cases,
    codec_costs,
    document_cases,
    document_costs,
    score_cases,
)
from grit_jax.evidence.pretrained_models import cached_part, joint_part
from grit_jax.evidence.pretrained_run import PretrainedOptions, PretrainedRun
from grit_jax.evidence.pretrained_tables import markdown
from grit_jax.evidence.prompt_variants import (
    ANSWER_VARIANTS,
    answer_report,
    score_prompts,
    score_search,
    search_report,
)
from grit_jax.models.hf.sources import resolve
from grit_jax.pydocs.corpus import CorpusOptions, prepare_corpus
from grit_jax.quickstart.run import Clock
from grit_jax.runtime.files import is_temporary, read_json, writable_folder, write_json, write_text
from grit_jax.runtime.progress import say

SCORING, TRAINING = ("documents", "codecs", "prompts"), ("joint", "cached")
PARTS = (*SCORING, *TRAINING)
CORPUS_SEED = 0
DOCUMENT_CHARACTERS = 500  # of a document of the corpus that is made here; longer ones are cut
SETTINGS_FILE = "settings.json"  # in the output folder: what it was started with
FILES = (
    "heldout/embedding",
    "heldout/generative",
    "heldout/rag",
    "heldout/documents",
    "train/embedding_summary",
    "train/embedding_question",
    "train/generative",
    "train/rag",
    "train/documents",
)


def run_pretrained_evidence(
    out: Path, options: PretrainedOptions, part: str = "all"
) -> dict[str, Any]:
    """Runs what `out` lacks of a part, or of all parts; returns what `out/evidence.json` holds,
    the parts that earlier runs left there included.

    Raises:
      GritError: an unknown part, no such model, files that are missing or cannot be read, a folder
        that holds something else or cannot be written.
    """
    if part not in (*PARTS, "all"):
        raise GritError(f"--part: with --base, must be {', '.join(PARTS)} or all, got '{part}'")
    run = PretrainedRun(out, options)
    parts = (part,) if part != "all" else PARTS if run.named_model else (*TRAINING, *SCORING)
    # What is wrong with the flags is an error before anything is written.
    if set(parts) & set(TRAINING):
        resolve(options.base)
    if parts[0] in SCORING:
        resolve(run.model_name)
    for chat in (options.chat, options.chat_heldout):
        if chat is not None:
            read_examples(chat, "generative")
    if options.data is not None:
        _check_data(options.data)
    _claim(out, options)
    report: dict[str, Any] = {"version": __version__, "base": options.base, "data": str(run.data)}
    report["corpus"] = _corpus(run)
    previous = out / "evidence.json"
    done = read_json(previous) if previous.exists() else {}
    report |= {name: done[name] for name in PARTS if name in done}
    makers: dict[str, Callable[[PretrainedRun], dict[str, Any]]] = {
        "documents": _documents,
        "codecs": _codecs,
        "prompts": _prompts,
        "joint": joint_part,
        "cached": cached_part,
    }
    clock = Clock(out / "timings.json")
    for name in parts:
        say(f"evidence: {name}")
        with clock(name):
            made = makers[name](run)
        command = part_command(out, options, name)
        report[name] = {**made, "seconds": clock.seconds[name], "command": command}
        report["commands"] = [
            *([corpus_command(out)] if options.data is None else []),
            *(report[each]["command"] for each in PARTS if each in report),
        ]
        write_text(out / "table.md", markdown(report))
        write_json(previous, report)
    return report


# ---- parts that score a trained model ------------------------------------------------------------


def _documents(run: PretrainedRun) -> dict[str, Any]:
    """Layouts over one and several documents, in both orders."""
    cases, scores = document_cases(), run.answer_scores(run.model)
    score_cases(run.model, cases, run.questions, scores)
    answers = AnswerScores([scores], len(run.questions.examples))
    summary, costs = answers.summary(cases), document_costs(answers)
    return {"model": run.model_name, **run.question_counts(), "scores": summary, "costs": costs}


def _codecs(run: PretrainedRun) -> dict[str, Any]:
    """Compressed records beside native ones."""
    cases, scores = codec_cases(), run.answer_scores(run.model)
    score_cases(run.model, cases, run.questions, scores)
    answers = AnswerScores([scores], len(run.questions.examples))
    summary, costs = answers.summary(cases), codec_costs(answers)
    return {"model": run.model_name, **run.question_counts(), "scores": summary, "costs": costs}


def _prompts(run: PretrainedRun) -> dict[str, Any]:
    """Instructions and examples in prompts."""
    summaries, training_questions = run.train("embedding_summary"), run.train("rag")
    example = read_examples(summaries, "embedding")[0]
    search = run.scores(run.model, "search", run.heldout("embedding"), summaries)
    score_search(run.model, run.queries, example, search)
    asked = run.questions.examples
    answered = run.scores(run.model, "prompts", run.heldout("rag"), training_questions)
    score_prompts(run.model, asked, _examples(training_questions), answered)
    return {
        "model": run.model_name,
        "search": search_report(search, len(run.queries)) | run.query_counts(),
        "answers": answer_report(answered, len(asked)) | run.question_counts(),
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


def _corpus(run: PretrainedRun) -> dict[str, Any]:
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


def corpus_command(out: Path) -> str:
    """What makes the corpus in the output folder, as a shell command."""
    return (
        f"grit data pydocs --output {shlex.quote(str(out / 'data'))} --seed {CORPUS_SEED}"
        f" --characters {DOCUMENT_CHARACTERS} --sentences"
    )


def part_command(out: Path, options: PretrainedOptions, part: str) -> str:
    """What runs a part with these options, as a shell command."""
    values = {
        "--base": options.base,
        "--part": part,
        "--model": options.model,
        "--data": options.data,
        "--chat": options.chat,
        "--chat-heldout": options.chat_heldout,
        "--steps": options.steps,
        "--seeds": options.seeds if part in TRAINING else None,
        "--questions": options.questions,
        "--queries": options.queries,
        "--out": out,
    }
    given = [
        word
        for flag, value in values.items()
        if value is not None
        for word in (flag, shlex.quote(str(value)))
    ]
    return f"grit evidence {' '.join(given)}"
