"""The console's log: bounded while QEMU appends to it, and read from its end."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from blockvault.vm import consolelog
from blockvault.vm.supervisor import Supervisor


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log that may have 1,000 bytes, and keeps 500 of more."""
    monkeypatch.setattr(consolelog, "LIMIT", 1000)
    monkeypatch.setattr(consolelog, "KEPT", 500)
    monkeypatch.setattr(consolelog, "_STEP", 64)
    return tmp_path / "console.log"


def test_a_log_that_grew_too_long_keeps_whole_lines_of_its_end(log: Path) -> None:
    text = b"".join(b"line %d\r\n" % number for number in range(200))
    with open(log, "ab", buffering=0) as qemu:
        qemu.write(text[:1000])
        consolelog.bound(log)
        assert log.read_bytes() == text[:1000]
        qemu.write(text[1000:])
        consolelog.bound(log)
        qemu.write(b"after\n")
    kept = log.read_bytes()
    assert 480 < len(kept) < 510
    assert kept.startswith(b"line ")
    assert (text + b"after\n").endswith(kept)


def test_a_log_without_lines_is_bounded_too(log: Path) -> None:
    log.write_bytes(b"x" * 5000)
    consolelog.bound(log)
    assert log.read_bytes() == b"x" * 500


def test_a_log_that_cannot_be_bounded_ends_nothing(log: Path) -> None:
    consolelog.bound(log)  # there is none


@pytest.mark.parametrize("count", [1, 2, 7, 40, 199, 200, 300])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"no end"])
def test_the_last_lines_are_those_of_all(log: Path, count: int, end: bytes) -> None:
    log.write_bytes(b"\r\n".join(b"l\xc3\xb6ne %d" % number for number in range(200)) + end)
    every = log.read_bytes().decode().splitlines()
    assert list(consolelog.lines(log)) == every
    assert list(consolelog.lines(log, count)) == every[-count:]


def test_no_more_is_read_than_the_last_lines_need(log: Path) -> None:
    with open(log, "wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    assert list(consolelog.lines(log, 2)) == ["last but one", "last"]


def test_a_supervisor_bounds_the_log_while_its_machine_runs(log: Path) -> None:
    log.write_bytes(b"x" * 5000)
    running: Any = Mock(arriving=None, session=Mock(unstored=bytearray(1)))
    running.qemu.ended = False
    supervisor: Any = SimpleNamespace(running=running, run_dir=Mock(console_log=log))
    Supervisor._look(supervisor)
    assert log.stat().st_size == 500
