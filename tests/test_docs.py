"""The documents name the tests behind what they promise: those have to exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_documents_do_name_tests() -> None:
    assert len(list(proofs(ROOT / "docs" / "guarantees.md"))) > 100
