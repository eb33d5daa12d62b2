"""What a report says, whatever it is shown on: the modes, the sentences, the limits."""

from __future__ import annotations

import dataclasses
import math

from grit_jax.quickstart.report.contents import AnswersReport, Report, Retrieval, Sample
from grit_jax.quickstart.report.wording import (
    count,
    decimal,
    duration,
    latency,
    millions,
    minutes,
    score,
    size,
)
from grit_jax.text.answer_matching import score_answer


@dataclasses.dataclass(frozen=True)
class ModeFacts:
    """How the question and the document reach the model in a RAG mode, in plain words."""

    name: str
    group: str
    question: str
    document: str


CLOSED, READ, CACHED = "No document", "Document read for each question", "Document from the cache"
# The seven modes, grouped by where the document comes from.
MODES: tuple[ModeFacts, ...] = (
    ModeFacts("none", CLOSED, "read", "not given"),
    ModeFacts("query-then-doc", READ, "read", "read"),
    ModeFacts("doc-then-query", READ, "read", "read"),
    ModeFacts("query", READ, "from cache", "read"),
    ModeFacts("doc", CACHED, "read", "from cache"),
    ModeFacts("query-doc", CACHED, "from cache", "from cache"),
    ModeFacts("doc-query", CACHED, "from cache", "from cache"),
)
# The same order of document and question, without and with the document's cache.
PLAIN_MODE, DOC_MODE = "doc-then-query", "doc"

SYSTEMS: tuple[tuple[str, str], ...] = (
    ("trained", "trained"),
    ("base", "base"),
    ("untrained", "untrained"),
    ("bm25", "BM25"),
    ("hybrid", "hybrid"),
)
RETRIEVAL_SCORES: tuple[tuple[str, str], ...] = (
    ("recall@1", "recall@1"),
    ("recall@10", "recall@10"),
    ("ndcg@10", "nDCG@10"),
)
LOSSES: tuple[tuple[str, str, str], ...] = (
    ("loss_emb", "Finding", "contrastive loss: picking the right document from the batch"),
    ("loss_gen", "Writing", "language loss: nats per predicted token"),
    ("loss_cached", "Answering", "language loss of answers over cached documents"),
    ("loss_cached_kl", "Distilling", "divergence of answers over caches from answers over text"),
)


def searches(retrieval: Retrieval) -> list[tuple[str, dict[str, float]]]:
    """Name and scores of each system that the report has."""
    scores = [(label, getattr(retrieval, system)) for system, label in SYSTEMS]
    return [(label, values) for label, values in scores if values]


def is_right(sample: Sample, mode: str) -> bool:
    """Whether a sample's answer counts as a match, as the scores define it."""
    return score_answer(sample.answers[mode], sample.gold).match > 0


def headline(report: Report) -> str:
    """What was trained on what, how large, how long: one sentence."""
    training = report.training
    return (
        f"One language model of {millions(report.model.parameters)} parameters was trained for"
        f" {minutes(training.seconds)} ({count(training.steps)} steps) on"
        f" {count(report.corpus.train)} documents from the Python documentation installed on this"
        " machine to find documents and to write answers with the same weights; the whole run took"
        f" {minutes(report.seconds)}."
    )


def origin(report: Report) -> str:
    """Where the weights came from."""
    if report.model.initialised_from == "base":
        return (
            "It started from the small base model in the package, trained on the training split"
            " only."
        )
    return "It started from random weights."


def retrieval_sentence(report: Report) -> str:
    """The setting and the result of the search scores."""
    retrieval = report.retrieval
    trained, untrained, bm25 = (
        scores["ndcg@10"] for scores in (retrieval.trained, retrieval.untrained, retrieval.bm25)
    )
    sentences = [
        f"Each of {count(retrieval.queries)} held-out queries looks for its one document among"
        f" {count(retrieval.pool)}."
    ]
    if untrained:
        sentences.append(
            f"The trained model's nDCG@10 is {score(trained)}, {decimal(trained / untrained)} times"
            " that of an untrained one."
        )
    comparison = "ahead of" if trained > bm25 else "behind" if trained < bm25 else "level with"
    sentences.append(f"That is {comparison} BM25, search by matching words ({score(bm25)}).")
    if hybrid := retrieval.hybrid.get("ndcg@10"):
        sentences.append(f"Both together, as hybrid search fuses them, reach {score(hybrid)}.")
    return " ".join(sentences)


def language_sentence(report: Report) -> str:
    """The result of the perplexities."""
    before, after = report.language.perplexity_before, report.language.perplexity_after
    return (
        f"On held-out documentation, perplexity went from {decimal(before)} (random weights) to"
        f" {decimal(after)}: {decimal(before / after)} times lower."
    )


def rag_sentence(report: Report) -> str:
    """The result of the answers: the document's cache against the document read again."""
    read, cached, closed = (report.rag[mode] for mode in (PLAIN_MODE, DOC_MODE, "none"))
    ratio = f" ({cached.match / read.match:.0%} as often)" if read.match else ""
    sentences = [
        f"{count(report.rag_questions)} questions whose answer stands word for word in one held-out"
        " document.",
        f"With the document in the prompt the model is right in {read.match:.1%} of them; with the"
        f" document's cache in its place, in {cached.match:.1%}{ratio}.",
        f"Without the document: {closed.match:.1%}.",
        f"A question takes {latency(read.seconds)} reading the document and"
        f" {latency(cached.seconds)} from the cache.",
    ]
    return " ".join(sentences)


def index_sentence(report: AnswersReport) -> str:
    """What the index holds and what it cost."""
    index = report.index
    return (
        f"{count(index['documents'])} documents were read once in {duration(index['seconds'])}; the"
        f" same pass gave vector and cache. On disk: {size(index['bytes_kv'])} of keys and values"
        f" and {size(index['bytes_vectors'])} of vectors"
        f" ({count(index['bytes_per_token_per_layer'])} bytes per token and layer)."
    )


def limits(report: Report) -> list[str]:
    """What these numbers do not say."""
    questions, match = report.rag_questions, report.rag[PLAIN_MODE].match
    interval = 1.96 * math.sqrt(max(match * (1 - match), 0.0) / questions)
    notes = []
    if report.settings.is_small:
        notes.append(
            f"A short run: {count(report.corpus.documents)} documents and"
            f" {count(report.training.steps)} steps were asked for. The full quickstart scores"
            " differently."
        )
    return notes + [
        f"With {count(questions)} questions, a match score is known to about {interval:.3f} either"
        " way (95%): smaller differences between modes mean nothing.",
        f"One run, one seed ({report.seed}).",
        (
            "The questions are cut from the documents by a program (a default value, the next"
            " parameter, the next words). They test finding and copying from a document, not"
            " reasoning."
        ),
        (
            "In the answer scores the right document is given, unless a score says that the"
            " document was found by search."
        ),
        (
            "The search scores belong to this pool of documents. A larger pool is harder, and"
            " published benchmarks do not compare."
        ),
        "Perplexity depends on the tokenizer: it compares models that share one, and no others.",
        (
            "A model this small knows what it was trained on. It will write fluent nonsense about"
            " anything else."
        ),
        (
            "Seconds were measured on this machine with short documents. What a cache saves grows"
            " with their length."
        ),
    ]
