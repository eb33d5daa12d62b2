"""An evaluation card (`card.make_card`) as Markdown and as a page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grit_jax.runtime.files import writable_folder, write_json, write_text

NOTE = (
    "Figures are percentages unless they have three decimals. Those of the paper were measured on"
    " the data that stands beside them, which is not ours unless the names agree."
)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes `card.json`, `card.md` and `card.html`.

    Raises:
      GritError: a file cannot be written.
    """
    writable_folder(folder)
    write_json(folder / "card.json", card)
    write_text(folder / "card.md", markdown(card) + "\n")
    write_text(folder / "card.html", html(card))


def markdown(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    several = len(card["models"]) > 1
    head = ["", *(["model"] if several else []), "measured on", "figure", "ours"]
    head += [f"{card['paper']['model']}, paper", "paper's data", "run"]
    lines = [f"# {_title(card)}", "", NOTE, "", _row(head), _row(["---"] * len(head))]
    for figure in card["figures"]:
        cells = [figure["kind"], *([figure["model"]] if several else []), figure["data"]]
        cells += [figure["name"], figure["shown"], _paper(figure), figure["paper_data"]]
        lines.append(_row([*cells, str(figure["run"])]))
    lines += ["", "## Runs"]
    for number, run in enumerate(card["runs"], start=1):
        lines += ["", f"{number}. `{run['kind']}` of {run['model']}, {run['date']}", ""]
        lines += ["   ```bash", f"   {run['command']}", "   ```"]
    lines += [
        "",
        f"## {card['paper']['model']} in the paper",
        "",
        f"{card['paper']['source']}.",
        "",
    ]
    lines += [_row(["measured on", "figure", "%"]), _row(["---"] * 3)]
    lines += [_row([f["data"], f["name"], f"{f['value']}"]) for f in card["paper"]["figures"]]
    return "\n".join(lines)


def html(card: dict[str, Any]) -> str:
    """The card as a page that needs no other file."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        card=card, title=_title(card), note=NOTE, several=len(card["models"]) > 1, paper=_paper
    )


def _title(card: dict[str, Any]) -> str:
    return f"Evaluation of {', '.join(card['models'])}"


def _paper(figure: dict[str, Any]) -> str:
    return "" if figure["paper"] is None else f"{figure['paper']:.2f}"


def _row(cells: list[str]) -> str:
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; }
th, td { vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: #8881; overflow-x: auto; padding: .6rem; }
</style>
<main>
<h1>{{ title }}</h1>
<p>{{ note }}</p>
<div class="wide"><table>
<thead><tr><th scope="col">kind</th>
{% if several %}<th scope="col">model</th>{% endif %}
<th scope="col">measured on</th><th scope="col">figure</th><th scope="col" class="n">ours</th>
<th scope="col" class="n">{{ card.paper.model }}, paper</th><th scope="col">paper's data</th>
<th scope="col" class="n">run</th></tr></thead>
<tbody>
{% for f in card.figures %}
<tr><td>{{ f.kind }}</td>
{% if several %}<td>{{ f.model }}</td>{% endif %}
<td>{{ f.data }}</td><td>{{ f.name }}</td><td class="n">{{ f.shown }}</td>
<td class="n">{{ paper(f) }}</td><td>{{ f.paper_data }}</td>
<td class="n"><a href="#run-{{ f.run }}">{{ f.run }}</a></td></tr>
{% endfor %}
</tbody></table></div>
<h2>Runs</h2>
<ol>
{% for run in card.runs %}
<li id="run-{{ loop.index }}">{{ run.kind }} of {{ run.model }}, {{ run.date }}
<pre><code>{{ run.command }}</code></pre></li>
{% endfor %}
</ol>
<h2>{{ card.paper.model }} in the paper</h2>
<p>{{ card.paper.source }}.</p>
<div class="wide"><table>
<thead><tr><th scope="col">measured on</th><th scope="col">figure</th>
<th scope="col" class="n">%</th></tr></thead>
<tbody>
{% for f in card.paper.figures %}
<tr><td>{{ f.data }}</td><td>{{ f.name }}</td><td class="n">{{ f.value }}</td></tr>
{% endfor %}
</tbody></table></div>
</main>
</html>
"""
