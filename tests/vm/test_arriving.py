"""Memory that comes while its guest runs: what is asked for first, all of it in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault.device import Extent
from blockvault.errors import Damaged, ToolFailed
from blockvault.vm import arriving, restoring, stream, touched
from blockvault.vm.arriving import Arriving
from blockvault.vm.postcopy import Opening
from blockvault.vm.stream import PAGE
from tests.vm.test_postcopy import message

SIZE = 96 * PAGE
OPENED = Opening(b"opening", 2, "ram")
SECONDS = 10.0


class Memory:
    """A device whose data lie in some runs of pages; a page may be damaged."""

    def __init__(self, runs: list[tuple[int, int]], damaged: int = -1) -> None:
        rng = random.Random(7)
        self.size = SIZE
        self.pin = None
        self.content = bytearray(SIZE)
        self.runs = runs
        self.damaged = damaged * PAGE
        for start, stop in runs:
            self.content[start * PAGE : stop * PAGE] = rng.randbytes((stop - start) * PAGE)

    def extents(self, offset: int, length: int) -> list[Extent]:
        return [Extent(a * PAGE, (b - a) * PAGE, False) for a, b in self.runs]

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self.damaged < offset + length:
            raise Damaged("a block of the memory is damaged")
        return bytes(self.content[offset : offset + length])


class Guest:
    """The side of QEMU: takes pages, asks for some, says when it has all."""

    def __init__(self, path: Path) -> None:
        self.found: dict[int, bytes] = {}
        self.order: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def begin(self) -> None:
        self.socket, _ = self._listener.accept()
        self._source = self.socket.makefile("rb")
        assert self._source.read(len(OPENED.data)) == OPENED.data

    def ask(self, page: int, count: int = 1) -> None:
        offset = (page * PAGE).to_bytes(8, "big")
        self.socket.sendall(message(4, offset + (count * PAGE).to_bytes(4, "big")))

    def take_part(self) -> bool:
        """One section of pages; False at the end of the stream."""
        kind = self._source.read(1)
        if kind in (b"", b"\0"):
            return False
        self._source.read(4)
        while not (header := int.from_bytes(self._source.read(8), "big")) & 0x10:
            if not header & stream.SAME_BLOCK:
                assert self._source.read(4) == b"\x03ram"
            body = self._source.read(PAGE) if header & stream.FULL else self._source.read(1) * PAGE
            at = header & ~(PAGE - 1)
            assert at not in self.found, "QEMU takes no page twice"
            self.found[at] = body
            self.order.append(at // PAGE)
        assert self._source.read(5) == stream.footer(2)
        return True

    def close(self) -> None:
        self._source.close()
        self.socket.close()
        self._listener.close()

    def finish(self, late: int | None = None) -> None:
        """Take everything; ask for one page more when the end has come already."""
        while self.take_part():
            pass
        if late is not None:
            self.ask(late)
        self.socket.sendall(message(1, bytes(4)))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest does not come before a test is over."""
    monkeypatch.setattr(arriving, "_QUIET", 5.0)


Start = Callable[[Memory], tuple[Arriving, Guest]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Memory on its way to a guest; both are closed in the end."""
    with ExitStack() as closing:

        def begun(memory: Memory) -> tuple[Arriving, Guest]:
            guest = Guest(tmp_path / "in")
            hints = tmp_path / "touched" / "hints"
            coming = Arriving(memory, OPENED, tmp_path / "mark", hints)  # type: ignore[arg-type]
            closing.callback(coming.close)
            coming.prepare()
            coming.begin(tmp_path / "in", SECONDS)
            guest.begin()
            closing.callback(guest.close)
            return coming, guest

        yield begun


def test_all_that_is_not_zero_comes(tmp_path: Path, start: Start) -> None:
    memory = Memory([(3, 5), (40, 70), (95, 96)])
    coming, guest = start(memory)
    assert (tmp_path / "mark").exists()
    assert not coming.there
    guest.finish()
    coming.wait(SECONDS)
    assert coming.there
    assert not (tmp_path / "mark").exists()
    wanted = {
        n * PAGE: bytes(memory.content[n * PAGE : (n + 1) * PAGE])
        for start, stop in memory.runs
        for n in range(start, stop)
    }
    assert guest.found == wanted


def test_who_waits_goes_first(start: Start, slow: None) -> None:
    memory = Memory([(0, 96)])
    _, guest = start(memory)
    guest.ask(77)
    assert guest.take_part()
    assert guest.order[0] == 77
    assert sorted(guest.order) == list(range(64, 96)), "its neighbours come with it"
    guest.ask(78)  # it has that
    guest.ask(5)
    assert guest.take_part()
    assert guest.order[32] == 5


def test_zeros_come_to_those_who_ask(start: Start, slow: None) -> None:
    _, guest = start(Memory([(0, 1)]))
    guest.ask(31, count=2)  # on both sides of a border
    assert guest.take_part()
    assert guest.take_part()
    assert guest.found.pop(31 * PAGE) == bytes(PAGE)
    assert guest.found.pop(32 * PAGE) == bytes(PAGE)
    assert list(guest.found) == [0]


def test_who_asks_when_all_was_sent_gets_nothing_more(start: Start) -> None:
    """QEMU reads nothing behind the end, and answers such a guest itself."""
    coming, guest = start(Memory([(0, 1)]))
    guest.finish(late=90)
    coming.wait(SECONDS)
    guest.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        guest.socket.recv(1)


def test_damaged_memory_is_told_and_ends_the_stream(tmp_path: Path, start: Start) -> None:
    coming, guest = start(Memory([(0, 96)], damaged=40))
    while guest.take_part():
        pass
    with pytest.raises(Damaged, match="damaged"):
        coming.wait(SECONDS)
    assert isinstance(coming.error, Damaged)
    assert not coming.there
    assert (tmp_path / "mark").exists(), "the guest cannot go on"


def test_a_qemu_that_ends(start: Start, slow: None) -> None:
    coming, guest = start(Memory([(0, 96)]))
    guest.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ToolFailed) as caught:
        coming.wait(SECONDS)
    assert caught.value.reason == "qemu-gone"


def test_who_waits_gives_up_when_nothing_is_taken(start: Start, slow: None) -> None:
    coming, guest = start(Memory([(0, 96)]))
    began = time.monotonic()
    with pytest.raises(ToolFailed, match="took nothing") as failed:
        coming.wait(0.05)
    assert failed.value.reason == "qemu-stalled"
    assert time.monotonic() - began < SECONDS
    guest.ask(0)
    guest.finish()
    coming.wait(SECONDS)


def test_who_waits_goes_on_waiting_while_pages_are_taken(
    start: Start, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming, guest = start(Memory([(0, 96)]))
    pages, waits = [0, 32, 64], coming._there.wait

    def wait(seconds: float) -> bool:
        """Each time is over, but for the last one, when the guest has taken some more."""
        if threading.current_thread() is not threading.main_thread():
            return waits(seconds)
        if not pages:
            guest.socket.sendall(message(1, bytes(4)))  # it has all
            return waits(SECONDS)
        guest.ask(pages.pop(0))
        return not guest.take_part()

    monkeypatch.setattr(coming._there, "wait", wait)
    coming.wait()
    assert pages == []


def test_closing_in_the_middle(start: Start, slow: None) -> None:
    coming, _guest = start(Memory([(0, 96)]))
    before = threading.active_count()
    coming.close()
    assert threading.active_count() == before - 2


def page(memory: Memory, number: int) -> bytes:
    return bytes(memory.content[number * PAGE : (number + 1) * PAGE])


def all_comes(coming: Arriving, guest: Guest) -> None:
    guest.finish()
    coming.wait(SECONDS)
    coming.close()
    guest.close()


def test_what_one_guest_touched_the_next_one_gets_first(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints = tmp_path / "touched" / "hints"
    monkeypatch.setattr(arriving, "_QUIET", 0.2)
    memory = Memory([(0, 96)])
    coming, guest = start(memory)
    guest.ask(70)
    all_comes(coming, guest)
    near = [70, *(number for number in range(64, 72) if number != 70)]
    assert touched.load(hints) == {number: page(memory, number) for number in near}
    (tmp_path / "in").unlink()
    coming, guest = start(memory)
    assert guest.take_part()
    assert guest.order == near, "nothing else comes before the guest has those"
    # Where others touched pages, only those near to what is asked for come: or what else is
    # touched there would never be known.
    guest.ask(90)
    assert guest.take_part()
    assert sorted(guest.order[len(near) :]) == list(range(88, 96))
    all_comes(coming, guest)
    assert list(touched.load(hints)) == [*near, 90, 88, 89, *range(91, 96)]


def test_zeros_that_one_guest_touched_come_to_the_next_one(tmp_path: Path, start: Start) -> None:
    touched.save(tmp_path / "touched" / "hints", {40: bytes(PAGE)})
    coming, guest = start(Memory([(0, 1)]))
    guest.finish()
    coming.wait(SECONDS)
    assert guest.order[0] == 40
    assert guest.found[40 * PAGE] == bytes(PAGE)
    assert sorted(guest.order) == [0, 40]


@pytest.mark.parametrize("how", ["noise", "changed", "torn", "empty", "beyond the end"])
def test_hints_that_are_not_whole_are_none(tmp_path: Path, start: Start, how: str) -> None:
    """They are content: what the guest gets instead of what the vault holds."""
    memory = Memory([(0, 96)])
    hints = tmp_path / "touched" / "hints"
    touched.save(hints, {3: page(memory, 3), 9: page(memory, 9), 4000: bytes(PAGE)})
    sound = hints.read_bytes()
    match how:
        case "noise":
            hints.write_bytes(random.Random(3).randbytes(4003))
        case "changed":
            hints.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        case "torn":
            hints.write_bytes(sound[: len(sound) // 2])
        case "empty":
            hints.write_bytes(b"")
    assert set(touched.load(hints)) == ({3, 9, 4000} if how == "beyond the end" else set())
    coming, guest = start(memory)
    guest.finish()
    coming.wait(SECONDS)
    assert b"".join(guest.found[n * PAGE] for n in range(96)) == memory.content


def test_only_so_many_hints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touched, "_KEPT", 3 * (PAGE + 36) + PAGE)
    for number in range(6):
        touched.save(tmp_path / "t" / str(number), {number: bytes(PAGE)})
        os.utime(tmp_path / "t" / str(number), (number, number))
    touched.save(tmp_path / "t" / "6", {6: bytes(PAGE)})
    assert {each.name for each in (tmp_path / "t").iterdir()} == {"4", "5", "6"}
    assert touched.load(tmp_path / "t" / "5") == {5: bytes(PAGE)}
    assert touched.load(tmp_path / "t" / "0") == {}


def test_hints_that_are_used_are_kept_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recalling writes nothing, and counts as use even so."""
    monkeypatch.setattr(touched, "_KEPT", 2 * (PAGE + 36) + PAGE)
    for number in range(2):
        touched.save(tmp_path / "t" / str(number), {number: bytes(PAGE)})
        os.utime(tmp_path / "t" / str(number), (number, number))
    assert touched.load(tmp_path / "t" / "0") == {0: bytes(PAGE)}
    touched.save(tmp_path / "t" / "2", {2: bytes(PAGE)})
    assert {each.name for each in (tmp_path / "t").iterdir()} == {"0", "2"}


def test_of_one_memory_only_so_many_pages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touched, "_MOST", 2)
    pages: dict[int, bytes] = {}
    for number in (5, 3, 5, 9):
        touched.note(pages, number, bytes([number]))
    assert pages == {5: b"\5", 3: b"\3"}


def test_one_that_never_begins(start: Start, tmp_path: Path) -> None:
    hints = tmp_path / "hints"
    never = Arriving(Memory([(0, 9)]), OPENED, tmp_path / "mark", hints)  # type: ignore[arg-type]
    before = threading.active_count()
    never.prepare()
    never.close()
    assert threading.active_count() == before
    assert not (tmp_path / "mark").exists()


def test_a_qemu_that_does_not_know_how_gets_all_first() -> None:
    def refused(*_: object, **__: object) -> None:
        raise ToolFailed("Postcopy is not supported", kind="qemu-refused")

    closed: list[bool] = []
    coming: Any = SimpleNamespace(close=lambda: closed.append(True))
    running: Any = SimpleNamespace(
        arriving=None,
        monitor=SimpleNamespace(execute=refused),
        run=SimpleNamespace(migration=Path("/nonexistent")),
        session=SimpleNamespace(branch=SimpleNamespace(name="main")),
    )
    assert not restoring._follow(running), "a state that was not understood"
    running.arriving = coming
    assert not restoring._follow(running)
    assert closed == [True]
    assert running.arriving is None
    # What is no refusal is told.
    running.arriving = coming
    running.monitor = SimpleNamespace(execute=_gone)
    with pytest.raises(ToolFailed, match="went away"):
        restoring._follow(running)


def _gone(*_: object, **__: object) -> None:
    raise ToolFailed("QEMU went away", kind="qemu-gone")


# -- real machines -----------------------------------------------------------------------------


def test_a_guest_goes_on_before_its_memory_is_there(lab: Any) -> None:
    lab.create(memory="256M")
    console = lab.start()
    console.run("dd if=/dev/urandom of=/run/noise bs=1M count=8; md5sum /run/noise >/run/sum")
    lab.run("vm", "pause", "main")
    made = lab.snapshot()
    (source,) = lab.runtime.glob("*/memory")
    told = lab.run("vm", "start", made["id"], "--as", "twin", "--json")
    assert "resumed" in told["told"]
    # Paused as it was saved: nothing but QEMU has touched it, and a snapshot waits for all of it.
    again = lab.snapshot("twin")
    (twin,) = set(lab.runtime.glob("*/memory")) - {source}
    assert _differing_pages(source, twin) <= 1, "no more than the new generation id"
    different = {row["volume"]: row for row in lab.run("diff", made["id"], again["id"], "--json")}
    assert different["memory"]["changed"] <= PAGE
    lab.run("vm", "resume", "twin")
    assert lab.console("twin").run("md5sum -c /run/sum") == "/run/noise: OK"
    lab.run("vm", "rollback", "twin", made["id"])
    # And one that runs at once.
    lab.run("vm", "resume", "main")
    running = lab.snapshot()
    lab.run("vm", "start", running["id"], "--as", "third")
    third = lab.console("third")
    at = third.counter()
    assert third.run("md5sum -c /run/sum") == "/run/noise: OK"
    lab.wait_until(lambda: third.counter() > at)
    lab.snapshot("third")
    lab.run("vm", "start", running["id"], "--as", "eager", "--eager")
    assert lab.console("eager").run("md5sum -c /run/sum") == "/run/noise: OK"
    lab.run("verify")


def _differing_pages(a: Path, b: Path) -> int:
    one, other = a.read_bytes(), b.read_bytes()
    assert len(one) == len(other)
    return sum(one[n : n + PAGE] != other[n : n + PAGE] for n in range(0, len(one), PAGE))


def test_a_supervisor_that_dies_while_memory_comes(lab: Any) -> None:
    """A QEMU whose memory will never be whole is not taken over."""
    command = "echo kept >/disk/f; sync; dd if=/dev/urandom of=/run/noise bs=1M count=100"
    name, _ = _struck(lab, command, signal.SIGKILL, lambda _, told: told["pid"])
    qemu = lab.status(name)["qemu"]
    lab.wait_until(lambda: lab.status(name)["status"] == "orphaned")
    assert "resumed" in lab.run("vm", "start", name)
    assert lab.status(name)["qemu"] != qemu
    assert lab.console(name).run("cat /disk/f") == "kept"


@pytest.mark.nightly
def test_a_qemu_that_takes_no_more_of_its_memory(lab: Any) -> None:
    """Who waits for all of it is told so, and later on gets it."""
    command = "dd if=/dev/urandom of=/run/noise bs=1M count=100; md5sum /run/noise >/run/sum"
    name, qemu = _struck(lab, command, signal.SIGSTOP, lambda name, _: lab.status(name)["qemu"])
    try:
        error = lab.run("vm", "snapshot", name, "--json", code=9)
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert "took nothing of the machine's memory" in error["error"]["message"]
    lab.run("vm", "resume", name)
    assert lab.console(name).run("md5sum -c /run/sum") == "/run/noise: OK"
    lab.snapshot(name)
    lab.run("verify")


def _struck(
    lab: Any, command: str, how: signal.Signals, process: Callable[[str, Any], int]
) -> tuple[str, int]:
    """A paused twin of a machine that ran ``command``, and the process of it that got a signal
    while its memory came; ``process`` finds that by the twin's name and what ``vm start`` told.
    """
    lab.create(memory="512M")
    lab.start().run(command)
    made = lab.snapshot()
    lab.run("vm", "stop", "main", "--force")
    for number in range(10):
        name = f"twin{number}"
        told = lab.run("vm", "start", made["id"], "--as", name, "--json", "--paused")
        mark = _state(lab, name) / "unsound"
        was_coming = mark.exists()
        victim = process(name, told)
        os.kill(victim, how)
        if was_coming and mark.exists():
            return name, victim
        if how == signal.SIGSTOP:
            os.kill(victim, signal.SIGCONT)
    raise AssertionError("memory was there before anybody could be struck")


def _state(lab: Any, branch: str) -> Path:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for state in lab.runtime.glob("*/state.json"):
            if json.loads(state.read_text())["branch"] == branch:
                return Path(state).parent
    raise AssertionError(f"{branch} has no run directory")
