"""What a directory on a POSIX filesystem of Linux does: one behaviour each, for any directory.

Every function of the name `check_…` takes an empty directory, which root owns and everybody may enter, and the users
who act in it. The same functions run on tmpfs and ext4 to prove that they are right (test_conformance.py). The rules
are those of the manual pages of section 2, of path_resolution(7), acl(5), inode(7) and xattr(7), and of proc_sys_fs(5).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.conformance import attributes, contents, names, rights
from tests.users import Users

CHECKS: Final[dict[str, Callable[[Path, Users], None]]] = {
    name.removeprefix("check_"): check
    for module in (names, rights, attributes, contents)
    for name, check in vars(module).items()
    if name.startswith("check_")
}
