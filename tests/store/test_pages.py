"""Damage that LMDB must not meet: meta pages and files cut short."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import lmdb
import pytest

from blockvault.errors import Damaged, NotFound, VaultError
from blockvault.ids import object_id
from blockvault.store import pages, salvage
from blockvault.store.env import LmdbStore
from blockvault.store.objects import ObjectReader
from tests.store.material import OPTIONS, framed, noise, run_python

BLOCKS = [noise(n) for n in range(100)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault of a few commits, to be copied."""
    home = tmp_path_factory.mktemp("sound") / "vault"
    with LmdbStore.create(home, OPTIONS) as store:
        for at in range(0, 100, 20):
            with store.write() as writer:
                writer.add_frames([framed(BLOCKS[at : at + 20])])
                writer.append(b"rows" * 2000, 1, at)
                for number in range(at * 20, at * 20 + 200):
                    writer.put("trail", struct.pack(">Q", number), bytes(50))
    return home


@pytest.fixture
def vault(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "vault"))


def read_all(home: Path) -> None:
    with LmdbStore.open(home) as store:
        ObjectReader(store).get_many(map(object_id, BLOCKS))
        with store.read() as reader:
            assert len(list(reader.records())) == 5
            assert len(list(reader.scan("trail"))) == 1000


READ_ALL = "from tests.store.test_pages import *\nread_all(Path(sys.argv[1]))\n"


def outcome(home: Path) -> str:
    """How reading everything ends: "fine", or the exit code that the error stands for."""
    try:
        read_all(home)
    except VaultError as error:
        return str(error.exit_code)
    return "fine"


META_BITS = 2 * 152 * 8


def flip_meta_bits(home: Path, step: int) -> None:
    """Prints one line for each bit: its number, and how reading everything ended."""
    data = home / "data.mdb"
    sound_bytes = data.read_bytes()
    for bit in range(0, META_BITS, step):
        at = bit // 8 if bit < 152 * 8 else 4096 + bit // 8 - 152
        flipped = bytearray(sound_bytes)
        flipped[at] ^= 1 << bit % 8
        data.write_bytes(flipped)
        print(bit, outcome(home), flush=True)


def test_a_sound_file_is_passed_and_its_metas_are_read(vault: Path) -> None:
    read_all(vault)
    pages.inspect(vault / "data.mdb")
    with (vault / "data.mdb").open("rb") as file:
        metas = [pages.read_meta(file.fileno(), number) for number in (0, 1)]
    with lmdb.open(str(vault), readonly=True, map_size=1 << 40) as env:
        info, page_size = env.info(), env.stat()["psize"]
    assert metas[0] is not None
    assert metas[1] is not None
    newest = max(metas[0], metas[1])
    assert (newest.txn_id, newest.last_page) == (info["last_txnid"], info["last_pgno"])
    assert newest.page_size == page_size


def test_no_file_is_no_vault(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        pages.inspect(tmp_path / "data.mdb")


@pytest.mark.parametrize("bad", [0, 1])
def test_a_destroyed_meta_page_is_named_and_the_advice_works(vault: Path, bad: int) -> None:
    data = vault / "data.mdb"
    with data.open("r+b") as file:
        file.seek(bad * 4096)
        file.write(os.urandom(512))
    with pytest.raises(Damaged, match=f"meta page {bad} is damaged.*'blockvault repair'") as caught:
        LmdbStore.open(vault)
    assert caught.value.reason == "damaged-meta"
    assert salvage.rescue_meta(vault)  # what repair does first
    if bad == 0:
        # Whichever page was the newer one: at most the last commit is missing, and that is said.
        (vault / "head").unlink()
    with LmdbStore.open(vault) as store, store.read() as reader:
        assert len(list(reader.records())) in (4, 5)


def test_both_meta_pages_destroyed_is_said(vault: Path) -> None:
    with (vault / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    with pytest.raises(Damaged, match="both of its meta pages"):
        LmdbStore.open(vault)


def test_no_flipped_bit_of_the_metas_is_silent(vault: Path, nightly: bool) -> None:
    """Each either changes nothing that counts, or is found; the reading process never dies."""
    step = 1 if nightly else 5
    code = (
        "from tests.store.test_pages import *\nflip_meta_bits(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    ran = run_python(code, vault, step)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"died after bit {lines[-1:]}: {ran.stderr}"
    outcomes = [line.split()[1] for line in lines]
    assert len(outcomes) == len(range(0, META_BITS, step))
    assert set(outcomes) == {"fine", "6"}
    assert outcomes.count("6") > 0.15 * len(outcomes)


def cuts(size: int) -> list[int]:
    return [0, 1, 100, 4096, 4097, 8192, *range(12288, size, 12288), size - 4096, size - 1]


def test_a_file_cut_anywhere_is_found_and_nobody_dies(vault: Path, sound: Path) -> None:
    size = (sound / "data.mdb").stat().st_size
    for cut in cuts(size):
        os.truncate(vault / "data.mdb", cut)
        with pytest.raises(Damaged) as caught:
            LmdbStore.open(vault)
        assert caught.value.reason in ("truncated", "damaged-meta")
        shutil.copy(sound / "data.mdb", vault / "data.mdb")
    read_all(vault)


def test_without_that_check_a_cut_file_kills_the_process(vault: Path) -> None:
    """The control: this is what the walk is for."""
    os.truncate(vault / "data.mdb", (vault / "data.mdb").stat().st_size // 2)
    ran = run_python(
        "from blockvault.store import pages\npages.inspect = print\n" + READ_ALL, vault
    )
    assert ran.returncode < 0


def test_unused_pages_at_the_end_may_be_missing(vault: Path) -> None:
    with LmdbStore.open(vault) as store:
        with store.write() as writer:
            writer.put("refs", b"big", bytes(1 << 20))
            writer.delete("refs", b"big")
        with store.write() as writer:
            writer.put("refs", b"k", b"v")
    data = vault / "data.mdb"
    with data.open("rb") as file:
        newest = max(m for m in (pages.read_meta(file.fileno(), n) for n in (0, 1)) if m)
        end = max(pages.used(file.fileno(), newest))
    os.truncate(data, end)
    assert end < newest.size, "the case is made"
    read_all(vault)
    os.truncate(data, end - 1)
    with pytest.raises(Damaged, match="cut short"):
        LmdbStore.open(vault)


def test_damaged_trees_do_not_trap_the_walk(vault: Path) -> None:
    """Random page contents: the walk ends, whatever it finds."""
    data = vault / "data.mdb"
    sound_bytes = data.read_bytes()
    for seed in range(60):
        damaged = bytearray(sound_bytes)
        for at in range(8192 + seed % 4096, len(damaged) - 64, 4096 * (1 + seed % 3)):
            damaged[at : at + 40] = noise(seed + at, 40)
        data.write_bytes(damaged)
        os.truncate(data, len(damaged) - 4096)
        with pytest.raises(Damaged):
            pages.inspect(data)
