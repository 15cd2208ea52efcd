"""Imports: exact, cheap when little changed, and nothing recorded of an image that moved."""

from __future__ import annotations

import os
import random
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, Damaged, IOFailed, NotFound
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.ops import (
    check,
    checkin,
    checkout,
    compare,
    compose,
    hasher,
    images,
    intake,
    repair,
)
from blockvault.ops.hashing import Request
from blockvault.ops.images import RawImage
from blockvault.ops.ingest import Image, import_images
from blockvault.store import frames, tables
from blockvault.store.codec import Codec
from tests.oracle import BLOCK, noise

LEAF = 32 * BLOCK


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def read(vault: Vault, rev: str = "main~0", volume: str = "v") -> bytes:
    return vault.open_volume(rev, volume).read()


def objects(vault: Vault) -> int:
    return check.verify(vault).objects


@pytest.mark.parametrize("size", [1, 511, BLOCK, LEAF - 1, LEAF, LEAF + 1, 9 * LEAF + 700])
def test_sizes(vault: Vault, image: Path, size: int) -> None:
    data = noise(size, size)
    image.write_bytes(data)
    import_images(vault, [Image(image, "v")])
    assert read(vault) == data


def test_a_series_of_changed_grown_and_shrunk_images(vault: Vault, image: Path) -> None:
    rng, data = random.Random(3), bytearray(noise(0, 40 * LEAF + 5))
    states = []
    for step in range(8):
        for _ in range(5):
            at = rng.randrange(len(data))
            data[at : at + 3000] = bytes(3000) if rng.random() < 0.3 else rng.randbytes(3000)
        if step % 3 == 1:
            del data[rng.randrange(len(data) // 2, len(data)) :]
        elif step % 3 == 2:
            data += bytes(LEAF) + rng.randbytes(rng.randrange(2 * LEAF))
        image.write_bytes(data)
        states.append((import_images(vault, [Image(image, "v")]).id.hex(), bytes(data)))
    for oid, expected in states:
        assert read(vault, oid) == expected
    assert check.verify(vault).ok


def test_an_unchanged_image_stores_nothing(vault: Vault, image: Path) -> None:
    image.write_bytes(noise(1, 5 * LEAF + 9))
    first = import_images(vault, [Image(image, "v")])
    before = objects(vault)
    second = import_images(vault, [Image(image, "v")])
    assert second.volumes == first.volumes
    assert objects(vault) == before + 1, "the snapshot itself"


def test_the_same_blocks_elsewhere_are_stored_once(vault: Vault, image: Path) -> None:
    data = noise(1, LEAF)
    image.write_bytes(data + bytes(BLOCK) + data)
    import_images(vault, [Image(image, "v")])
    blocks = len({data[at : at + BLOCK] for at in range(0, LEAF, BLOCK)})
    assert objects(vault) < blocks + 8
    assert read(vault) == data + bytes(BLOCK) + data


def test_a_sparse_image_costs_what_it_holds(vault: Vault, image: Path) -> None:
    with open(image, "wb") as file:
        file.truncate(1 << 40)
        for at in (0, 7 << 30, (1 << 40) - 100):
            file.seek(at)
            file.write(b"data" * 25)
    import_images(vault, [Image(image, "v")])
    device = vault.device("main~0")
    assert device.size == 1 << 40
    data = [run.offset for run in device.extents(0, device.size) if not run.zero]
    assert data == [0, 7 << 30, (1 << 40) - BLOCK]
    assert device.read((1 << 40) - 100, 100) == b"data" * 25


def test_written_zeros_are_holes(vault: Vault, image: Path) -> None:
    image.write_bytes(bytes(3 * LEAF) + b"x" + bytes(LEAF))
    import_images(vault, [Image(image, "v")])
    device = vault.device("main~0")
    assert [run for run in device.extents(0, device.size) if not run.zero] == [
        (3 * LEAF, BLOCK, False)
    ]


def test_over_a_head_with_writes_of_its_own(vault: Vault, image: Path) -> None:
    with vault.session() as session:
        session.create_volume("v", LEAF).write(0, noise(1, LEAF))
        session.create_volume("w", 10).write(0, b"0123456789")
        session.flush()
        session.device("v").write(BLOCK, b"in the overlay")
    data = read(vault, "main")
    image.write_bytes(data)
    made = import_images(vault, [Image(image, "v")], message="m", author="a")
    assert (made.message, made.author, len(made.parents)) == ("m", "a", 0)
    assert read(vault) == data
    assert read(vault, "main", "w") == b"0123456789", "other volumes stay"


def test_several_images_in_one_snapshot_of_a_new_branch(vault: Vault, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.raw").write_bytes(name.encode() * 5000)
    images = [Image(tmp_path / f"{name}.raw", name) for name in "cab"]
    progress: list[tuple[int, int]] = []
    made = import_images(
        vault, images, branch="new", progress=lambda done, total: progress.append((done, total))
    )
    assert [volume.name for volume in made.volumes] == ["a", "b", "c"]
    assert all(read(vault, "new", name) == name.encode() * 5000 for name in "abc")
    assert progress[-1] == (15000, 15000)
    assert progress == sorted(progress)
    assert vault.branch("main").tip is None


# -- images that change while they are read --------------------------------------------------------


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _shrink(path: Path) -> None:
    os.truncate(path, 5)


def _rewrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")


MOVES = [(_grow, "grew"), (_shrink, "shrank"), (_rewrite, "changed")]


def moved_by(patch: pytest.MonkeyPatch, change: Callable[[Path], None], image: Path) -> None:
    """Let this happen to the image in the middle of reading it."""
    read_into = RawImage.read_into

    def moving(self: RawImage, offset: int, into: memoryview) -> None:
        if offset == 8 * LEAF:
            change(image)
        read_into(self, offset, into)

    patch.setattr(RawImage, "read_into", moving)


@pytest.mark.parametrize(("change", "how"), MOVES)
def test_an_image_that_moves_is_not_recorded(
    vault: Vault,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    how: str,
) -> None:
    image.write_bytes(noise(1, 20 * LEAF))
    seq = vault.branch().seq
    with monkeypatch.context() as patch:
        moved_by(patch, change, image)
        with pytest.raises(IOFailed, match=how) as refused:
            import_images(vault, [Image(image, "v")])
    assert refused.value.reason == "image-changed"
    assert vault.branch().seq == seq
    data = image.read_bytes()
    import_images(vault, [Image(image, "v")])
    assert read(vault) == data


def compose_of(vault: Vault, image: Path) -> None:
    compose.compose(vault, "main", [compose.Source("v", image=image)], {})


def compare_with(vault: Vault, image: Path) -> None:
    compare.diff_file(vault, "main", "v", image)


def check_in(vault: Vault, image: Path) -> None:
    checkin.snapshot_from(vault, image.parent)


@pytest.mark.parametrize("use", [compose_of, compare_with, check_in])
@pytest.mark.parametrize(("change", "how"), MOVES)
def test_nor_is_one_that_comes_another_way(
    vault: Vault,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Vault, Path], None],
    change: Callable[[Path], None],
    how: str,
) -> None:
    image.write_bytes(b"as it was checked out")
    import_images(vault, [Image(image, "v")])
    checkout.execute(vault, checkout.plan(vault, "main", image.parent / "files"))
    edited, seq = image.parent / "files" / "v.raw", vault.branch().seq
    edited.write_bytes(noise(1, 20 * LEAF))
    os.utime(edited, (0, 0))
    moved_by(monkeypatch, change, edited)
    with pytest.raises(IOFailed, match=how) as refused:
        use(vault, edited)
    assert refused.value.reason == "image-changed"
    assert vault.branch().seq == seq


def test_what_another_process_hashed_is_the_same(
    vault: Vault, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helped, ask, answer = [], hasher._Helper.ask, hasher._Helper.answer

    def waiting(self: hasher._Helper, request: Request) -> bool:
        select.select([self._socket], [], [], 0 if self._ready else 60)
        return ask(self, request)

    def counting(self: hasher._Helper) -> bytes:
        helped.append(answer(self))
        return helped[-1]

    monkeypatch.setattr(hasher, "_MUCH", 0)
    monkeypatch.setattr(hasher._Helper, "ask", waiting)
    monkeypatch.setattr(hasher._Helper, "answer", counting)
    data = bytearray(noise(1, 160 * LEAF + 77))
    chunks = []
    for _ in range(3):
        image.write_bytes(data)
        made = import_images(vault, [Image(image, "v")])
        assert read(vault, made.id.hex()) == data
        assert all(helped)
        chunks.append(len(helped))
        helped.clear()
        data[5 * LEAF : 7 * LEAF + 9] = noise(2, 2 * LEAF + 9)
        data[120 * LEAF : 122 * LEAF] = bytes(2 * LEAF)
    assert chunks[0] > 10, "of 21, all of which are new"
    assert chunks[2] == 0, "nothing is new"
    assert check.verify(vault).ok


def test_an_interrupted_import_leaves_only_objects(
    vault: Vault, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.write_bytes(noise(1, 20 * LEAF))
    before = list(vault.events())
    with monkeypatch.context() as patch:
        patch.setattr(intake, "_COMMIT_BYTES", 2 * LEAF)

        def stop(done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_images(vault, [Image(image, "v")], progress=stop)
    assert list(vault.events()) == before
    assert check.verify(vault).ok
    import_images(vault, [Image(image, "v")])
    assert read(vault) == image.read_bytes()


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        ([], BadRequest),
        ([("disk.img", "v"), ("disk.img", "v")], Conflict),
        ([("disk.img", "no/name")], BadRequest),
        ([("missing.img", "v")], NotFound),
        ([("empty.img", "v")], BadRequest),
        ([(".", "v")], BadRequest),
        ([("disk.odd", "v")], BadRequest),
        ([("disk.img", "v", "no-format")], BadRequest),
    ],
)
def test_what_cannot_be_imported(
    vault: Vault, tmp_path: Path, images: list[Any], kind: type[Exception]
) -> None:
    for name in ("disk.img", "disk.odd"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.img").touch()
    seq = vault.branch().seq
    with pytest.raises(kind):
        import_images(vault, [Image(tmp_path / name, *rest) for name, *rest in images])
    assert vault.branch().seq == seq


@pytest.mark.parametrize("name", ["heads/new", "a..b"])
def test_a_branch_that_may_not_be_called_so_is_refused_before_anything_is_read(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An image of another format would be decoded first."""
    image = tmp_path / "disk.qcow2"
    image.write_bytes(noise(1, BLOCK))
    monkeypatch.setattr(images, "opened", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(BadRequest, match="not a valid name"):
        import_images(vault, [Image(image, "v")], branch=name)
    with pytest.raises(BadRequest, match="not a valid name"):
        compose.compose(vault, name, [compose.Source("v", image=image)], {})


def test_the_branch_is_held_meanwhile(vault: Vault, image: Path) -> None:
    image.write_bytes(b"x")
    with vault.session(), pytest.raises(Busy):
        import_images(vault, [Image(image, "v")])

    def busy(*_: int) -> None:
        with pytest.raises(Busy, match="an import"):
            vault.session()

    import_images(vault, [Image(image, "v")], progress=busy)


def under(vault: Vault, root: bytes) -> list[bytes]:
    """A tree's first node of each height, from the root down, and the first block."""
    found = [root]
    while len(node := vault.objects.get(found[-1])) == tree.NODE_SIZE:
        found.append(next(oid for oid in tree.children(node) if oid != ZERO_ID))
    return found


def lose(vault: Vault, oid: bytes) -> None:
    """Nothing is left of an object; what shared its frame is in another one."""
    with vault.store.write() as writer:
        place = writer.locate([oid])[0]
        assert place is not None
        number, _ = tables.split_location(place)
        contents = {object_id(each): each for each in frames.decode(writer.frame(number) or b"")}
        del contents[oid]
        for kept, content in contents.items():
            writer.move_frames([frames.Frame(frames.encode([content], Codec("none")), (kept,))])
        writer.unindex([oid])
        writer.drop_frames([number])
    vault.objects.close()


@pytest.mark.parametrize("depth", range(4), ids=["root", "node", "leaf", "block"])
@pytest.mark.parametrize("known", [True, False], ids=["imported", "written"])
def test_what_a_repair_gave_up_for_lost_is_healed_by_the_same_image(
    vault: Vault, image: Path, depth: int, known: bool
) -> None:
    data = noise(1, 2 * LEAF + BLOCK)
    with open(image, "wb") as file:
        file.write(data)
        file.truncate(1500 * BLOCK)
    first = import_images(vault, [Image(image, "v")])
    if not known:
        with vault.store.write() as writer:
            writer.clear(tables.RUNS)
    oid = under(vault, first.volumes[0].root)[depth]
    lose(vault, oid)
    made = repair.plan(vault)
    assert made.lost == {oid}
    repair.execute(vault, made)
    with pytest.raises(Damaged):
        read(vault)
    import_images(vault, [Image(image, "v")])
    assert read(vault, first.id.hex())[: len(data)] == data
    assert check.verify(vault).ok


@pytest.mark.parametrize("depth", [1, 2], ids=["leaf", "block"])
@pytest.mark.parametrize("most_held", [intake._MOST_HELD, 0])
def test_an_import_that_heals_and_is_interrupted_is_healed_by_the_next(
    vault: Vault, image: Path, monkeypatch: pytest.MonkeyPatch, depth: int, most_held: int
) -> None:
    """What was lost is in a frame that is not full when the first hashes are stored."""
    image.write_bytes(noise(1, 20 * LEAF))
    first = import_images(vault, [Image(image, "v")])
    oid = under(vault, first.volumes[0].root)[depth]
    lose(vault, oid)
    repair.execute(vault, repair.plan(vault))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(intake, "_COMMIT_BYTES", 2 * LEAF)
        patch.setattr(intake, "_MOST_HELD", most_held)
        with pytest.raises(KeyboardInterrupt):
            import_images(vault, [Image(image, "v")], progress=stop)
    with vault.read() as reader:
        assert next(reader.scan(tables.RUNS), None) is not None, "some leaves are whole"
        assert bool(reader.known([oid])) == (most_held == 0), "not all wait for ever"
    import_images(vault, [Image(image, "v")])
    assert read(vault, first.id.hex()) == image.read_bytes()
    assert check.verify(vault).ok
