"""What is done to a live disk is done, and what is said to differ does: bytes are read back.

They are read by other ways than the contender's own, and a list of changed ranges is held against
the bytes, so that a command that does nothing, or something else, is not measured as if it worked.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import find_tool
from tests.tools.needs import need
from tools.bench import synthetic
from tools.bench.commands import Command, command, run
from tools.bench.peers.base import Archive, Contender, Machine, NotOffered
from tools.bench.peers.btrfs import Btrfs
from tools.bench.peers.nbd import NbdServer
from tools.bench.peers.qcow2 import Qcow2Chain
from tools.bench.peers.vault import Blockvault
from tools.bench.registry import ARCHIVES, MACHINES, SERVERS
from tools.bench.servers import serving

BLOCK = 4096
MIB = 1 << 20
OFFERED = {
    "blockvault": {"branch", "tag", "rollback", "compare", "read_old"},
    "qcow2-internal": {"rollback"},
    "qcow2-chain": {"branch", "rollback", "compare", "read_old"},
    "btrfs": {"branch", "rollback", "compare", "read_old"},
}


@pytest.fixture(params=MACHINES, ids=lambda kind: kind.name)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A contender with a disk of 16 MiB, if it is here."""
    kind: type[Machine] = request.param
    need(kind)
    image = tmp_path / "disk.img"
    synthetic.write(image, synthetic.scattered(16 * MIB, MIB))
    made = kind(tmp_path / "store")
    try:
        run(made.create_disk(16 * MIB, image))
        assert content(made) == image.read_bytes()
        yield made
    finally:
        made.close()


def test_a_change_changes_its_blocks_and_no_others(machine: Machine) -> None:
    before = content(machine)
    run(machine.change(2 * BLOCK, seed=7, count=3, stride=16 * BLOCK))
    assert differing(before, content(machine)) == {2, 18, 34}


def test_growing_changes_the_disk(machine: Machine) -> None:
    before = content(machine)
    run(machine.grow(["one", "two"]))
    assert 1 <= len(differing(before, content(machine))) <= 2
    run(machine.change(0, seed=9))
    run(machine.snapshot("three"))


def test_branch_tag_and_rollback_bring_back_the_bytes_of_their_snapshot(machine: Machine) -> None:
    run(machine.change(2 * BLOCK, seed=7))
    run(machine.snapshot("one"))
    one = content(machine)
    run(machine.change(100 * BLOCK, seed=8))
    run(machine.snapshot("two"))
    run(machine.change(200 * BLOCK, seed=9))
    newest = content(machine)
    for name, what in (("side", "branch"), ("name", "tag")):
        if done(machine, what, name, "one"):
            assert content(machine, name) == one, what
    assert content(machine) == newest, "the disk itself stays as it is"
    if done(machine, "rollback", "one"):
        assert content(machine) == one
        run(machine.change(0, seed=10))
        run(machine.snapshot("three"))
        assert differing(one, content(machine)) == {0}, "the guest goes on from there"


def test_a_comparison_lists_the_range_that_changed(machine: Machine, tmp_path: Path) -> None:
    for name, block in (("one", 2), ("two", 100)):
        run(machine.change(block * BLOCK, seed=block))
        run(machine.snapshot(name))
    output = done(machine, "compare", "one", "two", output=tmp_path / "output")
    if output:
        found = ranges(machine, output.read_bytes())
        assert holds(found, 100)
        assert not holds(found, 2), "that changed before"
        assert sum(length for _, length in found) <= 64 << 10, "one cluster of qcow2"


def test_the_oldest_state_can_be_read(machine: Machine, tmp_path: Path) -> None:
    run(machine.snapshot("one"))
    old = content(machine)
    run(machine.change(0, seed=1))
    run(machine.snapshot("two"))
    output = done(machine, "read_old", "one", output=tmp_path / "output")
    if output and isinstance(machine, Blockvault):  # the others say only that they have read it
        assert output.read_bytes() == old[:BLOCK]


@pytest.mark.parametrize("kind", ARCHIVES, ids=lambda kind: kind.name)
def test_a_diff_lists_all_ranges_that_differ_or_is_not_offered(
    kind: type[Archive], tmp_path: Path
) -> None:
    """Of two images with another between them."""
    archive = kind(tmp_path / "store")
    if kind.no_diff:
        with pytest.raises(NotOffered, match=re.escape(kind.no_diff)):
            archive.diff("one", "three")
        return
    need(kind)
    image, output = tmp_path / "disk.img", tmp_path / "output"
    synthetic.write(image, synthetic.scattered(4 * MIB, 4 * MIB))
    run(archive.create())
    try:
        for state, block in (("one", 100), ("two", 300), ("three", 700)):
            write_block(image, block, state)
            run(archive.save(image, state, "main"))
        found = ranges(archive, listed(archive.diff("one", "three"), output).read_bytes(), depth=1)
    finally:
        archive.close()
    assert [holds(found, block) for block in (100, 300, 700, 900)] == [False, True, True, False]


def write_block(image: Path, block: int, text: str) -> None:
    with image.open("r+b") as file:
        file.seek(block * BLOCK)
        file.write(text.encode().ljust(BLOCK, b"."))


def done(machine: Machine, what: str, *names: str, output: Path | None = None) -> Path | None:
    """Run an operation and tell where its output is; None where the contender must refuse it."""
    spell = getattr(machine, what)
    if what not in OFFERED[machine.name]:
        with pytest.raises(NotOffered):
            spell(*names)
        return None
    commands: list[Command] = spell(*names)
    assert commands
    return listed(commands, output or machine.folder.with_name("unread"))


def listed(commands: list[Command], output: Path) -> Path:
    """Run commands, and tell where what the last one says is: ``output``, if it has no file."""
    *others, last = commands
    last = dataclasses.replace(last, stdout=last.stdout or output)
    run([*others, last])
    assert last.stdout is not None
    return last.stdout


def content(machine: Machine, name: str = "") -> bytes:
    """All bytes of the live disk, or of a branch or tag."""
    if isinstance(machine, Btrfs):
        return (machine.folder / "mounted" / (name or "live") / "disk.img").read_bytes()
    target = machine.folder.with_name("content.img")
    target.unlink(missing_ok=True)
    if isinstance(machine, Blockvault):
        run(machine.export(name or "main", target))
    else:
        live = machine.tips["disk"] if isinstance(machine, Qcow2Chain) else "disk"
        disk = machine.folder / f"{name or live}.qcow2"
        run([command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, target)])
    return target.read_bytes()


def differing(one: bytes, other: bytes) -> set[int]:
    """Numbers of the blocks that are not alike."""
    assert len(one) == len(other)
    starts = range(0, len(one), BLOCK)
    return {at // BLOCK for at in starts if one[at : at + BLOCK] != other[at : at + BLOCK]}


def ranges(contender: Contender, output: bytes, depth: int = 0) -> list[tuple[int, int]]:
    """Offsets and lengths out of what a comparison printed or wrote; of a chain of overlays in
    all that are not deeper than ``depth``."""
    if isinstance(contender, Btrfs):
        dump = subprocess.run(
            ["btrfs", "receive", "--dump"], input=output, capture_output=True, check=True
        ).stdout.decode()
        found = re.findall(r"^update_extent .*offset=(\d+) len=(\d+)", dump, re.MULTILINE)
        return [(int(offset), int(length)) for offset, length in found]
    if isinstance(contender, Qcow2Chain):
        entries = json.loads(output)
        top = [each for each in entries if each["depth"] <= depth and each["present"]]
        return [(each["start"], each["length"]) for each in top]
    lines = [line.split("\t") for line in output.decode().splitlines()]
    return [(int(offset), int(length)) for _, offset, length in lines]


def holds(found: list[tuple[int, int]], block: int) -> bool:
    """Whether one of the ranges has all of a block."""
    at = block * BLOCK
    return any(start <= at and at + BLOCK <= start + length for start, length in found)


OLD_SERVERS = [kind for kind in SERVERS if kind.serves_old]


@pytest.mark.parametrize("kind", OLD_SERVERS, ids=lambda kind: kind.name)
def test_an_old_state_that_is_served_is_that_of_before(
    kind: type[NbdServer], tmp_path: Path
) -> None:
    find_tool("qemu-io")
    find_tool("nbdcopy")
    need(kind)
    image, listening = tmp_path / "disk.img", tmp_path / "s"
    synthetic.write(image, synthetic.scattered(16 * MIB, MIB))
    server = kind(tmp_path / "store")

    def content_at(command_: Sequence[Command], uri: str) -> bytes:
        with serving(command_[0], listening):
            run([command("nbdcopy", uri, tmp_path / "copy")])
        return (tmp_path / "copy").read_bytes()

    try:
        run(server.prepare(image, 1, 2))
        run(server.refresh())
        with serving(server.serve(listening)[0], listening):
            words = ("-f", "raw", "-c", "write -q -P 7 0 64k", "-c", "flush")
            run([command("qemu-io", *words, server.uri(listening))])
        newest = content_at(server.serve(listening), server.uri(listening))
        assert newest[: 64 << 10] == b"\x07" * (64 << 10)
        old = content_at(server.serve_made(listening), server.uri_made(listening))
        assert old == image.read_bytes()
        run(server.take_out(tmp_path / "out.img"))
        assert (tmp_path / "out.img").read_bytes() == newest, "an export is of the newest state"
    finally:
        server.close()
