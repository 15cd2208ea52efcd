"""A vault being served: leases, snapshots while guests write, the state after a kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, NotFound
from blockvault.nbd import control
from blockvault.nbd.serving import Serving
from blockvault.ops import attachments, check, gc
from tests.nbd import messages as m
from tests.nbd.conftest import Client, wait_until
from tests.oracle import noise

BLOCK = 4096
SIZE = 64 << 20
Connect = Callable[..., Client]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Vault.create(tmp_path) as vault, vault.session("main") as session:
        session.create_volume("vda", SIZE).write(0, b"first")
        session.snapshot("first")
    return tmp_path


@pytest.fixture
def vault(home: Path) -> Iterator[Vault]:
    with Vault.open(home) as opened:
        yield opened


@pytest.fixture
def serving(vault: Vault, path: Path) -> Iterator[Serving]:
    with Serving(vault, ["main", "main~0"]) as running:
        running.server.listen_unix(path)
        yield running


@pytest.fixture
def client(serving: Serving, path: Path, connect_to: Connect) -> Client:
    return connect_to(path).enter("main/vda")


def test_what_is_written_is_history(client: Client, vault: Vault) -> None:
    assert client.ask(m.write(BLOCK, b"hello")) == (0, b"")
    assert client.ask(m.request(m.FLUSH)) == (0, b"")
    seq = vault.branch("main").seq
    assert client.ask(m.write(BLOCK, b"world", flags=m.FUA)) == (0, b"")
    assert client.ask(m.request(m.READ, BLOCK, 5), 5) == (0, b"world")
    assert vault.device("main", "vda").read(BLOCK, 5) == b"world"
    assert vault.device(f"main@{{#{seq}}}", "vda").read(BLOCK, 5) == b"hello"
    assert vault.device("main~0", "vda").read(0, 5) == b"first"


@pytest.mark.parametrize("command", [m.ZEROES, m.TRIM])
def test_zeros_that_are_to_be_durable_are_history_when_they_are_answered(
    client: Client, vault: Vault, command: int
) -> None:
    assert client.ask(m.request(command, 0, BLOCK, flags=m.FUA)) == (0, b"")
    assert vault.device("main", "vda").read(0, 5) == bytes(5)


def test_errors_over_a_real_vault(client: Client, connect_to: Connect, path: Path) -> None:
    assert client.ask(m.request(m.READ, SIZE, 1)) == (m.EINVAL, b"")
    assert client.ask(m.write(SIZE - 1, b"ab")) == (m.ENOSPC, b"")
    past = connect_to(path).enter("main~0/vda")
    assert past.ask(m.write(0, b"x")) == (m.EPERM, b"")
    assert past.ask(m.request(m.READ, 0, 5), 5) == (0, b"first")


def test_a_branch_has_one_server(serving: Serving, home: Path) -> None:
    with Vault.open(home) as vault:
        with pytest.raises(Busy, match="NBD server"):
            Serving(vault, ["main"])
        with Serving(vault, ["main"], read_only=True) as second:
            assert second.sessions == {}


def test_a_branch_by_several_names_is_served_once(vault: Vault) -> None:
    with Serving(vault, ["@", "HEAD", "main", "heads/main"]) as serving:
        assert list(serving.sessions) == ["main"]
        assert serving.names == ["main/vda"]


@pytest.mark.parametrize("cache", [0, 1, 4096])
def test_a_cache_that_holds_nothing_is_refused(vault: Vault, cache: int) -> None:
    with pytest.raises(BadRequest, match="too little"):
        Serving(vault, ["main"], cache=cache)
    vault.session("main").close()


def test_a_start_that_fails_gives_everything_back(vault: Vault) -> None:
    vault.create_branch("other")
    with pytest.raises(NotFound):
        Serving(vault, ["main", "other", "nobody"])
    for branch in ("main", "other"):
        vault.session(branch).close()


def test_the_lease_is_free_after_the_end(serving: Serving, vault: Vault, client: Client) -> None:
    client.socket.sendall(m.write(0, b"last words"))
    assert client.reply() == (0, b"")
    serving.close()
    with vault.session("main") as session:
        assert session.device("vda").read(0, 10) == b"last words"


def test_snapshots_of_a_live_volume(client: Client, home: Path) -> None:
    with Vault.open(home) as other:
        assert client.ask(m.write(0, b"not flushed by the guest")) == (0, b"")
        made = control.snapshot(other, "live", author="someone")
        snapshot = other.get_snapshot(made)
        assert (snapshot.message, snapshot.author) == ("live", "someone")
        assert other.device("main~0", "vda").read(0, 8) == b"not flus"
        assert client.ask(m.write(0, b"and on it goes")) == (0, b"")


def test_a_live_snapshot_is_made_by_who_asks(client: Client, home: Path) -> None:
    """And not by whoever runs the server."""
    with Vault.open(home) as other:
        other.author = "alice@desk"
        made = control.snapshot(other, "mine")
        assert other.get_snapshot(made).author == "alice@desk"


def test_files_that_nobody_kept_for_a_snapshot_are_not_recorded(
    serving: Serving, home: Path
) -> None:
    """Who stored them and asked may have ended before a slow server comes to the request."""
    with Vault.open(home) as other:
        with other.guard():
            kept = attachments.keep(other, {"memory": bytes(BLOCK) + noise(1, BLOCK), "none": b""})
            rows = attachments.to_rows(kept)
            (remote,) = control.servers(other.path)
            made = remote.ask("snapshot", branch="main", attachments=rows)
            assert other.get_snapshot(bytes.fromhex(made["id"])).attachments == tuple(kept)
        with other.guard():
            lost = attachments.keep(other, {"memory": noise(2, 3 * BLOCK)})
        gc.collect(other)
        seq = other.branch("main").seq
        with pytest.raises(Conflict, match="has ended"):
            remote.ask("snapshot", branch="main", attachments=attachments.to_rows(lost))
        assert other.branch("main").seq == seq
        assert check.verify(other).ok


def test_a_snapshot_of_a_branch_that_nobody_serves(vault: Vault) -> None:
    vault.create_branch("quiet")
    made = control.snapshot(vault, "quiet", branch="quiet")
    assert vault.resolve("quiet~0").snapshot == made


def test_status_and_flush_and_stop(serving: Serving, client: Client, vault: Vault) -> None:
    (remote,) = control.servers(vault.path)
    assert client.ask(m.write(0, b"x" * BLOCK)) == (0, b"")
    status = remote.ask("status")
    assert status["branches"]["main"]["dirty_bytes"] == BLOCK
    assert status["names"] == ["main/vda", "main~0/vda"]
    assert status["exports"]["main/vda"]["bytes_written"] == BLOCK
    assert status["clients"][0]["export"] == "main/vda"
    remote.ask("flush", branch="main")
    assert remote.ask("status")["branches"]["main"]["dirty_bytes"] == 0
    with pytest.raises(NotFound):
        remote.ask("flush", branch="nobody")
    assert control.holder(vault.path, "main") is not None
    assert control.holder(vault.path, "nobody") is None
    assert not serving.stopping.is_set()
    remote.ask("stop")
    assert serving.stopping.is_set()


def test_snapshots_while_a_guest_writes_are_consistent(
    client: Client, vault: Vault, home: Path
) -> None:
    """Every write puts one number into two places; no snapshot may see it half done.

    Each write is a single request over both blocks, so a state between two events has both.
    """
    stop = threading.Event()
    written = [0]

    def write() -> None:
        while not stop.is_set():
            written[0] += 1
            number = written[0].to_bytes(8, "big")
            data = number + bytes(2 * BLOCK - 16) + number
            assert client.ask(m.write(10 * BLOCK, data)) == (0, b"")

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    with Vault.open(home) as other:
        for number in range(10):
            control.snapshot(other, f"number {number}")
            data = other.device("main~0", "vda").read(10 * BLOCK, 2 * BLOCK)
            assert data[:8] == data[-8:]
            seen.append(int.from_bytes(data[:8], "big"))
    stop.set()
    thread.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


# -- killed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(3))
def test_what_was_flushed_survives_kill_9(
    home: Path, path: Path, connect_to: Connect, round_: int
) -> None:
    rng = random.Random(round_)
    server = start(home, path)
    try:
        client = connect_to(path).enter("main/vda")
        durable = {}
        for number in range(rng.randrange(20, 60)):
            place = rng.randrange(SIZE // BLOCK - 1) + 1
            durable[place] = rng.randbytes(16)
            assert client.ask(m.write(place * BLOCK, durable[place])) == (0, b"")
            if number % 7 == 0:
                assert client.ask(m.request(m.FLUSH)) == (0, b"")
                safe = dict(durable)
        client.socket.sendall(m.write(0, b"x" * BLOCK * 100)[: rng.randrange(400_000)])
    finally:
        server.kill()
        server.wait()
    later = {place: data for place, data in durable.items() if safe.get(place) != data}
    begin = time.monotonic()
    again = start(home, path)
    assert time.monotonic() - begin < 5
    try:
        client = connect_to(path).enter("main/vda")
        for place, data in safe.items():
            if place not in later:
                assert client.ask(m.request(m.READ, place * BLOCK, 16), 16) == (0, data)
    finally:
        again.terminate()
        assert again.wait(10) == 0


def start(home: Path, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "blockvault.cli.main", "-V", str(home), "serve"]
    server = subprocess.Popen([*command, "--socket", str(path)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline().startswith(b"Serving main/vda")
    return server


def test_a_signal_ends_it_in_order(home: Path, path: Path, connect_to: Connect) -> None:
    server = start(home, path)
    client = connect_to(path).enter("main/vda")
    for number in range(200):
        client.socket.sendall(m.write(number * BLOCK, b"kept", cookie=number))
    assert [client.reply() for _ in range(200)] == [(0, b"")] * 200
    server.send_signal(signal.SIGTERM)
    assert client.at_end()
    assert server.wait(10) == 0
    assert not path.exists()
    with Vault.open(home) as vault:
        wait_until(lambda: control.servers(vault.path) == [])
        device = vault.device("main", "vda")
        assert all(device.read(n * BLOCK, 4) == b"kept" for n in range(200))
