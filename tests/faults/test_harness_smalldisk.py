"""Full disks, held against plain LMDB."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from tests.faults import lmdb_case
from tools.faults import smalldisk


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(
    request: pytest.FixtureRequest, scratch: Path, mounts: None, need_tool: Callable[[str], str]
) -> Iterator[Path]:
    kind = str(request.param)
    if kind in smalldisk.MKFS:
        need_tool(smalldisk.MKFS[kind][0])
    with smalldisk.mounted(kind, scratch, 8 << 20) as path:
        yield path


def test_a_filled_disk_refuses_writes_until_there_is_room(disk: Path) -> None:
    ballast = smalldisk.fill(disk, leave=0)
    assert smalldisk.free(disk) < 8192
    with pytest.raises(OSError, match="No space") as caught:
        (disk / "more").write_bytes(bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    ballast.unlink()
    (disk / "more").write_bytes(bytes(1 << 20))


def test_some_room_can_be_left(disk: Path) -> None:
    smalldisk.fill(disk, leave=1 << 20)
    assert (1 << 20) - 8192 < smalldisk.free(disk) <= (1 << 20) + 8192


def test_lmdb_keeps_what_it_promised_on_a_full_disk(disk: Path) -> None:
    promised: list[int] = []

    def write() -> None:
        for number in range(100_000):
            lmdb_case.commit(env, number)
            promised.append(number)

    with lmdb_case.open_env(disk) as env, pytest.raises(lmdb.Error):
        write()
    assert len(promised) > 100
    with lmdb.open(str(disk), readonly=True) as env, env.begin() as txn:
        there = {int(k[:8]): bytes(v) for k, v in txn.cursor()}
    assert there == {number: lmdb_case.value(number) for number in promised}
