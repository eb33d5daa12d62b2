"""What a report says, whatever it is shown on: reading the dictionary, numbers as text, the modes,
the sentences."""

from __future__ import annotations

import dataclasses
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "n/a"


@dataclasses.dataclass(frozen=True)
class ModeFacts:
    """A RAG layout in a person's words: how the question and the document reach the model."""

    name: str
    group: str
    question: str
    document: str


CLOSED, ANEW, CACHED = "No document", "Document read for each question", "Document from the cache"
# The original's seven modes, grouped by where the document comes from.
MODES: tuple[ModeFacts, ...] = (
    ModeFacts("none", CLOSED, "read", "not given"),
    ModeFacts("query-then-doc", ANEW, "read", "read"),
    ModeFacts("doc-then-query", ANEW, "read", "read"),
    ModeFacts("query", ANEW, "from cache", "read"),
    ModeFacts("doc", CACHED, "read", "from cache"),
    ModeFacts("query-doc", CACHED, "from cache", "from cache"),
    ModeFacts("doc-query", CACHED, "from cache", "from cache"),
)
PLAIN_MODE, DOC_MODE = (
    "doc-then-query",
    "doc",
)  # the same order, without and with the document's cache

SYSTEMS: tuple[tuple[str, str], ...] = (
    ("trained", "trained"),
    ("base", "base"),
    ("untrained", "untrained"),
    ("bm25", "BM25"),
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
)


# --- reading a dictionary that may lack anything ---
def part(tree: Any, *keys: str) -> Mapping[str, Any]:
    """The dictionary at `keys`, {} where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def number(tree: Any, *keys: str) -> float | None:
    """The finite number at `keys`, None where there is none."""
    value = part(tree, *keys[:-1]).get(keys[-1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def items(tree: Any, *keys: str) -> Sequence[Any]:
    """The list at `keys`, () where there is none."""
    value = part(tree, *keys[:-1]).get(keys[-1])
    return value if isinstance(value, list | tuple) else ()


def plain(value: Any) -> str:
    """Text that any screen can show: control characters (ESC would steer a terminal) and lone
    surrogates replaced."""
    text = "" if value is None else str(value)
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
        "\N{REPLACEMENT CHARACTER}",
        text,
    )


# --- numbers as text ---
def count(value: float | None) -> str:
    """12345 -> '12,345'."""
    return MISSING if value is None else f"{value:,.0f}"


def millions(value: float) -> str:
    """1234567 -> '1.23 million'; small ones in full."""
    return (
        f"{value / 1e9:.3g} billion"
        if value >= 1e9
        else f"{value / 1e6:.3g} million"
        if value >= 1e5
        else count(value)
    )


def score(value: float | None) -> str:
    """A fraction from 0 to 1 with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def decimal(value: float | None) -> str:
    """A number of any size with three or four digits that matter: 0.0123, 7.64, 31.2, 4,321."""
    if value is None:
        return MISSING
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3g}"
    )


def latency(value: float | None) -> str:
    """Seconds of one answer: '35.2 ms' or '1.23 s'."""
    if value is None:
        return MISSING
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.0f} ms"
        if value >= 0.1
        else f"{value * 1e3:.1f} ms"
    )


def duration(value: float | None) -> str:
    """Seconds of a long job: '9 min 12 s'."""
    if value is None:
        return MISSING
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds if not hours else 0, "s"))
    return " ".join(f"{n} {unit}" for n, unit in parts if n)


def minutes(value: float) -> str:
    """Seconds in words: 'half a minute', '9 minutes'."""
    if value < 90:
        return f"{value:.0f} seconds"
    return f"{value / 60:.1f} minutes" if value < 600 else f"{value / 60:.0f} minutes"


def size(value: float | None) -> str:
    """Bytes: '34.5 MB' (powers of 1000)."""
    if value is None:
        return MISSING
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def clip(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


# --- sentences and judgements ---
def normalise(answer: str) -> str:
    """SQuAD's normalisation (Rajpurkar et al. 2016), as the scores use it."""
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def is_right(sample: Mapping[str, Any], mode: str) -> bool:
    """Whether a sample's answer is a match: as `sample["right"][mode]` says, else whether it
    contains the gold one."""
    told = part(sample, "right").get(mode)
    if isinstance(told, bool):
        return told
    gold, answer = plain(sample.get("gold")), plain(part(sample, "answers").get(mode))
    return (
        normalise(gold) in normalise(answer) if normalise(gold) else gold.strip() == answer.strip()
    )


def searched(report: Mapping[str, Any]) -> dict[str, Any]:
    """The answer scores with documents found by search; a mode without a document has none."""
    return {m.name: part(report, "rag_retrieved", m.name) for m in MODES if m.group != CLOSED}


def headline(report: Mapping[str, Any]) -> str:
    """What was trained on what, how large, how long: one sentence; '' when the report says nothing
    of it."""
    parameters, trained_on = (
        number(report, "model", "parameters"),
        number(report, "corpus", "train"),
    )
    steps, seconds, total = (
        number(report, "training", "steps"),
        number(report, "training", "seconds"),
        number(report, "seconds"),
    )
    if not any(part(report, key) for key in ("corpus", "model", "training")):
        return ""
    packages = [plain(p) for p in items(report, "corpus", "packages")]
    named = ", ".join(packages[:7]) + (
        f" and {len(packages) - 7} more" if len(packages) > 7 else ""
    )
    words = ["One language model"]
    words += [f"of {millions(parameters)} parameters"] if parameters is not None else []
    words += ["was trained"]
    words += [f"for {minutes(seconds)}"] if seconds is not None else []
    words += [f"({count(steps)} steps)"] if steps is not None else []
    words += [f"on {count(trained_on)} documents" if trained_on is not None else "on documents"]
    words += [
        "from the Python documentation installed on this machine" + (f" ({named})" if named else "")
    ]
    words += ["to find documents and to write answers with the same weights"]
    words += [f"; the whole run took {minutes(total)}"] if total is not None else []
    return " ".join(words).replace(" ;", ";") + "."


def origin(report: Mapping[str, Any]) -> str:
    """Where the weights came from, '' when the report does not say."""
    return {
        "base": (
            "It started from the small base model in the package, trained on the training split"
            " only."
        ),
        "scratch": "It started from random weights.",
    }.get(str(part(report, "model").get("initialised_from")), "")


def retrieval_sentence(report: Mapping[str, Any]) -> str:
    """The setting and the verdict of the search scores."""
    queries, pool = number(report, "retrieval", "queries"), number(report, "retrieval", "pool")
    said = []
    if queries is not None and pool is not None:
        said += [
            f"Each of {count(queries)} held-out queries looks for its one document among"
            f" {count(pool)}."
        ]
    ours, random, words = (
        number(report, "retrieval", s, "ndcg@10") for s in ("trained", "untrained", "bm25")
    )
    if ours is not None and random:
        said += [
            f"The trained model's nDCG@10 is {score(ours)}, {decimal(ours / random)} times that of"
            " an untrained one."
        ]
    if ours is not None and words is not None:
        verdict = "ahead of" if ours > words else "behind" if ours < words else "level with"
        said += [f"That is {verdict} BM25, search by matching words ({score(words)})."]
    return " ".join(said)


def language_sentence(report: Mapping[str, Any]) -> str:
    """The verdict of the perplexities."""
    before, after = (
        number(report, "language", "perplexity_before"),
        number(report, "language", "perplexity_after"),
    )
    if before is None or not after:
        return ""
    return (
        f"On held-out documentation, perplexity went from {decimal(before)} (random weights) to"
        f" {decimal(after)}: {decimal(before / after)} times lower."
    )


def rag_sentence(report: Mapping[str, Any]) -> str:
    """The verdict of the answers: reading the document from the cache against reading it anew."""
    asked, closed = number(report, "rag_questions"), number(report, "rag", "none", "match")
    plain_match, doc_match = (
        number(report, "rag", PLAIN_MODE, "match"),
        number(report, "rag", DOC_MODE, "match"),
    )
    said = []
    if asked is not None:
        said += [
            f"{count(asked)} questions whose answer stands word for word in one held-out document."
        ]
    if plain_match is not None and doc_match is not None:
        kept = f" ({doc_match / plain_match:.0%} as often)" if plain_match else ""
        said += [
            f"With the document in the prompt the model is right in {plain_match:.1%} of them;"
            f" with the document's cache in its place, in {doc_match:.1%}{kept}."
        ]
    if closed is not None:
        said += [f"Without the document: {closed:.1%}."]
    slow, fast = (
        number(report, "rag", PLAIN_MODE, "seconds"),
        number(report, "rag", DOC_MODE, "seconds"),
    )
    if slow and fast:
        said += [
            f"A question takes {latency(slow)} reading the document and {latency(fast)} from the"
            " cache."
        ]
    return " ".join(said)


def index_sentence(report: Mapping[str, Any]) -> str:
    """What the index holds and what it cost, '' without an index."""
    index, said = part(report, "index"), []
    if number(index, "documents") is not None:
        took = (
            f" in {duration(number(index, 'seconds'))}"
            if number(index, "seconds") is not None
            else ""
        )
        said += [
            f"{count(number(index, 'documents'))} documents were read once{took}; the same pass"
            " gave vector and cache."
        ]
    stored = [
        f"{size(number(index, key))} of {name}"
        for key, name in (("bytes_kv", "keys and values"), ("bytes_vectors", "vectors"))
        if number(index, key) is not None
    ]
    if stored:
        each = number(index, "bytes_per_token_per_layer")
        said += [
            "On disk: "
            + " and ".join(stored)
            + (f" ({count(each)} bytes a token and layer)." if each is not None else ".")
        ]
    return " ".join(said)


def limits(report: Mapping[str, Any]) -> list[str]:
    """What these numbers do not say."""
    notes = []
    asked, match = number(report, "rag_questions"), number(report, "rag", PLAIN_MODE, "match")
    if asked and match is not None:
        half = 1.96 * math.sqrt(max(match * (1 - match), 0.0) / asked)
        notes += [
            f"With {count(asked)} questions, a match score is known to about {half:.3f} either way"
            " (95%): smaller differences between modes mean nothing."
        ]
    notes += [
        (
            f"One run, one seed ({plain(report['seed'])})."
            if "seed" in report
            else "One run, one seed."
        ),
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
    return notes + [plain(note) for note in items(report, "notes")]
