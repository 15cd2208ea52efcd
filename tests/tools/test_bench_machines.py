"""Two guests that take turns: never both at once, and each begins as often as the other.

What they do in a turn is tried without a guest: QEMU keeps and restores a machine that has none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_tool
from tools.bench import machines
from tools.bench.machines import qemu
from tools.bench.machines.qemu import Theirs, compressed
from tools.bench.machines.vault import Ours
from tools.bench.peers import qemu as peers
from tools.bench.peers.qemu import QemuBackground
from tools.bench.plan import MIB
from tools.guest.build import Guest


class Fake:
    """A guest that notes when it goes on and stands still."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    @contextmanager
    def running(self) -> Iterator[None]:
        self.notes.append(f"{self.name} goes on")
        yield
        self.notes.append(f"{self.name} stands still")

    def __getattr__(self, step: str) -> Any:
        return lambda *number: self.notes.append(" ".join(map(str, (self.name, step, *number))))


def turn(name: str, what: str) -> list[str]:
    return [f"{name} goes on", f"{name} {what}", f"{name} stands still"]


def test_guests_take_turns_in_each_round_and_one_begins_after_the_other() -> None:
    notes: list[str] = []
    ours, theirs = Fake("ours", notes), Fake("theirs", notes)
    machines.take_turns(3, (ours, ours.snapshot), (theirs, theirs.keep))
    assert notes == [
        *(*turn("ours", "snapshot 0"), *turn("theirs", "keep 0")),
        *(*turn("theirs", "keep 1"), *turn("ours", "snapshot 1")),
        *(*turn("ours", "snapshot 2"), *turn("theirs", "keep 2")),
    ]


@pytest.mark.parametrize(("rounds", "clones", "starts"), [(1, 10, 1), (3, 10, 3), (12, 10, 12)])
def test_all_is_measured_and_clones_beside_starts(rounds: int, clones: int, starts: int) -> None:
    notes: list[str] = []
    ours: Any = Fake("ours", notes)
    theirs: Any = Fake("theirs", notes)
    machines.measure(ours, theirs, rounds)
    for step in ("ours snapshot", "theirs keep", "ours go_back", "theirs go_back"):
        assert sum(note.startswith(f"{step} ") for note in notes) == rounds
    last = notes[notes.index("theirs end") + 1 :]
    assert sum(note.startswith("ours clone") for note in last) == clones
    assert sum(note.startswith("theirs start") for note in last) == starts
    assert last[:2] == ["ours clone 0", "theirs start 0"]
    assert not any("goes on" in note for note in last), "nobody else runs beside one that starts"


ENDED = """
import contextlib, signal
from tools.bench.machines import __main__ as program

@contextlib.contextmanager
def both(_):
    try:
        print("up", flush=True)
        yield None, None
    finally:
        print("gone", flush=True)

program.both = both
program.machines.measure = lambda *_: signal.pause()
program.main()
"""


LONGLOG_ENDED = """
import signal
from tools.bench import longlog

def measure(*_):
    try:
        print("up", flush=True)
        yield signal.pause()
    finally:
        print("gone", flush=True)

longlog.measure = measure
longlog.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("source", [ENDED, LONGLOG_ENDED], ids=["machines", "longlog"])
def test_guests_and_servers_are_gone_when_their_program_is_asked_to_end(
    source: str, number: signal.Signals
) -> None:
    root = Path(__file__).parents[2]
    words = ["env", "--default-signal=HUP", sys.executable, "-c", source]
    with subprocess.Popen(
        words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        program.send_signal(number)
        assert program.stdout.readline() == "gone\n"


GUEST = Guest(Path("kernel"), Path("initrd"), Path("disk.img"))


@pytest.mark.parametrize(("accelerator", "processor"), [("kvm", "host"), ("tcg", "max")])
def test_both_guests_have_the_processor_of_their_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str, processor: str
) -> None:
    monkeypatch.setattr(qemu.host, "accelerator", lambda: accelerator)
    words = Theirs(tmp_path, tmp_path)._command(GUEST, "512M")
    assert words[words.index("-accel") + 1] == accelerator
    assert words[words.index("-cpu") + 1] == processor


def test_a_qemu_keeps_and_restores_what_it_runs_and_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_tool("qemu-img")
    find_tool("qemu-system-x86_64")
    whole = Theirs._command

    def without_a_guest(self: Theirs, guest: Guest, memory: str) -> list[str]:
        words = whole(self, guest, memory)
        at = words.index("-kernel")
        assert words[at + 2 : at + 6 : 2] == ["-initrd", "-append"]
        return words[:at] + words[at + 6 :]

    monkeypatch.setattr(Theirs, "_command", without_a_guest)
    monkeypatch.setattr(qemu.host, "accelerator", lambda: "tcg")
    monkeypatch.setattr(qemu, "PAUSE", 0)
    for name in ("prepare", "answers"):
        monkeypatch.setattr(qemu, name, lambda *_: None)
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with (
        tempfile.TemporaryDirectory(prefix="bv") as sockets,
        closing(Theirs(tmp_path, Path(sockets))) as theirs,
    ):
        theirs.boot(GUEST._replace(disk=tmp_path / "disk.img"), "32M", 0)
        for step in (theirs.keep, theirs.go_back):
            with theirs.running():
                step(0)
                assert theirs.monitor.status() == "running"
        theirs.end()
        theirs.start(0)
        figures = theirs.figures()
    assert all(value > 0 for value in figures.values()), figures
    if QemuBackground.missing() is None:
        assert not theirs.missing
        assert figures["background_ms"] < figures["migrate_ms"]
        assert figures["incoming_s"]
    else:
        assert theirs.missing.keys() == {"pause", "restore"}
    assert figures["state_bytes"] < 32 * MIB


def test_a_file_takes_what_its_bytes_take_compressed(tmp_path: Path) -> None:
    noise, state = os.urandom(2 * MIB + 5), tmp_path / "state"
    state.write_bytes(noise + bytes(3 * MIB))
    assert len(noise) < compressed(state) < len(noise) * 1.01


def test_what_is_stored_of_a_vault_is_what_came_in_anew(tmp_path: Path) -> None:
    with closing(Ours(tmp_path / "vault")) as ours:
        ours("init", ours.path)
        sizes = [ours.stored()]
        for name in ("one", "two"):
            image = tmp_path / f"{name}.img"
            image.write_bytes(os.urandom(MIB) + bytes(MIB))
            ours("import", image)
            sizes.append(ours.stored())
    first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
    assert MIB <= first < 1.1 * MIB
    assert MIB <= second < 1.1 * MIB


def test_a_qemu_without_background_snapshots_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = '{"error": {"desc": "not supported by host kernel"}}'
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    (tmp_path / "qemu-img").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    peers._refused.cache_clear()
    try:
        reason = QemuBackground.missing()
    finally:
        peers._refused.cache_clear()
    assert reason == "no background-snapshot: not supported by host kernel"
