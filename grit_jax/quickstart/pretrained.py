"""`grit quickstart --base MODEL`: the main job with a pretrained model, which needs no training.

The same corpus and the same report as the quickstart's; the model is scored, indexes and answers as
it is. A short training is done only if steps are asked for. Every stage leaves its result in the
output folder where that is worth keeping: corpus, training and index are not done twice.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from grit_jax import __version__
from grit_jax.config import dump_yaml
from grit_jax.evaluation.hybrid import RetrievalComparison, compare_retrieval
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.rag import AnswerSettings, evaluate_rag
from grit_jax.evaluation.retrieval import evaluate_retrieval
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.models.hf.sources import ADAPTED, has_adapter, resolve
from grit_jax.models.parameters import num_parameters
from grit_jax.pydocs.corpus import CorpusOptions, prepare_corpus
from grit_jax.pydocs.passages import QUESTION_INSTRUCTION
from grit_jax.pydocs.questions import best_constant
from grit_jax.quickstart.configs import continued_config
from grit_jax.quickstart.pretrained_data import Part, ScoredFiles, write_scored
from grit_jax.quickstart.report import FORMAT, PretrainedReport, write_pretrained_html
from grit_jax.quickstart.report.contents import BestConstant, Corpus, RagScores, Training
from grit_jax.quickstart.report.facts import DOC_MODE, PLAIN_MODE
from grit_jax.quickstart.report.pretrained_contents import Perplexity, PretrainedModel, Search
from grit_jax.quickstart.run import Clock, answered_samples, claim
from grit_jax.quickstart.settings import PretrainedSettings
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.run_config import read_run_config
from grit_jax.runtime.files import write_json, write_text
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.progress import duration, say
from grit_jax.text.rag_layouts import MODES
from grit_jax.train import train

ANSWER_TOKENS = 40  # of an answer: a sentence
SAMPLES = 4
RECORDS = "int8"  # a quarter of the disk that float32 takes
DOCUMENT_CHARACTERS = 600  # of a document; longer ones are cut


def run_pretrained(out: Path, settings: PretrainedSettings) -> PretrainedReport:
    """Runs the main job with a pretrained model in `out`, or continues it; returns its report.

    Raises:
      GritError: no such model, or a folder that holds a run with other settings or cannot be
        written.
    """
    report_path = out / "report.json"
    if not report_path.exists():
        name = model_of(settings.base)
        resolve(name)  # what is no model is an error before anything is written
    claim(out, settings)
    if report_path.exists():
        report = PretrainedReport.read(report_path)
        say(f"{out} holds a finished quickstart; reporting it (remove the folder to run it again)")
        return report
    started, clock = time.perf_counter(), Clock(out / "timings.json")
    with clock("corpus"):
        corpus = prepare_corpus(
            out / "data",
            settings.seed,
            CorpusOptions(
                documents=settings.documents, characters=DOCUMENT_CHARACTERS, sentences=True
            ),
        )
        scored = write_scored(out / "data", out / "scored")
    with clock("model"):
        model = GritLM.from_pretrained(name, dtype="auto", mesh="auto")

    before_search: dict[str, dict[str, float]] = {}
    before_language = training = None
    if settings.steps is not None:
        with clock("scores before training"):
            before_search = {
                key: evaluate_retrieval(model, part.path) for key, part in _pools(scored).items()
            }
            before_language = evaluate_perplexity(model, scored.language.path)
        with clock("training"):
            training = _train(out, name, model, settings)
            model = GritLM.from_pretrained(out / "model", dtype="auto", mesh="auto")

    say("scoring the model, BM25 and both together")
    with clock("search scores"):
        compared = {
            key: compare_retrieval(model, part.path) for key, part in _pools(scored).items()
        }
    with clock("perplexity"):
        language = Perplexity(
            model=evaluate_perplexity(model, scored.language.path),
            base=_base_perplexity(name, model, scored.language.path),
            before=before_language,
            texts=scored.language.used,
            texts_all=scored.language.all,
        )
    with clock("index"):
        summary = build_index(model, scored.documents.path, out / "index", IndexOptions(kv=RECORDS))
    with clock("answers"):
        settings_of_answers = AnswerSettings(ANSWER_TOKENS, instruction=QUESTION_INSTRUCTION)
        rag = evaluate_rag(model, scored.questions.path, MODES, settings=settings_of_answers)
    with clock("search and answers"):
        index = Index.open(out / "index", model)
        rag_retrieved = evaluate_rag(
            model,
            scored.questions.path,
            (PLAIN_MODE, DOC_MODE),
            index=index,
            settings=settings_of_answers,
        )
        samples = answered_samples(model, index, scored.questions.path, SAMPLES, ANSWER_TOKENS)

    report = PretrainedReport(
        format=FORMAT,
        version=__version__,
        settings=settings,
        corpus=Corpus(**corpus),
        model=PretrainedModel(
            name=name,
            base=ADAPTED[name].base if name in ADAPTED else None,
            parameters=num_parameters(model.config),
            layers=model.config.num_hidden_layers,
            hidden=model.config.hidden_size,
            vocab=model.config.vocab_size,
        ),
        training=training,
        retrieval={
            key: _search(compared[key], part, before_search.get(key))
            for key, part in _pools(scored).items()
        },
        language=language,
        rag={mode: RagScores(**scores) for mode, scores in rag.items()},
        rag_retrieved={mode: RagScores(**scores) for mode, scores in rag_retrieved.items()},
        rag_questions=scored.questions.used,
        rag_questions_all=scored.questions.all,
        best_constant=_best_constant(scored.questions.path),
        index=summary.to_dict(),
        documents_all=scored.documents.all,
        samples=samples,
        commands=_commands(out, name, samples[0].question, settings),
        timings=clock.seconds,
        seconds=round(time.perf_counter() - started, 1),
    )
    write_pretrained_html(report, out / "report.html")
    write_json(report_path, report.to_dict())  # last: its presence says that all is done
    say(f"done in {duration(report.seconds)}; the page: {out / 'report.html'}")
    return report


def model_of(base: str) -> str:
    """The model that a base stands for: with the shipped adapter, if there is one for it."""
    if Path(base).exists():
        return base
    for name, adapted in ADAPTED.items():
        if adapted.base == base:
            if has_adapter(name):
                return name
            say(f"{base}: without the adapter of {name}, which is not in this version of grit_jax")
    return base


def _pools(scored: ScoredFiles) -> dict[str, Part]:
    pools = {"names": scored.names, "packages": scored.packages}
    return {key: part for key, part in pools.items() if part is not None}


def _search(compared: RetrievalComparison, part: Part, before: dict[str, float] | None) -> Search:
    return Search(
        dense=compared.dense,
        bm25=compared.bm25,
        hybrid=compared.hybrid,
        before=before,
        queries=compared.queries,
        queries_all=part.all,
        pool=compared.pool,
    )


def _base_perplexity(name: str, model: GritLM, texts: Path) -> float | None:
    """Perplexity of the model without its adapter, in the same chat format; None: it has none."""
    if name not in ADAPTED:
        return None
    base = GritLM.from_pretrained(ADAPTED[name].base, dtype="auto", mesh="auto")
    options = ModelOptions(model.pooling, model.mode, model.generation_mode)
    as_model = GritLM(
        base.config, base.params, model.tokenizer, model.chat, options, mesh=base.mesh
    )
    return evaluate_perplexity(as_model, texts)


def _best_constant(questions: Path) -> BestConstant:
    """The one answer that matches most questions; the span counts where answers are sentences."""
    rows = []
    with questions.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            rows.append(row | {"text": [row["text"][0], row.get("answer", row["text"][1])]})
    return BestConstant(*best_constant(rows))


def _train(out: Path, name: str, model: GritLM, settings: PretrainedSettings) -> Training:
    """Trains the model for some steps; the result is in `out/model`."""
    assert settings.steps is not None
    path = str(Path(name).absolute()) if Path(name).exists() else name
    config = continued_config(path, settings.seed, settings.steps, model)
    header = f"grit train {out / 'train.yaml'} --output ANOTHER_FOLDER"
    write_text(out / "train.yaml", dump_yaml(config, header))
    trained = train(read_run_config(out / "train.yaml"))
    metrics = read_lines(out / "metrics.jsonl")
    return Training(
        steps=trained.steps,
        seconds=round(sum(line["seconds"] for line in metrics), 1),
        tokens=sum(line["tokens"] for line in metrics),
        loss_first=metrics[0]["loss"],
        loss_last=metrics[-1]["loss"],
    )


def _commands(out: Path, name: str, question: str, settings: PretrainedSettings) -> list[str]:
    """What was done, as shell commands."""
    scored, index, data = out / "scored", out / "index", out / "data"
    seed = f" --seed {settings.seed}" if settings.seed else ""
    documents = f" --documents {settings.documents}" if settings.documents else ""
    model = shlex.quote(str(out / "model") if settings.steps else name)
    training = [f"grit train {out / 'train.yaml'} --output {out}-again"] if settings.steps else []
    pools = [
        f"grit eval retrieval {model} --input {scored / pool}.jsonl"
        for pool in ("names", "packages")
        if (scored / f"{pool}.jsonl").exists()
    ]
    return [
        f"grit data pydocs --output {data}{seed}{documents} --characters {DOCUMENT_CHARACTERS}"
        " --sentences",
        *training,
        *pools,
        f"grit eval perplexity {model} --input {scored / 'language.jsonl'}",
        f"grit eval rag {model} --input {scored / 'questions.jsonl'} --max-new-tokens"
        f" {ANSWER_TOKENS}",
        f"grit index {model} --input {scored / 'documents.jsonl'} --output {index} --kv {RECORDS}",
        f"grit ask {model} --index {index} --mode {DOC_MODE} {shlex.quote(question)}",
    ]
