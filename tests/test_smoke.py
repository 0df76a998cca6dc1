"""The main job in one breath."""

from collections.abc import Callable

from tests.harness import Mount, Watch, run


def test_changes_on_both_sides_are_heard_in_order(mount: Mount, watching: Callable[..., Watch]) -> None:
    watch = watching(mount.mountpoint)
    (mount.source / "behind").write_text("x")
    (mount.mountpoint / "before").mkdir()
    (mount.source / "behind").rename(mount.source / "before" / "moved")
    (mount.source / "end").touch()
    told = [(line["kind"], line["path"], line["origin"]) for line in watch.until("end")]
    assert told == [
        ("create", "behind", "remote"),
        ("modify", "behind", "remote"),
        ("close_write", "behind", "remote"),
        ("create", "before", "local"),
        ("rename", "before/moved", "remote"),
        ("create", "end", "remote"),
    ]


def test_umount_ends_the_daemon_although_somebody_watches(mount: Mount, watching: Callable[..., Watch]) -> None:
    watch = watching(mount.mountpoint)
    result = run("umount", mount.mountpoint)
    assert (result.returncode, result.stderr) == (0, "")
    assert mount.process.wait(1) == 0
    assert [line["kind"] for line in watch.rest()] == ["unmount"]
    assert "gone" in watch.errors()
    assert watch.process.returncode == 5
