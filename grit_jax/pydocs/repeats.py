"""Raw texts that repeat a few words many times. They train induction heads in a small model.

Without induction heads a model gains nothing from a document in its prompt, and questions over
documents hardly train them, because much of a documentation's language can be predicted without
looking back. Repetitions of short passages at changing distances cannot.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from grit_jax.data.distractors import corpus_texts
from grit_jax.errors import GritError
from grit_jax.runtime.files import refuse_same_file, write_jsonl

WORDS = (2, 12)  # of a passage, least and most
MAX_WORD_CHARACTERS, MAX_PASSAGE_CHARACTERS = 20, 120
ROW_CHARACTERS = 200  # of all repetitions together, about
TIMES = (2, 8)  # that a passage is repeated, least and most
# The share of rows whose words are drawn one by one from all documents, so that no word predicts
# the next.
INVENTED = 0.5


def repeated(texts: Sequence[str], rows: int, seed: int = 0) -> list[str]:
    """`rows` texts, each of them 2 to 8 repetitions of a passage: consecutive words of a document,
    or random words of several.

    Raises:
      ValueError: no text has as many words as the longest passage.
    """
    documents = [words for words in (text.split() for text in texts) if len(words) >= WORDS[1]]
    if not documents:
        raise ValueError(
            f"no document has {WORDS[1]} words, the length of the longest passage; name a"
            " corpus with longer documents"
        )
    words = [word for document in documents for word in document]
    generator, repetitions = random.Random(f"{seed} repeats"), []
    for _ in range(rows):
        count = generator.randint(*WORDS)
        if generator.random() < INVENTED:
            chosen = generator.sample(words, count)
        else:
            document = generator.choice(documents)
            start = generator.randrange(len(document) - count + 1)
            chosen = document[start : start + count]
        passage = " ".join(word[:MAX_WORD_CHARACTERS] for word in chosen)[:MAX_PASSAGE_CHARACTERS]
        least, most = TIMES
        repetitions.append(
            " ".join([passage] * max(least, min(most, ROW_CHARACTERS // len(passage))))
        )
    return repetitions


def write_repeats(corpus: str | Path, output: Path, rows: int, seed: int = 0) -> int:
    """Writes lines `{"text"}` of repeated passages of a corpus; returns `rows`.

    Args:
      corpus: a file of lines `{"id", "title"?, "text"}`.

    Raises:
      GritError: an unreadable file, a bad line, documents that are too short, or an output that
        cannot be written.
    """
    refuse_same_file(output, Path(corpus))
    try:
        texts = repeated(corpus_texts(corpus), rows, seed)
    except ValueError as error:
        raise GritError(f"{corpus}: {error}") from None
    return write_jsonl(output, ({"text": text} for text in texts))
