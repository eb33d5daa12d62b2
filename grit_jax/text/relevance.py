"""What a generator is asked to judge whether a document is relevant to a query.

Pointwise, in the words of the original's reranking (GRIT, appendix): the document is the context,
and the score is the probability of "yes" where the answer begins with "yes" or "no".
"""

from __future__ import annotations

RELEVANCE = (
    "Judge whether the context is relevant to the query or not.\n\nQuery: {query}\n\n"
    "Answer with yes if the context is relevant to the query, and no otherwise."
)
YES, NO = LABELS = ("yes", "no")


def relevance_question(query: str) -> str:
    """What a document is asked about a query.

    >>> relevance_question("Who wrote Faust?").splitlines()[2]
    'Query: Who wrote Faust?'
    """
    return RELEVANCE.replace("{query}", query)
