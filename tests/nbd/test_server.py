"""The server over real sockets: many clients, bad clients, slow clients, and an orderly end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from blockvault.errors import Busy, Conflict, IOFailed
from blockvault.nbd import budget, inbox, sockets, transmission
from blockvault.nbd.channel import PlainChannel
from blockvault.nbd.exports import Exports
from blockvault.nbd.peer import Peer
from blockvault.nbd.server import Server
from blockvault.nbd.service import SURE
from tests.conftest import skip
from tests.nbd import messages as m
from tests.nbd.conftest import SIZE, Client, SlowFlush, wait_until, waiting
from tests.nbd.memory import MemoryVolume

Connect = Callable[..., Client]
NoThreads = Callable[[], contextlib.AbstractContextManager[None]]
HeldBack = tuple[Client, Future[None]]
MANY = 50_000
LONG = 256 << 10


def test_two_clients_see_one_volume(connect: Connect, volume: MemoryVolume) -> None:
    first, second = connect().enter(), connect().enter()
    assert first.ask(m.write(4096, b"hello")) == (0, b"")
    assert second.ask(m.request(m.READ, 4096, 5), 5) == (0, b"hello")
    assert second.ask(m.request(m.FLUSH)) == (0, b"")
    assert volume.device.durable[4096:4101] == b"hello", "flush covers the other connection"
    assert volume.opened == 1


def test_requests_that_arrive_with_the_choice_of_export(connect: Connect) -> None:
    client = connect()
    client.socket.sendall(m.option(m.EXPORT_NAME, b"vda") + m.write(0, b"eager"))
    client.receive(10)
    assert client.reply() == (0, b"")
    assert client.ask(m.request(m.READ, 0, 5), 5) == (0, b"eager")


def test_a_long_reply_leaves_whole_before_it_is_read(connect: Connect, server: Server) -> None:
    client = connect().enter()
    client.socket.sendall(m.request(m.READ, 0, LONG))
    wait_until(lambda: server.status()["exports"]["vda"]["requests"]["read"] == 1)
    assert client.reply(LONG) == (0, bytes(LONG))


def test_200_connections_at_once(connect: Connect, server: Server, volume: MemoryVolume) -> None:
    clients = [connect().enter() for _ in range(200)]
    for number, client in enumerate(clients):
        client.socket.sendall(m.write(number * 512, bytes([number]) * 512, cookie=number))
    assert all(client.reply() == (0, b"") for client in clients)
    for number, client in enumerate(clients):
        place = (number + 77) % 200
        assert client.ask(m.request(m.READ, place * 512, 512), 512) == (0, bytes([place]) * 512)
    assert len(server.status()["clients"]) == 200
    for client in clients:
        client.socket.sendall(m.request(m.DISC))
    assert all(client.at_end() for client in clients)
    wait_until(lambda: not server.status()["clients"])
    assert (volume.opened, volume.closed) == (1, 1)


def test_connections_beyond_the_limit_are_closed(
    exports: Exports, tmp_path: Path, connect_to: Connect
) -> None:
    server = Server(exports, max_connections=2)
    path = tmp_path / "few.sock"
    server.listen_unix(path)
    first, second = connect_to(path).enter(), connect_to(path).enter()
    third = connect_to(path, greet=False)
    assert third.at_end()
    assert server.refused == 1
    first.close()
    wait_until(lambda: len(server.status()["clients"]) == 1)
    connect_to(path).enter().close()
    assert second.ask(m.request(m.READ, 0, 1), 1) == (0, b"\0")
    second.close()
    server.stop()


# -- bad clients -----------------------------------------------------------------------------------


IMPATIENT = pytest.mark.parametrize("handshake_seconds", [0.5])


@IMPATIENT
def test_a_client_that_says_nothing_is_dropped_after_a_while(connect: Connect) -> None:
    begin = time.monotonic()
    assert connect().at_end()
    assert time.monotonic() - begin > 0.3


@IMPATIENT
def test_a_handshake_has_one_deadline_however_slowly_it_drips(connect: Connect) -> None:
    client = connect()
    begin = time.monotonic()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
        for byte in m.option(m.LIST) * 1000:
            client.socket.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - begin < 10


@IMPATIENT
def test_a_client_in_transmission_may_be_silent(connect: Connect) -> None:
    client = connect().enter()
    time.sleep(0.7)  # longer than the handshake may take
    assert client.ask(m.request(m.READ, 0, 1), 1) == (0, b"\0")


@pytest.mark.parametrize("seed", range(5))
def test_garbage_disturbs_nobody_else(connect: Connect, seed: int) -> None:
    rng = random.Random(seed)
    witness = connect().enter()
    for _ in range(10):
        for client in (connect(greet=False), connect(), connect().enter()):
            try:
                client.socket.sendall(rng.randbytes(rng.randrange(1, 5000)))
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
    assert witness.ask(m.write(0, b"fine")) == (0, b"")
    assert witness.ask(m.request(m.READ, 0, 4), 4) == (0, b"fine")


def test_a_client_killed_in_the_middle_of_a_write(
    connect: Connect, server: Server, volume: MemoryVolume
) -> None:
    client = connect().enter()
    client.socket.sendall(m.write(0, b"x" * 4096)[:2000])
    client.close()
    wait_until(lambda: volume.closed == 1)
    assert volume.device.data.count(b"x") == 0, "a write that did not arrive is not done by half"


def test_a_client_that_reads_no_replies_delays_only_itself(connect: Connect) -> None:
    greedy, witness = connect().enter(), connect().enter()
    greedy.socket.setblocking(False)
    request, sent = m.request(m.READ, 0, 4 << 20), 0
    deadline = time.monotonic() + 5
    while sent < 1000 and time.monotonic() < deadline:
        try:
            sent += greedy.socket.send(request) == len(request)
        except BlockingIOError:
            break
    begin = time.monotonic()
    for _ in range(50):
        assert witness.ask(m.request(m.READ, 0, 4096), 4096) == (0, bytes(4096))
    assert time.monotonic() - begin < 2


@pytest.fixture
def held_back(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldBack]:
    """A client that sends very many FLUSHes, and cannot go on."""
    monkeypatch.setattr(transmission, "MAX_WAITING", 100)
    monkeypatch.setattr(inbox, "BUFFER_BYTES", 64 << 10)
    client = connect().enter()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.socket.sendall, m.request(m.FLUSH) * MANY)
        with pytest.raises(TimeoutError):
            sending.result(1)
        yield client, sending


def test_a_client_with_very_many_flushes_in_the_air_is_held_back(
    slow_flush: SlowFlush, held_back: HeldBack
) -> None:
    client, sending = held_back
    slow_flush.proceed.set()
    assert all(client.reply() == (0, b"") for _ in range(MANY))
    sending.result()


def test_a_client_that_is_held_back_may_leave(
    slow_flush: SlowFlush, held_back: HeldBack, volume: MemoryVolume
) -> None:
    client, sending = held_back
    client.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BrokenPipeError):
        sending.result()
    slow_flush.proceed.set()
    wait_until(lambda: volume.closed == 1)


def test_large_requests_share_a_bounded_budget(
    connect: Connect, server: Server, volume: MemoryVolume
) -> None:
    """Thirty clients want 7 MiB at once and read nothing: at most 128 MiB are held for them."""
    clients = [connect().enter() for _ in range(30)]
    for client in clients:
        client.socket.sendall(m.request(m.READ, 0, 7 << 20))
    wait_until(lambda: server.status()["large_request_bytes"] > 100 << 20)
    assert server.status()["large_request_bytes"] <= 128 << 20
    small = connect().enter()
    assert small.ask(m.request(m.READ, 0, 4096), 4096) == (0, bytes(4096))
    with ThreadPoolExecutor(30) as pool:
        for reply in pool.map(lambda client: client.reply(7 << 20), clients):
            assert reply == (0, bytes(7 << 20))
    wait_until(lambda: server.status()["large_request_bytes"] == 0)


@pytest.mark.parametrize(
    "request_",
    [m.write(0, bytes(4 << 20))[: 2 << 20], m.request(m.READ, 0, SIZE)],
    ids=["write", "read"],
)
def test_who_holds_the_budget_and_stalls_is_dropped(
    connect: Connect,
    server: Server,
    volume: MemoryVolume,
    monkeypatch: pytest.MonkeyPatch,
    request_: bytes,
) -> None:
    """However much time is left for what it asked as a whole."""
    monkeypatch.setattr(budget, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(budget, "LEAST_RATE", 1)
    connect().enter().socket.sendall(request_)
    wait_until(lambda: volume.closed == 1)
    assert server.status()["large_request_bytes"] == 0


def test_a_long_reply_is_sent_in_steps_that_show_whether_it_is_taken() -> None:
    ours, theirs = socket.socketpair()
    channel, reply = PlainChannel(ours), [b"head", bytes(5 << 20), b"tail" * 100]
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(channel.send, reply)
        taken = bytearray()
        while len(taken) < sum(map(len, reply)):
            taken += theirs.recv(1 << 20)
        sending.result(10)
    assert taken == b"".join(reply)
    assert channel.moved >= 6


@pytest.mark.parametrize(
    ("request_", "drip"),
    [
        (m.write(0, bytes(SIZE))[:4096], lambda client: client.send(b"x")),
        (m.request(m.READ, 0, SIZE), lambda client: client.recv(2048)),
    ],
    ids=["write", "read"],
)
def test_who_holds_the_budget_has_one_deadline_however_slowly_it_drips(
    connect: Connect,
    server: Server,
    volume: MemoryVolume,
    monkeypatch: pytest.MonkeyPatch,
    request_: bytes,
    drip: Callable[[socket.socket], object],
) -> None:
    monkeypatch.setattr(sockets, "SEND_BUFFER", 64 << 10)  # so that a drip makes room in it
    monkeypatch.setattr(budget, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(budget, "LEAST_RATE", 1 << 30)
    client = connect().enter()
    client.socket.sendall(request_)

    def gone() -> bool:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            drip(client.socket)
        return volume.closed == 1

    wait_until(gone)
    assert server.status()["large_request_bytes"] == 0


def test_who_left_in_the_middle_of_a_large_request_is_not_late(
    connect: Connect, server: Server, slow_flush: SlowFlush, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect().enter()
    client.socket.sendall(m.write(0, bytes(4 << 20))[: 2 << 20])
    client.socket.shutdown(socket.SHUT_WR)
    assert slow_flush.begun.wait(10), "the last one: the connection has ended"
    ((peer, _),) = server._serving()
    peer.end_if_late(math.inf)
    assert "cut off" not in caplog.text


def test_large_writes_take_and_return_their_buffer(connect: Connect, server: Server) -> None:
    rng = random.Random(3)
    client = connect().enter()
    for size in (1 << 20, (1 << 20) + 1, 5_000_001, 100, 7 << 20):
        data = rng.randbytes(size)
        assert client.ask(m.write(3, data)) == (0, b"")
        assert client.ask(m.request(m.READ, 3, size), size) == (0, data)
    # A reply is sent before its memory is given back; the next request is taken after that.
    assert client.ask(m.request(m.READ, 3, 1), 1) == (0, data[:1])
    assert server.status()["large_request_bytes"] == 0


# -- order and flushes -----------------------------------------------------------------------------


def test_requests_behind_a_flush_do_not_wait_for_it(
    connect: Connect, volume: MemoryVolume, slow_flush: SlowFlush
) -> None:
    client = connect().enter()
    client.socket.sendall(m.write(0, b"abc", flags=m.FUA, cookie=1))
    client.socket.sendall(m.request(m.FLUSH, cookie=2))
    for number in range(20):
        assert client.ask(m.request(m.READ, 0, 3, cookie=100 + number), 3) == (0, b"abc")
    slow_flush.proceed.set()
    cookies = {int.from_bytes(client.receive(16)[8:], "big") for _ in range(2)}
    assert cookies == {1, 2}
    assert volume.device.durable[:3] == b"abc"


def test_a_quick_flush_with_nothing_behind_it_needs_no_other_thread(
    connect: Connect, volume: MemoryVolume
) -> None:
    threads: set[str] = set()
    volume.device.quick_flush = True
    volume.device.fault = lambda *_: threads.add(threading.current_thread().name)
    client = connect().enter()
    for number in range(5):
        assert client.ask(m.write(number, b"x")) == (0, b"")
        assert client.ask(m.request(m.FLUSH)) == (0, b"")
    assert threads == {"nbd client"}
    assert volume.device.durable[:5] == b"x" * 5


def test_a_flush_without_a_thread_to_spare_is_done_on_the_spot(
    connect: Connect, volume: MemoryVolume, no_threads: NoThreads
) -> None:
    client = connect().enter()
    requests = m.write(0, b"abc") + m.request(m.FLUSH) + m.request(m.READ, 0, 3)
    for hold in (no_threads(), contextlib.nullcontext()):
        with hold:
            client.socket.sendall(requests)
            assert client.reply() == (0, b"")
            assert client.reply(3) == (0, b"abc")
            assert client.reply() == (0, b"")
    assert volume.device.flushes == 2


def test_who_flushes_after_each_write_is_expected_to(
    connect: Connect, volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device begins before it is asked; not once a client writes twice in between."""
    ahead: list[int] = []
    monkeypatch.setattr(
        volume.device, "flush_ahead", lambda: ahead.append(volume.device.flushes), raising=False
    )
    volume.device.quick_flush = True
    client = connect().enter()

    def writes(count: int) -> None:
        for number in range(count):
            assert client.ask(m.write(number, b"x")) == (0, b"")
        assert client.ask(m.request(m.FLUSH)) == (0, b"")

    for _ in range(SURE):
        writes(1)
    assert ahead == [], "not sure yet"
    writes(1)
    assert ahead == [SURE]
    writes(3)
    assert ahead == [SURE, SURE + 1], "it could not know"
    writes(1)
    assert len(ahead) == 2
    volume.device.quick_flush = False
    for _ in range(2 * SURE):
        writes(1)
    assert len(ahead) == 2, "a slow device is asked for nothing that may be in vain"


def test_flushes_of_many_connections_share_commits(
    connect: Connect, exports: Exports, volume: MemoryVolume, slow_flush: SlowFlush
) -> None:
    clients = [connect().enter() for _ in range(20)]
    for number, client in enumerate(clients):
        client.socket.sendall(m.write(number, b"x") + m.request(m.FLUSH))
    (export,) = exports.open_exports()
    wait_until(lambda: waiting(export.commit) == 19)
    slow_flush.proceed.set()
    for client in clients:
        assert client.reply() == (0, b"")
        assert client.reply() == (0, b"")
    assert volume.device.flushes == 2
    assert volume.device.durable[:20] == b"x" * 20


def test_disc_is_obeyed_after_a_flush_has_been_answered(
    connect: Connect, volume: MemoryVolume
) -> None:
    def slow_flush(what: str, offset: int, length: int) -> None:
        if what == "flush":
            time.sleep(0.1)

    volume.device.fault = slow_flush
    client = connect().enter()
    client.socket.sendall(m.write(0, b"x") + m.request(m.FLUSH) + m.request(m.DISC))
    assert client.reply() == (0, b"")
    assert client.reply() == (0, b"")
    assert client.at_end()


def test_the_address_of_a_relative_socket_is_whole(
    exports: Exports, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others compare it with what their clients connected to, from other directories."""
    monkeypatch.chdir(path.parent)
    server = Server(exports)
    server.listen_unix(Path(path.name))
    try:
        assert server.status()["addresses"] == [f"unix:{path}"]
    finally:
        server.stop()
    assert not path.exists()


# -- the end ---------------------------------------------------------------------------------------


def test_stop_answers_flushes_and_releases(
    connect_to: Connect, exports: Exports, path: Path, volume: MemoryVolume
) -> None:
    server = Server(exports)
    server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client, idle = connect_to(path).enter(), connect_to(path)
    for number in range(100):
        client.socket.sendall(m.write(number * 10, b"last words", cookie=number))
    wait_until(lambda: volume.device.data[990:1000] == b"last words")
    server.stop()
    assert [client.reply() for _ in range(100)] == [(0, b"")] * 100
    assert client.at_end()
    assert idle.at_end()
    assert volume.closed == 1
    assert volume.device.durable[:1000] == b"last words" * 100
    assert not path.exists()
    with pytest.raises(OSError, match="No such file"):
        connect_to(path)


def test_stop_cuts_off_who_does_not_read(
    connect_to: Connect, exports: Exports, path: Path, volume: MemoryVolume
) -> None:
    server = Server(exports)
    server.listen_unix(path)
    client = connect_to(path).enter()
    client.socket.sendall(m.request(m.READ, 0, SIZE))
    begin = time.monotonic()
    wait_until(lambda: bool(volume.device.calls))
    server.stop(0.2)
    assert time.monotonic() - begin < 3
    assert volume.closed == 1


def test_stop_cuts_off_nobody_who_takes_a_long_reply_slowly(
    connect_to: Connect,
    exports: Exports,
    path: Path,
    volume: MemoryVolume,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As much between two looks as shows that it takes its replies."""
    finish, taken = Peer.finish, bytearray()

    def finish_and_take(peer: Peer) -> None:
        finish(peer)
        taken.extend(client.receive(min(2 << 20, 16 + SIZE - len(taken))))

    monkeypatch.setattr(sockets, "SEND_BUFFER", 64 << 10)
    monkeypatch.setattr(Peer, "finish", finish_and_take)
    server = Server(exports)
    server.listen_unix(path)
    client = connect_to(path).enter()
    client.socket.sendall(m.request(m.READ, 0, SIZE))
    wait_until(lambda: sending(server))
    server.stop(0)
    assert client.receive(16 + SIZE - len(taken)).strip(b"\0") == b""
    assert "cut off" not in caplog.text


def sending(server: Server) -> bool:
    return any(peer.sending is not None for peer, _ in server._serving())


@pytest.mark.parametrize(("last", "replies"), [(m.FLUSH, 2), (m.DISC, 1)])
def test_stop_waits_for_a_flush_and_cuts_nobody_off(
    connect_to: Connect,
    exports: Exports,
    path: Path,
    slow_flush: SlowFlush,
    caplog: pytest.LogCaptureFixture,
    last: int,
    replies: int,
) -> None:
    """Of a client that waits for it, or of one that has left."""
    server = Server(exports)
    server.listen_unix(path)
    client = connect_to(path).enter()
    client.socket.sendall(m.write(0, b"abc") + m.request(last))
    assert slow_flush.begun.wait(10)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(server.stop, 0)
        with pytest.raises(TimeoutError):
            stopped.result(0.2)
        slow_flush.proceed.set()
        stopped.result(10)
    assert [client.reply() for _ in range(replies)] == [(0, b"")] * replies
    assert client.at_end()
    assert "cut off" not in caplog.text


def test_stop_does_not_begin_what_was_received_for_ever(
    connect_to: Connect,
    exports: Exports,
    path: Path,
    volume: MemoryVolume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, proceed, finish = threading.Event(), threading.Event(), Peer.finish

    def slow_read(what: str, offset: int, length: int) -> None:
        if what == "read":
            begun.set()
            assert proceed.wait(10)

    def finish_and_proceed(peer: Peer) -> None:
        finish(peer)
        proceed.set()

    monkeypatch.setattr(Peer, "finish", finish_and_proceed)
    volume.device.fault = slow_read
    server = Server(exports)
    server.listen_unix(path)
    client = connect_to(path).enter()
    client.socket.sendall(m.request(m.CACHE, 0, SIZE) * 100)
    assert begun.wait(10)
    server.stop(0)
    assert sum(what == "read" for what, _, _ in volume.device.calls) == SIZE >> 20, "one CACHE"


# -- sockets ---------------------------------------------------------------------------------------


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_second_server_on_the_same_socket_is_refused(
    connect_to: Connect, server: Server, exports: Exports, path: Path
) -> None:
    second = Server(exports)
    with pytest.raises(Busy, match="another server listens"):
        second.listen_unix(path)
    second.stop()
    connect_to(path).enter().close()


def test_of_two_servers_that_begin_at_once_one_is_refused(
    connect_to: Connect, server: Server, exports: Exports, path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, listen = tmp_path / "both.sock", socket.socket.listen

    def let_the_other_pass(self: socket.socket, *backlog: int) -> None:
        monkeypatch.setattr(socket.socket, "listen", listen)
        server.listen_unix(place)
        listen(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", let_the_other_pass)
    second = Server(exports)
    with pytest.raises(Busy, match="another server listens"):
        second.listen_unix(place)
    second.stop()
    connect_to(place).enter().close()
    assert sorted(tmp_path.iterdir()) == [place, path]


def test_the_socket_of_a_dead_server_is_replaced(
    connect_to: Connect, exports: Exports, path: Path
) -> None:
    dead_socket(path)
    server = Server(exports)
    server.listen_unix(path)
    connect_to(path).enter().close()
    server.stop()


def test_of_two_servers_that_find_a_dead_one_one_is_refused(
    connect_to: Connect, server: Server, exports: Exports, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, connect, unlink = tmp_path / "both.sock", sockets.connect_unix, Path.unlink
    dead_socket(place)

    def let_the_other_pass(path: Path, *, timeout: float) -> socket.socket:
        monkeypatch.setattr(sockets, "connect_unix", connect)
        with pytest.raises(ConnectionRefusedError):
            connect(path, timeout=timeout)
        server.listen_unix(place)
        raise ConnectionRefusedError

    def unlink_alone(path: Path, missing_ok: bool = False) -> None:
        if path == place:
            with pytest.raises(BlockingIOError):
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlink(path, missing_ok)

    monkeypatch.setattr(sockets, "connect_unix", let_the_other_pass)
    monkeypatch.setattr(Path, "unlink", unlink_alone)
    directory = os.open(tmp_path, os.O_RDONLY)
    second = Server(exports)
    with pytest.raises(Busy, match="another server listens"):
        second.listen_unix(place)
    second.stop()
    os.close(directory)
    monkeypatch.undo()
    connect_to(place).enter().close()


def test_a_directory_that_somebody_has_locked_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read one may lock it."""
    monkeypatch.setattr(sockets, "LOCK_SECONDS", 0.05)
    dead_socket(path)
    directory = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_SH)
    with pytest.raises(Busy, match="somebody has locked"):
        sockets.listen_unix(path)
    os.close(directory)
    sockets.listen_unix(path).close()


def test_a_socket_where_there_are_no_hard_links(
    connect_to: Connect, exports: Exports, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    server = Server(exports)
    server.listen_unix(path)
    connect_to(path).enter().close()
    with pytest.raises(Busy, match="another server listens"):
        server.listen_unix(path)
    assert list(path.parent.iterdir()) == [path]
    server.stop()


def test_a_file_is_not_replaced_by_a_socket(exports: Exports, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    server = Server(exports)
    with pytest.raises(Conflict, match="not a socket"):
        server.listen_unix(path)
    assert path.read_text() == "data"
    server.stop()


def test_paths_longer_than_a_socket_address(
    connect_to: Connect, exports: Exports, tmp_path: Path
) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    server = Server(exports)
    server.listen_unix(directory / "nbd.sock")
    descriptor = os.open(directory, os.O_PATH)
    connect_to(Path(f"/proc/self/fd/{descriptor}/nbd.sock")).enter().close()
    os.close(descriptor)
    server.stop()
    assert not (directory / "nbd.sock").exists()


def test_tcp(exports: Exports) -> None:
    server = Server(exports)
    port = server.listen_tcp("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(m.client_flags() + m.option(m.EXPORT_NAME, b"vda"))
        client.sendall(m.request(m.READ, 0, 1) + m.request(m.DISC))
        received = b""
        while data := client.recv(1000):
            received += data
        assert len(received) == 18 + 10 + 16 + 1
    with pytest.raises(IOFailed, match="in use"):
        server.listen_tcp("127.0.0.1", port)
    server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_on_all_addresses(exports: Exports, host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        skip("there is no IPv6 here")
    server = Server(exports)
    port = server.listen_tcp("", 0)
    with socket.create_connection((host, port)) as client:
        assert len(client.recv(18, socket.MSG_WAITALL)) == 18
    assert server.addresses[0] in (f"tcp::::{port}", f"tcp:0.0.0.0:{port}")
    server.stop()
