"""No function takes more than eight parameters: what travels together is a dataclass."""

from __future__ import annotations

import ast
from pathlib import Path

import grit_jax

MOST = 8


def test_no_function_takes_more_than_eight_parameters():
    package = Path(grit_jax.__file__).parent
    longer = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            if (count := len(names) + len(node.args.kwonlyargs)) > MOST:
                longer.append(f"{path.relative_to(package)}:{node.lineno} {node.name}: {count}")
    assert not longer
