"""What instructions and examples in a prompt do to a trained model.

Search: the queries' instruction as it was trained, none, a paraphrase, that of another training
task, one of an unrelated task, and the trained one with an example (as `--num_shots` of the
original's MTEB evaluation). Passages have no instruction and are encoded once.

Answers: the sentence that follows the question in a RAG prompt, varied in the same way, and example
turns (question and answer, each with its document) before the question, read as text
(`doc-then-query`) and from records (`doc`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from grit_jax.data.formats import CachedExample, EmbeddingExample, Text
from grit_jax.evaluation.retrieval import NDCG_AT, DenseOptions, Pool, dense_rankings, ndcg, pool_of
from grit_jax.evidence.answers import BLOCK, MAX_NEW_TOKENS, answer_scores
from grit_jax.evidence.paired import points_lost, standard_error
from grit_jax.evidence.score_file import ScoreFile
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.pydocs.passages import QUESTION_INSTRUCTION
from grit_jax.rag.generator import RagGenerator
from grit_jax.runtime.progress import progress
from grit_jax.text.chat import ChatFormat, PromptPart
from grit_jax.text.rag_layouts import AFTER_CONTEXT, RagMode

TRAINED = "trained"

# ---- search --------------------------------------------------------------------------------------

PARAPHRASE = "Retrieve the entry of the Python reference to which this summary belongs"
UNRELATED = "Find a cooking recipe that uses these ingredients"
SEARCH_VARIANTS = {
    TRAINED: "the instruction of the training data",
    "none": "no instruction",
    "paraphrase": PARAPHRASE,
    "other task": QUESTION_INSTRUCTION,
    "unrelated": UNRELATED,
    "one example": "the trained instruction and an example of a query and its passage",
}
EXAMPLE_CHARACTERS = 300  # of the passage in the example


def search_instruction(variant: str, trained: str, example: EmbeddingExample) -> str:
    """The instruction of a query in one of `SEARCH_VARIANTS`."""
    passage = example.positives[0].text[:EXAMPLE_CHARACTERS]
    return {
        TRAINED: trained,
        "none": "",
        "one example": f"{trained}. For example, the query: {example.query.text} finds: {passage}",
    }.get(variant, SEARCH_VARIANTS[variant])


def score_search(
    model: GritLM,
    queries: Sequence[EmbeddingExample],
    example: EmbeddingExample,
    scores: ScoreFile,
    *,
    variants: Sequence[str] = tuple(SEARCH_VARIANTS),
    quiet: bool = False,
) -> None:
    """nDCG@10 of every query in every variant that `scores` lacks, over the pool of all queries'
    passages.

    More queries mean a larger pool, so scores of fewer are not reused: a case's name holds the
    number of queries.

    Args:
      example: shown by the variant "one example"; no row of `queries`.
    """
    pool, count = pool_of(queries), len(queries)
    missing = [name for name in variants if not scores.count(search_case(name, count))]
    if not missing:
        return
    texts = [
        Text(search_instruction(variant, query.instruction or "", example), query.text)
        for variant in missing
        for query in pool.queries
    ]
    varied = Pool(texts, pool.texts, list(pool.relevant) * len(missing))
    rankings, _ = dense_rankings(model, varied, NDCG_AT, DenseOptions(quiet=quiet))
    values = [
        ndcg(ranking, relevant, NDCG_AT)
        for ranking, relevant in zip(rankings, varied.relevant, strict=True)
    ]
    for number, variant in enumerate(missing):
        of_variant = values[number * count : (number + 1) * count]
        scores.add(search_case(variant, count), {"ndcg@10": of_variant})


def search_case(variant: str, queries: int) -> str:
    """The name of a variant in the score file."""
    return f"{variant}, {queries} queries"


# ---- answers -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AnswerPrompt:
    """How a question is asked: the sentence after it, and how many examples come before it."""

    instruction: str = AFTER_CONTEXT
    shots: int = 0


ANSWER_VARIANTS = {
    TRAINED: AnswerPrompt(),
    "none": AnswerPrompt(""),
    "paraphrase": AnswerPrompt("Reply to the question above; the text before it may help"),
    "unrelated": AnswerPrompt("Translate the prior text into French"),
    "1 example": AnswerPrompt(shots=1),
    "3 examples": AnswerPrompt(shots=3),
}
ANSWER_LAYOUTS: tuple[RagMode, ...] = ("doc-then-query", "doc")


def answer_case(mode: RagMode, variant: str) -> str:
    """The name of a variant in the score file."""
    return f"{mode}, {variant}"


def conversation_parts(
    turns: Sequence[CachedExample], mode: RagMode, instruction: str, chat: ChatFormat
) -> list[PromptPart]:
    """A prompt of example turns and a last question, whose answer is not shown.

    In the layout `doc-then-query` each turn begins with its document; in `doc` all documents are
    read before the first one, from records. A single turn with the trained instruction is what
    `rag_layouts.compose` makes.
    """
    parts: list[PromptPart] = []
    opening = chat.turn_separator if mode == "doc" else chat.bos
    for number, turn in enumerate(turns):
        parts.append(PromptPart(opening + chat.user, is_template=True))
        if mode != "doc":
            for document in turn.docs:
                parts += [PromptPart(document, is_document=True), PromptPart("\n\n")]
        parts.append(PromptPart(turn.question))
        parts += [PromptPart("\n\n" + instruction)] if instruction else []
        parts.append(PromptPart(chat.assistant, is_template=True))
        if number < len(turns) - 1:
            parts += chat.answer_parts(turn.answer)
        opening = chat.turn_separator
    return parts


def score_prompts(
    model: GritLM,
    questions: Sequence[CachedExample],
    examples: Sequence[CachedExample],
    scores: ScoreFile,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    quiet: bool = False,
) -> None:
    """Answers every question in every layout and variant that `scores` lacks, and adds `match` and
    `f1`.

    Args:
      questions: each over its own document.
      examples: shown before the question, the same ones for all; none of `questions`.

    Raises:
      GritError: a prompt that does not fit the model's context.
    """
    generator = RagGenerator(model)
    cases = list(itertools.product(ANSWER_LAYOUTS, ANSWER_VARIANTS))
    count = lambda case: min(scores.count(answer_case(*case)), len(questions))
    missing = sum(len(questions) - count(case) for case in cases)
    shown = list(dict.fromkeys(text for example in examples for text in example.docs))
    example_records: dict[str, KVRecord] = {}
    with progress(missing, "prompts", "answers", quiet=quiet) as bar:
        for start in range(0, len(questions), BLOCK):
            block = questions[start : start + BLOCK]
            pending = [case for case in cases if count(case) < start + len(block)]
            records: dict[str, KVRecord] = {}
            if any(mode == "doc" for mode, _ in pending):
                if not example_records:
                    example_records = dict(zip(shown, generator.records(shown), strict=True))
                texts = list(dict.fromkeys(text for row in block for text in row.docs))
                records = example_records | dict(zip(texts, generator.records(texts), strict=True))
            for mode, variant in pending:
                rows = block[count((mode, variant)) - start :]
                prompt = ANSWER_VARIANTS[variant]
                conversations = [[*examples[: prompt.shots], row] for row in rows]
                answers = _answers(
                    generator, conversations, mode, prompt.instruction, records, max_new_tokens
                )
                scores.add(answer_case(mode, variant), answer_scores(rows, answers))
                bar.update(len(rows), answer_case(mode, variant))


def _answers(
    generator: RagGenerator,
    conversations: Sequence[Sequence[CachedExample]],
    mode: RagMode,
    instruction: str,
    records: dict[str, KVRecord],
    max_new_tokens: int,
) -> list[str]:
    """The model's answers to the last turns of conversations."""
    model = generator.model
    prompts = [conversation_parts(turns, mode, instruction, model.chat) for turns in conversations]
    room = generator.max_length - model.encoder.format([""], max_length=generator.max_length).prompt
    ids = [
        [
            token
            for part, tokens in zip(parts, encoded, strict=True)
            for token in (tokens[:room] if part.is_document else tokens)
        ]
        for parts, encoded in zip(prompts, model.tokenizer.encode_parts(prompts), strict=True)
    ]
    before = [
        [records[text] for turn in turns for text in turn.docs] if mode == "doc" else []
        for turns in conversations
    ]
    sampling = Sampling(max_new_tokens=max_new_tokens)
    generated = model.generate_ids(ids, records=before, sampling=sampling)
    return [model.tokenizer.decode(tokens).strip() for tokens in generated.tokens]


# ---- comparison ----------------------------------------------------------------------------------


def search_report(scores: ScoreFile, queries: int) -> dict[str, Any]:
    """`{queries, variants: {name: {instruction, ndcg@10, standard_error, cost}}}`; the cost is in
    points beside the trained instruction."""
    of = lambda variant: scores.values(search_case(variant, queries), "ndcg@10", queries)
    variants = {
        name: {
            "instruction": instruction,
            "ndcg@10": float(of(name).mean()),
            "standard_error": standard_error(of(name)),
            "cost": points_lost(of(TRAINED)[None], of(name)[None]).to_dict(),
        }
        for name, instruction in SEARCH_VARIANTS.items()
    }
    return {"queries": queries, "variants": variants}


def answer_report(scores: ScoreFile, questions: int) -> dict[str, Any]:
    """`{questions, variants: {layout: {name: {instruction, examples, match, f1, standard_error,
    cost}}}}`; the cost is in points of match beside the trained sentence without examples."""
    of = lambda mode, name, score="match": scores.values(answer_case(mode, name), score, questions)
    variants = {
        mode: {
            name: {
                "instruction": prompt.instruction,
                "examples": prompt.shots,
                "match": float(of(mode, name).mean()),
                "f1": float(of(mode, name, "f1").mean()),
                "standard_error": standard_error(of(mode, name)),
                "cost": points_lost(of(mode, TRAINED)[None], of(mode, name)[None]).to_dict(),
            }
            for name, prompt in ANSWER_VARIANTS.items()
        }
        for mode in ANSWER_LAYOUTS
    }
    return {"questions": questions, "variants": variants}
