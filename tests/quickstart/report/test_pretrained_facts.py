"""The sentences about a pretrained model, from made-up reports only."""

from __future__ import annotations

from pretrained_fixture import made_up_pretrained, made_up_pretrained_json

from grit_jax.quickstart.report import pretrained_facts as facts


def test_what_was_opened_and_trained():
    report = made_up_pretrained()
    assert "smollm2-grit, a language model of 135 million parameters" in facts.headline(report)
    assert "13.5 minutes" in facts.headline(report) or "14 minutes" in facts.headline(report)
    assert facts.origin(report).startswith("It is smollm2 with the adapter")
    assert "trained for 7 more steps" in facts.origin(report)
    model = made_up_pretrained_json()["model"] | {"base": None}
    plain = facts.origin(made_up_pretrained(model=model, training=None))
    assert "taken as it is" in plain and plain.endswith("Nothing was trained here.")


def test_each_pool_and_what_was_not_done():
    report = made_up_pretrained()
    names, packages = facts.retrieval_sentences(report)
    assert "120 of 673 queries, each for its one document among 401" in names
    for number in ("0.812", "0.654", "0.789"):
        assert number in names
    assert packages.startswith("Held-out packages: 80 of 673") and "0.723" in packages
    kinds = lambda report: [key for key, _, _ in facts.systems(report.retrieval["names"])]
    assert kinds(report) == ["before", "dense", "bm25", "hybrid"]
    tree = made_up_pretrained_json()["retrieval"]["names"]
    alone = made_up_pretrained(retrieval={"names": tree | {"before": None}})
    assert kinds(alone) == ["dense", "bm25", "hybrid"]
    assert len(facts.retrieval_sentences(alone)) == 1 and "(held-out packages)" not in facts.cuts(
        alone
    )


def test_perplexity_beside_what_there_is():
    language = made_up_pretrained_json()["language"]
    assert "is 11.1 (13.3 for smollm2, 12.2 before" in facts.language_sentence(made_up_pretrained())
    alone = made_up_pretrained(language=language | {"base": None, "before": None})
    assert facts.language_sentence(alone).endswith("60 of 1,190 held-out documents is 11.1.")


def test_every_cut_is_counted():
    text = facts.cuts(made_up_pretrained())
    for part in (
        "120 of 673 queries (held-out names)",
        "80 of 673 queries (held-out packages)",
        "60 of 1,190 texts",
        "32 of 421 questions",
        "909 of 1,190 documents in the index",
    ):
        assert part in text
    assert facts.limits(made_up_pretrained())[0] == text
