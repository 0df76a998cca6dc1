"""The documents name the tests behind what they promise, and link to each other: all of that has to exist."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusenotify
from tests.harness import run

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
_NAME = re.compile(r"`((?:golden/|conformance::)?[a-z_0-9*/:-]+)`")


def functions_of(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (\w+)", path.read_text(), re.MULTILINE))


CHECKS = {name for path in (TESTS / "conformance").glob("*.py") for name in functions_of(path)}


def proofs(document: Path) -> Iterator[tuple[str, bool]]:
    """Yield each name of a test in a document and whether there is one; a bare function is of the last file named."""
    functions: set[str] = set()
    for name in _NAME.findall(document.read_text()):
        if name.startswith("golden/"):
            yield name, any((TESTS / "golden").glob(name.removeprefix("golden/") + ".txt"))
            continue
        file, _, function = name.rpartition("::")
        if file == "conformance" or name.startswith("check_"):
            yield name, function in CHECKS
        elif name.startswith("test_"):
            path = TESTS / f"{file or name}.py"
            if path.exists():
                functions = functions_of(path)
                yield name, not file or function in functions
            else:
                yield name, name in functions


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    assert [name for name, exists in proofs(document) if not exists] == []


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    files = re.findall(r"`((?:docs|examples|tests|benchmarks|scripts)/[\w@./-]+\.\w+)`", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    assert [file for file in files if not (ROOT / file).exists() and "NAME" not in file] == []


def test_documents_do_name_tests() -> None:
    assert len(list(proofs(ROOT / "docs" / "guarantees.md"))) > 100


COMMANDS = ["mount", "umount", "serve", "watch", "since", "cursor", "snapshot", "status", "doctor"]


def test_the_help_texts_are_those_of_the_program() -> None:
    """Whatever the width at which they are wrapped."""
    document = (ROOT / "docs" / "commands.md").read_text()
    told = re.findall(r"^## fusenotify ?(\w*)\n\n```text\n(.*?)```", document, re.DOTALL | re.MULTILINE)
    assert [command for command, _ in told] == ["", *COMMANDS]
    for command, text in told:
        assert text.split() == run(*filter(None, [command]), "--help").stdout.split()


def test_the_library_is_described_in_full() -> None:
    document = (ROOT / "docs" / "python.md").read_text()
    words = set(re.findall(r"\w+", document))
    for function in (fusenotify.watch, fusenotify.open_group, fusenotify.Group.mark):
        assert set(inspect.signature(function).parameters) - {"self", "targets"} <= words
    attributes = {name for name in vars(fusenotify.Event) if not name.startswith("_")} - {"record"}
    methods = {name for name in vars(fusenotify.Group) if not name.startswith("_")}
    assert (attributes | methods | set(fusenotify.__all__)) - words == set()
    for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL):
        compile(block, "docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
