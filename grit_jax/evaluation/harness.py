"""lm-eval's tasks with our models: its `LM` over a backend, and a run of tasks.

lm-eval (the extra `eval`) is imported by the functions here alone. It needs neither torch nor
transformers, and where another package has brought them they are not imported either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.evaluation.harness_backend import Backend, TextRequest
from grit_jax.evaluation.harness_tasks import TaskChoice, load_tasks
from grit_jax.evaluation.paper_tasks import alpaca_outputs
from grit_jax.inference.sampling import Sampling
from grit_jax.runtime.files import json_text, write_text
from grit_jax.runtime.progress import progress

DEFAULT_NEW_TOKENS = 256  # lm-eval's own, where a task says nothing
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "fewshot_random_seed": 1234}  # its own
# Generation settings that ask for nothing, at these values.
NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "use_cache": True,
}


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How tasks are run; see lm-eval's `simple_evaluate`, which has the same names.

    Attributes:
      limit: documents of each task: a number, or a fraction below 1.
      gen_kwargs: generation settings that replace those of the tasks.
      seed: of everything that is drawn; None: lm-eval's own seeds.
      predict_only: answers are written and not scored.
      allow_code: run code that the model writes, in tasks that score it so.
      log_samples: also write each document's prompt, answer and scores.
    """

    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: Mapping[str, Any] | None = None
    seed: int | None = None
    predict_only: bool = False
    allow_code: bool = False
    log_samples: bool = False


def require_lm_eval() -> Any:
    """The module.

    Raises:
      GritError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise GritError(
            f"grit eval lm needs lm-eval ({error}); install it: pip install 'grit-jax[eval]'"
        ) from None
    return lm_eval


def run_tasks(
    backend: Backend,
    choice: TaskChoice,
    settings: RunSettings = RunSettings(),
    output: Path | None = None,
) -> dict[str, Any]:
    """Scores of a model on tasks, in lm-eval's own form (`results`, `configs`, `n-samples`, ...).

    Args:
      output: a folder, or a file that ends in .json: lm-eval's own results files are written there.

    Raises:
      GritError: lm-eval is missing; an unknown task or one that cannot be loaded; a task that runs
        code, unless `allow_code`; a setting that the model cannot follow; results that cannot be
        written.
    """
    require_lm_eval()
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    _quiet_logs()
    seeds = SEEDS if settings.seed is None else dict.fromkeys(SEEDS, settings.seed)
    tracker = EvaluationTracker(output_path=str(output)) if output is not None else None
    # lm-eval and the libraries below it print; standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        tasks, manager = load_tasks(
            choice, backend, allow_code=settings.allow_code, predict_only=settings.predict_only
        )
        results = simple_evaluate(
            harness_model(backend, seed=settings.seed or 0),
            # Names the model in results; an LM object takes nothing else from it.
            model_args={"pretrained": backend.name},
            tasks=tasks,
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=settings.system_instruction,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.fewshot_as_multiturn,
            gen_kwargs=dict(settings.gen_kwargs) if settings.gen_kwargs else None,
            predict_only=settings.predict_only,
            torch_random_seed=None,
            confirm_run_unsafe_code=settings.allow_code or settings.predict_only,
            **seeds,
        )
        assert results is not None  # None is for the other processes of a distributed run
        results["config"]["model"] = "grit_jax"
        if tracker is not None:
            _write(tracker, results, settings.log_samples)
            _write_alpaca(results, backend.name)
    return results


def harness_model(backend: Backend, *, seed: int = 0) -> Any:
    """An lm-eval `LM` over a backend.

    Text is split into context and continuation, cut to the model's context and rolled over windows
    by lm-eval's own rules (`TemplateLM`, and the functions that its `hf` model uses).

    Args:
      seed: of requests that sample; each request has its own, counted from here.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class GritHarnessModel(TemplateLM):
        """See `harness_model`."""

        @property
        def eot_token_id(self) -> int:
            return backend.eos_id

        @property
        def prefix_token_id(self) -> int:
            return backend.prefix_id

        @property
        def max_length(self) -> int:
            return backend.max_length

        @property
        def tokenizer_name(self) -> str:
            return backend.fingerprint

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **options: Any
        ) -> list[int]:
            return backend.encode(string, add_special_tokens=add_special_tokens)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return backend.template if chat_template else None

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return backend.render(chat_history, add_generation_prompt=add_generation_prompt)

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = True, **options: Any
        ) -> list[tuple[float, bool]]:
            pairs = fitted_pairs(requests, backend.max_length)
            with progress(len(pairs), "loglikelihood", "requests") as bar:
                scores = backend.score(pairs, bar.update)
            for (texts, _, _), score in zip(requests, scores, strict=True):
                if texts is not None:  # None: a window of a longer text
                    self.cache_hook.add_partial("loglikelihood", texts, score)
            return scores

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = True
        ) -> list[float]:
            windows, owners = [], []
            for number, request in enumerate(requests):
                rolling = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
                for window in rolling:
                    windows.append((None, *make_disjoint_window(window)))
                    owners.append(number)
            totals = [0.0] * len(requests)
            scores = self._loglikelihood_tokens(windows)
            for number, (logprob, _) in zip(owners, scores, strict=True):
                totals[number] += logprob
            for request, total in zip(requests, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            texts = []
            cut = 0
            for number, request in enumerate(requests):
                context, given = request.args[:2]
                options = dict(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
                until = handle_stop_sequences(options.pop("until", None), eos=backend.eos_text)
                sampling = sampling_of(options, seed + number)
                room = backend.max_length - sampling.max_new_tokens
                if room <= 0:
                    raise GritError(
                        f"a task asks for answers of {sampling.max_new_tokens} tokens, and the"
                        f" model reads {backend.max_length} in all; lower it: --gen-kwargs"
                        " max_gen_toks=N"
                    )
                ids = self.tok_encode(context)
                cut += len(ids) > room
                texts.append(TextRequest(ids[-room:], sampling, until))
            _warn_cut(cut, len(texts), backend.max_length)
            with progress(len(texts), "generate", "answers") as bar:
                answers = backend.generate(texts, bar.update)
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, answer)
            return answers

    return GritHarnessModel()


def fitted_pairs(
    requests: Sequence[tuple[Any, list[int], list[int]]], max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations that a model of `max_length` tokens reads: contexts lose their
    beginning, as in lm-eval's `hf` model; how many did is a warning.

    Raises:
      GritError: a continuation without tokens, or longer than the model's context.
    """
    pairs, cut = [], 0
    for texts, context, continuation in requests:
        if not continuation or len(continuation) > max_length:
            text = repr(texts[1])[:60] if texts is not None else "of a window"
            raise GritError(
                f"the continuation {text} has {len(continuation)} tokens; expected 1 to"
                f" {max_length}"
            )
        # The last token is predicted and not read.
        room = max_length + 1 - len(continuation)
        cut += len(context) > room
        pairs.append((context[-room:], continuation))
    _warn_cut(cut, len(pairs), max_length)
    return pairs


def sampling_of(options: Mapping[str, Any], seed: int) -> Sampling:
    """Normalised `generation_kwargs` of a task as `Sampling`.

    Raises:
      GritError: a setting that has no counterpart here.
    """
    known = {"max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
    for name, value in options.items():
        if name not in known and NEUTRAL.get(name, object()) != value:
            raise GritError(
                f"generation_kwargs: {name}={value!r:.40} is not supported; known are until,"
                f" {', '.join(sorted(known))}"
            )
    return Sampling(
        max_new_tokens=int(options["max_gen_toks"]),
        temperature=float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        seed=seed,
    )


def plain_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The part of lm-eval's results that `--json` prints; numbers that are not finite are null."""
    names = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")
    return {name: _finite(_scored(results)[name]) for name in names if results.get(name)}


def results_table(results: Mapping[str, Any]) -> str:
    """lm-eval's own table of tasks and metrics, as Markdown."""
    from lm_eval.utils import make_table

    scored = _scored(results)
    tables = [make_table(scored)]
    if scored.get("groups"):
        tables.append(make_table(scored, "groups"))
    return "\n".join(table.strip() for table in tables)


def _scored(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without what lm-eval writes where answers are not scored ("bypass", 999)."""
    clean = lambda metrics: {
        name: value for name, value in metrics.items() if not name.startswith("bypass")
    }
    parts = {name: results.get(name) or {} for name in ("results", "groups")}
    return {
        **results,
        **{name: {task: clean(m) for task, m in part.items()} for name, part in parts.items()},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn_cut(cut: int, number: int, max_length: int) -> None:
    if cut:
        warnings.warn(
            f"{cut} of {number} prompts lost their beginning: with what follows them they are"
            f" longer than {max_length} tokens",
            stacklevel=3,
        )


def _write(tracker: Any, results: dict[str, Any], log_samples: bool) -> None:
    """Writes lm-eval's results files. It reports a failure in a log line alone, so the files are
    looked for."""
    samples = results.get("samples") or {}
    without = {key: value for key, value in results.items() if key != "samples"}
    tracker.save_results_aggregated(results=without, samples=samples)
    output = Path(tracker.output_path)
    date = getattr(tracker, "date_id", None)
    name = f"{output.stem}_{date}.json" if output.suffix == ".json" else f"results_{date}.json"
    folder = (
        output.parent
        if output.suffix == ".json"
        else output / str(tracker.general_config_tracker.model_name_sanitized)
    )
    if not (folder / name).is_file():
        raise GritError(f"--output {output}: lm-eval could not write its results there")
    results["output"] = str(folder / name)
    if log_samples:
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
            if not (folder / f"samples_{task}_{date}.jsonl").is_file():
                raise GritError(f"--output {output}: lm-eval could not write its samples there")


def _write_alpaca(results: Mapping[str, Any], model: str) -> None:
    """Writes AlpacaEval's own file of answers, beside the results."""
    if samples := (results.get("samples") or {}).get("grit_alpaca_eval"):
        outputs = json_text(alpaca_outputs(samples, model), indent=1)
        write_text(Path(results["output"]).parent / "alpaca_eval.json", outputs + "\n")


def _quiet_logs() -> None:
    """Warnings and errors of lm-eval and of datasets only."""
    for name in ("lm_eval", "datasets", "lm-eval"):
        logging.getLogger(name).setLevel(logging.WARNING)
