"""The main job from end to end on one machine: corpus, training, evaluation, index, answers,
report.

Every stage leaves its result in the output folder and is not done twice: a quickstart that was
killed continues where it stopped when it is started again, and a finished one is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jax

from grit_jax import __version__
from grit_jax.config import dump_yaml
from grit_jax.errors import GritError
from grit_jax.evaluation.hybrid import compare_retrieval
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.rag import AnswerSettings, evaluate_rag
from grit_jax.evaluation.retrieval import evaluate_retrieval
from grit_jax.inference.model import GritLM
from grit_jax.models.parameters import num_parameters
from grit_jax.models.transformer import init_params
from grit_jax.pydocs.corpus import CorpusOptions, prepare_corpus
from grit_jax.pydocs.passages import QUESTION_INSTRUCTION
from grit_jax.pydocs.questions import best_constant
from grit_jax.quickstart.configs import ANSWER_TOKENS, LAYOUTS, base_config, joint_config
from grit_jax.quickstart.report import FORMAT, Report, write_html
from grit_jax.quickstart.report.contents import (
    BestConstant,
    Corpus,
    Language,
    Model,
    RagScores,
    Retrieval,
    Sample,
    SampleDocument,
    Training,
)
from grit_jax.quickstart.settings import PretrainedSettings, QuickstartSettings
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, build_index
from grit_jax.run_config import read_run_config
from grit_jax.runtime.files import is_temporary, read_json, write_json, write_text
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.progress import duration, say
from grit_jax.text.rag_layouts import MODES
from grit_jax.train import train

SAMPLES = 6


def run_quickstart(out: Path, settings: QuickstartSettings = QuickstartSettings()) -> Report:
    """Runs the main job in `out`, or continues it, and returns its report.

    Raises:
      GritError: the folder holds a run with other settings, or cannot be written.
    """
    claim(out, settings)
    report_path = out / "report.json"
    if report_path.exists():
        report = Report.read(report_path)
        say(f"{out} holds a finished quickstart; reporting it (remove the folder to run it again)")
        return report
    started, clock = time.perf_counter(), Clock(out / "timings.json")
    seed = settings.seed

    # --- corpus ---
    data = out / "data"
    with clock("corpus"):
        corpus = prepare_corpus(data, seed, CorpusOptions(documents=settings.documents))
    held_out = {
        kind: data / "heldout" / f"{kind}.jsonl"
        for kind in ("embedding", "generative", "rag", "documents")
    }

    # --- training ---
    with clock("training"):
        if settings.from_scratch:
            _train_base(out, seed)
        else:
            _copy_base(out / "base")
        header = f"grit train {out / 'train.yaml'} --output ANOTHER_FOLDER"
        write_text(out / "train.yaml", dump_yaml(joint_config(seed, settings.steps), header))
        trained = train(read_run_config(out / "train.yaml"))
    metrics = read_lines(out / "metrics.jsonl")

    # --- scores ---
    say("scoring the trained model, the base it started from, a random one, BM25 and both together")
    model, base = GritLM.from_pretrained(trained.model), GritLM.from_pretrained(out / "base")
    random = GritLM(
        model.config, init_params(model.config, jax.random.key(seed)), model.tokenizer, model.chat
    )
    with clock("scores"):
        models = {"trained": model, "base": base, "untrained": random}
        compared = compare_retrieval(model, held_out["embedding"])
        retrieval = {
            name: evaluate_retrieval(models[name], held_out["embedding"])
            for name in ("base", "untrained")
        }
        perplexity = {
            name: evaluate_perplexity(scored, held_out["generative"])
            for name, scored in models.items()
        }

    # --- answers over given documents; then an index of all held-out ones, and answers over what a
    # search in it finds ---
    with clock("answers"):
        rag = evaluate_rag(model, held_out["rag"], MODES, settings=AnswerSettings(ANSWER_TOKENS))
    with clock("index"):
        summary = build_index(model, held_out["documents"], out / "index")
    with clock("search and answers"):
        index = Index.open(out / "index", model)
        rag_retrieved = evaluate_rag(
            model,
            held_out["rag"],
            LAYOUTS,
            index=index,
            settings=AnswerSettings(ANSWER_TOKENS, instruction=QUESTION_INSTRUCTION),
        )
        samples = answered_samples(model, index, held_out["rag"])

    # --- report ---
    questions = [json.loads(line) for line in held_out["rag"].read_text().splitlines()]
    report = Report(
        format=FORMAT,
        version=__version__,
        seed=seed,
        settings=settings,
        corpus=Corpus(**corpus),
        model=Model(
            parameters=num_parameters(model.config),
            layers=model.config.num_hidden_layers,
            hidden=model.config.hidden_size,
            vocab=model.config.vocab_size,
            initialised_from="scratch" if settings.from_scratch else "base",
        ),
        training=Training(
            steps=trained.steps,
            seconds=round(sum(line["seconds"] for line in metrics), 1),
            tokens=sum(line["tokens"] for line in metrics),
            loss_first=metrics[0]["loss"],
            loss_last=metrics[-1]["loss"],
        ),
        retrieval=Retrieval(
            **retrieval,
            trained=compared.dense,
            bm25=compared.bm25,
            hybrid=compared.hybrid,
            queries=compared.queries,
            pool=compared.pool,
        ),
        language=Language(
            perplexity_before=perplexity["untrained"],
            perplexity_after=perplexity["trained"],
            perplexity_base=perplexity["base"],
        ),
        rag={mode: RagScores(**scores) for mode, scores in rag.items()},
        rag_retrieved={mode: RagScores(**scores) for mode, scores in rag_retrieved.items()},
        rag_questions=len(questions),
        best_constant=BestConstant(*best_constant(questions)),
        index=summary.to_dict(),
        samples=samples,
        commands=_commands(out, samples[0].question, settings),
        timings=clock.seconds,
        seconds=round(time.perf_counter() - started, 1),
    )
    write_html(report, metrics, out / "report.html")
    write_json(report_path, report.to_dict())  # last: its presence says that all is done
    say(f"done in {duration(report.seconds)}; the page: {out / 'report.html'}")
    return report


def _copy_base(folder: Path) -> None:
    """Copies the shipped base model into the output folder, so that train.yaml repeats the run
    wherever the folder is moved."""
    if (folder / "grit.json").exists():
        return
    shipped = resources.files("grit_jax.quickstart") / "base_model"
    with resources.as_file(shipped) as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _train_base(out: Path, seed: int) -> None:
    """Trains the tokenizer and the base model: a warm-up without which a small model does not learn
    to copy."""
    if (out / "base" / "grit.json").exists():
        return
    say(
        "training a base model from scratch first: some 20 minutes more, and it knows less than the"
        " shipped one"
    )
    path = out / "warmup.yaml"
    write_text(path, dump_yaml(base_config(seed), f"grit train {path}"))
    warm = train(read_run_config(path))
    shutil.copytree(warm.model, out / "base", dirs_exist_ok=True)


def answered_samples(
    model: GritLM,
    index: Index,
    questions: Path,
    count: int = SAMPLES,
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[Sample]:
    """A few questions with the document that search found and the answer of every mode."""
    asker = Asker(model, index)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    chosen = lines[:: max(1, len(lines) // count)][:count]
    asked = [line["text"][0] for line in chosen]
    by_mode = {
        mode: asker.ask(
            asked, mode=mode, instruction=QUESTION_INSTRUCTION, max_new_tokens=max_new_tokens
        )
        for mode in MODES
    }
    samples = []
    for number, line in enumerate(chosen):
        document = by_mode["doc"][number].documents[0]
        samples.append(
            Sample(
                question=line["text"][0],
                gold=line.get("answer", line["text"][1]),
                document=SampleDocument(
                    document["id"], document["score"], index.text(document["id"])
                ),
                answers={mode: answers[number].answer for mode, answers in by_mode.items()},
            )
        )
    return samples


def _commands(out: Path, question: str, settings: QuickstartSettings) -> list[str]:
    """What was done, as shell commands."""
    held_out = out / "data" / "heldout"
    model, index = out / "model", out / "index"
    seed = f" --seed {settings.seed}" if settings.seed else ""
    documents = f" --documents {settings.documents}" if settings.documents else ""
    return [
        f"grit data pydocs --output {out / 'data'}{seed}{documents}",
        f"grit train {out / 'train.yaml'} --output {out}-again",
        f"grit eval retrieval {model} --input {held_out / 'embedding.jsonl'}",
        f"grit eval perplexity {model} --input {held_out / 'generative.jsonl'}",
        f"grit eval rag {model} --input {held_out / 'rag.jsonl'} --max-new-tokens {ANSWER_TOKENS}",
        f"grit index {model} --input {held_out / 'documents.jsonl'} --output {index}",
        f"grit ask {model} --index {index} --mode doc {shlex.quote(question)}",
        f"grit encode {model} --input {held_out / 'documents.jsonl'} --output"
        f" {out / 'vectors.npy'}",
    ]


def claim(out: Path, settings: QuickstartSettings | PretrainedSettings) -> None:
    """Marks an empty folder as this run's, or checks that it is.

    Raises:
      GritError: it is a file, cannot be written, or holds something else.
    """
    path = out / "quickstart.json"
    if out.exists() and not out.is_dir():
        raise GritError(f"{out}: is a file; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(not is_temporary(file) for file in out.iterdir()):
                raise GritError(
                    f"{out}: the folder is not empty and holds no quickstart; choose another --out"
                )
            write_json(path, {**dataclasses.asdict(settings), "version": __version__})
        claimed = read_json(path)
    except OSError as error:
        raise GritError(
            f"{out}: cannot be used as output folder ({error.strerror}); choose another --out"
        ) from None
    given = dataclasses.asdict(settings)
    for name in dict.fromkeys((*given, *claimed)):
        # What the other kind of quickstart does not know is as if it were not set.
        previous, current = claimed.get(name) or None, given.get(name) or None
        if name != "version" and previous != current:
            flag = f"--{name.replace('_', '-')}"
            raise GritError(
                f"{out} holds a quickstart {_flag_text(flag, claimed.get(name))}, not"
                f" {_flag_text(flag, given.get(name))}; choose another --out or remove it"
            )


def _flag_text(flag: str, value: object) -> str:
    """`with --seed 1`, `without --steps`."""
    if value is None or value is False:
        return f"without {flag}"
    return f"with {flag}" if value is True else f"with {flag} {value}"


class Clock:
    """Seconds by stage, added up over the runs of a quickstart that was interrupted."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the seconds of the block to `stage`, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 2)
            write_json(self._path, self.seconds)
