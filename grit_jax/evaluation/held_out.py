"""The evaluation that a training run makes of its held-out files."""

from __future__ import annotations

from collections.abc import Callable

from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.evaluation.retrieval import evaluate_retrieval
from grit_jax.inference.model import GritLM
from grit_jax.run_config import TrainSection
from grit_jax.training.hooks import Evaluate
from grit_jax.training.state import TrainState


def make_evaluation(section: TrainSection, wrap: Callable[[TrainState], GritLM]) -> Evaluate | None:
    """The evaluation that the loop calls: retrieval and perplexity on the held-out files, or
    None."""
    if not (section.eval_embedding or section.eval_generative):
        return None

    def evaluate(state: TrainState) -> dict[str, float]:
        model = wrap(state)
        scores: dict[str, float] = {}
        if section.eval_embedding:
            retrieval = evaluate_retrieval(model, section.eval_embedding)
            scores |= {f"eval_{name}": value for name, value in retrieval.items()}
        if section.eval_generative:
            scores["eval_perplexity"] = evaluate_perplexity(model, section.eval_generative)
        return scores

    return evaluate
