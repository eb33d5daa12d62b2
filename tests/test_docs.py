"""The pages for people: links that lead somewhere, files that exist, commands that parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from grit_jax.cli.main import VERBS, build_parser

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "grit_jax"
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def fenced(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_begins_with_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    first, second = fenced(ROOT / "README.md")[:2]
    assert first == ("bash", "pip install -e .\ngrit quickstart\n")
    assert second == ("bash", "pip install -e '.[test]'\npytest -q -n 2\n")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_exist(page):
    """Files and folders of the repository in backticks; the two maps name them from the package."""
    if not PACKAGE.is_dir():
        pytest.skip("the package is installed elsewhere: there is no tree to compare with")
    is_map = page.name in ("ARCHITECTURE.md", "CONTRIBUTING.md")
    for name in re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8")):
        if name.startswith(("grit_jax/", "configs/", "docs/", "launch/", "tests/", ".ci/")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
        elif is_map and "/" in name and re.search(r"(\.py|/)$", name):
            assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"{page.name}: {name}"


def commands() -> list[tuple[str, str]]:
    """Every `grit` command of a shell block, a line each, and the page it is on."""
    found = []
    for page, name in zip(PAGES, IDS, strict=True):
        for language, content in fenced(page):
            if language == "bash":
                lines = [line.partition("  #")[0].strip() for line in content.splitlines()]
                lines = [re.sub(r"^(\w+=\S+ )+", "", line) for line in lines]
                found += [(name, line) for line in lines if line.startswith("grit ")]
    return found


@pytest.mark.parametrize("page,command", commands(), ids=[c for _, c in commands()])
def test_commands_parse(page, command):
    words = shlex.split(command)[1:]
    args, rest = build_parser().parse_known_args(words)
    assert args.verb == words[0]
    assert not rest or VERBS[args.verb].takes_overrides, f"{page}: {rest}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb):
    assert f"`grit {verb}" in (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_nothing_cites_what_a_clone_lacks():
    """Design notes and references live beside the repository, and nobody who clones it has them."""
    names = ("DESIGN", "grit" + ".md", "jax_idioms", "kv_" + "reuse.md", "ecosystem" + ".md")
    for folder in ("grit_jax", "configs", "docs", "launch", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".sh", ".ipynb") and path != Path(__file__):
                text = path.read_text(encoding="utf-8")
                assert not [name for name in names if name in text], path
