"""Every golden script, heard by each watcher and told by each transport (docs/golden-scripts.md)."""

from pathlib import Path

import pytest

from tests import golden

SCRIPTS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@pytest.mark.parametrize("watcher", ["inotify", "fanotify"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_golden(path: Path, watcher: str, directory: Path) -> None:
    script = golden.parse(path.read_text(encoding="utf-8"))
    for transport, told in golden.play(script, directory, watcher).items():
        expected, found = golden.compare(script.output_of(watcher), told)
        assert found == expected, f"{path.name}: this is not what the {transport} was to tell"
