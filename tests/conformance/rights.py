"""Who may do what, and whose what is made is: modes, ACLs, the umask, set-id bits."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fusenotify import _linux
from tests.conformance.tools import (
    ACCESS_ACL,
    DEFAULT_ACL,
    UTIME_NOW,
    acl,
    acl_for,
    fails,
    folder,
    mode_of,
    owner_of,
    rename2,
    truncate_open,
    with_mode,
    write_to,
)
from tests.users import GROUP, Users, write_file

# --- who may do what --------------------------------------------------------------------------------------------------


def check_sticky_directories(root: Path, users: Users) -> None:
    place = folder(root / "sticky", 0o1777)
    users.alice(write_file, place / "hers")
    users.alice(os.mkdir, place / "dir")
    users.bob(write_file, place / "his")
    for call in (os.unlink, os.rmdir):
        fails(errno.EPERM, users.bob, call, place / ("hers" if call is os.unlink else "dir"))
    fails(errno.EPERM, users.bob, os.rename, place / "hers", place / "x")
    fails(errno.EPERM, users.bob, os.rename, place / "his", place / "hers")
    fails(errno.EPERM, users.bob, rename2, place / "his", place / "hers", _linux.RENAME_EXCHANGE)
    users.alice(os.rename, place / "hers", place / "still hers")
    users.bob(os.unlink, place / "his")
    os.chown(place, users.bob.uid, 0)
    users.bob(os.unlink, place / "still hers")  # it is his directory now
    users.alice(os.rmdir, place / "dir")


def check_set_group_id_directories(root: Path, users: Users) -> None:
    place = folder(root / "shared", 0o2777, gid=GROUP)
    for number, user in enumerate(users.all):
        name = place / str(number)
        user(write_file, name)
        user(os.mkdir, name.with_suffix(".d"))
        user(os.mkfifo, name.with_suffix(".p"))
        user(os.symlink, "x", name.with_suffix(".l"))
        for made in (name, *(name.with_suffix(suffix) for suffix in (".d", ".p", ".l"))):
            assert owner_of(made) == (user.uid, GROUP)
        assert mode_of(name.with_suffix(".d")) == 0o2755


def check_set_group_id_is_for_members(root: Path, users: Users) -> None:
    place = folder(root / "shared", 0o2777, gid=GROUP)
    for user, kept in ((users.alice, 0o2000), (users.bob, 0), (users.root, 0o2000)):
        path = place / str(user.uid)
        user(os.umask, 0)
        user(os.close, user(os.open, path, os.O_CREAT | os.O_WRONLY, 0o2775))
        assert mode_of(path) == 0o775 | kept
        user(os.chmod, path, 0o2755)
        assert mode_of(path) == 0o755 | kept


def check_new_files_belong_to_their_maker(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for user in users.all:
        path = place / str(user.uid)
        user(write_file, path)
        user(os.link, path, path.with_suffix(".h"))
        user(os.mkdir, path.with_suffix(".d"))
        user(os.mknod, path.with_suffix(".n"), 0o600 | stat.S_IFREG)
        user(os.mknod, path.with_suffix(".s"), 0o600 | stat.S_IFSOCK)
        for made in place.glob(f"{user.uid}*"):
            assert owner_of(made) == (user.uid, user.gid)


def check_permissions_of_classes(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    with_mode(place / "owner", 0o400, users.alice.uid)
    with_mode(place / "group", 0o040, 0, GROUP)
    with_mode(place / "others", 0o004)
    with_mode(place / "not owner", 0o044, users.alice.uid)
    for name, reads in (("owner", "a"), ("group", "a"), ("others", "ab"), ("not owner", "b")):
        for letter, user in (("a", users.alice), ("b", users.bob)):
            if letter in reads:
                assert user(Path.read_bytes, place / name) == b"data"
            else:
                fails(errno.EACCES, user, Path.read_bytes, place / name)
            fails(errno.EACCES, user, os.open, place / name, os.O_WRONLY)
            fails(errno.EACCES, user, os.open, place / name, os.O_RDONLY | os.O_TRUNC)
            fails(errno.EACCES, user, os.truncate, place / name, 0)
        assert (place / name).read_bytes() == b"data"


def check_supplementary_groups(root: Path, users: Users) -> None:
    place = folder(root / "team", 0o770, gid=GROUP)
    users.alice(write_file, place / "hers", b"x")
    assert users.alice(os.listdir, place) == ["hers"]
    fails(errno.EACCES, users.bob, os.listdir, place)
    fails(errno.EACCES, users.bob, os.stat, place / "hers")
    fails(errno.EACCES, users.bob, write_file, place / "his")
    users.alice(os.chown, place / "hers", -1, GROUP)
    assert owner_of(place / "hers") == (users.alice.uid, GROUP)
    with_mode(place / "rooted", 0o660, 0, GROUP)
    users.alice(write_file, place / "rooted", b"alice")
    users.alice(os.rename, place / "rooted", place / "moved")
    users.alice(os.unlink, place / "moved")


def check_search_permission(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o711)
    (place / "file").touch()
    fails(errno.EACCES, users.bob, os.listdir, place)
    assert users.bob(os.stat, place / "file").st_size == 0
    place.chmod(0o744)
    assert users.bob(os.listdir, place) == ["file"]
    fails(errno.EACCES, users.bob, os.stat, place / "file")
    fails(errno.EACCES, users.bob, os.chdir, place)


def check_changes_need_a_writable_directory(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o755)
    (place / "file").touch()
    (place / "sub").mkdir()
    mine = folder(root / "mine", 0o755, users.bob.uid)
    users.bob(write_file, mine / "x")
    calls: list[Callable[[], object]] = [
        partial(os.unlink, place / "file"),
        partial(os.rmdir, place / "sub"),
        partial(os.mkdir, place / "n"),
        partial(os.symlink, "x", place / "n"),
        partial(os.rename, place / "file", mine / "n"),
        partial(os.rename, mine / "x", place / "n"),
        partial(os.mkfifo, place / "n"),
        partial(os.link, mine / "x", place / "n"),
        partial(write_file, place / "n"),
        partial(os.rename, place / "file", place / "n"),
    ]
    for call in calls:
        fails(errno.EACCES, users.bob, call)
    assert sorted(os.listdir(place)) == ["file", "sub"]


def check_moving_a_directory_needs_to_write_it(root: Path, users: Users) -> None:
    """Its `..` changes (EACCES in rename(2))."""
    place = folder(root / "p", 0o777)
    (place / "q").mkdir()
    (place / "q").chmod(0o777)
    folder(place / "d", 0o755)
    fails(errno.EACCES, users.bob, os.rename, place / "d", place / "q" / "d")
    users.bob(os.rename, place / "d", place / "e")


def check_what_only_owners_may(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o666, users.alice.uid)
    calls: list[Callable[[], object]] = [
        partial(os.chmod, path, 0o777),
        partial(os.chown, path, users.bob.uid, -1),
        partial(os.chown, path, -1, users.bob.gid),
        partial(os.utime, path, (1, 1)),
        partial(os.setxattr, path, ACCESS_ACL, acl_for(users.bob, 7)),
    ]
    for call in calls:
        fails(errno.EPERM, users.bob, call)
    users.alice(os.chmod, path, 0o606)
    users.alice(os.utime, path, (1, 1))
    assert mode_of(path) == 0o606
    assert path.stat().st_mtime == 1


def check_changing_owner_as_an_ordinary_user(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644, users.alice.uid, users.alice.gid)
    fails(errno.EPERM, users.alice, os.chown, path, users.bob.uid, -1)
    fails(errno.EPERM, users.alice, os.chown, path, -1, users.bob.gid)
    users.alice(os.chown, path, users.alice.uid, GROUP)
    assert owner_of(path) == (users.alice.uid, GROUP)
    users.alice(os.chown, path, -1, -1)
    users.alice(os.chown, path, -1, users.alice.gid)
    assert owner_of(path) == (users.alice.uid, users.alice.gid)


def check_times_as_who_may_only_write(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o666, users.alice.uid)
    os.utime(path, (5, 5))
    users.bob(os.utime, path)
    assert path.stat().st_mtime > 1_000_000_000
    users.bob(set_times, path, UTIME_NOW, UTIME_NOW)
    fails(errno.EPERM, users.bob, set_times, path, _linux.UTIME_OMIT, UTIME_NOW)
    fails(errno.EPERM, users.bob, set_times, path, UTIME_NOW, 0)
    fails(errno.EPERM, users.bob, os.utime, path, (5, 5))
    users.bob(set_times, path, _linux.UTIME_OMIT, _linux.UTIME_OMIT)  # which asks for nothing
    path.chmod(0o644)
    fails(errno.EACCES, users.bob, os.utime, path)
    path.chmod(0)
    users.alice(os.utime, path)  # the owner may always


def set_times(path: Path, atime: int, mtime: int) -> None:
    """Call utimensat(2) with 0 seconds and these nanoseconds, UTIME_NOW and UTIME_OMIT among them."""
    times = struct.pack("4q", 0, atime, 0, mtime)
    if ctypes.CDLL(None, use_errno=True).utimensat(_linux.AT_FDCWD, os.fsencode(path), times, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def check_links_to_files_of_others(root: Path, users: Users) -> None:
    """With fs.protected_hardlinks, only of what one owns, or may read and write and is nothing special."""
    place = folder(root / "open", 0o777)
    with_mode(place / "private", 0o600)
    with_mode(place / "readable", 0o644)
    with_mode(place / "writable", 0o666)
    with_mode(place / "set-id", 0o4777)
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    for name, allowed in (("private", False), ("readable", False), ("writable", True), ("set-id", False)):
        if allowed or not protected:
            users.bob(os.link, place / name, place / f"link to {name}")
        else:
            fails(errno.EPERM, users.bob, os.link, place / name, place / f"link to {name}")
    fails(errno.EPERM, os.link, place, root / "directory")


def check_access(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o640, users.alice.uid, GROUP)
    assert users.alice(os.access, path, os.R_OK | os.W_OK)
    assert not users.alice(os.access, path, os.X_OK)
    assert users.bob(os.access, path, os.F_OK)
    assert not users.bob(os.access, path, os.R_OK)
    assert not os.access(path, os.X_OK)  # root needs one x at least
    path.chmod(0o641)
    assert os.access(path, os.X_OK)
    assert os.access(root, os.R_OK | os.W_OK | os.X_OK)
    assert not os.access(root / "none", os.F_OK)


def check_device_files_need_privilege(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        fails(errno.EPERM, users.alice, os.mknod, place / "device", 0o666 | kind, os.makedev(1, 3))
    os.mknod(place / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(place / "far", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    assert (place / "far").stat().st_rdev == os.makedev(259, 70000)
    assert stat.S_ISCHR((place / "null").stat().st_mode)


# --- the umask, ACLs, set-id bits -------------------------------------------------------------------------------------


def check_umask(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for user in users.all:
        for umask in (0, 0o022, 0o077, 0o707):
            user(os.umask, umask)
            base = place / f"{user.uid}-{umask}"
            user(os.close, user(os.open, base, os.O_CREAT | os.O_WRONLY, 0o6777))
            user(os.mkdir, base.with_suffix(".d"), 0o1777)
            user(os.mkfifo, base.with_suffix(".p"), 0o666)
            user(os.symlink, "x", base.with_suffix(".l"))
            assert mode_of(base) == 0o6777 & ~umask
            assert mode_of(base.with_suffix(".d")) == 0o1777 & ~umask
            assert mode_of(base.with_suffix(".p")) == 0o666 & ~umask
            assert mode_of(base.with_suffix(".l")) == 0o777


def check_a_default_acl_takes_the_place_of_the_umask(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o777)
    os.setxattr(place, DEFAULT_ACL, acl_for(users.bob, 6, mask=7, others=0))
    for user in users.all:
        user(os.umask, 0o077)
        path = place / str(user.uid)
        user(os.close, user(os.open, path, os.O_CREAT | os.O_WRONLY, 0o666))
        user(os.mkdir, path.with_suffix(".d"), 0o777)
        user(os.mkfifo, path.with_suffix(".p"), 0o640)
        assert mode_of(path) == 0o660
        assert mode_of(path.with_suffix(".d")) == 0o770
        assert mode_of(path.with_suffix(".p")) == 0o640
        assert os.getxattr(path, ACCESS_ACL) == acl(
            (1, 6, -1), (2, 6, users.bob.uid), (4, 5, -1), (16, 6, -1), (32, 0, -1)
        )
        assert os.getxattr(path.with_suffix(".d"), DEFAULT_ACL) == os.getxattr(place, DEFAULT_ACL)
        users.bob(write_file, path, b"bob may")


def check_an_acl_gives_and_takes_rights(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o600)
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    os.setxattr(path, ACCESS_ACL, acl_for(users.bob, 6))
    assert mode_of(path) == 0o770  # the mask stands where the group's bits were
    assert users.bob(Path.read_bytes, path) == b"data"
    users.bob(write_file, path, b"bob")
    fails(errno.EACCES, users.alice, Path.read_bytes, path)
    path.chmod(0o700)  # takes the mask away
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    assert os.getxattr(path, ACCESS_ACL) == acl_for(users.bob, 6, mask=0)
    path.chmod(0o770)
    assert users.bob(Path.read_bytes, path) == b"bob"
    os.setxattr(path, ACCESS_ACL, acl((1, 7, -1), (2, 0, users.bob.uid), (4, 7, -1), (16, 7, -1), (32, 7, -1)))
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    assert users.alice(Path.read_bytes, path) == b"bob"
    os.removexattr(path, ACCESS_ACL)
    fails(errno.ENODATA, os.getxattr, path, ACCESS_ACL)


def check_malformed_acls(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644)
    fails(errno.EINVAL, os.setxattr, path, ACCESS_ACL, acl((1, 7, -1), (2, 7, 5), (4, 7, -1), (32, 7, -1)))  # no mask
    fails(errno.EACCES, os.setxattr, path, DEFAULT_ACL, acl_for(users.bob, 7))  # no directory
    assert mode_of(path) == 0o644


def check_an_acl_of_only_the_classes_is_the_mode(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o600)
    os.setxattr(path, ACCESS_ACL, acl((1, 6, -1), (4, 4, -1), (32, 4, -1)))
    assert mode_of(path) == 0o644
    fails(errno.ENODATA, os.getxattr, path, ACCESS_ACL)


def check_set_id_bits_go_when_another_writes(root: Path, users: Users) -> None:
    changes: dict[str, Callable[[Path], None]] = {
        "write": lambda path: users.bob(write_to, path, b"x"),
        "truncate": lambda path: users.bob(os.truncate, path, 1),
        "ftruncate": lambda path: users.bob(truncate_open, path, 1),
        "O_TRUNC": lambda path: users.bob(write_file, path),
    }
    for name, change in changes.items():
        path = with_mode(root / name, 0o6777)
        change(path)
        assert mode_of(path) == 0o777, name
    path = with_mode(root / "not executable by the group", 0o2767)
    users.bob(write_to, path, b"x")
    assert mode_of(path) in (0o767, 0o2767)  # was a mark for mandatory locking; since 6.1 the kernel takes it as well


def check_set_group_id_without_execution_stays_for_members(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o2765, users.alice.uid, users.alice.gid)
    users.alice(write_to, path, b"x")
    users.alice(os.truncate, path, 1)
    users.alice(truncate_open, path, 1)
    assert mode_of(path) == 0o2765
    os.chown(path, users.bob.uid, GROUP)
    path.chmod(0o2765)
    users.alice(write_to, path, b"x")
    assert mode_of(path) == 0o2765
    users.alice(write_file, path)
    assert mode_of(path) == 0o2765


def check_set_group_id_goes_when_who_is_no_member_changes_the_owner(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o2745, users.bob.uid, GROUP)
    users.bob(os.chown, path, -1, -1)
    assert mode_of(path) == 0o745
    path.chmod(0o2745)
    users.bob(os.chown, path, -1, users.bob.gid)
    assert mode_of(path) == 0o745


def check_set_id_bits_stay_when_root_writes(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o6777)
    write_to(path, b"x")
    os.truncate(path, 1)
    assert mode_of(path) == 0o6777


def check_set_id_bits_go_with_the_owner(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o6777)
    os.chown(path, users.alice.uid, -1)
    assert mode_of(path) == 0o777
    path.chmod(0o6777)
    os.chown(path, -1, GROUP)
    assert mode_of(path) == 0o777
    place = folder(root / "d", 0o2777)
    os.chown(place, users.alice.uid, GROUP)
    assert mode_of(place) == 0o2777  # of a directory they mean something else


def check_capabilities_go_when_written(root: Path, users: Users) -> None:
    capability = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)
    path = with_mode(root / "file", 0o777)
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability
    write_to(path, b"x")
    fails(errno.ENODATA, os.getxattr, path, "security.capability")
    os.setxattr(path, "security.capability", capability)
    os.chown(path, users.alice.uid, -1)
    fails(errno.ENODATA, os.getxattr, path, "security.capability")
    fails(errno.EPERM, users.alice, os.setxattr, path, "security.capability", capability)
