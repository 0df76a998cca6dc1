"""Ordinary programs do on the mount what they do on the directory behind it."""

import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.compare import assert_same, survey
from tests.harness import PATIENCE, Mount

# Each path of the test is replaced by its own, so that output from two places can be compared.
_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "TZ": "UTC",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def shell(script: str, where: Path, environment: Mapping[str, str] = {}) -> str:
    """Run a shell script in a directory and return what it says, with the directory itself called HERE."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        check=False,
        cwd=where,
        env={**_ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).replace(str(where), "HERE")


class Both:
    """A directory on the mount and a plain one beside the backing tree, to do the same in."""

    def __init__(self, mount: Mount, plain: Path) -> None:
        self.on_mount = mount.mountpoint / "work"
        self.behind = mount.source / "work"
        self.plain = plain
        self.on_mount.mkdir()
        self.plain.mkdir()

    def shell(self, script: str, environment: Mapping[str, str] = {}) -> str:
        """Run a script in both places; it has to say the same, which is returned."""
        plain = shell(script, self.plain, environment)
        assert shell(script, self.on_mount, environment) == plain
        return plain

    def run(self, function: Callable[[Path], object]) -> None:
        """Call a function with both places; it has to return the same."""
        assert function(self.on_mount) == function(self.plain)

    def compare(self, *, times: bool = False) -> None:
        """Compare both places, and both sides of the mount, where times and numbers are the same as well."""
        assert_same(survey(self.on_mount, times=times), survey(self.plain, times=times))
        assert_same(survey(self.on_mount, times=True, numbers=True), survey(self.behind, times=True, numbers=True))


@pytest.fixture
def both(mount: Mount, directory: Path) -> Both:
    return Both(mount, directory / "plain")


_TREE = """
mkdir -p tree/sub/deep tree/empty
printf 'one\\n' > tree/one; printf 'two\\n' > tree/sub/two; head -c 3000000 /dev/zero > tree/sub/deep/big
printf '#!/bin/sh\\necho hello\\n' > tree/script; chmod 755 tree/script
chmod 600 tree/one; chmod 2775 tree/sub; chmod 1777 tree/empty
ln -s ../one tree/sub/link; ln -s nowhere tree/dangling; ln tree/one tree/sub/hard
mkfifo tree/fifo
find tree -exec touch -h -d '2020-02-02 02:02:02.123456789' {} +
"""


def test_git(both: Both, directory: Path) -> None:
    origin = directory / "origin"
    origin.mkdir()
    shell(
        "git init -q -b main; mkdir -p a/b; for i in $(seq 200); do echo $i > a/f$i; done; ln -s f1 a/link;"
        "echo x > a/b/x; chmod 755 a/b/x; git add .; git commit -qm first",
        origin,
    )
    script = f"""
    git clone -q {origin} clone; cd clone
    echo changed >> a/f7; git mv a/f8 a/moved; rm a/f9; echo new > new
    git status --porcelain
    git add -A; git commit -qm second; git checkout -q -b other HEAD~1; echo more > more; git add more
    git commit -qm third; git merge -q -m merge main; git stash list
    git gc -q --prune=now; git fsck --full --strict; git rev-parse HEAD
    test -z "$(git status --porcelain)"; git diff-index --quiet HEAD
    """
    both.shell(script)
    skipped = ("index", "logs", "FETCH_HEAD", "objects/pack")  # hold times of their own

    def tree(root: Path) -> dict[str, object]:
        found = survey(root / "clone")
        return {path: entry for path, entry in found.items() if not any(word in path for word in skipped)}

    both.run(tree)
    both.run(lambda root: sorted(path.name for path in (root / "clone/.git/objects/pack").iterdir()))
    assert_same(survey(both.on_mount, times=True, numbers=True), survey(both.behind, times=True, numbers=True))


def _wheel(directory: Path) -> Path:
    path = directory / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny/__init__.py", "def main():\n    print('tiny works')\n")
        wheel.writestr("tiny/data.bin", bytes(range(256)) * 100)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\ntiny = tiny:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_python_venv_and_pip(both: Both, directory: Path) -> None:
    wheel = _wheel(directory)
    base = sys._base_executable  # type: ignore[attr-defined]  # a venv of this venv's interpreter
    said = both.shell(
        # The pip of the tests, as making another one takes long.
        f"{base} -m venv --without-pip env; pip='{sys.executable} -m pip --python env/bin/python -q --no-color';"
        f"PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $pip install --no-index {wheel};"
        "env/bin/tiny; env/bin/python -c 'import tiny; tiny.main()'; $pip uninstall -y tiny; test ! -e env/bin/tiny"
    )
    assert said.count("tiny works") == 2

    def tree(root: Path) -> dict[str, object]:  # without what names the place it was installed in
        return {path: entry[0] for path, entry in survey(root).items()}

    both.run(tree)
    assert_same(survey(both.on_mount, times=True), survey(both.behind, times=True))


_MAKEFILE = """
PARTS = f1.o f2.o f3.o f4.o
prog: main.o lib.a
\tcc -o $@ main.o lib.a
lib.a: $(PARTS)
\tar rcD $@ $^
%.o: %.c all.h
\tcc -O1 -c $<
clean:
\trm -f *.o lib.a prog
"""


def _write_c_program(root: Path) -> None:
    (root / "Makefile").write_text(_MAKEFILE)
    (root / "all.h").write_text("".join(f"int f{number}(void);\n" for number in range(1, 5)))
    for number in range(1, 5):
        (root / f"f{number}.c").write_text(f'#include "all.h"\nint f{number}(void) {{ return {number}; }}\n')
    body = '{ printf("%d\\n", f1() + f2() + f3() + f4()); return 0; }'
    (root / "main.c").write_text(f'#include <stdio.h>\n#include "all.h"\nint main(void) {body}\n')


def test_c_program_with_make(both: Both) -> None:
    both.run(_write_c_program)
    said = both.shell(
        "make -s -j4; ./prog; make -q; touch -d '1 hour ago' *; touch f2.c; ! make -q; make -s; ./prog; make -q"
    )
    assert said.split() == ["10", "10"]
    both.compare()
    both.shell("cp prog busy; ./busy > /dev/null; make -s clean; ls")
    both.compare()


_SQLITE_CLIENT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(100):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (?, ?)", (int(sys.argv[2]), number))
    connection.execute("UPDATE sum SET n = n + 1")
    connection.execute("COMMIT")
connection.close()
"""


def test_sqlite_in_wal_mode(both: Both) -> None:
    def use(root: Path) -> object:
        path = root / "database"
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        connection.execute("CREATE TABLE t (client, number)")
        connection.execute("CREATE TABLE sum (n)")
        connection.execute("INSERT INTO sum VALUES (0)")
        commands = [[sys.executable, "-c", _SQLITE_CLIENT, str(path), str(client)] for client in range(4)]
        clients = [subprocess.Popen(command) for command in commands]
        assert [client.wait(4 * PATIENCE) for client in clients] == [0] * 4
        result = connection.execute("SELECT count(*), count(DISTINCT client), (SELECT n FROM sum) FROM t").fetchone()
        checks = [
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone(),
            connection.execute("PRAGMA integrity_check").fetchone(),
        ]
        connection.close()
        return result, checks, sorted(entry.name for entry in root.iterdir())

    both.run(use)
    # The same, read behind the mount.
    connection = sqlite3.connect(both.behind / "database")
    assert connection.execute("SELECT n FROM sum").fetchone() == (400,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_tar_out_and_in(both: Both) -> None:
    both.shell(_TREE)
    said = both.shell("tar -cf tree.tar --sort=name tree; tar -tvf tree.tar --full-time; sha256sum tree.tar")
    assert "tree/sub/hard" in said
    both.shell("mkdir out; tar -xpf tree.tar -C out; tar -df tree.tar -C out; rm -r tree; tar -xpf tree.tar")
    both.compare()
    both.shell("find out tree ! -type d -printf '%p %t\\n' | sort")


def test_rsync_twice(both: Both) -> None:
    both.shell(_TREE)
    both.shell("rsync -aHX tree/ copy/; rsync -aHX --delete -i tree/ copy/")
    assert both.shell("rsync -aHX --delete -i tree/ copy/") == ""
    both.shell("echo more >> tree/one; rm tree/fifo; mkdir tree/new; touch -d 2021-01-01 tree/new tree/one tree; ")
    both.shell("rsync -aH --delete -i --no-inc-recursive tree/ copy/")
    assert both.shell("rsync -aHcn --delete -i tree/ copy/") == ""
    both.compare()


@pytest.mark.parametrize(
    "predicates",
    [
        "-type f", "-type d -empty", "-type l", "-xtype l", "-type p", "-size +1M", "-size -2c", "-perm -2000",
        "-perm /111 -type f", "-links +1 -type f", "-newermt 2020-02-01 ! -newermt 2020-02-03", "-name '*o*'",
        "-lname 'no*'", "-samefile tree/one", "-maxdepth 1", "-mindepth 2 -prune", "-depth", "-user root", "-readable",
        "-writable -executable", "-path '*deep*'", "-regex '.*/[a-z]*'",
    ],
)  # fmt: skip
def test_find(both: Both, predicates: str) -> None:
    both.shell(_TREE)
    what = "%p %y %Y %m %s %l %n %d %t %b %u %g\\n"
    said = both.shell(f"find tree {predicates} -printf '{what}' | sort")
    assert said
    assert both.shell("find tree -delete; ls -A") == ""


def test_editors(both: Both) -> None:
    def save_by_rename(root: Path) -> object:
        path = root / "file"
        path.write_text("old\n")
        path.chmod(0o640)
        fd = os.open(root / ".file.tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, b"new\n")
        os.fchmod(fd, 0o640)
        os.fsync(fd)
        os.close(fd)
        with path.open() as before:
            os.rename(root / ".file.tmp", path)
            seen = before.read()
        directory = os.open(root, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        return seen, path.read_text()

    def with_backup(root: Path) -> object:  # as vim with backupcopy=no
        path, probe, backup = root / "file", root / "4913", root / "file~"
        probe.touch(exist_ok=False)
        probe.unlink()
        os.rename(path, backup)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o640)
        os.write(fd, b"newer\n")
        os.fsync(fd)
        os.fchmod(fd, backup.stat().st_mode & 0o777)
        os.close(fd)
        backup.unlink()
        return path.read_text(), sorted(os.listdir(root))

    both.run(save_by_rename)
    both.run(with_backup)
    both.compare()
    vim = "vim -Nu NONE -es -c 'set backup writebackup bsk=' -c 's/newer/by vim/' -c wq file"
    both.shell(f"{vim} < /dev/null; cat file file~; ls -A")
    both.shell("printf '1s/vim/ed/\\nw\\nq\\n' | ed -s file; cat file")
    both.shell("sed -i s/by/with/ file; sed -i.bak s/with/By/ file; cat file*")
    both.compare()


def test_copies(both: Both) -> None:
    both.shell(_TREE)
    for script in (
        "cp -a tree copy; diff -r --no-dereference tree/sub copy/sub",
        "cp -al tree linked; cp -r --sparse=always tree/sub s",
        "mv tree moved; install -m 700 -D moved/one x/y/z; ln -sfn x/y here; cat here/z; truncate -s 5M x/y/sparse",
        "dd if=x/y/sparse of=x/y/dd bs=64k status=none; cmp x/y/sparse x/y/dd",
        "split -b 1M x/y/dd part; cat part* | cmp - x/y/dd",
    ):
        both.shell(script)
    both.shell("chmod -R u+X,g-w copy; chown -R 12:34 copy; stat -c '%n %a %u %g %s %F' copy copy/* copy/sub/*")
    both.compare()
    both.run(lambda root: {path: survey(root / "copy", times=True)[path][-1] for path in ("one", "sub/link", "fifo")})


def test_shared_mapping(both: Both) -> None:
    def use(root: Path) -> object:
        path = root / "mapped"
        path.write_bytes(bytes(100_000))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as other:
            one[10:15] = b"hello"
            other[50_000:50_005] = b"world"
            seen = [other[10:15], one[50_000:50_005]]
            one.flush()
            by_read = os.pread(file.fileno(), 5, 50_000)
            os.pwrite(file.fileno(), b"again", 99_995)
            seen.append(one[99_995:])
        return seen, by_read, path.read_bytes()

    both.run(use)
    both.compare()
    with (both.on_mount / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[10:15] == (both.behind / "mapped").read_bytes()[10:15] == b"hello"


def test_programs_run_from_the_mount(both: Both) -> None:
    def run_copy(root: Path) -> object:
        program = root / "program"
        shutil.copy("/bin/sleep", program)
        sleeper = subprocess.Popen([program, "60"])
        try:
            with pytest.raises(OSError, match="Text file busy"):
                program.open("r+b")
        finally:
            sleeper.kill()
            sleeper.wait()
        return program.stat().st_size

    both.run(run_copy)
