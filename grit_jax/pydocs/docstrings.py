"""The documentation of the Python packages installed here, read as a corpus.

Sources are parsed with `ast` and never imported, because importing a package can run anything
(threads, devices, prints).
"""

from __future__ import annotations

import _collections
import _functools
import _operator
import ast
import builtins
import dataclasses
import inspect
import io
import itertools
import logging
import math
import os
import re
import sys
import sysconfig
import time
import types
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from tqdm import tqdm

from grit_jax.pydocs.documents import (
    Document,
    parameters_of,
    parse_signature,
    render_signature,
    signature_items,
    source_text,
)
from grit_jax.pydocs.sections import plain_markup

logger = logging.getLogger(__name__)

STANDARD_LIBRARY = "python"
DEFAULT_PACKAGES = (STANDARD_LIBRARY, "numpy", "jax", "flax", "optax", "orbax.checkpoint", "grain")
# Held out whole, beside the held-out names of the others. Dependencies of the package.
DEFAULT_HELD_OUT_PACKAGES = ("jinja2", "rich", "tqdm")
MIN_CHARACTERS = 40  # shorter docstrings say no more than the name

_SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "__pycache__",
        "idlelib",
        "turtledemo",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "pydoc_data",
        "ensurepip",
        "examples",
        "benchmarks",
        "encodings",
    ]
)
# Modules built into every CPython, and the names under which their contents are documented.
_BUILTIN = (
    (builtins, ""),
    (itertools, "itertools"),
    (math, "math"),
    (time, "time"),
    (sys, "sys"),
    (io, "io"),
    (_collections, "collections"),
    (_functools, "functools"),
    (_operator, "operator"),
    (sys.modules.get(os.name), "os"),
)


def _private(name: str) -> bool:
    return name.startswith("_")


@dataclasses.dataclass
class _Module:
    name: str
    package: str  # the name given by the caller: numpy, orbax.checkpoint, python
    is_package: bool
    # (name inside the module, document)
    documents: list[tuple[str, Document]] = dataclasses.field(default_factory=list)
    defined: set[str] = dataclasses.field(default_factory=set)
    # local name -> (module, name)
    imports: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    stars: list[str] = dataclasses.field(default_factory=list)
    # The names in `__all__`, and those imported as `X as X`.
    exported: set[str] = dataclasses.field(default_factory=set)

    @property
    def public(self) -> bool:
        return not any(map(_private, self.name.split(".")))

    def read(self, tree: ast.Module) -> None:
        doc = ast.get_docstring(tree) or ""
        head, _, tail = doc.partition("\n")
        # A title that only repeats the module's name is left out.
        if head.strip(" .:") in (self.name, self.name.rpartition(".")[2]):
            doc = tail
        self._add("", "module", "", (), doc)
        self._block(tree.body, "")

    def _add(
        self, name: str, kind: str, signature: str, parameters: tuple, doc: str | None
    ) -> None:
        doc = plain_markup(doc.strip()) if doc else ""
        if len(doc) >= MIN_CHARACTERS and "\x00" not in doc:
            self.documents.append(
                (name, Document(name, kind, signature, parameters, doc, self.package))
            )

    def _block(self, body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._function(node, owner)
            elif isinstance(node, ast.ClassDef):
                self._class(node, owner)
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                # Definitions may depend on the version or the platform.
                for field in ("body", "orelse", "finalbody"):
                    self._block(getattr(node, field, []), owner)
                for handler in getattr(node, "handlers", []):
                    self._block(handler.body, owner)
            elif not owner and isinstance(node, ast.ImportFrom):
                self._import(node)
            elif not owner and isinstance(node, (ast.Assign, ast.AugAssign)):
                self._all(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self._newdoc(node.value)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> None:
        if not owner:
            self.defined.add(node.name)
        if _private(node.name):
            return
        decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
        items = signature_items(node.args)
        if owner and items and items[0][0] in ("self", "cls", "mcs", "mcls", "klass"):
            items = [p for p in items[1:]]
            if items[:1] == [("/", None)]:
                items = items[1:]
        is_property = any(d in ("setter", "getter") or "property" in d for d in decorators)
        signature = "" if is_property else render_signature(node.name, items)
        self._add(
            f"{owner}{node.name}",
            "method" if owner else "function",
            signature,
            () if is_property else parameters_of(items),
            ast.get_docstring(node),
        )

    def _class(self, node: ast.ClassDef, owner: str) -> None:
        if not owner:
            self.defined.add(node.name)
        if _private(node.name):
            return
        doc, items = ast.get_docstring(node), []
        init = next(
            (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
        )
        like = " ".join(ast.unparse(n) for n in [*node.decorator_list, *node.bases])
        if init is not None:
            items = signature_items(init.args)[1:]
            doc = doc or ast.get_docstring(init)
        elif re.search(r"dataclass|NamedTuple|\bModule\b|PyTreeNode", like):
            fields = [
                n
                for n in node.body
                if isinstance(n, ast.AnnAssign)
                and isinstance(n.target, ast.Name)
                and not _private(n.target.id)
                and "ClassVar" not in ast.unparse(n.annotation)
            ]
            items = [(n.target.id, source_text(n.value)) for n in fields]
        signature = render_signature(node.name, items) if items else ""
        self._add(f"{owner}{node.name}", "class", signature, parameters_of(items), doc)
        self._block(node.body, f"{owner}{node.name}.")

    def _import(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        if node.level:
            parts = self.name.split(".")
            parts = parts[: len(parts) - node.level + self.is_package]
            source = ".".join(parts + ([node.module] if node.module else []))
        for alias in node.names:
            if alias.name == "*":
                self.stars.append(source)
                continue
            self.imports[alias.asname or alias.name] = (source, alias.name)
            if alias.asname == alias.name:  # a re-export in typed packages
                self.exported.add(alias.name)

    def _all(self, node: ast.Assign | ast.AugAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            self.exported.update(
                c.value
                for c in ast.walk(node.value)
                if isinstance(c, ast.Constant) and isinstance(c.value, str)
            )

    def _newdoc(self, call: ast.Call) -> None:
        """Reads numpy's documentation of C functions: `add_newdoc(module, name, doc | (attribute,
        doc) | [(attribute, doc)])`."""
        if not (
            isinstance(call.func, ast.Name) and call.func.id == "add_newdoc" and len(call.args) == 3
        ):
            return
        try:
            place, name, doc = map(ast.literal_eval, call.args)
        except ValueError:
            return
        if not f"{place}.{name}".replace(".", "").isidentifier():
            return
        for attribute, text in (
            [("", doc)] if isinstance(doc, str) else [doc] if isinstance(doc, tuple) else doc
        ):
            full = f"{name}.{attribute}" if attribute else name
            if any(map(_private, full.split("."))):
                continue
            text = inspect.cleandoc(text)
            call_text, items = "", []
            first, _, tail = text.partition("\n")
            if re.match(rf"(\w+\.)?{re.escape(full.rpartition('.')[2])}\(", first):
                head, _, after = (
                    text.partition("\n--\n") if "\n--\n" in text[:400] else text.partition("\n\n")
                )
                call_text, text = (
                    re.sub(r"^\w+\.(?=\w+\()", "", " ".join(head.split())),
                    after.strip(),
                )
                items = [p for p in parse_signature(call_text) if p[0] not in ("$self", "self")]
            self.defined.add(f"{place}:{name}")
            self._add(
                f"{place}:{full}",
                "method" if attribute else "function",
                render_signature(full.rpartition(".")[2], items) if items else call_text,
                parameters_of(items),
                text,
            )


# ---- all of them ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PackageDocuments:
    """The documents of packages, sorted by id; the files that do not parse (`skipped`) and the
    packages that are not installed (`missing`)."""

    documents: list[Document]
    skipped: list[str]
    missing: list[str]


def read_packages(
    packages: Sequence[str] = DEFAULT_PACKAGES,
    *,
    path: Sequence[str] | None = None,
    progress: bool = True,
) -> PackageDocuments:
    """Reads every docstring of `packages` without importing any of them.

    Packages that are not installed and files that do not parse are reported in the result; they
    raise no error.

    Args:
      packages: their names; `python` is the standard library.
      path: the folders to search, by default `sys.path`.
    """
    sources, missing = [], []
    for package in packages:
        files = list(_files(package, path))
        sources += [(package, *file) for file in files]
        if not files:
            missing.append(package)
    modules, skipped = [], []
    quiet = None if progress else True  # None: a bar only where there is a terminal
    for package, name, file in tqdm(
        sources, desc="reading documentation", unit="file", disable=quiet
    ):
        module = _Module(name, package, file.name == "__init__.py")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources
                module.read(ast.parse(file.read_bytes()))
        except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
            skipped.append(name)
            continue
        modules.append(module)
    documents = [*_named(modules)]
    if STANDARD_LIBRARY in packages:
        documents += _builtin_documents()
    best: dict[str, Document] = {}
    for (
        document
    ) in documents:  # an id may occur twice: a C function and its Python version, two platforms
        if document.id not in best or _preference(document) > _preference(best[document.id]):
            best[document.id] = document
    if missing:
        logger.warning("not installed, left out of the corpus: %s", ", ".join(missing))
    if skipped:
        logger.info("%d source files do not parse and were skipped", len(skipped))
    return PackageDocuments([best[name] for name in sorted(best)], sorted(skipped), missing)


def _preference(document: Document) -> tuple:
    return bool(document.signature), len(document.doc), document.doc, document.signature


def _files(package: str, path: Sequence[str] | None) -> Iterator[tuple[str, Path]]:
    """(module name, file) of a package's modules, in a fixed order. The parents of a nested package
    are located without importing them."""
    if package == STANDARD_LIBRARY:
        yield from _walk(Path(sysconfig.get_paths()["stdlib"]), "")
        return
    locations, name = path, ""
    for part in package.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, locations)
        if spec is None:
            return
        locations = spec.submodule_search_locations
    if locations is None:
        if spec.origin and spec.origin.endswith(".py"):
            yield package, Path(spec.origin)
        return
    for location in sorted(set(locations)):
        yield from _walk(Path(location), package)


def _walk(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if entry.is_dir():
            # The standard library's folder also holds build and configuration folders, which are
            # no packages.
            if (
                name not in _SKIPPED_FOLDERS
                and name.isidentifier()
                and (package or (entry / "__init__.py").exists())
            ):
                yield from _walk(entry, f"{package}.{name}" if package else name)
        elif name.endswith(".py") and not re.search(
            r"^test_|_tests?\.py$|^(conftest|__main__)\.py$|^_sysconfig", name
        ):
            stem = name[:-3]
            if stem == "__init__":
                yield package, entry
            elif stem.isidentifier():
                yield f"{package}.{stem}" if package else stem, entry


def _named(modules: Sequence[_Module]) -> Iterator[Document]:
    """Gives each document the name by which it is usually imported, from the re-exports of its
    package."""
    by_name = {module.name: module for module in modules}
    for module in modules:  # a C function may be documented in another module than its own
        for entry in [d for d in module.defined if ":" in d]:
            place, name = entry.split(":")
            by_name.setdefault(place, _Module(place, module.package, False)).defined.add(name)

    def resolve(module: str, name: str, depth: int = 0) -> tuple[str, str] | None:
        source = by_name.get(module)
        if source is None or depth > 8:
            return None
        if name in source.defined:
            return module, name
        if name in source.imports:
            return resolve(*source.imports[name], depth + 1)
        return next(filter(None, (resolve(star, name, depth + 1) for star in source.stars)), None)

    aliases: dict[tuple[str, str], set[str]] = {}
    for module in modules:
        if not module.public:
            continue
        # The imports of a package, or of a module that defines nothing, are re-exports.
        names = set(module.imports) if module.is_package or not module.defined else set()
        names |= module.exported
        for star in module.stars:
            starred = by_name.get(star)
            names |= (starred.exported or starred.defined) if starred else set()
        for name in names:
            if name.isidentifier() and not _private(name) and name not in module.defined:
                origin = resolve(module.name, name)
                if origin and by_name[origin[0]].package == module.package:
                    aliases.setdefault(origin, set()).add(f"{module.name}.{name}")

    for module in modules:
        for inner, document in module.documents:
            place, _, inner = inner.rpartition(":")
            place = place or module.name
            top, _, attribute = inner.partition(".")
            parts = place.split(".")
            public = [parts[0].lstrip("_"), *(p for p in parts[1:] if not _private(p))]
            natural = ".".join(public + [top] if top else public)
            hidden = any(map(_private, parts))
            names = {
                n
                for n in aliases.get((place, top), ())
                if hidden or place.startswith(n.rpartition(".")[0] + ".")
            }
            best = min(
                names,
                key=lambda n: (n.count("."), n.rpartition(".")[2] != top, len(n), n),
                default=natural,
            )
            yield dataclasses.replace(document, id=f"{best}.{attribute}" if attribute else best)


def _builtin_documents() -> Iterator[Document]:
    """The C functions and classes of `_BUILTIN`, under the names of Python's own documentation."""
    for module, public in _BUILTIN:
        for name, thing in sorted(vars(module).items() if module else ()):
            if _private(name) or not isinstance(thing, (type, types.BuiltinFunctionType)):
                continue
            if module is io and getattr(thing, "__module__", "") not in ("io", "_io"):
                continue
            members = {"": thing}
            if isinstance(thing, type) and not issubclass(thing, BaseException):
                members |= {n: m for n, m in sorted(vars(thing).items()) if not _private(n)}
            for member, value in members.items():
                doc = (
                    plain_markup(inspect.cleandoc(value.__doc__))
                    if isinstance(getattr(value, "__doc__", None), str)
                    else ""
                )
                if len(doc) < MIN_CHARACTERS:
                    continue
                call = re.sub(
                    r"\$\w+(, /)?(, )?", "", getattr(value, "__text_signature__", None) or ""
                )
                items = parse_signature(f"f{call}") if call else []
                full = ".".join(filter(None, (public, name, member)))
                kind = "method" if member else "class" if isinstance(thing, type) else "function"
                yield Document(
                    full,
                    kind,
                    render_signature(member or name, items) if items else "",
                    parameters_of(items),
                    doc,
                    STANDARD_LIBRARY,
                )
