"""Who a caller is, also where nothing can be known of it."""

import os
import subprocess
import sys
import threading

from fusenotify.callers import groups_of, process_of

_IN_GROUPS = "import os, sys; os.setgroups([7, 5]); print(flush=True); sys.stdin.read()"


def test_a_thread_and_its_process() -> None:
    told: list[int | None] = []
    thread = threading.Thread(target=lambda: told.append(process_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert [*told, process_of(os.getpid())] == [os.getpid()] * 2


def test_supplementary_groups() -> None:
    command = [sys.executable, "-c", _IN_GROUPS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert groups_of(process.pid) == (5, 7)
        process.communicate()
    assert groups_of(process.pid) == ()  # gone
    assert process_of(process.pid) is None


def test_nothing_is_known_of_a_caller_outside_our_pid_namespace() -> None:
    assert groups_of(0) == ()
    assert process_of(0) is None
