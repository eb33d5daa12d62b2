"""Questions that a person asks about one document, whose answer is a short span of it: the default
or the type of a parameter, what is returned, what is raised and when, since which version there is
something, what to use instead of it, and what it is for.

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
from grit_jax.pydocs.sections import read_sections
from grit_jax.text.answer_matching import normalise_answer

MAX_ANSWER = 60  # characters: about 20 tokens of the quickstart's vocabulary
# Of documents longer than the quickstart's, answers may have a fifth of the characters.
ANSWER_SHARE = 5
# Defaults that are easily guessed.
TRIVIAL = frozenset(("None", "True", "False", "0", "1", "''", '""', "..."))

PHRASINGS = {
    "default": (
        "What is the default value of `{what}` in `{id}`?",
        "In `{id}`, what does `{what}` default to?",
        "Which value does `{id}` use if I leave out `{what}`?",
    ),
    "type": (
        "What type does the parameter `{what}` of `{id}` have?",
        "What do I pass as `{what}` to `{id}`?",
        "In `{id}`, which type is `{what}`?",
    ),
    "returns": (
        "What does `{id}` return?",
        "What do I get back from `{id}`?",
        "What is the return value of `{id}`?",
    ),
    "raised when": (
        "When does `{id}` raise `{what}`?",
        "In which case do I get a `{what}` from `{id}`?",
        "Why would `{id}` raise `{what}`?",
    ),
    "raised what": (
        "What does `{id}` raise {what}?",
        "Which exception do I have to expect from `{id}` {what}?",
        "Which error does `{id}` give {what}?",
    ),
    "added": (
        "Since which version is there `{id}`?",
        "In which version was `{id}` added?",
        "From which version on can I use `{id}`?",
    ),
    "deprecated": (
        "Since which version is `{id}` deprecated?",
        "When was `{id}` deprecated?",
        "In which version did `{id}` become deprecated?",
    ),
    "instead": (
        "What should I use instead of `{id}`?",
        "Is there a replacement for `{id}`?",
        "`{id}` is not recommended; what replaces it?",
    ),
    "purpose": (
        "What does `{id}` do?",
        "What is `{id}` for?",
        "What can I use `{id}` for?",
    ),
}
# The answer as a sentence; {answer} is the span of the document.
SENTENCES = {
    "default": "The default of `{what}` is `{answer}`.",
    "type": "`{what}` is of type {answer}.",
    "returns": "It returns {answer}.",
    "raised when": "It raises `{what}` {answer}.",
    "raised what": "It raises `{answer}`.",
    "added": "Since version {answer}.",
    "deprecated": "It is deprecated since version {answer}.",
    "instead": "Use `{answer}` instead.",
    "purpose": "{answer}.",
}


_SMALL_WORDS = frozenset(
    ("a", "an", "the", "this", "that", "these", "its", "all", "each", "any", "one", "no")
    + ("if", "when", "in", "for", "unless", "on", "whether")
)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about the document `id`.

    Attributes:
      kind: a key of `PHRASINGS`.
      answer: a span of `document` (title and text in one string) after whitespace is normalised.
      sentence: a sentence with that span, as a person would be answered.
    """

    id: str
    kind: str
    text: str
    answer: str
    document: str
    sentence: str = ""

    def row(self, *, sentence: bool = False) -> dict:
        """The question as a line of a data file of kind `cached`; with `sentence`, the text is
        answered by the sentence, and the span is kept as `"answer"`, by which it is scored."""
        row: dict = {"docs": [self.document], "text": [self.text, self.answer]}
        return (
            row | {"text": [self.text, self.sentence], "answer": self.answer} if sentence else row
        )


def best_constant(rows: Sequence[dict]) -> tuple[str, float]:
    """The answer that scores best when given to every question of `rows`, and its score.

    The score is `match`: the share of rows whose normalised gold answer is contained in the
    normalised constant. The constants tried are the gold answers themselves. `("", 0.0)` without
    rows.
    """
    golds = Counter(normalise_answer(row.get("answer", row["text"][1])) for row in rows)
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
    words = " ".join(shown.split())
    longest = max(MAX_ANSWER, document.max_characters // ANSWER_SHARE)
    result = {}
    for kind, facts in _facts(document, generator).items():
        facts = [
            (what, answer)
            for what, answer in facts
            if len(answer) <= longest and answer in words and what in words
        ]
        if not facts:
            continue
        what, answer = generator.choice(facts)
        asked = generator.choice(PHRASINGS[kind]).format(what=_inside(what), id=document.id)
        told = SENTENCES[kind].format(what=what, answer=_inside(answer))
        told = told[0].upper() + told[1:]
        question = Question(document.id, kind, asked, answer, shown, told)
        if not guessable(question):
            result[kind] = question
    return result


def _inside(phrase: str) -> str:
    """A phrase as it stands inside a sentence: its first word in lower case, unless it is a
    name."""
    first = phrase.split(" ")[0]
    return (
        phrase[0].lower() + phrase[1:]
        if re.fullmatch("[A-Z][a-z]*", first) and (first.lower() in _SMALL_WORDS)
        else phrase
    )


def _facts(document: Document, generator: random.Random) -> dict[str, list[tuple[str, str]]]:
    """(what the question names, the answer) of each kind of question."""
    sections = read_sections(document.doc)
    summary = document.summary.rstrip(".")
    own = document.id.rpartition(".")[2]
    parameters = [name for name, _ in document.parameters]
    return {
        "default": _defaults(document, generator),
        "type": list(sections.types),
        "returns": [("", phrase) for phrase in sections.returns[:1] if len(phrase) > 2],
        "raised when": list(sections.raises),
        "raised what": [(condition, name) for name, condition in sections.raises],
        "added": [("", sections.added)] * bool(sections.added),
        "deprecated": [("", sections.deprecated)] * bool(sections.deprecated),
        "instead": [("", sections.instead)]
        * (sections.instead.removesuffix("()") not in {"", own, document.id, *parameters}),
        # What is returned has a question of its own.
        "purpose": [("", summary)] * (len(summary) >= 15 and not summary.startswith("Return")),
    }


def _defaults(document: Document, generator: random.Random) -> list[tuple[str, str]]:
    """Parameters in the part of the signature that is shown, and their defaults."""
    items = parse_signature(document.signature) if document.signature else []
    call = document.text.partition("\n")[0]
    shown = [
        (name, default)
        for name, default in items
        if default is not None and default != "..." and f"{name}={default}" in call
    ]
    telling = [(name, default) for name, default in shown if default not in TRIVIAL]
    # Some questions have easily guessed answers, too.
    return telling or (shown if generator.random() < 0.15 else [])


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
