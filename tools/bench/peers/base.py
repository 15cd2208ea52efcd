"""What a contender is.

A contender only spells commands; it measures nothing.  Two kinds of work exist, and a program
implements the one or both that it offers:

* ``Archive`` takes whole images in and gives them back (series, scale, memory),
* ``Machine`` keeps one live disk of any virtual size, with snapshots (latency, growth, changes).

What a program does not offer raises ``NotOffered`` with the reason; it appears in the table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, environment

FILES_ONLY = "diff names changed files, not what changed inside an image"
"""Why what keeps many files has no diff of two images."""


class NotOffered(Exception):
    """The program has no such operation; the text says what comes nearest."""


def find_program(name: str) -> str | None:
    """Where a program is that would be run by this name."""
    return shutil.which(name, path=environment({})["PATH"])


def words_of(*argv: str) -> str:
    """What a program prints about itself."""
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=environment({}), timeout=60
    )
    return done.stdout or done.stderr


def first_version(*argv: str) -> str:
    """The first version number that a program prints about itself."""
    found = re.search(r"\d+(\.\d+)+\S*|\b\d+\b", words_of(*argv))
    return found.group().strip("(),") if found else "unknown"


class Contender(ABC):
    """A program under test.  ``folder`` is its own place on the disk that is measured."""

    name: str
    title: str
    programs: tuple[str, ...] = ()
    needs_root: bool = False
    skips_holes: bool = True  # whether a sparse image costs it nothing for its holes
    keeps_history: bool = True  # else it is a yardstick, and never "the best peer"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str | None:
        """Why this program cannot run here; None if it can."""
        absent = [name for name in cls.programs if find_program(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        if cls.needs_root and os.geteuid() != 0:
            return "needs root for a loop device"
        return None

    @classmethod
    def version(cls) -> str:
        """Version of the program that is measured."""
        return first_version(cls.programs[0], "--version")

    @abstractmethod
    def start(self) -> list[Command]:
        """The program doing nothing: the floor of each of its commands."""

    def size(self) -> int:
        """Bytes that the store takes on the disk."""
        return disk_usage(self.folder)

    def close(self) -> None:  # noqa: B027 - most have nothing but files
        """Give back what is not a file, such as a mount."""


class Archive(Contender):
    """Takes images in, gives them back.

    A diff lists all ranges of an image that differ between two states, as one needs to copy or
    to look at them; a class without one says why in ``no_diff``, which is "" in all others.
    """

    no_diff = "no command that compares two states"

    @abstractmethod
    def create(self) -> list[Command]:
        """An empty store."""

    @abstractmethod
    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        """Take ``image`` in as ``state`` of ``machine``."""

    @abstractmethod
    def restore(self, state: str, target: Path) -> list[Command]:
        """Write ``state`` to the file ``target``, whose folder is empty."""

    def restored(self, target: Path) -> Path:
        """Where ``restore`` really put it."""
        return target

    def verify(self) -> list[Command]:
        """Check all stored bytes."""
        raise NotOffered("no command that checks stored bytes")

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        """Give up the states ``gone`` and give back their space; ``kept`` are all the others."""
        raise NotOffered("states cannot be given up one by one")

    def diff(self, old: str, new: str) -> list[Command]:
        """List the ranges that differ between two states."""
        raise NotOffered(self.no_diff)


class Machine(Contender):
    """One live disk with snapshots.  Names of snapshots are made by the caller, in order."""

    @abstractmethod
    def create_disk(self, size: int, image: Path) -> list[Command]:
        """A disk of ``size`` bytes that holds the data of ``image``."""

    @abstractmethod
    def change(self, offset: int, seed: int, count: int = 1, stride: int = 4096) -> list[Command]:
        """Write ``count`` blocks of 4 KiB from ``offset`` on, ``stride`` bytes apart."""

    @abstractmethod
    def snapshot(self, name: str) -> list[Command]:
        """Keep the present state under ``name``."""

    def branch(self, name: str, snapshot: str) -> list[Command]:
        """A second writable disk that starts at ``snapshot``."""
        raise NotOffered("a branch means copying the whole image")

    def tag(self, name: str, snapshot: str) -> list[Command]:
        """A second name for ``snapshot``."""
        raise NotOffered("snapshots have one name")

    def rollback(self, snapshot: str) -> list[Command]:
        """Make the disk's state that of ``snapshot``."""
        raise NotOffered("no rollback")

    def compare(self, old: str, new: str) -> list[Command]:
        """List the ranges that differ between two snapshots."""
        raise NotOffered("no command that lists the difference")

    def read_old(self, snapshot: str) -> list[Command]:
        """Read 4 KiB from the start of ``snapshot``."""
        raise NotOffered("no command that reads an old state")

    def grow(self, names: Sequence[str]) -> list[Command]:
        """A small change and a snapshot for each name, not measured."""
        return [
            each
            for number, name in enumerate(names)
            for each in (*self.change(number * 4096, seed=number), *self.snapshot(name))
        ]


def disk_usage(folder: Path) -> int:
    """What ``du`` says: allocated bytes of all files below ``folder``, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(root, name))
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
