"""Flipped bits in stored values: every one is found when the value is read, or hit nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store import pages
from blockvault.store.env import LmdbStore
from blockvault.store.objects import ObjectReader
from tests.store.material import OPTIONS, block, framed, noise, run_python
from tools.faults.pages import PageMap

DATAS = [block(n) for n in range(200)] + [noise(n) for n in range(100)]
IDS = list(map(object_id, DATAS))


def make(home: Path) -> None:
    with LmdbStore.create(home, OPTIONS) as store:
        for at in range(0, 300, 50):
            with store.write() as writer:
                writer.add_frames([framed(DATAS[at : at + 50])])
                writer.append(b"rows %d" % at * 1000, 1, at)


def read_everything(home: Path) -> None:
    """Raises ``Damaged``, or everything is as it was."""
    with LmdbStore.open(home) as store:
        # A reader each: one that has read an object's neighbours need not ask the index for it.
        assert [ObjectReader(store).get(oid) for oid in IDS] == DATAS
        with store.read() as reader:
            payloads = [record.payload for record in reader.records()]
    if payloads != [b"rows %d" % at * 1000 for at in range(0, 300, 50)]:
        raise AssertionError("the log changed and nobody noticed")


def flip(home: Path, seed: int, count: int) -> None:
    """Flip bits of frames, index rows and log records; print "found" or "as it was" for each."""
    data = home / "data.mdb"
    sound = data.read_bytes()
    spans = [s for s in PageMap(sound).of_kind("value") if s.table in ("frames", "index", "log")]
    rng = random.Random(seed)
    for _ in range(count):
        span = (
            rng.choice(spans)
            if rng.random() < 0.5
            else rng.choices(spans, [s.stop - s.start for s in spans])[0]
        )
        at, bit = rng.randrange(span.start, span.stop), rng.randrange(8)
        flipped = bytearray(sound)
        flipped[at] ^= 1 << bit
        data.write_bytes(flipped)
        try:
            read_everything(home)
            print("as it was", span.table, at, bit, flush=True)
        except Damaged as error:
            print("found", span.table, error.reason, flush=True)


def test_flipped_bits_in_values_are_found(tmp_path: Path, nightly: bool, seed: int) -> None:
    home = tmp_path / "vault"
    make(home)
    code = (
        "from tests.store.test_bitrot import *\n"
        "flip(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    count = 3000 if nightly else 300
    ran = run_python(code, home, seed, count, timeout=600)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"after {lines[-1:]}: {ran.stderr}"
    assert len(lines) == count
    found = [line for line in lines if line.startswith("found")]
    # zstd's headers have a few bits that mean nothing; everything else must have been noticed.
    assert len(found) >= 0.98 * count, f"{set(lines) - set(found)}"
    assert {line.split()[1] for line in found} == {"frames", "index", "log"}


def test_without_hashes_the_same_flips_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: LMDB itself notices nothing."""
    home = tmp_path / "vault"
    make(home)
    data = home / "data.mdb"
    sound = data.read_bytes()
    span = max(PageMap(sound).of_kind("value"), key=lambda s: s.stop - s.start)
    flipped = bytearray(sound)
    flipped[span.stop - 100] ^= 4
    data.write_bytes(flipped)
    pages.inspect(data)
    with pytest.raises(Damaged, match="not what was stored"):
        read_everything(home)
    for module in ("objects", "caches"):
        monkeypatch.setattr(f"blockvault.store.{module}.checked", lambda data, oid: data)
    with LmdbStore.open(home) as store:
        assert ObjectReader(store).get_many(IDS) != dict(zip(IDS, DATAS, strict=True))
