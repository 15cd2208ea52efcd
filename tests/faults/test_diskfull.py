"""Full disks: a clear error, nothing lost, reads go on, and room made is room used.

The vault lies on a file system of a few megabytes: tmpfs, which refuses the page, and ext4, whose
delayed allocation may let a write succeed and the sync fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import NoSpace
from tests.faults import crash_case, ledger, story
from tools.faults import smalldisk
from tools.faults.channel import REPOSITORY

SIZE = 12 << 20
KINDS = ["tmpfs", "ext4", pytest.param("xfs", marks=pytest.mark.nightly),
         pytest.param("btrfs", marks=pytest.mark.nightly)]  # fmt: skip


@pytest.fixture(params=KINDS)
def disk(
    request: pytest.FixtureRequest, scratch: Path, mounts: None, need_tool: Callable[[str], str]
) -> Iterator[Path]:
    kind = str(request.param)
    if kind in smalldisk.MKFS:
        need_tool(smalldisk.MKFS[kind][0])
    with smalldisk.mounted(kind, scratch, SIZE) as path:
        yield path


def command(vault: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blockvault.cli.main", "-V", str(vault), *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, errors="replace",
    )  # fmt: skip


def test_writers_are_told_and_nothing_is_lost(disk: Path) -> None:
    Vault.create(disk).close()
    promised: list[str] = []
    ledger.write(disk, "main", 40, promised.append)
    ballast = smalldisk.fill(disk, leave=300 << 10)
    with pytest.raises(NoSpace, match="disk is full"):
        ledger.write(disk, "main", 1_000_000, promised.append)
    assert len(promised) > 60
    assert not ledger.lost(disk, ledger.promised(promised))  # reading and verifying go on
    ballast.unlink()
    ledger.write(disk, "main", 20, promised.append)
    assert not ledger.lost(disk, ledger.promised(promised))


def test_a_session_keeps_its_writes_until_there_is_room(disk: Path) -> None:
    """What a failed flush could not store is not forgotten: the next flush stores it."""
    Vault.create(disk).close()
    with Vault.open(disk) as vault:
        with vault.session() as session:
            device = session.create_volume("vda", 1 << 20)
            device.write(0, b"before")
            session.flush()
            ballast = smalldisk.fill(disk)
            data = story.content(3, 1 << 19)
            device.write(1 << 19, data)
            with pytest.raises(NoSpace):
                session.flush()
            assert device.read(1 << 19, 1 << 19) == data
            ballast.unlink()
            session.flush()
        assert vault.device("main", "vda").read(1 << 19, 1 << 19) == data
        assert not crash_case.problems(vault)


BIG = ("import",)
"""The commands for whose bytes there can be no room, however a file system has counted it."""


@pytest.mark.parametrize("words", [
    ("snapshot", "-m", "x"), ("import", "IMAGE", "-m", "x"), ("branch", "b", "main"),
    ("tag", "t"), ("rollback", "main", "main~1"), ("checkout", "main", "OUT"),
    ("export", "main:vda", "OUT"), ("init", "OUT"),
])  # fmt: skip
def test_commands_on_a_full_disk(disk: Path, scratch: Path, words: tuple[str, ...]) -> None:
    Vault.create(disk).close()
    ledger.write(disk, "main", 45, lambda text: None)
    image = scratch / "vda.raw"
    image.write_bytes(os.urandom(1 << 20))
    names = {"IMAGE": str(image), "OUT": str(disk / "out")}
    ballast = smalldisk.fill(disk)
    with Vault.open(disk) as opened:
        before = opened.resolve("main~1").snapshot
    failed = command(disk, *(names.get(word, word) for word in words))
    assert failed.returncode in (0, NoSpace.exit_code), failed.stderr
    if words[0] in BIG:
        assert failed.returncode, "there is no room for that"
    if failed.returncode:
        assert failed.stderr.count("\n") == 1
        assert "space" in failed.stderr or "full" in failed.stderr
    for reading in (("log",), ("cat", "main:vda"), ("verify",)):
        read = command(disk, *reading)
        assert read.returncode == 0, (reading, read.stderr)
    ballast.unlink()
    if failed.returncode:
        again = command(disk, *(names.get(word, word) for word in words))
        assert again.returncode == 0, again.stderr
    with Vault.open(disk) as opened:
        assert came_to_be(opened, words, Path(names["OUT"]), image, before)
    assert command(disk, "verify").returncode == 0


def came_to_be(
    vault: Vault, words: tuple[str, ...], out: Path, image: Path, before: object
) -> bool:
    """Whether what a command promised by ending well is there."""
    disk = vault.device("main", "vda").read(0, ledger.SIZE)
    match words[0]:
        case "snapshot":
            return next(iter(vault.log("main"))).message == "x"
        case "import":
            return vault.device("main", "vda").read(0, 1 << 20) == image.read_bytes()
        case "branch":
            return vault.resolve("b").snapshot == vault.resolve("main").snapshot
        case "tag":
            return "t" in {tag.name for tag in vault.tags()}
        case "rollback":
            return vault.resolve("main").snapshot == before
        case "checkout":
            return (out / "vda.raw").read_bytes() == disk
        case "export":
            return out.read_bytes() == disk
    Vault.open(out).close()
    return True


def test_opening_on_a_full_disk_never_kills(disk: Path) -> None:
    """LMDB writes to its lock file through a map: without room for it, that is SIGBUS."""
    Vault.create(disk).close()
    ledger.write(disk, "main", 5, lambda text: None)
    lock = disk / ".blockvault/lock.mdb"
    lock.unlink()
    ballast = smalldisk.fill(disk)
    opened = command(disk, "log")
    assert opened.returncode in (0, NoSpace.exit_code), (opened.returncode, opened.stderr)
    ballast.unlink()
    assert command(disk, "log").returncode == 0
