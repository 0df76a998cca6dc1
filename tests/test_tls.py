"""TLS: who is let in, who is not, and what becomes of those who never say who they are."""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
from cryptography.hazmat.primitives import serialization

from fusenotify import (
    DaemonGone,
    EnvironmentProblem,
    FusenotifyError,
    NotPermitted,
    Scope,
    Tls,
    UsageError,
    client,
    locate,
    lookup,
    open_group,
    sockets,
    transports,
    watch,
)
from fusenotify.addresses import TlsAddress, UnixAddress, absolute, parse_address, parse_place
from fusenotify.client import Group
from tests.certificates import Authority, listening, options
from tests.harness import PATIENCE, Mount, Watch, mounted, patched, run
from tests.reading import Run, until


@pytest.fixture
def served(directory: Path, authority: Authority) -> Iterator[Mount]:
    """A mount that listens for TLS as well."""
    with mounted(directory, listening(authority.daemon)) as mount:
        yield mount


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Another authority."""
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


def port_of(mount: Mount) -> int:
    address = parse_address(mount.tls)
    assert isinstance(address, TlsAddress)
    return address.port


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("unix:/run/a b", UnixAddress("/run/a b"), b"."),
        ("unix:relative", UnixAddress("relative"), b"."),
        ("tls://host.example:7000", TlsAddress("host.example", 7000), b"."),
        ("tls://host.example:7000/", TlsAddress("host.example", 7000), b"."),
        ("tls://10.0.0.1:1/sub/dir/", TlsAddress("10.0.0.1", 1), b"sub/dir"),
        ("tls://[::1]:7000//a/./b?c#d%20", TlsAddress("::1", 7000), b"a/b?c#d%20"),
        ("tls://h:1/\udcff", TlsAddress("h", 1), b"\xff"),
    ],
)
def test_places(text: str, address: object, path: bytes) -> None:
    assert parse_place(text) == (address, path)


@pytest.mark.parametrize(
    "text",
    [
        *("unix:", "tls:", "tls://", "tls://host", "tls://:7000", "tls://host:", "tls://host:65536", "tls://host:x"),
        *(
            "tls://::1:7000",
            "tls://[::1:7000",
            "tls://user@host:7000",
            "tls://host:7000?x",
            "tcp://host:1",
            "host:1",
            "",
        ),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_addresses_as_text() -> None:
    for text in ("unix:/a", "tls://[::1]:1", "tls://h:2"):
        assert str(parse_address(text)) == text
    assert absolute(UnixAddress("a")) == UnixAddress(f"{os.getcwd()}/a")
    with pytest.raises(UsageError, match="path behind the port"):
        parse_address("tls://h:1/sub")


# --- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_client_with_a_certificate_sees_the_whole_tree(
    directory: Path, authority: Authority, go: Run[None], host: str
) -> None:
    with mounted(directory, listening(authority.daemon, host)) as mount:
        secret = mount.source / "secret"
        secret.mkdir(mode=0o700)
        assert mount.tls.startswith(f"tls://{host}:")

        async def main() -> None:
            async with watch(mount.tls, tls=authority.client) as events:
                (secret / "remote").mkdir()
                (mount.mountpoint / "local").mkdir()
                assert [event.path for event in await until(events, "local")] == ["secret/remote", "local"]
            async with open_group(tls=authority.client) as group:
                mark = await group.mark(f"{mount.tls}/secret", scope=Scope.DIR)
                (secret / "x").mkdir()
                await group.sync()
                assert [(event.path, event.mark) for event in await until(group, "secret/x")] == [("secret/x", mark)]
            handle = await lookup(f"{mount.tls}/secret/x", tls=authority.client)
            assert await locate(mount.tls, handle, tls=authority.client) == "secret/x"

        go(main)


def test_a_context_of_the_callers_own(served: Mount, authority: Authority, go: Run[None]) -> None:
    context = authority.client.client_context()

    async def main() -> None:
        assert (await client.status(served.tls, tls=context)).pid == served.pid

    go(main)


def test_commands_over_tls(served: Mount, authority: Authority) -> None:
    credentials = options(authority.client)
    done = run("status", served.tls, *credentials)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(served.source) in done.stdout
    (served.source / "sub").mkdir()
    with contextlib.closing(Watch(f"{served.tls}/sub", *credentials)) as watch_:
        (served.source / "outside").mkdir()
        (served.source / "sub" / "x").mkdir()
        assert [(line["path"], line["target"]) for line in watch_.until("sub/x")] == [("sub/x", f"{served.tls}/sub")]
    for missing, given in (("needs a certificate", ()), ("--key, --ca missing", credentials[:2])):
        refused = run("watch", served.tls, *given)
        assert (refused.returncode, missing in refused.stderr) == (2, True), refused.stderr


def test_a_client_that_is_stopped_or_killed_leaves_nothing(served: Mount, authority: Authority, go: Run[None]) -> None:
    with contextlib.closing(Watch(served.tls, *options(authority.client))) as watch_:
        watch_.process.kill()

    async def main() -> None:
        while (await client.status(served.tls, tls=authority.client)).groups:
            await anyio.lowlevel.checkpoint()

    go(main)


def test_a_daemon_that_ends_is_told_over_tls(served: Mount, authority: Authority, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(served.tls, tls=authority.client) as events:
            await anyio.to_thread.run_sync(served.stop)
            assert [(event.kind.name, event.path) async for event in _until_gone(events)] == [("UNMOUNT", None)]
        with pytest.raises(DaemonGone, match="nobody answers"):
            await client.status(served.tls, tls=authority.client)

    go(main)


async def _until_gone(group: Group) -> Any:
    with contextlib.suppress(DaemonGone):
        async for event in group:
            yield event


def test_much_is_told_in_order_and_whole(served: Mount, authority: Authority, go: Run[None]) -> None:
    count = 3000

    async def main() -> None:
        async with watch(served.tls, tls=authority.client) as events:
            for n in range(count):
                (served.source / f"{n:0200}").mkdir()
            (served.source / "end").mkdir()
            told = [event.path for event in await until(events, "end")]
            assert told == [*(f"{n:0200}" for n in range(count)), "end"]

    go(main)


def test_a_cancelled_request_leaves_the_connection_whole(served: Mount, authority: Authority, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group(tls=authority.client) as group:
            await group.mark(served.tls)
            for _ in range(50):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await group.sync()
            await group.sync()
            (served.source / "x").mkdir()
            assert [event.path for event in await until(group, "x")] == ["x"]

    go(main)


# --- who is not ----------------------------------------------------------------------------------------------------


def test_clients_that_are_refused_hear_why(
    served: Mount, authority: Authority, stranger: Authority, go: Run[None], tmp_path: Path
) -> None:
    unknown = Tls(stranger.client.cert, stranger.client.key, authority.ca)
    wrong: list[tuple[Tls | ssl.SSLContext, type[FusenotifyError], str]] = [
        (unknown, NotPermitted, "UNKNOWN_CA"),
        (authority.issue("late", expired=True), NotPermitted, "EXPIRED"),
        (ssl.create_default_context(cafile=authority.ca), NotPermitted, "CERTIFICATE_REQUIRED"),
        (stranger.client, EnvironmentProblem, "is not that of the daemon"),
        (Tls(tmp_path / "nothing", authority.client.key, authority.ca), EnvironmentProblem, "nothing: No such file"),
    ]

    async def main() -> None:
        for credentials, error, text in wrong:
            for _ in range(5):
                with pytest.raises(error, match=text):
                    await client.status(served.tls, tls=credentials)
            async with open_group(tls=credentials) as group:
                with pytest.raises(error, match=text):
                    await group.mark(served.tls)
        with pytest.raises(UsageError, match="needs a certificate"):
            await client.status(served.tls)
        assert (await client.status(served.tls, tls=authority.client)).groups == 0

    go(main)


def test_the_daemon_has_to_be_who_it_is_called(directory: Path, authority: Authority, go: Run[None]) -> None:
    with mounted(directory, listening(authority.issue("another.example"))) as mount:

        async def main() -> None:
            with pytest.raises(EnvironmentProblem, match="Hostname mismatch"):
                await client.status(mount.tls, tls=authority.client)

        go(main)


def test_who_listens_may_be_no_daemon(go: Run[None], authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "_CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as plain:

        async def answer() -> None:
            connection, _ = await anyio.to_thread.run_sync(plain.accept)
            with connection:
                connection.sendall(b"220 welcome to something else\r\n" * 10)
                await anyio.wait_readable(connection)

        async def main() -> None:
            with pytest.raises(DaemonGone, match="not within"):
                await client.status(f"tls://127.0.0.1:{silent.getsockname()[1]}", tls=authority.client)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answer)
                with pytest.raises(EnvironmentProblem, match="does not speak our TLS"):
                    await client.status(f"tls://127.0.0.1:{plain.getsockname()[1]}", tls=authority.client)

        go(main)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_daemon_that_ends_during_the_handshake_has_gone(go: Run[None], authority: Authority, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 if how == "reset" else 65536)  # what is unread at the end is a reset

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, hang_up)
                with pytest.raises(DaemonGone):
                    await client.status(f"tls://127.0.0.1:{server.getsockname()[1]}", tls=authority.client)

        go(main)


def test_a_host_without_an_address(go: Run[None], authority: Authority) -> None:
    async def main() -> None:
        with pytest.raises(DaemonGone, match="nobody answers at tls://no-such-host"):
            await client.status("tls://no-such-host.invalid:1", tls=authority.client)

    go(main)


# --- credentials that cannot be used -------------------------------------------------------------------------------


def bad_credentials(authority: Authority, stranger: Authority, place: Path) -> list[tuple[Tls, str]]:
    """Return credentials, each with what is said against it."""
    good = authority.daemon
    rubbish, unreadable = place / "rubbish", place / "directory"
    rubbish.write_text("this is no PEM\n")
    unreadable.mkdir()
    return [
        (Tls(place / "no-cert", good.key, good.ca), "no-cert: No such file"),
        (Tls(good.cert, place / "no-key", good.ca), "no-key: No such file"),
        (Tls(good.cert, good.key, place / "no-ca"), "no-ca: No such file"),
        (Tls(unreadable, good.key, good.ca), "directory: Is a directory"),
        (Tls(good.cert, stranger.daemon.key, good.ca), "is not that of the certificate"),
        (Tls(rubbish, good.key, good.ca), "have to be PEM files"),
        (Tls(good.cert, good.key, rubbish), "has to be a PEM file"),
        (Tls(good.cert, good.key, good.cert), "no certificate of an authority"),
        (authority.issue("localhost", expired=True), "expired"),
    ]


def test_credentials_that_cannot_be_used_are_named_before_anything_is_mounted(
    directory: Path, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    source, mountpoint, state = (directory / name for name in ("source", "mount", "state"))
    for path in (source, mountpoint):
        path.mkdir()
    for credentials, text in bad_credentials(authority, stranger, tmp_path):
        with pytest.raises(EnvironmentProblem, match=text):
            credentials.server_context()
    mismatch = Tls(authority.daemon.cert, stranger.daemon.key, authority.ca)
    command = ("mount", source, mountpoint, "--state-dir", state)
    for arguments, code, text in (
        (listening(mismatch), 4, "is not that of the certificate"),
        (("--listen", "tls://localhost:0"), 2, "needs --cert, --key and --ca"),
        (options(authority.daemon), 2, "there is none"),
        (listening(authority.daemon, "192.0.2.1"), 4, "cannot listen on tls://192.0.2.1:0"),
    ):
        done = run(*command, *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert text in done.stderr
        assert not os.path.ismount(mountpoint)


def test_an_encrypted_key_is_not_asked_for_at_the_terminal(authority: Authority, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(Path(authority.daemon.key).read_bytes(), None)
    encrypted = tmp_path / "encrypted"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(EnvironmentProblem, match="is encrypted"):
        Tls(authority.daemon.cert, encrypted, authority.ca).server_context()


# --- those who never say who they are ------------------------------------------------------------------------------

_RUBBISH = (b"GET / HTTP/1.1\r\n\r\n", b"\x09\0\0\0\x93\xa5hello\x01\0", b"\x16\x03\x01\xff\xff" + b"\xff" * 70_000)


def test_rubbish_is_hung_up_on(served: Mount, authority: Authority, go: Run[None]) -> None:
    for rubbish in _RUBBISH:
        with socket.create_connection(("localhost", port_of(served)), timeout=PATIENCE) as sock:
            sock.sendall(rubbish)
            told = b""
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(4096):
                    told += data
            assert b"error" not in told  # nothing of it came as far as our own protocol
            assert len(told) < 16

    async def main() -> None:
        assert (await client.status(served.tls, tls=authority.client)).groups == 0

    go(main)
    assert "Traceback" not in served.log


def test_rubbish_of_a_client_with_a_certificate_is_told_and_hung_up_on(served: Mount, authority: Authority) -> None:
    context = authority.client.client_context()
    with (
        socket.create_connection(("localhost", port_of(served)), timeout=PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"\x03\0\0\0\xc1\xc1\xc1")
        told = b""
        while data := secured.recv(4096):
            told += data
    assert b"protocol" in told


def test_who_does_not_shake_hands_in_time_is_hung_up_on(directory: Path, authority: Authority) -> None:
    impatient = "from fusenotify import listening; listening._HANDSHAKE = 0.3"
    with patched(directory, impatient, listening(authority.daemon)) as mount:
        hello = _client_hello(authority)
        with socket.create_connection(("localhost", port_of(mount)), timeout=PATIENCE) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("localhost", port_of(mount)), timeout=PATIENCE) as slow:
            start = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for byte in hello:  # a slow loris: each byte comes in time, the handshake does not
                    slow.sendall(bytes((byte,)))
                    slow.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        if not slow.recv(1):
                            break
            assert time.monotonic() - start < PATIENCE
        assert run("status", mount.tls, *options(authority.client)).returncode == 0


def _client_hello(authority: Authority) -> bytes:
    out = ssl.MemoryBIO()
    end = authority.client.client_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    return out.read()


def test_many_half_open_connections_keep_nobody_out(directory: Path, authority: Authority, go: Run[None]) -> None:
    patient = "from fusenotify import listening; listening._HANDSHAKE = 3600"
    with patched(directory, patient, listening(authority.daemon)) as mount, contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("localhost", port_of(mount)), timeout=PATIENCE))
            for _ in range(200)
        ]

        async def main() -> None:
            async with watch(mount.tls, tls=authority.client) as events:
                (mount.source / "x").mkdir()
                assert [event.path for event in await until(events, "x")] == ["x"]

        go(main)
        for early in crowd[:100]:  # whoever came first has had to make room
            with contextlib.suppress(ConnectionResetError):
                assert early.recv(1) == b""
        crowd[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            crowd[-1].recv(1)


# --- the stream ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secured", [False, True])
def test_a_send_that_is_cancelled_half_way_tears_no_frame(authority: Authority, go: Run[None], secured: bool) -> None:
    first, second = (bytes((number,)) * (8 << 20) for number in (1, 2))

    async def main() -> None:
        one, other = socket.socketpair() if not secured else await anyio.to_thread.run_sync(_tcp_pair)
        writer, reader = sockets.Stream(one), sockets.Stream(other)
        if secured:
            writer = client_end = sockets.TlsStream(one, authority.client.client_context(), "localhost")
            reader = daemon_end = sockets.TlsStream(other, authority.daemon.server_context())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client_end.handshake)
                tasks.start_soon(daemon_end.handshake)
        with anyio.move_on_after(0.1) as scope:
            await writer.send(first)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.send, second)
            received = bytearray()
            while len(received) < len(first) + len(second):
                received += await reader.receive()
        assert bytes(received) == first + second
        writer.close()
        assert await reader.receive() == b""
        reader.close()

    go(main)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("localhost", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def test_a_client_on_another_machine_excludes_nobody_by_its_process_number(
    served: Mount, authority: Authority, go: Run[None]
) -> None:
    class Elsewhere(sockets.TlsStream):
        is_from_here = property(lambda _self: False, lambda _self, _value: None)

    async def told(stream: type[sockets.TlsStream]) -> list[str | None]:
        with mock.patch.object(sockets, "TlsStream", stream):
            async with open_group(tls=authority.client) as group:
                await group.mark(served.tls, exclude_self=True)
                (served.mountpoint / "x").mkdir()
                (served.source / "x").rmdir()
                (served.source / "y").mkdir()
                paths = [event.path for event in await until(group, "y")]
                (served.source / "y").rmdir()
                return paths

    async def main() -> None:
        assert await told(sockets.TlsStream) == ["x", "y"]
        assert await told(Elsewhere) == ["x", "x", "y"]

    go(main)
