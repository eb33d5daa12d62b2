"""The direction of imports: rooms import from rooms below them only (DESIGN, section 2)."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "grit_jax"
BOTTOM = {"config", "flags", "hosts", "output", "sharding", "supervision", "types", "metrics", "preemption", "progress", "trackers"}
# Room -> the rooms it may import beside itself and the bottom ones.
ALLOWED = {
    "data": set(),
    "models": set(),
    "training": {"models"},
    "inference": {"data", "models"},
    "rag": {"inference", "data", "models"},
    "evaluation": {"rag", "inference", "data", "models"},
    "report": set(),
    "train": {"run_config", "training", "evaluation", "inference", "data", "models"},
    "abstract": {"train", "run_config", "training", "data", "models"},
    "run_config": {"training", "data", "models"},
    "quickstart": {"train", "run_config", "report", "training", "evaluation", "rag", "inference", "data", "models"},
    "plan": {"abstract", "run_config", "training", "inference", "data", "models"},
    "evidence": {
        "quickstart", "train", "run_config", "training", "evaluation", "rag", "inference", "data", "models",
    },
    "bench": {"rag", "inference", "training", "data", "models"},
    "parser": set(),
    "cli": {
        "parser", "bench", "plan", "quickstart", "evidence", "train", "run_config", "report", "evaluation", "rag",
        "inference", "data", "models",
    },
    "__main__": {"cli"},
    "__init__": {"inference"},
}


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
    allowed = BOTTOM | ALLOWED.get(room, set()) | {room}
    if room in BOTTOM:
        allowed = BOTTOM
    elif room not in ALLOWED:
        pytest.fail(f"{relative} stands in no room of the plan")
    assert imports_of(path) <= allowed


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_torch_tensorflow_or_pickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"torch", "tensorflow", "pickle", "transformers"}


def test_a_file_holds_one_idea():
    long = {str(p.relative_to(PACKAGE)): n for p in files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_test_files_have_names_of_their_own():
    """pytest takes two files of one name for the same module, and collects neither when both are asked for."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
