"""The main job from end to end on one machine: corpus, training, evaluation, index, answers,
report.

Every stage leaves its result in the output folder and is not done twice: a killed quickstart,
started again, goes on where it stopped, and a finished one is reported.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from grit_jax import __version__
from grit_jax.config import dump_yaml
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.rag import evaluate_rag
from grit_jax.evaluation.retrieval import bm25_retrieval, evaluate_retrieval, pool_of
from grit_jax.inference.model import GritLM
from grit_jax.models.parameters import num_parameters
from grit_jax.models.transformer import init_params
from grit_jax.pydocs.corpus import QUESTION_INSTRUCTION, prepare_corpus
from grit_jax.pydocs.questions import best_constant
from grit_jax.quickstart.configs import ANSWER_TOKENS, LAYOUTS, base_config, joint_config
from grit_jax.quickstart.report import write_html
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, build_index
from grit_jax.run_config import read_run_config
from grit_jax.runtime.files import is_temporary, read_json, write_json, write_text
from grit_jax.runtime.metrics import read_lines
from grit_jax.runtime.progress import duration, say
from grit_jax.text.rag_layouts import MODES
from grit_jax.train import train

SAMPLES = 6


def run_quickstart(out: Path, *, seed: int = 0, from_scratch: bool = False) -> dict[str, Any]:
    """Runs the main job in `out` (or goes on with it) and returns what `out/report.json` holds.

    Raises:
      GritError: a folder that holds another run, or cannot be written.
    """
    settings = {"seed": seed, "from_scratch": from_scratch, "version": __version__}
    _claim(out, settings)
    report_path = out / "report.json"
    if report_path.exists():
        report = read_json(report_path)
        say(f"{out} holds a finished quickstart; reporting it (remove the folder to run it again)")
        return report
    started, clock = time.perf_counter(), _Clock(out / "timings.json")

    # --- corpus ---
    data = out / "data"
    with clock("corpus"):
        corpus = prepare_corpus(data, seed)
    held_out = {
        kind: data / "heldout" / f"{kind}.jsonl"
        for kind in ("embedding", "generative", "rag", "documents")
    }

    # --- training ---
    with clock("training"):
        if from_scratch:
            _train_base(out, seed)
        else:
            _copy_base(out / "base")
        header = f"grit train {out / 'train.yaml'} --output ANOTHER_FOLDER"
        write_text(out / "train.yaml", dump_yaml(joint_config(seed), header))
        trained = train(read_run_config(out / "train.yaml"))
    metrics = read_lines(out / "metrics.jsonl")

    # --- scores ---
    say("scoring the trained model, the base it started from, a random one and BM25")
    model, base = GritLM.from_pretrained(trained.model), GritLM.from_pretrained(out / "base")
    random = GritLM(
        model.config, init_params(model.config, jax.random.key(seed)), model.tokenizer, model.chat
    )
    with clock("scores"):
        models = {"trained": model, "base": base, "untrained": random}
        retrieval: dict[str, Any] = {
            name: evaluate_retrieval(one, held_out["embedding"]) for name, one in models.items()
        }
        retrieval["bm25"] = bm25_retrieval(held_out["embedding"])
        perplexity = {
            name: evaluate_perplexity(one, held_out["generative"]) for name, one in models.items()
        }

    # --- answers over given documents, then an index of all held-out ones, then answers over what i
    with clock("answers"):
        rag = evaluate_rag(model, held_out["rag"], MODES, max_new_tokens=ANSWER_TOKENS)
    with clock("index"):
        summary = build_index(model, held_out["documents"], out / "index")
    with clock("search and answers"):
        index = Index.open(out / "index", model)
        found = evaluate_rag(
            model,
            held_out["rag"],
            LAYOUTS,
            index=index,
            max_new_tokens=ANSWER_TOKENS,
            instruction=QUESTION_INSTRUCTION,
        )
        samples = _samples(model, index, held_out["rag"])

    # --- report ---
    questions = [json.loads(line) for line in held_out["rag"].read_text().splitlines()]
    constant, constant_match = best_constant(questions)
    examples = read_examples(held_out["embedding"], "embedding")
    report = {
        "version": __version__,
        "seed": seed,
        "corpus": corpus,
        "model": {
            "parameters": num_parameters(model.config),
            "layers": model.config.num_hidden_layers,
            "hidden": model.config.hidden_size,
            "vocab": model.config.vocab_size,
            "initialised_from": "scratch" if from_scratch else "base",
        },
        "training": {
            "steps": trained.steps,
            "seconds": round(sum(line["seconds"] for line in metrics), 1),
            "tokens": sum(line["tokens"] for line in metrics),
            "loss_first": metrics[0]["loss"],
            "loss_last": metrics[-1]["loss"],
        },
        "retrieval": {
            **retrieval,
            "queries": len(examples),
            "pool": len(pool_of([examples[i] for i in range(len(examples))]).texts),
        },
        "language": {
            "perplexity_before": perplexity["untrained"],
            "perplexity_after": perplexity["trained"],
            "perplexity_base": perplexity["base"],
        },
        "rag": rag,
        "rag_retrieved": found,
        "rag_questions": len(questions),
        "best_constant": {"answer": constant, "match": constant_match},
        "index": summary.to_dict(),
        "samples": samples,
        "commands": _commands(out, samples[0]["question"]),
        "timings": clock.seconds,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_html(report, metrics, out / "report.html")
    write_json(report_path, report)  # last: its presence says that all is done
    say(f"done in {duration(report['seconds'])}; the page: {out / 'report.html'}")
    return report


def _copy_base(folder: Path) -> None:
    """The shipped base model into the output folder, so that train.yaml repeats the run wherever it
    is moved."""
    if (folder / "grit.json").exists():
        return
    shipped = resources.files("grit_jax.quickstart") / "base_model"
    with resources.as_file(shipped) as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _train_base(out: Path, seed: int) -> None:
    """Trains tokenizer and base model here: the warm-up without which a small model does not learn
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


def _samples(model: GritLM, index: Index, questions: Path) -> list[dict[str, Any]]:
    """A few questions with the document that search found and the answer of every layout."""
    asker = Asker(model, index)
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    chosen = lines[:: max(1, len(lines) // SAMPLES)][:SAMPLES]
    asked = [line["text"][0] for line in chosen]
    by_mode = {
        mode: asker.ask(
            asked, mode=mode, instruction=QUESTION_INSTRUCTION, max_new_tokens=ANSWER_TOKENS
        )
        for mode in MODES
    }
    samples = []
    for number, line in enumerate(chosen):
        document = by_mode["doc"][number].documents[0]
        samples.append(
            {
                "question": line["text"][0],
                "gold": line["text"][1],
                "document": {**document, "text": index.text(document["id"])},
                "answers": {mode: answers[number].answer for mode, answers in by_mode.items()},
            }
        )
    return samples


def _commands(out: Path, question: str) -> list[str]:
    """What was done, as verbs that a person can type."""
    held_out = out / "data" / "heldout"
    model, index = out / "model", out / "index"
    return [
        f"grit data pydocs --output {out / 'data'}",
        f"grit train {out / 'train.yaml'} --output {out}-again",
        f"grit eval retrieval {model} --input {held_out / 'embedding.jsonl'}",
        f"grit eval perplexity {model} --input {held_out / 'generative.jsonl'}",
        f"grit eval rag {model} --input {held_out / 'rag.jsonl'} --max-new-tokens {ANSWER_TOKENS}",
        f"grit index {model} --input {held_out / 'documents.jsonl'} --output {index}",
        f"grit ask {model} --index {index} --mode doc {shlex.quote(question)}",
        (
            f"grit encode {model} --input {held_out / 'documents.jsonl'} --output"
            f" {out / 'vectors.npy'}"
        ),
    ]


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Makes the folder ours, or finds that it holds another run."""
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
            write_json(path, settings)
        there = read_json(path)
    except OSError as error:
        raise GritError(
            f"{out}: cannot be used as output folder ({error.strerror}); choose another --out"
        ) from None
    for key in ("seed", "from_scratch"):
        if there.get(key) != settings[key]:
            flag = f"--{key.replace('_', '-')}"
            raise GritError(
                f"{out} holds a quickstart with {flag} {there.get(key)}; choose another --out or"
                " remove it"
            )


class _Clock:
    """Seconds by stage, added up over the runs of a quickstart that was interrupted."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    def __call__(self, stage: str) -> _Clock:
        self._stage, self._start = stage, time.perf_counter()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + spent, 2)
        write_json(self._path, self.seconds)
