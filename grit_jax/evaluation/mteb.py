"""`grit eval mteb`: mteb's tasks and benchmarks on a model of ours, or on one behind a URL.

mteb itself evaluates, unmodified; here are the model in its protocols, the instructions that each
task gets, and what is reported. Results are in mteb's own form and cache. mteb brings torch with
itself; nothing here imports it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.mteb_instructions import (
    PROMPTS,
    TaskInstruction,
    instruction_for,
    instruction_lines,
    read_instructions,
)
from grit_jax.evaluation.mteb_models import (
    LocalTexts,
    ModelFacts,
    MtebCrossEncoder,
    MtebEncoder,
    MtebSearch,
    ServedTexts,
    TextModel,
)
from grit_jax.evaluation.mteb_tasks import prompt_of, tasks_named
from grit_jax.inference.model import GritLM
from grit_jax.rag.search.exact import SearchSettings
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.runtime.progress import say

MtebProtocol = Literal["encoder", "search", "cross-encoder"]
SEARCHED = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
DEFAULT_SEARCH = (Retrieval(), SearchSettings())


@dataclasses.dataclass(frozen=True)
class MtebSettings:
    """How a model is evaluated.

    Attributes:
      protocol: `encoder`: mteb searches over the model's vectors. `search`: retrieval and reranking
        tasks are searched with an index of this package. `cross-encoder`: the generative head
        judges the candidates of reranking tasks, and the best `rerank` documents of the encoder in
        retrieval tasks.
      prompts: `grit`, `paper`, `mteb`, `none` or a JSON file; see `instruction_for`.
      max_length: tokens kept of a text; None: 512.
      name, revision: under which results are kept; None: see `model_facts`.
      overwrite: evaluate again what the results already have.
      rerank: see `protocol`.
      retrieval, search: of the protocol `search`.
    """

    protocol: MtebProtocol = "encoder"
    prompts: str = "grit"
    max_length: int | None = None
    name: str | None = None
    revision: str | None = None
    overwrite: bool = False
    rerank: int = 10
    retrieval: Retrieval = Retrieval()
    search: SearchSettings = SearchSettings()

    def __post_init__(self) -> None:
        if self.protocol not in get_args(MtebProtocol):
            raise GritError(
                f"--protocol: expected {', '.join(get_args(MtebProtocol))}, got"
                f" {self.protocol!r:.60}"
            )
        if (self.retrieval, self.search) != DEFAULT_SEARCH and self.protocol != "search":
            raise GritError(
                "--search, --fusion and --search-... say how an index is searched; add --protocol"
                " search"
            )


@dataclasses.dataclass
class TaskScore:
    """The score of a task.

    Attributes:
      task, type, metric: its name, its kind, and which number is its score.
      score: the mean over its splits and subsets, from 0 to 1.
      subsets: by `split/subset`.
      instruction: what texts were embedded for; None where none are embedded.
      truncated: texts that were cut; None: unknown (a server, or an earlier run's result).
      seconds: of this evaluation. cached: whether it is an earlier run's result.
    """

    task: str
    type: str
    metric: str
    score: float
    subsets: dict[str, float]
    instruction: TaskInstruction | None
    truncated: int | None
    seconds: float
    cached: bool


@dataclasses.dataclass
class MtebScores:
    """The scores of one model.

    Attributes:
      model, revision: as in the results' folder.
      settings: protocol, prompts and what else was not at its default.
      mteb: mteb's version.
      tasks: in the order asked for.
      results: the folder of results, which mteb's `ResultCache` opens.
    """

    model: str
    revision: str
    settings: dict[str, Any]
    mteb: str
    tasks: list[TaskScore]
    results: str

    @property
    def mean(self) -> float:
        """Over tasks."""
        return float(np.mean([task.score for task in self.tasks]))

    @property
    def by_type(self) -> dict[str, float]:
        """The mean of the tasks of each type."""
        groups: dict[str, list[float]] = collections.defaultdict(list)
        for task in self.tasks:
            groups[task.type].append(task.score)
        return {kind: float(np.mean(scores)) for kind, scores in sorted(groups.items())}

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `mean_type` is the mean of the types' means, as the leaderboard has both."""
        values = dataclasses.asdict(self)
        by_type = self.by_type
        means = {"mean": self.mean, "mean_type": float(np.mean(list(by_type.values())))}
        return {**values, **means, "by_type": by_type}

    def lines(self) -> str:
        """A line for each task with its score and instruction, then the means."""
        width = max(len(task.task) for task in self.tasks)
        lines = []
        for task in self.tasks:
            told = "" if task.instruction is None else task.instruction.query or "(no instruction)"
            lines.append(f"{task.task:{width}s}  {task.metric:16s} {task.score:.4f}  {told}")
        if len(self.tasks) > 1:
            for kind, score in self.by_type.items():
                lines.append(f"{'mean of ' + kind:{width}s}  {'':16s} {score:.4f}")
            lines.append(f"{'mean of tasks':{width}s}  {'':16s} {self.mean:.4f}")
        return "\n".join(lines)


def require_mteb() -> None:
    """Raises GritError where mteb is not installed."""
    try:
        import mteb  # noqa: F401
    except ImportError:
        raise GritError("grit eval mteb needs mteb: pip install 'grit-jax[mteb]'") from None


def task_instructions(
    tasks: Sequence[Any], prompts: str, protocol: str = "encoder"
) -> dict[str, TaskInstruction]:
    """The instruction of each task, by its name.

    Raises:
      GritError: `prompts` is neither a word nor a file of instructions.
    """
    file = None if prompts in PROMPTS else read_instructions(Path(prompts))
    found = {}
    for task in tasks:
        for one in getattr(task.metadata, "tasks", None) or [task]:  # parts of an aggregate
            found[one.metadata.name] = instruction_for(prompt_of(one), prompts, file)
        found.setdefault(task.metadata.name, instruction_for(prompt_of(task), prompts, file))
    return found


def evaluate_mteb(
    model: GritLM | Endpoint,
    source: str,
    tasks: Sequence[str],
    output: Path,
    settings: MtebSettings = MtebSettings(),
    *,
    task_files: Sequence[Path] = (),
    progress: bool = False,
) -> MtebScores:
    """Scores of a model on mteb's tasks.

    A task whose result is in `output` already, of the same weights, settings and data, is not
    evaluated again.

    Args:
      source: what MODEL was called.
      tasks: names of tasks and benchmarks; none: all of `task_files`.
      output: mteb's results folder; results are in `results/NAME/REVISION/TASK.json` there.
      task_files: folders and Python files of local tasks (`mteb_tasks.py`).

    Raises:
      GritError: mteb is not installed, an unknown task, data that cannot be loaded, a task that the
        protocol cannot be scored on, or what encoding raises.
    """
    require_mteb()
    import mteb
    from mteb.cache import ResultCache

    chosen = tasks_named(tasks, task_files)
    instructions = task_instructions(chosen, settings.prompts)
    if settings.protocol == "search" and not isinstance(model, GritLM):
        raise GritError("--protocol search builds an index, and a model behind a URL cannot")
    if settings.protocol == "cross-encoder" and (
        other := [t.metadata.name for t in chosen if t.metadata.type not in SEARCHED]
    ):
        raise GritError(
            f"--protocol cross-encoder: {', '.join(other[:4])} is neither retrieval nor reranking"
        )
    facts = model_facts(model, source, settings, instructions)
    cache = ResultCache(output)
    run = _Run(model, facts, settings, instructions, cache, progress)
    scores = [run.score(task) for task in chosen]
    return MtebScores(
        facts.name, facts.revision, _shown(settings), mteb.__version__, scores, str(output)
    )


def model_facts(
    model: GritLM | Endpoint,
    source: str,
    settings: MtebSettings,
    instructions: Mapping[str, TaskInstruction] = {},
) -> ModelFacts:
    """What mteb records of a model, and where its results are.

    The name is the hub id, `served/NAME` of a server's model, or `local/FOLDER`. The revision is
    the hash of the weights, and their dtype where it is not float32. Nothing tells the weights
    behind a URL, so that their results are not reused unless a revision is given.
    """
    experiment: dict[str, Any] = {}
    if settings.protocol != "encoder":
        experiment["protocol"] = settings.protocol
    if settings.prompts != "grit":
        word = settings.prompts if settings.prompts in PROMPTS else Path(settings.prompts).stem
        experiment["prompts"] = word
        if word != settings.prompts:
            experiment["prompts_hash"] = _hash(instructions)
    if settings.max_length is not None:
        experiment["max_length"] = settings.max_length
    if settings.protocol == "search":
        if settings.retrieval.search != "dense":
            experiment["search"] = settings.retrieval.search
        if settings.retrieval.search == "hybrid":
            experiment["fusion"] = settings.retrieval.fusion
        for field in dataclasses.fields(SearchSettings):
            value = getattr(settings.search, field.name)
            if value != getattr(SearchSettings(), field.name):
                experiment[field.name] = value
    if settings.protocol == "cross-encoder":
        experiment["rerank"] = settings.rerank
    is_cross = settings.protocol == "cross-encoder"
    if isinstance(model, Endpoint):
        name = settings.name or _named(model.model, "served")
        revision = settings.revision or "served"
        return ModelFacts(name, revision, experiment=experiment, is_cross_encoder=is_cross)
    is_hub = "/" in source and not Path(source).exists()
    name = settings.name or (source if is_hub else _named(Path(source).resolve().name, "local"))
    dtype = "" if model.dtype == "float32" else f"-{model.dtype}"
    return ModelFacts(
        name,
        settings.revision or f"{model.weights_hash[:16]}{dtype}",
        model.config.context_length,
        model.embedding_width,
        sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(model.params)),
        model.config.vocab_size * model.config.hidden_size,
        experiment,
        is_cross,
    )


def _named(name: str, owner: str) -> str:
    return name if name.count("/") == 1 else f"{owner}/{name.strip('/').replace('/', '_')}"


def _hash(instructions: Mapping[str, TaskInstruction]) -> str:
    text = instruction_lines(sorted(instructions.values(), key=lambda i: i.task))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shown(settings: MtebSettings) -> dict[str, Any]:
    shown: dict[str, Any] = {"protocol": settings.protocol, "prompts": settings.prompts}
    shown["max_length"] = settings.max_length
    if settings.protocol == "search":
        shown["search"] = dataclasses.asdict(settings.retrieval)
        shown["vectors"] = dataclasses.asdict(settings.search)
    if settings.protocol == "cross-encoder":
        shown["rerank"] = settings.rerank
    return shown


@dataclasses.dataclass
class _Run:
    """One model, evaluated task by task."""

    model: GritLM | Endpoint
    facts: ModelFacts
    settings: MtebSettings
    instructions: Mapping[str, TaskInstruction]
    cache: Any
    progress: bool

    def __post_init__(self) -> None:
        length = self.settings.max_length
        if isinstance(self.model, GritLM):
            self.texts: TextModel = LocalTexts(self.model, length, progress=self.progress)
        else:
            self.texts = ServedTexts(self.model, length, progress=self.progress)
        self.meta = self.facts.meta()
        self.encoder = MtebEncoder(self.texts, self.instructions, self.meta)

    def score(self, task: Any) -> TaskScore:
        """Evaluates one task, or takes its score from the results."""
        meta, settings = task.metadata, self.settings
        cached = None if self._evaluates_again(task) else self._cached(task)
        for part in getattr(meta, "tasks", None) or [task]:
            _name_errors_of_data(part)
        start = time.perf_counter()
        if self.texts.truncated is not None:
            self.texts.truncated = 0
        with _quiet(self.progress), _errors_of(meta.name):
            if cached is None:
                say(f"mteb: {meta.name} ({meta.type})")
            result = self._evaluate(task, "only-missing" if cached is not None else "always")
        judges = settings.protocol == "cross-encoder"
        return TaskScore(
            meta.name,
            meta.type,
            meta.main_score,
            float(result.get_score()),
            {
                f"{split}/{entry['hf_subset']}": float(entry["main_score"])
                for split, entries in result.scores.items()
                for entry in entries
            },
            None if judges and meta.type.endswith("Reranking") else self.instructions[meta.name],
            None if cached is not None else self.texts.truncated,
            time.perf_counter() - start,
            cached is not None,
        )

    def _evaluate(self, task: Any, overwrite: str) -> Any:
        settings = self.settings
        if settings.protocol == "cross-encoder":
            if not task.metadata.type.endswith("Reranking") and overwrite == "always":
                task = self._candidates(task)
            return self._run(MtebCrossEncoder(self.texts, self.meta), task, overwrite)
        if settings.protocol == "search":
            assert isinstance(self.model, GritLM)
            search = MtebSearch(self.model, self.encoder, settings.retrieval, settings.search)
            return self._run(search, task, overwrite)
        return self._run(self.encoder, task, overwrite)

    def _run(self, model: Any, task: Any, overwrite: str, **options: Any) -> Any:
        import mteb

        [result] = mteb.evaluate(
            model,
            task,
            co2_tracker=False,
            encode_kwargs={"batch_size": 256, "show_progress_bar": False},
            overwrite_strategy=overwrite,
            show_progress_bar=False,
            **{"cache": self.cache, **options},
        ).task_results
        return result

    def _candidates(self, task: Any) -> Any:
        """The task with the encoder's best documents as candidates of each query."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="grit-mteb-") as folder:
            task.load_data()  # kept, so that it is read once
            self._run(self.encoder, task, "always", cache=None, prediction_folder=folder)
            return task.convert_to_reranking(folder, top_k=self.settings.rerank)

    def _evaluates_again(self, task: Any) -> bool:
        """Whether an earlier result may not be used."""
        if self.settings.overwrite:
            return True
        return isinstance(self.model, Endpoint) and self.settings.revision is None

    def _cached(self, task: Any) -> Any:
        """The whole result of an earlier run on the same data, which mteb does not compare."""
        result = self.cache.load_task_result(task.metadata.name, self.meta)
        if result is None or result.dataset_revision != task.metadata.revision:
            return None
        return None if result.get_missing_evaluations(task) else result


def _name_errors_of_data(task: Any) -> None:
    """Makes what goes wrong while a task's data are loaded an error that says so."""
    load = task.load_data

    def load_data(*args: Any, **options: Any) -> None:
        try:
            load(*args, **options)
        except GritError:
            raise
        except Exception as error:
            offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
            hint = " (offline by HF_HUB_OFFLINE)" if offline else ""
            first = str(error).strip().splitlines()[:1]
            raise GritError(
                f"{task.metadata.name}: its data cannot be loaded{hint}: {type(error).__name__}:"
                f" {' '.join(first):.200}; local tasks are given with --task-files"
            ) from error

    task.load_data = load_data


@contextmanager
def _errors_of(task: str) -> Iterator[None]:
    """Names the task in our own errors."""
    try:
        yield
    except GritError as error:
        if str(error).startswith(task):
            raise
        raise GritError(f"{task}: {error}") from error


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Without mteb's log, unless progress is shown."""
    logger = logging.getLogger("mteb")
    level = logger.level
    if not progress:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
