"""A small folder of the form that `grit data pydocs` writes, of objects whose texts say their name."""

from __future__ import annotations

from pathlib import Path

from cli_world import write_lines

PACKAGES, MODULES, OBJECTS = ("alpha", "beta", "gamma"), ("m", "n"), 20


def write_corpus(folder: Path) -> Path:
    """What `grit data pydocs` writes of held-out objects: a third of them in packages that are held
    out whole."""
    for split, packages in (("heldout", PACKAGES[:2]), ("heldout_packages", PACKAGES[2:])):
        names = [
            f"{package}.{module}.f{i}" for package in packages for module in MODULES
            for i in range(OBJECTS)
        ]  # fmt: skip
        text = {name: f"f(x) Rest of {name.replace('.', ' ')}, with some words." for name in names}
        (folder / split).mkdir(parents=True)
        write_lines(
            folder / split / "documents.jsonl",
            *({"id": n, "title": n, "text": f"Sentence of {n}. {text[n]}"} for n in names),
        )
        write_lines(
            folder / split / "embedding.jsonl",
            *(
                {
                    "query": ["Find", f"Sentence of {name}."],
                    "pos": [["", f"{name} {text[name]}"]],
                    "neg": [["", f"{o} {text[o]}"] for o in (names[i - 1], names[i - 7])],
                }
                for i, name in enumerate(names)
            ),
        )
        write_lines(
            folder / split / "rag.jsonl",
            *(
                {
                    "docs": [f"{name} Sentence of {name}. {text[name]}"],
                    "text": [f"What does `{name}` return?", "It returns nothing."],
                    "answer": "nothing",
                }
                for name in names
            ),
        )
    return folder
