"""The question of reranking."""

from grit_jax.text.relevance import relevance_question


def test_braces_of_a_query_stay():
    question = relevance_question("what does {query} or {x} do?")
    assert "Query: what does {query} or {x} do?\n" in question
    assert question.endswith(
        "Answer with yes if the context is relevant to the query, and no otherwise."
    )
