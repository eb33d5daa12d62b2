"""Reading documents from the sources of installed packages."""

import sys
import warnings

import pytest
from tqdm import tqdm

from grit_jax.pydocs import docstrings as pydocs

LONG = "and it says a few more words so that it is long enough to be kept."


@pytest.fixture
def package(tmp_path):
    """A package with re-exports, private modules, dataclasses, tests, and files that are not
    Python."""
    root = tmp_path / "grove"
    (root / "_impl").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "__init__.py").write_text(
        '"""The grove package, ' + LONG + '"""\nfrom grove._impl.trees import plant\n'
        "from grove.tools import Saw\nraise RuntimeError('imported')\n"
    )
    (root / "_impl" / "__init__.py").write_text("")
    (root / "_impl" / "trees.py").write_text(
        'def plant(seed, /, depth=0.25, *args, where="hill", **kwargs):\n    """Plants a seed. It'
        f' grows, {LONG}"""\ndef _hidden(x):\n    """Hidden, {LONG}"""\n'
    )
    (root / "tools.py").write_text(
        "import dataclasses\n"
        f'class Saw:\n    """A saw for wood, {LONG}"""\n'
        "    def __init__(self, teeth=32):\n        pass\n"
        f'    def cut(self, log, *, speed=1.5):\n        """Cuts the log, {LONG}"""\n'
        f'    @property\n    def sharp(self):\n        """Whether it is sharp, {LONG}"""\n'
        f'@dataclasses.dataclass\nclass Log:\n    """A log, {LONG}"""\n    length: float = 2.5\n'
        f'if True:\n    def branch(a, b=(1, 2)):\n        """Defined in a branch, {LONG}"""\n'
        'def short(x):\n    """Too short."""\n'
    )
    (root / "tests" / "test_x.py").write_text(f'"""Not documentation, {LONG}"""\n')
    (root / "test_y.py").write_text(f'"""Not documentation, {LONG}"""\n')
    (root / "broken.py").write_text("def (:\n")
    (root / "nulls.py").write_bytes(b'"""null \x00 bytes"""\n')
    (root / "latin.py").write_bytes(
        f'"""A caf\u00e9 without a coding line, {LONG}"""\n'.encode("latin-1")
    )
    (root / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (root / "empty.py").write_text("")
    (root / "escape.py").write_text(f'"""An invalid \\d escape, {LONG}"""\n')
    coded = f'# coding: latin-1\n"""A caf\u00e9 with a coding line, {LONG}"""\n'
    (root / "coded.py").write_bytes(coded.encode("latin-1"))
    return tmp_path


def read(folder):
    return pydocs.read_packages(
        ["grove", "absent", "absent.too"], path=[str(folder)], progress=False
    )


def test_public_names_signatures_and_parameters(package):
    documents = {d.id: d for d in read(package).documents}
    assert set(documents) == {
        "grove",
        "grove.plant",
        "grove.Saw",
        "grove.Saw.cut",
        "grove.Saw.sharp",
        "grove.tools.Log",
        "grove.tools.branch",
        "grove.escape",
        "grove.coded",
    }
    plant = documents["grove.plant"]
    assert plant.signature == "plant(seed, /, depth=0.25, *args, where='hill', **kwargs)"
    assert plant.parameters == (
        ("seed", None),
        ("depth", "0.25"),
        ("*args", None),
        ("where", "'hill'"),
        ("**kwargs", None),
    )
    assert (plant.kind, plant.package, plant.summary) == ("function", "grove", "Plants a seed.")
    assert plant.text.startswith(plant.signature + "\nPlants a seed. It grows")
    assert "Plants a seed" not in plant.text_without_summary
    assert documents["grove.Saw"].signature == "Saw(teeth=32)"
    assert documents["grove.Saw.cut"].signature == "cut(log, *, speed=1.5)"
    assert documents["grove.Saw.sharp"].signature == ""
    assert documents["grove.tools.Log"].parameters == (("length", "2.5"),)
    assert "caf\u00e9" in documents["grove.coded"].doc
    assert list(documents) == sorted(documents)


def test_unreadable_files_are_skipped_and_counted(package):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = read(package)
    assert (
        {"grove.broken", "grove.latin", "grove.nulls"}
        <= set(result.skipped)
        <= {"grove.broken", "grove.latin", "grove.nulls", "grove.deep"}
    )
    assert result.missing == ["absent", "absent.too"]


def test_nothing_is_imported(package):
    read(package)
    before = set(sys.modules)
    read(package)
    assert set(sys.modules) == before  # `grove` would raise


def test_namespace_and_nested_packages(tmp_path):
    inner = tmp_path / "space" / "inner"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text(f'"""Inner, {LONG}"""\n')
    read = pydocs.read_packages(["space.inner"], path=[str(tmp_path)], progress=False)
    assert [d.id for d in read.documents] == ["space.inner"]


def test_c_functions_documented_beside_them(tmp_path):
    root = tmp_path / "numlike"
    (root / "_core").mkdir(parents=True)
    (root / "__init__.py").write_text("from ._core import arange\n")
    (root / "_core" / "__init__.py").write_text("from .multi import *\n")
    (root / "_core" / "docs.py").write_text(
        'add_newdoc("numlike._core.multi", "arange", """\narange(start, step=3)\n--\n\nEvenly'
        f' spaced, {LONG}\n""")\nadd_newdoc("numlike._core.multi", "Array", ("T", """View of it,'
        f' {LONG}"""))\n'
    )
    documents = {
        d.id: d
        for d in pydocs.read_packages(["numlike"], path=[str(tmp_path)], progress=False).documents
    }
    assert documents["numlike.arange"].signature == "arange(start, step=3)"
    assert documents["numlike.arange"].doc.startswith("Evenly spaced")
    assert "numlike.multi.Array.T" in documents


def test_builtins_have_signatures():
    documents = {d.id: d for d in pydocs._builtin_documents()}
    assert documents["str.split"].signature == "split(sep=None, maxsplit=-1)"
    assert documents["math.isclose"].parameters[2:] == (("rel_tol", "1e-09"), ("abs_tol", "0.0"))


def test_standard_library_modules(monkeypatch):
    """A quick pass over real sources."""
    wanted = ("json", "textwrap", "heapq", "antigravity")
    files = [f for f in pydocs._files("python", None) if f[0].split(".")[0] in wanted]
    monkeypatch.setattr(pydocs, "_files", lambda package, path: files)
    tqdm.get_lock()  # the first bar of a process imports what it is made of
    before = set(sys.modules)
    documents = {d.id: d for d in pydocs.read_packages(["python"], progress=False).documents}
    assert set(sys.modules) == before
    assert documents["textwrap.wrap"].signature == "wrap(text, width=70, **kwargs)"
    assert (
        "json.JSONDecoder.raw_decode" in documents
        and "json.decoder.JSONDecoder.raw_decode" not in documents
    )
