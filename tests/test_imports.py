"""The direction of imports: a room imports from rooms below it only, and no two modules import each
other. And what every module has: a test file, 500 lines at most, only names that are defined."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import grit_jax

PACKAGE = Path(grit_jax.__file__).parent
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


def module_imports(path: Path, modules: frozenset[str]) -> set[str]:
    """The modules of the package that a file imports when it runs, within functions too."""
    imported = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                imported.add(name if name in modules else node.module)
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return imported & modules


def test_no_modules_import_each_other():
    """Neither directly nor by way of others, and not within functions either."""
    paths = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in files()
    }
    imports = {name: module_imports(path, frozenset(paths)) for name, path in paths.items()}
    # Modules that import nothing that is left are in no circle; what remains imports each other.
    while free := [name for name, imported in imports.items() if not imported & imports.keys()]:
        for name in free:
            del imports[name]
    circles = {
        name: sorted(imported & imports.keys())
        for name, imported in imports.items()
        if any(name in imports[other] for other in imports)
    }
    assert not circles


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


def test_every_module_has_its_test_file():
    """`grit_jax/rag/index.py` is tested by `tests/rag/test_index.py`, and so on."""
    tests = Path(__file__).parent
    modules = [p.relative_to(PACKAGE) for p in files() if not p.name.startswith("__")]
    expected = [module.with_name(f"test_{module.name}") for module in modules]
    assert not [str(path) for path in expected if not (tests / path).is_file()]


PACKAGES = ["grit_jax"] + [
    module.name for module in pkgutil.walk_packages(grit_jax.__path__, "grit_jax.") if module.ispkg
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_listed_name_exists(name):
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    names = getattr(package, "__all__", ())
    assert names, f"{name} lists no public names"
    # A module sets an attribute of its package when it is imported, and would hide the name.
    assert not modules & set(names)
    for public in names:
        assert getattr(package, public) is not None
        assert public in dir(package)


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those of everything defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_global_name_is_defined(path):
    """The linter cannot look: to it, shapes such as "B T" are names that nobody defines."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name.removesuffix(".__init__"))
    known = vars(module).keys() | vars(builtins).keys()
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    used = {
        instruction.argval
        for part in code_objects(code)
        for instruction in dis.get_instructions(part)
        if instruction.opname == "LOAD_GLOBAL"
    }
    assert not used - known
