"""Told to end by a signal: nothing is left behind, and what a killed process left goes with gc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import COMMAND, World, environment

INTERRUPTED = "blockvault: interrupted; what was acknowledged is safe\n"

QEMU_IMG = """#!/bin/sh
case $1 in info) echo '{}'; exit;; esac
touch begun
exec sleep 60
"""

COMPACT = """
import pathlib, sys, time
from blockvault.cli.main import main
from blockvault.store import compaction
compaction._copy = lambda *_: (pathlib.Path("begun").touch(), time.sleep(60))
sys.argv[1:] = ["compact"]
main()
"""

SLOW = {
    # what a command is at for long: its words, and where the file is that it removes at its end
    "export": ([*COMMAND, "export", "main:vda", "out.qcow2"], ".out.qcow2.*"),
    "import": ([*COMMAND, "import", "new.qcow2", "--volume", "q"], ".blockvault/import-*"),
    "compact": ([sys.executable, "-c", COMPACT], ".blockvault/.compact-*"),
}


class Slow(NamedTuple):
    """A command that is at something for long, in a process group of its own."""

    process: subprocess.Popen[str]
    left: Callable[[], list[Path]]
    """What there is of its files."""

    def told(self, number: int) -> tuple[int, str]:
        """Its exit code and what it says when it gets a signal."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


@pytest.fixture(params=SLOW)
def slow(request: pytest.FixtureRequest, world: World) -> Iterator[Slow]:
    (world.path / "bin").mkdir()
    (world.path / "bin" / "qemu-img").write_text(QEMU_IMG)
    (world.path / "bin" / "qemu-img").chmod(0o755)
    (world.path / "new.qcow2").write_bytes(b"an image")
    words, pattern = SLOW[request.param]
    process = subprocess.Popen(
        words, cwd=world.path, start_new_session=True, stderr=subprocess.PIPE, text=True,
        env=environment(PATH=f"{world.path / 'bin'}:{os.environ['PATH']}"),
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (world.path / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield Slow(process, lambda: list(world.path.glob(pattern)))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_is_left(slow: Slow, number: signal.Signals) -> None:
    assert slow.left()
    assert slow.told(number) == (128 + number, INTERRUPTED)
    assert slow.left() == []


@pytest.mark.parametrize("slow", ["import", "compact"], indirect=True)
def test_what_a_killed_one_left_goes_with_gc(slow: Slow, world: World) -> None:
    os.killpg(slow.process.pid, signal.SIGKILL)
    slow.process.wait(20)
    assert slow.left()
    world("gc")
    assert slow.left() == []


@pytest.mark.parametrize("slow", ["import"], indirect=True)
def test_what_is_in_use_stays(slow: Slow, world: World) -> None:
    world("gc", "--wait", "0", code=None)
    assert slow.left()


def test_an_ignored_signal_stays_ignored(world: World) -> None:
    words = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *COMMAND, "events", "--follow", "-n", "1"]
    with subprocess.Popen(
        words, cwd=world.path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        world("tag", "now")
        assert b"tagged now" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


TWICE = """
import os, signal, time
from blockvault.cli import signals
signals.unwind()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except signals.Ended:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    print("put in order")
time.sleep(signals._ONE)
try:
    os.kill(os.getpid(), signal.SIGHUP)
except signals.Ended as again:
    print(again.number)
"""


def test_signals_that_come_together_are_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["put in order", "1"]


HELD = """
import os, queue, signal, threading
from blockvault.cli import signals
lock, heard = threading.Lock(), queue.SimpleQueue()
signals.on_end(lambda: heard.put(lock.acquire(timeout=20)))
with lock:
    os.kill(os.getpid(), signal.SIGTERM)
print(heard.get(timeout=40))
"""


def test_what_a_signal_calls_may_wait_for_what_the_program_is_at() -> None:
    """An event's own lock, say, that the main thread has in its hand when the signal comes."""
    done = subprocess.run(
        [sys.executable, "-c", HELD], env=environment(), stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"True\n"


ALONE = """
import _thread, os, signal
from blockvault.cli import signals
def start(*_):
    raise RuntimeError("can't start new thread")
_thread.start_new_thread = start
signals.on_end(lambda: print("told"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_needs_no_thread_to_be_heard() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment(), stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"told\n"


SERVED = """
import os, queue, signal, time
from blockvault.cli import signals
told = queue.SimpleQueue()
heeded = signals.on_end(lambda: told.put(1))
os.kill(os.getpid(), signal.SIGTERM)
first = told.get(timeout=40)
signals.end_at_once_if_told_again(heeded)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGHUP)
print(first, told.qsize(), flush=True)
time.sleep(signals._ONE)
os.kill(os.getpid(), signal.SIGHUP)
"""


BEGINNING = """
import os, signal, time
from blockvault.cli import signals
from blockvault.cli.vm import common, life
from blockvault.vm import supervisor

class Beginning:
    def __init__(self, *_): pass
    def start(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on", flush=True)
        time.sleep(signals._ONE)
        os.kill(os.getpid(), signal.SIGINT)
        raise SystemExit(3)
    def kill(self):
        print("QEMU is killed", flush=True)

supervisor.Supervisor = Beginning
common.runtime = common.server = lambda *_: None
life.run_machine(None, "main", None, print)
"""


def test_a_machine_that_is_told_again_ends_whatever_it_is_at() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING], env=environment(), stdout=subprocess.PIPE, check=False
    )
    said = done.stdout.decode().splitlines()
    assert (said, done.returncode) == (["goes on", "QEMU is killed"], -signal.SIGINT)


def test_a_server_that_is_told_twice_at_once_puts_all_in_order() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVED], env=environment(), stdout=subprocess.PIPE, check=False
    )
    assert (done.stdout, done.returncode) == (b"1 0\n", -signal.SIGHUP)
