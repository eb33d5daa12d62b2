"""Questions whose answer is a short literal span of one document: the default of a parameter, the
order of parameters, the continuation of a quotation.

They are used to train answers over cached documents and to test them: a question can be answered
only by reading its document.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Sequence

from grit_jax.data.formats import titled
from grit_jax.pydocs.documents import (
    Document,
    parameters_of,
    parse_signature,
    render_signature,
    split_of,
)
from grit_jax.text.answer_matching import normalise_answer

MAX_ANSWER = 60  # characters: about 20 tokens
CONTINUATION_WORDS = 3
# Defaults that are easily guessed.
TRIVIAL = frozenset(("None", "True", "False", "0", "1", "''", '""', "..."))

PHRASINGS = {
    "default": (
        "What is the default value of `{what}` in `{id}`?",
        "In `{id}`, what does `{what}` default to?",
        "`{id}`: which default has the parameter `{what}`?",
    ),
    "order": (
        "Which parameter follows `{what}` in `{id}`?",
        "In the signature of `{id}`, what comes after `{what}`?",
        "`{id}`: which parameter comes next after `{what}`?",
    ),
    # The answer begins with the quoted words, so that its first tokens are found by locating them.
    "quotation": (
        'Quote `{id}` from "{what}" on.',
        'Which sentence of `{id}` has the words "{what}"? Quote it from there.',
        'In `{id}`, what is said from "{what}" on?',
    ),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about the document `id`. `kind` is a key of `PHRASINGS`, and `answer` is a literal
    span of `document` (title and text in one string)."""

    id: str
    kind: str
    text: str
    answer: str
    document: str

    def row(self) -> dict:
        """The question as a line of a data file of kind `cached`."""
        return {"docs": [self.document], "text": [self.text, self.answer]}


def best_constant(rows: Sequence[dict]) -> tuple[str, float]:
    """The answer that scores best when given to every question of `rows`, and its score.

    The score is `match`: the share of rows whose normalised gold answer is contained in the
    normalised constant. The constants tried are the gold answers themselves. `("", 0.0)` without
    rows.
    """
    golds = Counter(normalise_answer(row["text"][1]) for row in rows)
    best, best_count = "", 0
    for constant in sorted(golds):
        inside = {
            constant[i:j] for i in range(len(constant) + 1) for j in range(i, len(constant) + 1)
        }
        count = sum(golds[part] for part in inside if part in golds)
        if count > best_count:
            best, best_count = constant, count
    return best, best_count / max(len(rows), 1)


def guessable(question: Question) -> bool:
    """Whether an empty or one-letter answer, or the question itself, would count as right."""
    answer = normalise_answer(question.answer)
    return len(answer) < 2 or f" {answer} " in f" {normalise_answer(question.text)} "


def questions_about(document: Document, generator: random.Random) -> dict[str, Question]:
    """At most one question of each kind about `document`, by kind; kinds that the document has no
    answer for are left out."""
    shown = titled(document.id, document.text)
    items = parse_signature(document.signature) if document.signature else []
    # Only parameters in the part of the signature that is shown can be asked for.
    call = document.text.partition("\n")[0]
    items = [p for p in items if re.search(rf"[(\s]{re.escape(p[0])}(?=[=,)\s])", call)]
    plain = [p for p in items if p[0] not in ("/", "*")]
    candidates = []  # (kind, what the question names, answer)

    defaults = [
        (n, d) for n, d in plain if d is not None and d not in TRIVIAL and f"{n}={d}" in call
    ]
    if not defaults and generator.random() < 0.15:
        # Some questions have easily guessed answers, too.
        defaults = [(n, d) for n, d in plain if d is not None and d != "..." and f"{n}={d}" in call]
    if defaults:
        candidates.append(("default", *generator.choice(defaults)))

    steps = [
        (a[0], b[0]) for a, b in zip(plain, plain[1:], strict=False) if not (a[0] + b[0]).count("*")
    ]
    if steps:
        candidates.append(("order", *generator.choice(steps)))

    gap = _gap(document, shown, generator)
    if gap:
        candidates.append(("quotation", *gap))

    result = {}
    for kind, what, answer in candidates:
        phrase = generator.choice(PHRASINGS[kind]).format(what=what, id=document.id)
        question = Question(document.id, kind, phrase, answer, shown)
        if len(answer) <= MAX_ANSWER and answer in shown and not guessable(question):
            result[kind] = question
    return result


def _gap(document: Document, shown: str, generator: random.Random) -> tuple[str, str] | None:
    """(2 to 4 words of the docstring that occur once, the same words with the next
    `CONTINUATION_WORDS`)."""
    lines = [line.split(" ") for line in document.text.split("\n")[bool(document.signature) :]]
    starts = [(line, i) for line in lines for i in range(len(line) - 2 - CONTINUATION_WORDS + 1)]
    for _ in range(min(6, len(starts))):
        line, i = generator.choice(starts)
        length = generator.randint(2, min(4, len(line) - i - CONTINUATION_WORDS))
        context = " ".join(line[i : i + length])
        answer = " ".join(line[i : i + length + CONTINUATION_WORDS]).rstrip(".,:;")
        long_enough = len(answer) >= len(context) + 8
        if (
            shown.count(context) == 1
            and '"' not in context
            and long_enough
            and len(answer) <= MAX_ANSWER
        ):
            return context, answer
    return None


# ---- randomised documents, which cannot be known by heart ----------------------------------------


class RandomNames:
    """Random words, identifiers and values, made from the words of the training documents."""

    def __init__(self, vocabulary: Sequence[str]):
        self.vocabulary = list(vocabulary)

    def word(self, generator: random.Random) -> str:
        if self.vocabulary and generator.random() < 0.6:
            return generator.choice(self.vocabulary)
        return "".join(
            generator.choice("bdfgklmnprstvz") + generator.choice("aeiou")
            for _ in range(generator.randint(1, 3))
        ) + generator.choice(("", "n", "r", "x"))

    def name(self, generator: random.Random) -> str:
        """An identifier of one to three words."""
        return "_".join(self.word(generator) for _ in range(generator.choice((1, 1, 2, 2, 3))))

    def value(self, generator: random.Random) -> str:
        """The source text of a default: numbers, strings, names, pairs."""
        kind = generator.randrange(7)
        if kind == 0:
            return str(generator.randint(2, 9999))
        if kind == 1:
            return repr(round(generator.uniform(0, 10), generator.randint(1, 4)))
        if kind == 2:
            return f"1e-{generator.randint(1, 12):02d}"
        if kind == 3:
            return str(-generator.randint(10, 99))
        if kind == 4:
            return f"({generator.randint(0, 99)}, {generator.randint(0, 99)})"
        if kind == 5:
            return f"{self.word(generator)}.{self.word(generator)}"
        return repr(self.name(generator))


def randomised(document: Document, random_names: RandomNames, generator: random.Random) -> Document:
    """`document` with its own name, the names of its parameters and their defaults replaced by
    random ones, consistently everywhere.

    Callables with fewer than two parameters get more, so that every kind of question can be asked.
    Some words of the docstring are replaced too, so that a continuation can only be copied.
    """
    taken: set[str] = set()

    def fresh() -> str:
        while (
            (name := random_names.name(generator)) in taken
            or name in document.doc
            or name in document.text
        ):
            pass
        taken.add(name)
        return name

    parent, _, own = document.id.rpartition(".")
    prefix = f"{parent}." if parent else ""
    names = {own: fresh()}
    # A random name can be that of a held-out document.
    while split_of(prefix + names[own]) != "train":
        names[own] = fresh()
    items: list[tuple[str, str | None]] = []
    values: dict[str, str | None] = {}
    for name, default in parse_signature(document.signature) if document.signature else []:
        bare = name.lstrip("*")
        if bare and bare != "/":
            names[bare] = names.get(bare) or fresh()
            name = name[: len(name) - len(bare)] + names[bare]
        if default is not None:
            value = random_names.value(generator)
            # None: several parameters have this default, and the docstring can mean any of them.
            values[default] = None if default in values else value
            default = value
        items.append((name, default))
    if document.kind != "module":
        while len([p for p in items if p[0][0] not in "*/"]) < 2:
            items.insert(0, (fresh(), None))
        if not any(default for _, default in items):
            last = max(i for i, p in enumerate(items) if p[0][0] not in "*/")
            items[last] = (items[last][0], random_names.value(generator))

    # All names in one pass: a new name may equal another old one.
    long = "|".join(sorted((re.escape(n) for n in names if len(n) > 2), key=len, reverse=True))
    # A name of one or two letters is mostly a word in prose: it is replaced only where it is marked
    # as a name.
    short = "|".join(sorted(re.escape(n) for n in names if len(n) < 3))
    patterns = [rf"(?<!\w)(?:{long})(?!\w)"] * bool(long)
    patterns += [rf"(?<=[`*'])(?:{short})(?=[`*'])|^(?:{short})(?=\s*:)"] * bool(short)
    doc = re.sub("|".join(patterns), lambda m: names[m[0]], document.doc, flags=re.MULTILINE)
    for old, new in sorted(values.items()):
        if new is not None:
            doc = re.sub(
                rf"(?i:(default[^.\n]{{0,20}}?))(?<![\w.]){re.escape(old)}(?!\w|\.\d)",
                lambda m, new=new: m[1] + new,
                doc,
            )
    tokens = re.split(r"(\s+)", doc)
    spots = [
        i
        for i in range(0, len(tokens), 2)
        if tokens[i].isalpha()
        and tokens[i].islower()
        and len(tokens[i]) > 3
        and tokens[i] not in taken
        and not tokens[i].startswith("default")
    ]
    for i in generator.sample(spots, len(spots) // 3):
        tokens[i] = random_names.word(generator)
    signature = render_signature(names[own], items) if items else ""
    return dataclasses.replace(
        document,
        id=prefix + names[own],
        doc="".join(tokens),
        signature=signature,
        parameters=parameters_of(items),
    )
