"""The checks of `conformance`: on the mount, and on the filesystems behind it, to prove that they are right."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance import CHECKS
from tests.filesystems import filesystem
from tests.harness import mounted
from tests.users import Users, users


@pytest.fixture(scope="module")
def everybody() -> Iterator[Users]:
    """Who acts."""
    with users() as who:
        yield who


@pytest.fixture(scope="module", params=["tmpfs", "ext4", "mount over tmpfs", "mount over ext4"])
def filesystem_root(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Path]:
    """A directory on each kind of filesystem."""
    with tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True) as name:
        place = Path(name)
        place.chmod(0o755)
        if request.param == "tmpfs":
            yield place
        elif request.param == "ext4":
            with filesystem("ext4", place) as root:
                yield root
        elif request.param == "mount over tmpfs":
            with mounted(place, ["-o", "allow_other,dev,suid"]) as mount:
                yield mount.mountpoint
        else:
            with (
                filesystem("ext4", place) as root,
                mounted(root, ["-o", "allow_other,dev,suid"]) as mount,
            ):
                yield mount.mountpoint


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_conformance(filesystem_root: Path, everybody: Users, check: Callable[[Path, Users], None]) -> None:
    root = Path(tempfile.mkdtemp(dir=filesystem_root))
    root.chmod(0o755)
    try:
        check(root, everybody)
    finally:
        everybody.rest()
