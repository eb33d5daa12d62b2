"""The claim behind GRIT, small and repeatable: does training both tasks together cost either of them?

From one base model three twins are trained for each seed, with the same steps on the same examples in the same order:
`unified` on both losses, `embedding` on the contrastive loss alone, `generative` on the language loss alone. A step of
the unified twin holds the embedding batch and the generative batch that the others see at that step: each task gets
equal data (the paper's single-task models have the unified one's batch sizes, too: arXiv 2402.09906). Every twin is
scored on both held-out files.

Learning rates and the weight of the language loss were chosen on another split of the documents (`CORPUS_SEED` 1, with
a base of its own, seed 100), two runs for the contrastive twin, three for the generative and four for the unified one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from grit_jax import __version__
from grit_jax.config import build, dump_yaml, read_yaml
from grit_jax.data.settings import DataConfig
from grit_jax.inference.files import writable_folder
from grit_jax.metrics import read_lines
from grit_jax.progress import say
from grit_jax.quickstart import HOW, SHAPE, prepare_corpus, write_json
from grit_jax.run_config import ModelSection, RunConfig, TokenizerSection, TrainSection, read_run_config
from grit_jax.train import train
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig
from grit_jax.types import GritError

CORPUS_SEED = 0
TWINS = ("unified", "embedding", "generative")
# After 300 steps of that split: nDCG@10 .445 at 5e-4 and .388 at 1e-3 for the contrastive loss alone; perplexity 24.73
# at 5e-4, 24.62 at 1e-3 and 25.67 at 2e-3 for the language loss alone.
LEARNING_RATES = {"unified": 1e-3, "embedding": 5e-4, "generative": 1e-3}
# The contrastive gradient is about seven times as long as the language loss's. At 1e-3 a factor of 8 gave nDCG@10 .429
# and perplexity 25.45, 24 gave .334 and 24.68, and 6 rising to 32 over the run .361 and 24.95; 16 at 2e-3 gave .404 and
# 25.93.
GENERATIVE_FACTOR = 8.0
# What joint training may cost for the claim to hold: a point of nDCG@10, and one percent of the perplexity.
MARGINS = {"ndcg@10": 0.01, "perplexity": 0.01}
SINGLE = {"ndcg@10": "embedding", "perplexity": "generative"}  # each task's score, and the twin trained for it alone
SCORES = {"ndcg@10": "eval_ndcg@10", "recall@10": "eval_recall@10", "perplexity": "eval_perplexity"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def run_evidence(out: Path, *, seeds: int = 3) -> dict[str, Any]:
    """Trains and scores what is not yet there of the twins in `out`; returns what `out/evidence.json` holds.

    Seeds are counted from 0, so that more of them add to a folder that has fewer.

    Raises:
      GritError: no seed, a folder that holds something else or cannot be written, a run's files that are damaged.
    """
    if seeds < 1:
        raise GritError(f"--seeds must be at least 1, is {seeds}")
    _claim(out)
    corpus = prepare_corpus(out / "data", CORPUS_SEED)
    _copy_tokenizer(out / "tokenizer")
    say(f"the base: {command(out, 'base')}")
    base = _run(read_run_config(out / "base.yaml"))
    twins = {name: read_run_config(out / f"{name}.yaml") for name in TWINS}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in TWINS}
    for seed in range(seeds):
        for number, (name, config) in enumerate(twins.items(), 1 + seed * len(TWINS)):
            say(f"twin {number} of {seeds * len(TWINS)}: {command(out, name, seed)}")
            section = dataclasses.replace(config.train, seed=seed)
            scores[name].append(_run(dataclasses.replace(config, train=section, output=_folder(out, name, seed))))
    report = {
        "version": __version__,
        "corpus": corpus,
        "seeds": list(range(seeds)),
        "joint": {"base": base, "twins": scores, **compare(scores)},
        "commands": commands(out, seeds),
    }
    _write_text(out / "table.md", markdown(report))
    write_json(out / "evidence.json", report)
    return report


# ---- configurations -------------------------------------------------------------------------------------------------


def base_config(root: str = ".", tokenizer: str = "tokenizer") -> RunConfig:
    """What all twins start from: a language model of this documentation that has seen no contrastive data.

    Args:
      root: the evidence's folder, as seen from where the configuration lies.
      tokenizer: the folder with the package's tokenizer, likewise.
    """
    return RunConfig(
        model=ModelSection(shape=SHAPE, **HOW),  # type: ignore[arg-type]
        output=_join(root, "base"),
        tokenizer=TokenizerSection(path=_join(root, tokenizer)),
        data=_data(root, generative=["copying", "generative"], generative_batch=16),
        train=_train(root, steps=1500, checkpoint_every=150),
        optimizer=_optimizer(1.5e-3, final_lr_fraction=0.1),
    )


def twin_config(name: str, root: str = ".") -> RunConfig:
    """The twin `name` (one of `TWINS`), seed 0; `root` as in `base_config`."""
    embedding = {} if name == "generative" else {"embedding": ["embedding_summary"], "embedding_batch": 16}
    generative = {} if name == "embedding" else {"generative": ["generative"], "generative_batch": 16}
    loss = LossConfig(generative_factor=GENERATIVE_FACTOR) if name == "unified" else LossConfig()
    return RunConfig(
        model=ModelSection(path=_join(root, "base/model"), shape=SHAPE, **HOW),  # type: ignore[arg-type]
        output=_join(root, f"seed-0/{name}"),
        data=_data(root, **embedding, **generative),
        train=_train(root, steps=300, checkpoint_every=60, loss=loss),
        optimizer=_optimizer(LEARNING_RATES[name]),
    )


def configs(root: str = ".", tokenizer: str = "tokenizer") -> dict[str, RunConfig]:
    """All four by name; the files in `configs/evidence` are these."""
    return {"base": base_config(root, tokenizer), **{name: twin_config(name, root) for name in TWINS}}


def _data(root: str, embedding: list[str] | None = None, generative: list[str] | None = None, **how: Any) -> DataConfig:
    """Files of the quickstart's corpus; its lengths, too."""
    files = lambda names: [_join(root, f"data/train/{name}.jsonl") for name in names or ()]
    return DataConfig(
        embedding=files(embedding), generative=files(generative), query_max_length=64, passage_max_length=176,
        row_length=192, generative_max_length=192, generative_row_length=192, row_multiple=2, **how,
    )  # fmt: skip


def _train(root: str, **how: Any) -> TrainSection:
    held_out = {f"eval_{kind}": _join(root, f"data/heldout/{kind}.jsonl") for kind in ("embedding", "generative")}
    return TrainSection(keep_checkpoints=1, **held_out, **how)


def _optimizer(lr: float, **how: Any) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, schedule="cosine", warmup_fraction=0.1, weight_decay=0.05, b2=0.98, **how)


def _join(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))


# ---- runs -----------------------------------------------------------------------------------------------------------


def command(out: Path, name: str, seed: int | None = None) -> str:
    """The run as a person would type it."""
    which = "" if seed is None else f" --train.seed {seed} --output {_folder(out, name, seed)}"
    return f"grit train {out / name}.yaml{which}"


def commands(out: Path, seeds: int) -> list[str]:
    """All that was done, as verbs that a person can type."""
    twins = [command(out, name, seed) for seed in range(seeds) for name in TWINS]
    return [f"grit data pydocs --output {out / 'data'} --seed {CORPUS_SEED}", command(out, "base"), *twins]


def _folder(out: Path, name: str, seed: int) -> str:
    return str(out / f"seed-{seed}" / name)


def _run(config: RunConfig) -> dict[str, float]:
    """Trains one model unless it is there, and returns its held-out scores, steps and seconds."""
    folder = Path(train(config).output)
    lines = read_lines(folder / "metrics.jsonl")
    try:
        scores = {key: float(lines[-1][logged]) for key, logged in SCORES.items()}
    except (IndexError, KeyError, TypeError):
        where = folder / "metrics.jsonl"
        raise GritError(f"{where}: lacks the final scores; remove {folder} to train that model again") from None
    return {**scores, "steps": len(lines), "seconds": round(sum(line.get("seconds", 0) for line in lines), 1)}


def _claim(out: Path) -> None:
    """Makes the folder ours by the configurations in it, or finds that it holds something else."""
    writable_folder(out)
    wanted = configs()
    try:
        there = {path.name for path in out.iterdir() if path.suffix != ".tmp"}
        if there and not there & {f"{name}.yaml" for name in wanted}:
            raise GritError(f"{out}: the folder is not empty and holds no evidence; choose another --out")
        for name, config in wanted.items():
            path = out / f"{name}.yaml"
            if path.name not in there:
                _write_text(path, dump_yaml(config, command(out, name, None if name == "base" else 0)))
            elif build(RunConfig, read_yaml(path), str(path)) != config:
                raise GritError(f"{path}: is another configuration than this version's; choose another --out")
    except OSError as error:
        raise GritError(f"{out}: cannot be used as output folder ({error.strerror}); choose another --out") from None


def _copy_tokenizer(folder: Path) -> None:
    """The package's tokenizer without its model."""
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        _write_text(folder / name, (resources.files("grit_jax") / "base" / name).read_text(encoding="utf-8"))


def _write_text(path: Path, text: str) -> None:
    """A file is whole or as it was."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- arithmetic and words -------------------------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, float]:
    """Mean and range over seeds."""
    return {"mean": fmean(values), "min": min(values), "max": max(values)}


def compare(scores: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What joint training costs each task, seed by seed.

    Args:
      scores: by twin, one dictionary a seed, the same seeds in the same order.

    Returns:
      `summary` {twin: {score: mean, min, max}}; `differences` {score: twin, per_seed (single-task twin minus
      unified), cost_per_seed (positive where joint training is worse: a fraction of nDCG, or of the twin's
      perplexity), cost (its mean, min, max), margin, holds}; `holds`, which is that of both.
    """
    summary = {
        name: {key: spread([row[key] for row in rows]) for key in SCORES} for name, rows in scores.items()
    }
    differences: dict[str, Any] = {}
    for key, name in SINGLE.items():
        pairs = [(alone[key], joint[key]) for alone, joint in zip(scores[name], scores["unified"], strict=True)]
        # A higher nDCG is better, a lower perplexity.
        costs = [joint / alone - 1 if key == "perplexity" else alone - joint for alone, joint in pairs]
        differences[key] = {
            "twin": name, "per_seed": [alone - joint for alone, joint in pairs], "cost_per_seed": costs,
            "cost": spread(costs), "margin": MARGINS[key], "holds": fmean(costs) <= MARGINS[key],
        }  # fmt: skip
    return {"summary": summary, "differences": differences, "holds": all(d["holds"] for d in differences.values())}


def verdict(joint: dict[str, Any]) -> str:
    """Whether the claim holds, in plain words."""
    seeds = len(joint["differences"]["ndcg@10"]["per_seed"])
    count = f"{seeds} seeds" if seeds > 1 else "one seed"
    head = (
        f"The claim holds: joint training costs neither task more than the margin (mean of {count})."
        if joint["holds"]
        else f"The claim does not hold (mean of {count})."
    )
    return " ".join([head, *(_cost(key, difference) for key, difference in joint["differences"].items())])


def _cost(key: str, difference: dict[str, Any]) -> str:
    """What joint training does to one task: a sentence or two."""
    what, unit = ("Finding", " points of nDCG@10") if key == "ndcg@10" else ("Writing", "% of perplexity")
    cost, margin, costs = difference["cost"], difference["margin"], difference["cost_per_seed"]
    amount = lambda value: f"{100 * value:+.2f}"
    said = f"{what} {'loses' if cost['mean'] > 0 else 'gains'} {100 * abs(cost['mean']):.2f}{unit}"
    if len(costs) > 1:
        within = sum(value <= margin for value in costs)
        by_seed = f"cost by seed {amount(cost['min'])} to {amount(cost['max'])}"
        said += f" ({by_seed}, within the margin in {within} of {len(costs)})"
    said += f"; the margin is {100 * margin:g}{'%' if key == 'perplexity' else ' point'}."
    if cost["max"] - cost["min"] > margin:
        said += " The seeds differ by more than that; more of them would say more."
    return said


def markdown(report: dict[str, Any]) -> str:
    """The table and what follows from it, for `table.md` and the terminal."""
    joint, seeds = report["joint"], report["seeds"]
    shown = {"ndcg@10": lambda v: f"{100 * v:.2f}", "perplexity": lambda v: f"{v:.3f}"}

    def cell(values: dict[str, float], form: Callable[[float], str]) -> str:
        wide = f" ({form(values['min'])} to {form(values['max'])})" if len(seeds) > 1 else ""
        return form(values["mean"]) + wide

    rows = [["model", "trained on", "steps", "nDCG@10 x 100", "perplexity"], ["---"] * 5]
    rows.append(["base", "language", str(joint["base"]["steps"]), *(f(joint["base"][k]) for k, f in shown.items())])
    losses = {"unified": "both losses", "embedding": "contrastive loss alone", "generative": "language loss alone"}
    for name in TWINS:
        scores = [cell(joint["summary"][name][key], form) for key, form in shown.items()]
        rows.append([name, losses[name], str(joint["twins"][name][0]["steps"]), *scores])
    paired = [["single-task twin - unified", *(f"seed {seed}" for seed in seeds), "mean"], ["---"] * (len(seeds) + 2)]
    for key, label in (("ndcg@10", "nDCG@10, points (embedding)"), ("perplexity", "perplexity (generative)")):
        values = joint["differences"][key]["per_seed"]
        form = (lambda v: f"{100 * v:+.2f}") if key == "ndcg@10" else (lambda v: f"{v:+.3f}")
        paired.append([label, *map(form, [*values, fmean(values)])])
    table = lambda rows: "\n".join(f"| {' | '.join(row)} |" for row in rows)
    ran = "\n".join(f"    {line}" for line in report["commands"])
    over = f"Means{' and ranges' if len(seeds) > 1 else ''} over {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    documents = f"{report['corpus']['held_out']} held-out documents"
    blocks = [table(rows), table(paired), f"{over}, on {documents}.", verdict(joint), "What was run:", ran]
    return "\n\n".join(blocks) + "\n"
