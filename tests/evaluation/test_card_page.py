"""A card as Markdown and as a page: every figure and command, and nothing unescaped."""

from __future__ import annotations

import html.parser
import json

from grit_jax.evaluation.card import EvalRecord, make_card
from grit_jax.evaluation.card_page import html as page_of
from grit_jax.evaluation.card_page import markdown, write_card

CARD = make_card(
    [
        EvalRecord("rag", "a|b<i>", "grit eval rag 'a|b<i>'", "2026", {"doc": {"match": 0.25}}),
        EvalRecord(
            "perplexity", "other", "grit eval perplexity other", "2026", {"perplexity": 3.0}
        ),
    ]
)


class Texts(html.parser.HTMLParser):
    """The cells of each row, and the code blocks."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.code, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & {*self.open} and self.rows:
            self.rows[-1][-1] += data.strip()
        if "code" in self.open:
            self.code.append(data)


def test_both_forms_say_the_same(tmp_path):
    rows = [line.split(" | ") for line in markdown(CARD).splitlines() if line.startswith("| ")]
    page = Texts(page_of(CARD))
    cells = ["rag", "a|b<i>", "questions file", "match, layout doc", "25.00", "33.38"]
    assert [row[:6] for row in page.rows if row[0] == "rag"] == [cells]
    [shown] = [row for row in rows if row[0] == "| rag"]
    assert [cell.removeprefix("| ").replace("\\|", "|") for cell in shown[:6]] == cells
    assert shown[1] == "a\\|b<i>"  # a bar of its own would end the cell
    assert page.code == ["grit eval rag 'a|b<i>'", "grit eval perplexity other"]
    assert "grit eval perplexity other" in markdown(CARD)
    assert len(page.rows) == 2 + len(CARD["figures"]) + len(CARD["paper"]["figures"])
    write_card(tmp_path / "card", CARD)
    assert json.loads((tmp_path / "card/card.json").read_text()) == CARD
    assert (tmp_path / "card/card.html").read_text() == page_of(CARD)
