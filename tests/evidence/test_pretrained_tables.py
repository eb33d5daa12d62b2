"""The tables of the evidence on a pretrained model, from made-up scores."""

from __future__ import annotations

from evidence_scores import made_up_report

from grit_jax.evidence.pretrained_tables import cost_table, markdown


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_tables(tmp_path):
    text = markdown(made_up_report(tmp_path))
    tables = [cells(block) for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({len(row) for row in table}) == 1
    layouts, costs, packed, packed_costs, search, answers, *trained = tables
    assert layouts[0] == ["layout", "k = 1", "k = 3", "k = 3, reversed", "k = 5", "k = 5, reversed"]
    by = {row[0]: row[1:] for row in layouts}
    # The question-first reading layout is scored in one order, as are single documents.
    assert by["query-then-doc (no cache)"][2] == "" and by["doc"][2] == "78.0 ± 4.2"
    assert "Closed book: 30.0 ± 4.6. 100 of 400 held-out questions." in text
    row = next(row for row in costs if row[0] == "query-doc, k = 1, beside doc-then-query")
    assert row[1].startswith("+20.0 ± ") and row[3:] == ["2", "beyond"]
    assert [row[-1] for row in costs if "reversed beside" in row[0]] == [""] * 10
    assert (
        packed[0] == ["layout", "native", "int8", "int4", "pca2"] and packed[2][3] == "77.0 ± 4.2"
    )
    assert [row[-1] for row in packed_costs[2:5]] == ["within", "not decided", "within"]
    found = {row[0].partition(":")[0]: row[1:] for row in search}
    assert found["trained"][1:] == ["", ""] and found["unrelated"][1].startswith("+30.0 ± ")
    assert "50 of 300 held-out queries" in text
    shown = [row[1] for row in answers[2:8]]
    assert shown[1] == "none" and shown[4:] == ["1 example", "3 examples"]
    assert shown[3] == "unrelated: Translate the prior text into French"
    joint, joint_costs, distilled, undistilled, gains, *caches = trained
    assert joint[2:4] == [
        ["base", "", "50.0", "9.000", "3.000"],
        ["unified", "24", "50.0", "9.000", "3.000"],
    ]
    assert joint_costs[2][1:] == ["+1.0 ± 0.5", "+0.1 to +1.9", "2", "within"]
    assert "64 of 900 held-out texts (documentation) and 60 of 60 held-out texts (chat)" in text
    assert (distilled[4][:2], undistilled[4][:2]) == (["doc", "80.0 ± 4.0"], ["doc", "60.0 ± 4.9"])
    assert len(gains) == 2 + 11 and len(caches) == 2 and "Means over 2 seeds; 100 of 400" in text
    assert text.startswith("# Evidence on m\n")
    assert text.endswith("Made by:\n\n```bash\ngrit evidence --base m\n```\n")


def test_parts_that_were_not_run_are_left_out(tmp_path):
    report = made_up_report(tmp_path)
    for part in ("documents", "prompts", "joint", "cached"):
        del report[part]
    text = markdown(report)
    assert "## Compressed records" in text and "## Instructions" not in text and "k = 3" not in text


def test_a_cost_that_is_a_gain():
    cost = {"claim": "a beside b", "mean": -1.25, "standard_error": 0.5, "low": -2.0, "high": 0.1}
    assert cells(cost_table([cost]))[2] == ["a beside b", "-1.2 ± 0.5", "-2.0 to +0.1", "", ""]
