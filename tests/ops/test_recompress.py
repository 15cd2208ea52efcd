"""Packing cold frames: smaller, the same bytes, safe to interrupt, nothing done twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.errors import BadRequest, Busy
from blockvault.ids import object_id
from blockvault.model.retention import Policy
from blockvault.ops import check, forget, gc, prune, rebuild, recompress
from blockvault.store import tables
from blockvault.store.env import LmdbStore
from blockvault.vault import Vault

BLOCK = 4096
COUNT = 200


def text(seed: int) -> bytes:
    """A block that compresses better beside its neighbours."""
    words = [f"word{seed % 7}{n % 40} " for n in range(600)]
    return "".join(random.Random(seed).sample(words, 500)).encode()[:BLOCK].ljust(BLOCK)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as vault:
        with vault.session("main") as session:
            device = session.create_volume("vda", COUNT * BLOCK)
            for number in range(COUNT):
                device.write(number * BLOCK, text(number))
                if number % 10 == 9:
                    session.flush()
            session.snapshot("all")
        yield vault


def content(vault: Vault) -> bytes:
    vault.objects.close()
    return vault.device("main~0", "vda").read(0, COUNT * BLOCK)


def pack(vault: Vault, level: int = 19, **options: int) -> recompress.Packed:
    upto = recompress.cold_frames(vault, None)
    return recompress.recompress(vault, level, upto=upto, **options)


def sound(vault: Vault) -> None:
    assert check.verify(vault).problems == []
    rebuilt = rebuild.rebuild(vault, dry_run=True)
    assert (rebuilt.changed_rows, rebuilt.index_entries) == (0, 0)


def test_packed_frames_are_smaller_and_hold_the_same(vault: Vault) -> None:
    before = content(vault)
    done = pack(vault)
    assert done.frames >= COUNT // 10
    assert done.became < done.frames / 5
    assert done.bytes_after < 0.75 * done.bytes_before
    assert content(vault) == before
    sound(vault)


def test_what_is_packed_is_not_packed_again(vault: Vault) -> None:
    pack(vault)
    assert pack(vault).frames == 0
    assert pack(vault, 9).frames == 0, "a lower level has nothing to add"
    assert pack(vault, 21).frames > 0
    sound(vault)


def test_an_interrupted_run_goes_on(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(vault)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(vault, frame_bytes=20 * BLOCK, progress=interrupt)
    assert content(vault) == before
    sound(vault)
    pack(vault, frame_bytes=20 * BLOCK)
    assert content(vault) == before
    sound(vault)


def test_dead_places_go_and_a_collection_must_be_whole_before(vault: Vault) -> None:
    with vault.session("main") as session:
        for number in range(0, COUNT, 10):
            session.device("vda").write(number * BLOCK, text(number + 1000))
        session.flush()
        session.snapshot("later")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    half = gc.Collection(vault)
    half.mark()
    half.condemn()
    with pytest.raises(Busy, match="run gc first"):
        pack(vault)
    assert gc.collect(vault).complete
    before = content(vault)
    pack(vault)
    assert content(vault) == before
    sound(vault)


def test_a_block_whose_row_points_elsewhere_is_packed_with_its_frame(vault: Vault) -> None:
    before = content(vault)
    oid, other = (object_id(before[at * BLOCK :][:BLOCK]) for at in (5, COUNT - 1))
    with vault.store.write() as writer:
        (place,) = writer.locate([other])
        assert place is not None
        writer.put(tables.INDEX, oid, tables.pack_location(place))
    pack(vault)
    assert content(vault) == before
    sound(vault)


def test_only_cold_frames_are_taken(vault: Vault) -> None:
    assert recompress.cold_frames(vault, 1 << 62) == 0, "no collection has noted an age yet"
    gc.collect(vault)
    first = recompress.cold_frames(vault, 1 << 62)
    with vault.session("main") as session:
        session.device("vda").write(0, text(5000))
    with vault.read() as reader:
        assert first < reader.newest_frame()
    assert recompress.cold_frames(vault, 1 << 62) == first
    assert recompress.cold_frames(vault, 1) == 0
    recompress.recompress(vault, 19, upto=first)
    sound(vault)


def test_a_vault_without_compression_stays_so(tmp_path: Path) -> None:
    with Vault.create(tmp_path, compression="none") as vault:
        assert isinstance(vault.store, LmdbStore)
        with pytest.raises(BadRequest, match="without compression"):
            recompress.recompress(vault, 19, upto=9)
