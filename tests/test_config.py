"""Mount options and the default state directory."""

import os
from pathlib import Path

import pytest

from fusenotify.config import MountFlag, MountOptions, default_state_dir, flag_names, parse_mount_options
from fusenotify.errors import UsageError

_SAFE = MountFlag.NOSUID | MountFlag.NODEV


def test_without_options_a_mount_is_nosuid_nodev_and_checks_permissions() -> None:
    options = parse_mount_options([])
    assert options == MountOptions()
    assert options.flags == _SAFE
    assert options.kernel_data() == ("default_permissions",)


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        (["ro"], _SAFE | MountFlag.RDONLY),
        (["ro,rw"], _SAFE),
        (["rw", "ro"], _SAFE | MountFlag.RDONLY),
        (["suid,dev"], MountFlag(0)),
        (["dev,suid", "nosuid"], MountFlag.NOSUID),
        (["noexec,sync,dirsync"], _SAFE | MountFlag.NOEXEC | MountFlag.SYNCHRONOUS | MountFlag.DIRSYNC),
        (["noexec,exec,sync,async"], _SAFE),
        (["noatime,relatime"], _SAFE | MountFlag.RELATIME),
        (["relatime,strictatime,nodiratime"], _SAFE | MountFlag.STRICTATIME | MountFlag.NODIRATIME),
        (["noatime,atime,nodiratime,diratime"], _SAFE),
    ],
)
def test_flags_add_up_and_the_last_word_wins(values: list[str], flags: MountFlag) -> None:
    assert parse_mount_options(values).flags == flags


def test_flag_names_are_what_would_set_the_flags() -> None:
    options = parse_mount_options(["ro,noatime,suid"])
    assert set(flag_names(options.flags)) == {"ro", "noatime", "nodev"}
    assert parse_mount_options(flag_names(options.flags)).flags == options.flags | MountFlag.NOSUID


def test_our_own_switches_and_values() -> None:
    options = parse_mount_options(["allow_other,watch_other", "exclusive,allow_non_empty,max_read=65536,fsname=data"])
    assert options.allow_other
    assert options.watch_other
    assert options.exclusive
    assert options.allow_non_empty
    assert options.fsname == "data"
    assert options.kernel_data() == ("default_permissions", "allow_other", "max_read=65536")


def test_an_escaped_comma_belongs_to_the_value() -> None:
    options = parse_mount_options([r"fsname=a\,b\\c=d,ro"])
    assert options.fsname == r"a,b\c=d"
    assert options.flags & MountFlag.RDONLY


def test_what_mount_and_fstab_pass_along_is_ignored() -> None:
    words = "defaults,_netdev,auto,noauto,nofail,user,user=me,x-systemd.automount,X-mount.mkdir=0755,comment=hello"
    assert parse_mount_options([words, "default_permissions,subtype=other,,", ""]) == MountOptions()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("alow_other", "Did you mean allow_other"),
        ("nonempty", "Did you mean allow_non_empty"),
        ("xyzzy", "unknown mount option 'xyzzy'. Known are: allow_other"),
        ("uid=0", "unknown mount option 'uid'"),
        ("ro=1", "'ro' takes no value"),
        ("exclusive=yes", "'exclusive' takes no value"),
        ("auto_unmount", "'auto_unmount' is not supported: after a crash"),
        ("allow_root", "use allow_other"),
        ("fsname", "fsname=NAME"),
        ("fsname=", "fsname=NAME"),
        ("max_read", "number of bytes"),
        ("max_read=4k", "'4k'"),
        ("max_read=0", "number of bytes"),
        ("max_read=4294967296", "number of bytes"),
        ("max_read=٤", "number of bytes"),
    ],
)
def test_what_makes_no_sense_is_named(word: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_mount_options(["ro", f"noexec,{word}"])
    assert said in str(raised.value)


def test_the_state_directory_follows_the_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    data = tmp_path / "my data é"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "other" / "my data é").mkdir(parents=True)
    found = default_state_dir(str(data))
    assert found.parent == tmp_path / "fusenotify"
    assert found.name.startswith("my_data__-")
    assert found == default_state_dir(str(tmp_path / "link")) == default_state_dir(f"{data}/../{data.name}/")
    assert found != default_state_dir(str(tmp_path / "other" / "my data é"))


def test_the_state_home_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_dir("/").parent == Path("/home/me/.local/state/fusenotify")
    assert default_state_dir("/").name.startswith("root-")


def test_root_keeps_its_state_where_no_user_can_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert default_state_dir("/srv").parent == Path("/var/lib/fusenotify")
