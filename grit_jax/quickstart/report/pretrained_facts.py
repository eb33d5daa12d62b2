"""The sentences of the report of `grit quickstart --base MODEL`."""

from __future__ import annotations

import math

from grit_jax.quickstart.report.facts import DOC_MODE, PLAIN_MODE
from grit_jax.quickstart.report.pretrained_contents import PretrainedReport, Search
from grit_jax.quickstart.report.wording import count, decimal, latency, millions, minutes, score

# Keys of `PretrainedReport.retrieval`, and how they are called.
POOLS: tuple[tuple[str, str], ...] = (
    ("names", "Held-out names"),
    ("packages", "Held-out packages"),
)
SYSTEMS: tuple[tuple[str, str], ...] = (
    ("before", "before training"),
    ("dense", "the model"),
    ("bm25", "BM25"),
    ("hybrid", "both together"),
)


def pools(report: PretrainedReport) -> list[tuple[str, str, Search]]:
    """Key, name and scores of each pool that was searched."""
    return [(key, name, report.retrieval[key]) for key, name in POOLS if key in report.retrieval]


def systems(search: Search) -> list[tuple[str, str, dict[str, float]]]:
    """Key, name and scores of each search in a pool."""
    return [
        (key, name, scores) for key, name in SYSTEMS if (scores := getattr(search, key)) is not None
    ]


def headline(report: PretrainedReport) -> str:
    """Which model did what, how long: one sentence."""
    return (
        f"{report.model.name}, a language model of {millions(report.model.parameters)} parameters,"
        f" finds and answers in the Python documentation installed on this machine, with the same"
        f" weights; the whole run took {minutes(report.seconds)}."
    )


def origin(report: PretrainedReport) -> str:
    """Where the weights came from, and whether they were trained here."""
    base = report.model.base
    text = (
        f"It is {base} with the adapter that grit_jax ships, which was trained for both tasks."
        if base
        else "It was taken as it is; nothing says that it was trained to embed."
    )
    if report.training is None:
        return f"{text} Nothing was trained here."
    training = report.training
    return (
        f"{text} Here it was trained for {count(training.steps)} more steps"
        f" ({minutes(training.seconds)})."
    )


def retrieval_sentences(report: PretrainedReport) -> list[str]:
    """The setting and the result of each pool."""
    about = {
        "names": "They are single names, chosen by their hash, that no training file has.",
        "packages": "No training file has any document of these packages.",
    }
    sentences = []
    for key, name, search in pools(report):
        dense, bm25, hybrid = (s["ndcg@10"] for s in (search.dense, search.bm25, search.hybrid))
        sentences.append(
            f"{name}: {count(search.queries)} of {count(search.queries_all)} queries, each for its"
            f" one document among {count(search.pool)}. {about[key]} nDCG@10 is {score(dense)} by"
            f" the model's vectors, {score(bm25)} by words (BM25), {score(hybrid)} by both"
            " rankings together."
        )
    return sentences


def language_sentence(report: PretrainedReport) -> str:
    """The result of the perplexities."""
    language = report.language
    others = [
        f"{decimal(value)} {name}"
        for value, name in (
            (language.base, f"for {report.model.base}"),
            (language.before, "before the training here"),
        )
        if value is not None
    ]
    compared = f" ({', '.join(others)})" if others else ""
    return (
        f"Perplexity on {count(language.texts)} of {count(language.texts_all)} held-out"
        f" documents is {decimal(language.model)}{compared}."
    )


def rag_sentence(report: PretrainedReport) -> str:
    """The result of the answers: the document's cache against the document read again."""
    read, cached, closed = (report.rag[mode] for mode in (PLAIN_MODE, DOC_MODE, "none"))
    searched = report.rag_retrieved.get(DOC_MODE)
    sentences = [
        f"{count(report.rag_questions)} of {count(report.rag_questions_all)} questions as a person"
        " asks them, about one held-out document each.",
        f"With the document in the prompt the answer is right in {read.match:.1%} of them; with the"
        f" document's cache in its place, in {cached.match:.1%}.",
        f"Without the document: {closed.match:.1%}.",
    ]
    if searched:
        sentences.append(
            f"When search has to find the document among {count(report.index['documents'])}, and"
            f" its cache is read: {searched.match:.1%}."
        )
    sentences.append(
        f"A question takes {latency(read.seconds)} reading the document and"
        f" {latency(cached.seconds)} from the cache."
    )
    return " ".join(sentences)


def cuts(report: PretrainedReport) -> str:
    """How much of the held-out files was scored."""
    parts = [
        f"{count(search.queries)} of {count(search.queries_all)} queries ({name.lower()})"
        for _, name, search in pools(report)
    ]
    language = report.language
    parts += [
        f"{count(language.texts)} of {count(language.texts_all)} texts",
        f"{count(report.rag_questions)} of {count(report.rag_questions_all)} questions",
        f"{count(report.index['documents'])} of {count(report.documents_all)} documents in the"
        " index",
    ]
    return (
        f"Parts of the held-out files were scored, so that two cores need minutes:"
        f" {', '.join(parts)}. The commands above score whole files when they are given"
        " `data/heldout` and `data/heldout_packages`."
    )


def limits(report: PretrainedReport) -> list[str]:
    """What these numbers do not say."""
    questions, match = report.rag_questions, report.rag[PLAIN_MODE].match
    interval = 1.96 * math.sqrt(max(match * (1 - match), 0.0) / questions)
    return [
        cuts(report),
        f"With {count(questions)} questions, a match score is known to about {interval:.2f} either"
        " way (95%): smaller differences between modes mean nothing.",
        (
            "The search scores belong to these pools of documents. A larger pool is harder, and"
            " published benchmarks do not compare."
        ),
        (
            "The questions are made from the documents by a program. An answer counts as right"
            " when it contains the words of the document that answer the question."
        ),
        "Perplexity depends on the tokenizer: it compares models that share one, and no others.",
        (
            "Seconds were measured on this machine with short documents. What a cache saves grows"
            " with their length."
        ),
    ]
