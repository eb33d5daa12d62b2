"""Pairs of query and passage, and which passages are no negatives."""

from grit_jax.pydocs import passages
from grit_jax.pydocs.documents import Document


def document(name, summary, rest):
    return Document(f"p.{name}", "function", f"{name}()", (), f"{summary}\n{rest}", "p")


def test_near_duplicates_are_no_negatives():
    shared = (
        "Sorts the given rows by the key, smallest first, and returns them as a new list of rows."
    )
    documents = [
        document("sort_a", "Sorts rows by a key.", shared),
        document("sort_b", "Sorts rows by one key.", shared + " Stable."),
        *(
            document(f"f{i}", f"Counts rows of kind {i}.", f"Rows are counted {i} times, " * 3)
            for i in range(12)
        ),
    ]
    rows = {row["query"][1]: row for row in passages.summary_rows(documents)}
    row = rows["Sorts rows by a key."]
    assert row["pos"][0][1].startswith("p.sort_a ") and shared in row["pos"][0][1]
    texts = [text for _, text in row["neg"]]
    assert len(texts) == passages.NEGATIVES
    assert not any(text.startswith(("p.sort_a", "p.sort_b")) for text in texts)


def test_judged_rows_are_a_seeded_part(monkeypatch):
    rows = [
        {
            "query": ["i", f"q{n}"],
            "pos": [["", f"good {n}"]],
            "neg": [["", f"bad {n} {i}"] for i in range(3)],
        }
        for n in range(30)
    ]
    monkeypatch.setattr(passages, "JUDGED_QUERIES", 10)
    judged = passages.judged_rows(rows, 0)
    assert len(judged) == 20 and judged == passages.judged_rows(rows, 0) != passages.judged_rows(
        rows, 1
    )
    assert all(
        row["docs"][0].split()[0] == {"yes": "good", "no": "bad"}[row["text"][1]] for row in judged
    )
