"""Every golden script, heard by each watcher and told by each transport (docs/golden-scripts.md)."""

from pathlib import Path

import pytest

from tests import golden
from tests.certificates import Authority

SCRIPTS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@pytest.mark.parametrize("watcher", ["inotify", "fanotify"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_golden(path: Path, watcher: str, directory: Path, authority: Authority) -> None:
    script = golden.parse(path.read_text(encoding="utf-8"))
    for transport, told in golden.play(script, directory, watcher, authority).items():
        expected, found = golden.compare(script.output_of(watcher), told)
        assert found == expected, f"{path.name}: this is not what the {transport} was to tell"
