"""Variants of a pretrained model, trained on the same examples in the same order, side by side.

`joint`: both losses together beside each alone. `cached`: answers over caches with and without
self-distillation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from grit_jax.data.lines import read_examples
from grit_jax.evaluation.perplexity import text_losses
from grit_jax.evidence.answers import (
    AnswerScores,
    distillation_costs,
    document_cases,
    document_costs,
    score_cases,
)
from grit_jax.evidence.paired import Difference, perplexity_rise, points_lost
from grit_jax.evidence.pretrained_run import PretrainedRun, open_model
from grit_jax.evidence.pretrained_training import Trainer, training_cost
from grit_jax.evidence.prompt_variants import TRAINED, score_search, search_case
from grit_jax.evidence.recipes import DISTILLATION_MODELS, JOINT_MODELS
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.model import GritLM
from grit_jax.runtime.progress import say

# What joint training may cost: points of nDCG@10, and percent of a perplexity; and what chat may
# lose beside the base, in percent of its perplexity.
SEARCH_LIMIT, PERPLEXITY_LIMIT, CHAT_LIMIT = 2.0, 2.0, 3.0


def joint_part(run: PretrainedRun) -> dict[str, Any]:
    """The single-task models beside the joint one and the base."""
    trainer = Trainer(run)
    scores = {"base": [_held_out_scores(run, trainer.base())]}
    costs: dict[str, list[dict[str, Any]]] = {}
    for name in JOINT_MODELS:
        folders = [trainer.train(name, seed) for seed in range(run.options.seeds)]
        costs[name] = list(map(training_cost, folders))
        scores[name] = [
            _held_out_scores(run, open_model(str(folder / "model"))) for folder in folders
        ]
    return {
        "seeds": list(range(run.options.seeds)),
        **run.query_counts(),
        **run.text_counts(),
        "models": {
            name: {
                "training": costs.get(name, []),
                "ndcg@10": float(np.mean([seed.ndcg for seed in of_seeds])),
                "perplexity": {
                    kind: float(np.exp(np.mean([seed.nll[kind].sum() for seed in of_seeds]) / n))
                    for kind, tokens in of_seeds[0].tokens.items()
                    if (n := tokens.sum())
                },
            }
            for name, of_seeds in scores.items()
        },
        "costs": _joint_costs(scores),
    }


class HeldOutScores:
    """A model's scores of every held-out query and text.

    Attributes:
      ndcg: nDCG@10 of each query.
      nll, tokens: of each text, by kind.
    """

    def __init__(
        self,
        ndcg: Float[np.ndarray, " B"],
        nll: dict[str, Float[np.ndarray, " B"]],
        tokens: dict[str, Int[np.ndarray, " B"]],
    ):
        self.ndcg, self.nll, self.tokens = ndcg, nll, tokens


def _held_out_scores(run: PretrainedRun, model: GritLM) -> HeldOutScores:
    """Scores the queries and texts that the model's files lack."""
    summaries = run.train("embedding_summary")
    example = read_examples(summaries, "embedding")[0]
    search = run.scores(model, "search", run.heldout("embedding"), summaries)
    score_search(model, run.queries, example, search, variants=(TRAINED,))
    case = search_case(TRAINED, len(run.queries))
    nll, tokens = {}, {}
    for kind, texts in run.texts().items():
        file = run.scores(model, kind, run.texts_file(kind))
        texts_case = f"{len(texts)} texts"
        if not file.count(texts_case):
            say(f"perplexity: {kind}")
            losses = text_losses(model, texts)
            file.add(texts_case, {"nll": losses.nll.tolist(), "tokens": losses.tokens.tolist()})
        count = file.count(texts_case)
        nll[kind] = file.values(texts_case, "nll", count)
        tokens[kind] = file.values(texts_case, "tokens", count).astype(np.int64)
    return HeldOutScores(search.values(case, "ndcg@10", len(run.queries)), nll, tokens)


def _joint_costs(scores: dict[str, list[HeldOutScores]]) -> list[dict[str, Any]]:
    """What joint training costs each task, and what it costs the base's chat."""
    ndcg = lambda name: np.stack([seed.ndcg for seed in scores[name]])

    def rise(kind: str, reference: str) -> Difference:
        before = np.stack([seed.nll[kind] for seed in scores[reference]])
        after = np.stack([seed.nll[kind] for seed in scores["unified"]])
        before = np.broadcast_to(before, after.shape)  # the base has one line for all seeds
        return perplexity_rise(before, after, scores[reference][0].tokens[kind])

    lost = points_lost(ndcg("embedding"), ndcg("unified"))
    costs = [_cost("nDCG@10, points: unified beside embedding", lost, SEARCH_LIMIT)]
    for kind in scores["base"][0].nll:
        alone = rise(kind, "generative")
        claim = f"perplexity of {kind}, %: unified beside "
        costs.append(_cost(claim + "generative", alone, PERPLEXITY_LIMIT))
        limit = CHAT_LIMIT if kind == "chat" else None
        costs.append(_cost(claim + "base", rise(kind, "base"), limit))
    return costs


def _cost(claim: str, difference: Difference, limit: float | None) -> dict[str, Any]:
    outcome = None if limit is None else difference.outcome(limit)
    return {"claim": claim, **difference.to_dict(), "limit": limit, "outcome": outcome}


def cached_part(run: PretrainedRun) -> dict[str, Any]:
    """Answers over caches with and without self-distillation."""
    trainer, cases = Trainer(run), document_cases()
    answers, models = {}, {}
    for name in DISTILLATION_MODELS:
        files: list[ScoreFile] = []
        folders = [trainer.train(name, seed) for seed in range(run.options.seeds)]
        for folder in folders:
            model = open_model(str(folder / "model"))
            files.append(run.answer_scores(model))
            score_cases(model, cases, run.questions, files[-1])
        answers[name] = AnswerScores(files, len(run.questions.examples))
        models[name] = {
            "training": list(map(training_cost, folders)),
            "scores": answers[name].summary(cases),
            "costs": document_costs(answers[name]),
        }
    return {
        "seeds": list(range(run.options.seeds)),
        **run.question_counts(),
        "models": models,
        "costs": distillation_costs(answers["distilled"], answers["undistilled"]),
    }
