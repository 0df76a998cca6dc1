"""Every golden script, as told by the queue file and by the unix socket (docs/golden-scripts.md)."""

from pathlib import Path

import pytest

from tests import golden

SCRIPTS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_golden(path: Path, directory: Path) -> None:
    script = golden.parse(path.read_text(encoding="utf-8"))
    for transport, told in golden.play(script, directory).items():
        expected, found = golden.compare(script.output, told)
        assert found == expected, f"{path.name}: this is not what the {transport} was to tell"
