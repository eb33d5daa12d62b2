"""The direction of imports: rooms import from rooms below them only (DESIGN, section 2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "grit_jax"
# The rooms from the highest to the lowest, as ARCHITECTURE.md draws them. A room imports from lower
# lines only; rooms of one line do not import each other.
LEVELS = (
    ("__main__",),
    ("cli",),
    ("evidence",),
    ("quickstart", "plan", "serving"),
    ("train",),
    ("run_model",),
    ("evaluation", "bench"),
    ("rag", "run_config"),
    ("inference", "training", "pydocs"),
    ("data", "models"),
    ("text", "sharding", "config"),
    ("runtime",),
    ("types",),
    ("errors", "lazy"),
)
LEVEL = {room: number for number, line in enumerate(LEVELS) for room in line}


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, as their first part after `grit_jax`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "grit_jax":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("grit_jax.")}
    return {name for name in found if not name.startswith("__version__")}


def files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the package's own names, imported on first use
    assert room in LEVEL, f"{relative} is in no room of ARCHITECTURE.md"
    lower = {name for name, number in LEVEL.items() if number > LEVEL[room]}
    assert imports_of(path) - {room, "__version__"} <= lower


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_torch_tensorflow_or_pickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {
            "torch",
            "tensorflow",
            "pickle",
            "transformers",
        }


def test_a_file_holds_one_idea():
    long = {
        str(p.relative_to(PACKAGE)): n
        for p in files()
        if (n := len(p.read_text().splitlines())) > 500
    }
    assert not long
