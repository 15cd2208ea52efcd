"""The promise of FLUSH, kept by the server over a real vault: power cuts, full disks, a real ext4.

After any failure each block holds what the last completed FLUSH covered, or something that was
written after it; never anything else.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import find_tool
from tests.faults import nbd_case
from tests.faults.nbd_case import SIZE
from tests.nbd import messages as m
from tests.nbd.conftest import Client
from tools.faults import smalldisk
from tools.faults.channel import REPOSITORY
from tools.faults.mount import PowerMount

BLOCK = 4096
PLACES = 64
EXPORT = f"{nbd_case.BRANCH}/{nbd_case.VOLUME}"


class NotServed(Exception):
    """The server did not come up; what it said."""


@contextlib.contextmanager
def served(vault: Path, path: Path, mode: str = "safe") -> Iterator[subprocess.Popen[str]]:
    """A running server; killed at the end if it still runs.  It must have known what failed."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nbd_case", str(vault), str(path), mode],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise NotServed(process.communicate()[1])
        yield process
    finally:
        process.kill()
        _, told = process.communicate()
    assert "Traceback" not in told, told
    # A page of the file that a dead disk cannot give ends whoever reads it.
    assert process.returncode in (-signal.SIGKILL, -signal.SIGBUS)


class Witness:
    """Writes through a client and knows what each place may hold after a failure."""

    def __init__(self) -> None:
        self.durable = dict.fromkeys(range(PLACES), bytes(BLOCK))
        self.later: dict[int, list[bytes]] = {place: [] for place in range(PLACES)}
        self.flushed = 0

    def write(self, client: Client, rng: random.Random) -> int:
        place = rng.randrange(PLACES)
        data = rng.randbytes(16) * (BLOCK // 16)
        self.later[place].append(data)  # from now on it may be there, answered or not
        return client.ask(m.write(place * BLOCK * 3, data))[0]

    def flush(self, client: Client) -> int:
        errno, _ = client.ask(m.request(m.FLUSH))
        if errno == 0:
            self.flushed += 1
            for place, written in self.later.items():
                self.durable[place] = written[-1] if written else self.durable[place]
                written.clear()
        return errno

    def check(self, client: Client) -> str:
        """What is wrong, if anything; what is there is the truth from then on."""
        for place in range(PLACES):
            errno, data = client.ask(m.request(m.READ, place * BLOCK * 3, BLOCK), BLOCK)
            if errno:
                return f"place {place} cannot be read: {errno}"
            if data != self.durable[place] and data not in self.later[place]:
                return f"place {place} holds what was not written there since the last flush"
            self.durable[place] = data
            self.later[place].clear()
        return ""

    def work(self, client: Client, rng: random.Random, requests: int) -> None:
        """Write and flush until something fails, or for so many requests."""
        with contextlib.suppress(OSError, EOFError):
            for _ in range(requests):
                if rng.random() < 0.15:
                    failed = self.flush(client)
                else:
                    failed = self.write(client, rng)
                if failed:
                    return


# -- power cuts ------------------------------------------------------------------------------------


def cut_again_and_again(power: PowerMount, path: Path, seed: int, cycles: int, mode: str) -> str:
    """What was wrong after one of so many power cuts; empty if nothing was.

    A server that does not even start with a sound vault is an error, and no finding.
    """
    nbd_case.prepare(power.path)
    with served(power.path, path, mode):
        pass
    try:
        return _cut_again_and_again(power, path, seed, cycles, mode)
    except NotServed as error:
        return str(error)


def _cut_again_and_again(power: PowerMount, path: Path, seed: int, cycles: int, mode: str) -> str:
    rng, witness = random.Random(seed), Witness()
    for cycle in range(cycles):
        with served(power.path, path, mode):
            client = Client(path).enter(EXPORT)
            wrong = witness.check(client)
            if wrong:
                client.close()
                return f"cycle {cycle}: {wrong}"
            power.arm(rng.randrange(1, 120))
            witness.work(client, rng, 300)
            client.close()
        power.cut(rng.getrandbits(32))
    assert witness.flushed > cycles // 2
    return ""


def test_flush_holds_through_power_cuts(
    power: PowerMount, tmp_path: Path, seed: int, nightly: bool
) -> None:
    cycles = 500 if nightly else 30
    assert cut_again_and_again(power, tmp_path / "s", seed, cycles, "safe") == ""


def test_a_server_that_cannot_start_is_not_what_a_control_looks_for(
    power: PowerMount, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "lmdb.py").write_text("raise SystemExit('broken')")
    with pytest.raises(NotServed, match="broken"):
        cut_again_and_again(power, tmp_path / "s", seed, 1, "deaf")


def test_a_server_that_ignores_flush_is_caught(
    power: PowerMount, tmp_path: Path, seed: int
) -> None:
    assert cut_again_and_again(power, tmp_path / "s", seed, 30, "deaf") != ""


def test_a_journal_that_is_not_synced_is_caught(
    power: PowerMount, tmp_path: Path, seed: int
) -> None:
    assert cut_again_and_again(power, tmp_path / "s", seed, 60, "loose") != ""


# -- full disks ------------------------------------------------------------------------------------


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(
    request: pytest.FixtureRequest, scratch: Path, mounts: None, need_tool: Callable[[str], str]
) -> Iterator[Path]:
    kind = str(request.param)
    if kind in smalldisk.MKFS:
        need_tool(smalldisk.MKFS[kind][0])
    with smalldisk.mounted(kind, scratch, 24 << 20) as path:
        yield path


def test_a_full_disk_is_told_and_service_goes_on(disk: Path, tmp_path: Path, seed: int) -> None:
    rng, witness, path = random.Random(seed), Witness(), tmp_path / "s"
    nbd_case.prepare(disk)
    with served(disk, path):
        client = Client(path).enter(EXPORT)
        witness.work(client, rng, 100)
        assert witness.flush(client) == 0
        ballast = smalldisk.fill(disk)
        assert fill_up(client, rng) == m.ENOSPC
        assert witness.check(client) == "", "reads go on"
        ballast.unlink()
        deadline = time.monotonic() + 10
        while witness.flush(client) != 0:
            assert time.monotonic() < deadline, "with room again, the same flush succeeds"
        witness.work(client, rng, 100)
        assert witness.flush(client) == 0
        client.close()
    with served(disk, path):
        client = Client(path).enter(EXPORT)
        assert witness.check(client) == ""
        client.close()


def fill_up(client: Client, rng: random.Random) -> int:
    """Write and flush beyond the places of the witness until an error comes; return it."""
    for number in range(2000):
        place = SIZE // 2 + number % 1000 * BLOCK
        errno, _ = client.ask(m.write(place, rng.randbytes(BLOCK)))
        if not errno and number % 20 == 0:
            errno, _ = client.ask(m.request(m.FLUSH))
        if errno:
            return errno
    return 0


# -- a real file system ----------------------------------------------------------------------------


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def as_file(path: Path, place: Path, nbdfuse: str) -> Iterator[Path]:
    """The export as one file, through nbdfuse."""
    place.mkdir(exist_ok=True)
    uri = f"nbd+unix:///{EXPORT}?socket={path}"
    process = subprocess.Popen([nbdfuse, str(place), uri], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not (place / "nbd").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield place / "nbd"
    finally:
        tool("fusermount3", "-u", "-z", place)
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def loop_mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    done = tool("mount", "-t", "ext4", "-o", "loop", image, place)
    assert done.returncode == 0, done.stderr
    try:
        yield place
    finally:
        tool("umount", "-l", place)


def ext4_through_kills(top: Path, seed: int, cycles: int, mode: str) -> str:
    """What was wrong with an ext4 whose server was killed so many times; empty if nothing was."""
    nbdfuse, e2fsck, mkfs = map(find_tool, ("nbdfuse", "e2fsck", "mkfs.ext4"))
    rng, path = random.Random(seed), top / "s"
    nbd_case.prepare(top)
    with served(top, path), as_file(path, top / "fuse", nbdfuse) as image:
        done = tool(mkfs, "-q", "-F", "-b", "1024", image)
        assert done.returncode == 0, done.stderr
    synced: dict[str, bytes] = {}
    for cycle in range(cycles):
        with served(top, path, mode) as server, as_file(path, top / "fuse", nbdfuse) as image:
            checked = tool(e2fsck, "-f", "-p", image)
            if checked.returncode > 1:
                return f"cycle {cycle}: {checked.stdout}{checked.stderr}"
            with loop_mounted(image, top / "mnt") as root:
                for name, data in synced.items():
                    if not (root / name).exists() or (root / name).read_bytes() != data:
                        return f"cycle {cycle}: {name} is not as it was synced"
                for number in range(rng.randrange(2, 6)):
                    name, data = f"file-{cycle % 8}-{number}", rng.randbytes(rng.randrange(100_000))
                    (root / name).write_bytes(data)
                    assert tool("sync", "-f", root / name).returncode == 0
                    synced[name] = data
                (root / "not-synced").write_bytes(rng.randbytes(200_000))
                server.kill()
                server.wait()
    return ""


def test_a_real_ext4_survives_kill_9(
    tmp_path: Path, mounts: None, seed: int, nightly: bool
) -> None:
    assert ext4_through_kills(tmp_path, seed, 100 if nightly else 10, "safe") == ""


def test_an_ext4_on_a_server_that_ignores_flush_is_caught(
    tmp_path: Path, mounts: None, seed: int
) -> None:
    assert ext4_through_kills(tmp_path, seed, 5, "deaf") != ""


def test_two_hundred_clients_while_the_power_fails(
    power: PowerMount, tmp_path: Path, seed: int
) -> None:
    """Every client is told of the failure, or cut off; none waits for ever."""
    path = tmp_path / "s"
    nbd_case.prepare(power.path)
    with served(power.path, path):
        clients = [Client(path).enter(EXPORT) for _ in range(200)]
        power.arm(5)
        for number, client in enumerate(clients):
            client.socket.sendall(m.write(number * BLOCK, b"x" * BLOCK) + m.request(m.FLUSH))
        outcomes = [both_replies(client) for client in clients]
        assert any(errno for errno in outcomes)
        for client in clients:
            client.close()


def both_replies(client: Client) -> int:
    try:
        return client.reply()[0] or client.reply()[0]
    except (EOFError, ConnectionResetError):
        return -1
    except TimeoutError as error:
        raise AssertionError("a client waits for ever") from error
