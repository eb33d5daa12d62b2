"""Raw texts that say a few words again and again: they teach a small model to look back (induction
heads).

Until it can, a model gains nothing from a document in its prompt, and question rows hardly teach
it: the language of a documentation can be guessed well enough without. Short passages at changing
distances cannot be guessed by place alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from grit_jax.data.distractors import corpus_texts
from grit_jax.errors import GritError
from grit_jax.runtime.files import write_jsonl

WORDS = (2, 12)  # of what is repeated
LONGEST_WORD, LONGEST, FILLED = (
    20,
    120,
    200,
)  # characters: of a word, of what is repeated, of a row, about
TIMES = (2, 8)
# share of rows whose words are drawn one by one from all documents, so that none foretells the next
INVENTED = 0.5


def repeated(texts: Sequence[str], rows: int, seed: int = 0) -> list[str]:
    """`rows` texts, each a passage of a document, or words of several, said 2 to 8 times.

    Raises:
      ValueError: no text of as many words as a passage may have.
    """
    documents = [words for words in (text.split() for text in texts) if len(words) >= WORDS[1]]
    if not documents:
        raise ValueError(f"no document has {WORDS[1]} words; repeats are made of longer ones")
    words = [word for document in documents for word in document]
    generator, found = random.Random(f"{seed} repeats"), []
    for _ in range(rows):
        count = generator.randint(*WORDS)
        if generator.random() < INVENTED:
            chosen = generator.sample(words, count)
        else:
            document = generator.choice(documents)
            start = generator.randrange(len(document) - count + 1)
            chosen = document[start : start + count]
        passage = " ".join(word[:LONGEST_WORD] for word in chosen)[:LONGEST]
        least, most = TIMES
        found.append(" ".join([passage] * max(least, min(most, FILLED // len(passage)))))
    return found


def write_repeats(corpus: str | Path, output: Path, rows: int, seed: int = 0) -> int:
    """Writes rows `{"text"}` of what the documents of `corpus` say, lines `{"id", "title"?,
    "text"}`; returns `rows`.

    Raises:
      GritError: an unreadable file, a bad line, documents that are too short, an output that cannot
        be written.
    """
    try:
        texts = repeated(corpus_texts(corpus), rows, seed)
    except ValueError as error:
        raise GritError(f"{corpus}: {error}") from None
    return write_jsonl(output, ({"text": text} for text in texts))
