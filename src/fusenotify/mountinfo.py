"""Which mounts there are, and who keeps one busy: everything that /proc tells about mounts.

Nothing here touches a file on a mount (no stat, no open): a daemon that hangs, or is dead, must not take its observers
with it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fusenotify.config import QUEUE_FILE

FS_TYPE: Final = "fuse.fusenotify"


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/self/mountinfo, escapes resolved.

    Attributes:
        mount_id, parent_id: the kernel's numbers of this mount and of the one it is mounted on.
        device: "major:minor" of the filesystem.
        root: the path inside the filesystem that is mounted, "/" unless it is a bind mount of a part.
        mountpoint: absolute path.
        fs_type: such as "fuse.fusenotify".
        source: what was mounted; for our mounts the fsname.
        super_options: options of the filesystem, such as "user_id=0".
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether this is a fusenotify mount."""
        return self.fs_type == FS_TYPE

    def holds(self, path: str) -> bool:
        """Return whether an absolute path is the mountpoint or below it, as text."""
        return is_below(path, self.mountpoint)


@dataclass(frozen=True)
class Holder:
    """A process that keeps a mount busy: `what` says with what, such as "open file /mnt/a"."""

    pid: int
    name: str
    what: str
    path: str

    @property
    def is_queue(self) -> bool:
        """Whether it is only a watcher of ours, which holds the queue file."""
        return self.path.endswith("/" + QUEUE_FILE)

    def __str__(self) -> str:
        return f"{self.name} ({self.pid}): {self.what} {self.path}"


def is_below(path: str, directory: str) -> bool:
    """Return whether an absolute path is `directory` or something below it, as text."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def read_mounts() -> list[MountEntry]:
    """Return every mount that this process sees, in the kernel's order."""
    with open("/proc/self/mountinfo", "rb") as table:
        return [parse_mountinfo_line(os.fsdecode(line)) for line in table]


def parse_mountinfo_line(line: str) -> MountEntry:
    """Read one line of mountinfo (proc(5)): optional fields end with a single hyphen."""
    # Only the space separates: Unicode's other blanks are not escaped, and a source may be empty.
    fields = line.rstrip("\n").split(" ")
    mount_id, parent_id, device, root, mountpoint = fields[:5]
    after = fields.index("-", 6) + 1
    fs_type, source, super_options = fields[after : after + 3]
    return MountEntry(
        int(mount_id),
        int(parent_id),
        device,
        _unescape(root),
        _unescape(mountpoint),
        _unescape(fs_type),
        _unescape(source),
        tuple(_unescape(super_options).split(",")),
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def find_mounts() -> list[MountEntry]:
    """Return the fusenotify mounts that this process sees, bind mounts of their parts included."""
    return [mount for mount in read_mounts() if mount.is_ours]


def mount_of(path: str) -> MountEntry | None:
    """Return the fusenotify mount that a real absolute path lies on, None when it lies on another filesystem."""
    mount = mount_at(path, read_mounts())
    return mount if mount is not None and mount.is_ours else None


def mount_at(path: str, mounts: Iterable[MountEntry]) -> MountEntry | None:
    """Return the mount that a real absolute path lies on.

    The kernel's own walk: at each mount take the first child on the way, so that what is covered by a later mount
    higher up does not count. None only when not even "/" is in the table (a chroot).
    """
    mounts = list(mounts)
    ids = {mount.mount_id for mount in mounts}
    children: dict[int | None, list[MountEntry]] = {}
    for mount in mounts:
        parent = mount.parent_id if mount.parent_id in ids and mount.parent_id != mount.mount_id else None
        children.setdefault(parent, []).append(mount)
    found: MountEntry | None = None
    while True:
        below = children.get(found.mount_id if found else None, ())
        on_the_way = [child for child in below if child.holds(path)]
        if not on_the_way:
            return found
        shortest = min(len(child.mountpoint) for child in on_the_way)
        found = [child for child in on_the_way if len(child.mountpoint) == shortest][-1]


def mount_id_of(fd: int) -> int:
    """Return the number of the mount that a descriptor was opened on, without touching what it is of."""
    lines = _read(f"/proc/self/fdinfo/{fd}").splitlines()
    return next((int(line.removeprefix("mnt_id:")) for line in lines if line.startswith("mnt_id:")), -1)


def is_inside(path: str, directory: str, mounts: list[MountEntry]) -> bool:
    """Return whether a real path is in a directory: by name, or by its place on the filesystem.

    The second sees through bind mounts: what is mounted on one name may show up under the other.
    """
    if is_below(path, directory):
        return True
    device, place = _place(path, mounts)
    other_device, other_place = _place(directory, mounts)
    return device == other_device and is_below(place, other_place)


def _place(path: str, mounts: list[MountEntry]) -> tuple[str, str]:
    mount = mount_at(path, mounts)
    if mount is None:
        return "", path
    return mount.device, os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.mountpoint)))


def find_holders(mount: MountEntry) -> list[Holder]:
    """Return the processes, as far as we may see them, that keep a mount from being unmounted."""
    own_namespace = _readlink("/proc/self/ns/mnt")
    holders: list[Holder] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # In another mount namespace the same path is another mount, which does not keep this one busy.
        if _readlink(f"/proc/{pid}/ns/mnt") == own_namespace:
            holders += _holders_in(pid, mount)
    return holders


def _holders_in(pid: str, mount: MountEntry) -> Iterator[Holder]:
    name = _read(f"/proc/{pid}/comm").strip() or "?"
    for what, path in (*_places(pid), *_open_files(pid, mount), *_mapped_files(pid, mount)):
        if mount.holds(path):
            yield Holder(int(pid), name, what, path)


def _places(pid: str) -> Iterator[tuple[str, str]]:
    for what, link in (("working directory", "cwd"), ("root directory", "root"), ("running program", "exe")):
        yield what, _readlink(f"/proc/{pid}/{link}")


def _open_files(pid: str, mount: MountEntry) -> Iterator[tuple[str, str]]:
    for number in _listdir(f"/proc/{pid}/fd"):
        path = _readlink(f"/proc/{pid}/fd/{number}")
        # A file that was opened before the mount covered it has such a path too; the mount id tells.
        if mount.holds(path) and f"mnt_id:\t{mount.mount_id}\n" in _read(f"/proc/{pid}/fdinfo/{number}"):
            yield "open file", path


def _mapped_files(pid: str, mount: MountEntry) -> Iterator[tuple[str, str]]:
    major, minor = mount.device.split(":")
    device = f"{int(major):02x}:{int(minor):02x}"
    mapped: set[str] = set()
    for line in _read(f"/proc/{pid}/maps").split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[3] == device:
            # Here only a newline is escaped, and a backslash is not.
            mapped.add(_without_deleted(fields[5].replace("\\012", "\n")))
    for path in sorted(mapped):
        yield "mapped file", path


def _without_deleted(path: str) -> str:
    return path.removesuffix(" (deleted)")


def _readlink(link: str) -> str:
    try:
        return _without_deleted(os.readlink(link))
    except OSError:  # the process has gone, or it is not ours to look at
        return ""


def _listdir(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            return os.fsdecode(stream.read())
    except OSError:
        return ""


def mounted_anywhere(device: str) -> list[str]:
    """Return where a filesystem (`major:minor`) is mounted, in every mount namespace that we may look into."""
    seen: set[str] = set()
    places: list[str] = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            with open(f"/proc/{process}/mountinfo", errors="surrogateescape") as table:
                lines = table.readlines()
        except OSError:
            continue  # it has ended, or is not ours to look at
        seen.add(namespace)
        places += [fields[4] for fields in map(str.split, lines) if fields[2] == device]
    return places
