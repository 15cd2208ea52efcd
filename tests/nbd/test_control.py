"""The control socket: requests and errors there and back, dead servers, wrong input."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from blockvault import files
from blockvault.errors import BadRequest, Busy, IOFailed, NoSpace, NotFound
from blockvault.nbd import control, sockets
from blockvault.nbd.control import ControlServer, Remote


def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"heard": request["say"]}


def full(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise NoSpace("the disk is full")


def held(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise Busy("it is held", kind="branch-busy")


def broken(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("a bug")


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def server(vault: Path) -> Iterator[ControlServer]:
    running = ControlServer(vault, {"echo": echo, "full": full, "held": held, "broken": broken})
    yield running
    running.close()


@pytest.fixture
def remote(server: ControlServer, vault: Path) -> Remote:
    (found,) = control.servers(vault)
    return found


def test_requests_and_results(remote: Remote) -> None:
    assert remote.pid == os.getpid()
    assert remote.ask("echo", say="häß\n☃") == {"heard": "häß\n☃"}


def test_only_the_owner_can_ask(server: ControlServer, vault: Path) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((vault / "servers").stat().st_mode) == 0o700


def test_errors_come_back_as_they_were_raised(remote: Remote) -> None:
    with pytest.raises(NoSpace, match="the disk is full") as full_disk:
        remote.ask("full")
    assert full_disk.value.reason == "no-space"
    with pytest.raises(Busy) as busy:
        remote.ask("held")
    assert busy.value.reason == "branch-busy"
    with pytest.raises(IOFailed, match="the server failed"):
        remote.ask("broken")
    with pytest.raises(BadRequest, match="unknown request"):
        remote.ask("nothing")
    with pytest.raises(IOFailed, match="the server failed"):
        remote.ask("echo")  # without what to say


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"[]\n", b"7\n", b"\xff\xfe\n", b'{"op": []}\n'])
def test_lines_that_are_no_request(server: ControlServer, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.path))
        client.sendall(line)
        answer = json.loads(client.makefile().readline())
    assert answer["error"]["class"] == "BadRequest"


def test_a_line_without_end_is_cut_off(
    server: ControlServer, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_LINE", 100_000)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.path))
        with pytest.raises(OSError, match=r"pipe|reset"):  # noqa: PT012
            for _ in range(100):
                client.sendall(b"x" * 100_000)
    assert remote.ask("echo", say=1) == {"heard": 1}


def test_silent_clients_are_dropped_and_block_nobody(
    server: ControlServer, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ASK_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(server.path))
        assert remote.ask("echo", say=1) == {"heard": 1}
        silent.settimeout(5)
        assert silent.recv(1) == b""


def test_requests_without_a_thread_to_spare_are_answered_one_by_one(
    remote: Remote, no_threads: Callable[[], AbstractContextManager[None]]
) -> None:
    with no_threads():
        answers = [remote.ask("echo", patience=5, say=n) for n in range(3)]
        assert answers == [{"heard": n} for n in range(3)]
    assert remote.ask("echo", say=3) == {"heard": 3}


def test_a_closed_server_is_gone(vault: Path) -> None:
    server = ControlServer(vault, {"echo": echo})
    (remote,) = control.servers(vault)
    server.close()
    assert not server.path.exists()
    assert control.servers(vault) == []
    with pytest.raises(NotFound, match="gone"):
        remote.ask("echo", say=1)


def test_the_socket_of_a_killed_server_is_swept(vault: Path, server: ControlServer) -> None:
    dead = vault / "servers" / "999999-1.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    (vault / "servers" / "notes.sock").touch()
    assert [remote.pid for remote in control.servers(vault)] == [os.getpid()]
    assert not dead.exists()


def test_one_that_begins_where_another_was_killed_is_not_swept(
    vault: Path, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers every server has the same process number."""
    place, connect = vault / "servers" / "1-1.sock", sockets.connect_unix
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))

    def begin_then(path: Path, *, timeout: float) -> socket.socket:
        try:
            return connect(path, timeout=timeout)
        except ConnectionRefusedError:
            monkeypatch.setattr(sockets, "connect_unix", connect)
            begun.append(sockets.listen_unix(place))
            raise

    begun: list[socket.socket] = []
    monkeypatch.setattr(sockets, "connect_unix", begin_then)
    control.servers(vault)
    assert [remote.path for remote in control.servers(vault)] == [place, server.path]
    begun[0].close()


def test_it_is_passed_over_where_nothing_can_be_removed(
    vault: Path, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vault / "servers" / "999999-1.sock"))
    with monkeypatch.context() as readonly:
        readonly.setattr(Path, "unlink", refuse)
        assert [remote.pid for remote in control.servers(vault)] == [os.getpid()]


def test_the_socket_of_a_server_that_begins_is_not_swept(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = socket.socket.listen

    def look_first(self: socket.socket, *backlog: int) -> None:
        assert control.servers(vault) == []
        listen(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", look_first)
    server = ControlServer(vault, {"echo": echo})
    (remote,) = control.servers(vault)
    assert remote.ask("echo", say=1) == {"heard": 1}
    server.close()
    assert list(server.path.parent.iterdir()) == []


def test_a_process_of_the_same_number_in_another_container(
    vault: Path, server: ControlServer
) -> None:
    other = ControlServer(vault, {})
    assert {remote.path for remote in control.servers(vault)} == {server.path, other.path}
    assert {remote.pid for remote in control.servers(vault)} == {os.getpid()}
    other.close()


def test_a_dead_one_is_passed_over_while_somebody_has_the_directory_locked(vault: Path) -> None:
    dead = vault / control.DIRECTORY / "1-1.sock"
    dead.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    with files.locked(dead.parent, 0):
        assert control.servers(vault) == []
        assert dead.exists()
    assert control.servers(vault) == []
    assert not dead.exists()


def test_no_servers_without_a_directory(vault: Path) -> None:
    assert control.servers(vault) == []
    assert control.holder(vault, "main") is None


def test_a_server_that_dies_while_it_is_asked(vault: Path) -> None:
    (vault / "servers").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        path = vault / "servers" / "1234-1.sock"
        listener.bind(str(path))
        listener.listen()

        def die() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises((IOFailed, NotFound)):
            Remote(path).ask("status")
        thread.join()


def test_a_server_that_does_not_answer_holds_up_nobody(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "STATUS_SECONDS", 0.05)
    status = {"branches": {"main": {}}}
    answering = ControlServer(vault, {"status": lambda request: status})
    silent = vault / control.DIRECTORY / "1-1.sock"  # asked first: the oldest process
    with sockets.listen_unix(silent):
        found = list(control.statuses(vault))
        assert [(remote.pid, told) for remote, told in found] == [(1, None), (os.getpid(), status)]
        holder = control.holder(vault, "main")
        assert holder is not None
        assert holder.pid == os.getpid()
        assert control.holder(vault, "side") is None
        remote, _ = found[0]
        with pytest.raises(Busy, match="does not answer"):
            remote.ask("snapshot", patience=0.05)
    answering.close()
