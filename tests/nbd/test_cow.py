"""The throw-away layer: a model test, and a base that never changes."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockvault.device import Extent
from blockvault.errors import BadRequest, IOFailed
from blockvault.nbd import cow
from blockvault.nbd.cow import BELOW, CHUNK, WRITTEN, ZERO, CopyOnWrite
from tests.nbd.memory import BatchMemoryDevice, MemoryDevice
from tests.oracle import noise

BLOCK = 64
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "trim"]),
        st.integers(0, 1100),
        st.integers(0, 700),
        st.integers(1, 255),
    ),
    max_size=12,
)


def base_device(size: int, kind: type[MemoryDevice] = MemoryDevice) -> MemoryDevice:
    base = kind(size, block_size=BLOCK, read_only=True)
    base.data[:] = bytes(n * 7 % 256 if n // BLOCK % 3 else 0 for n in range(size))
    return base


@given(
    CHANGES, st.sampled_from([1000, 1024, 1]), st.sampled_from([MemoryDevice, BatchMemoryDevice])
)
def test_it_reads_as_a_plain_array_would(
    changes: list[tuple[str, int, int, int]], size: int, kind: type[MemoryDevice]
) -> None:
    base = base_device(size, kind)
    before, model = bytes(base.data), bytearray(base.data)
    with contextlib.closing(CopyOnWrite(base)) as layer:
        for what, offset, length, fill in changes:
            offset = min(offset, size)
            length = min(length, size - offset)
            if what == "write":
                layer.write(offset, bytes([fill]) * length)
                model[offset : offset + length] = bytes([fill]) * length
            elif what == "zero":
                layer.zero(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                layer.trim(offset, length)
                first, last = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
                if offset + length == size:
                    last = size
                model[first:last] = bytes(max(0, last - first))
            assert layer.read(offset, length) == model[offset : offset + length]
        assert layer.read(0, size) == model
        ranges = [(start, min(3 * BLOCK, size - start)) for start in range(0, size, 2 * BLOCK)]
        assert layer.read_many(ranges) == [model[at : at + length] for at, length in ranges]
        place = 0
        for extent in layer.extents(0, size):
            assert extent.offset == place
            place += extent.length
            if extent.zero:
                assert not any(model[extent.offset : place])
        assert place == size
    assert base.data == before


def test_what_nobody_wrote_to_is_read_together() -> None:
    base = base_device(4096, BatchMemoryDevice)
    with contextlib.closing(CopyOnWrite(base)) as layer:
        layer.write(5 * BLOCK, b"x")
        base.calls.clear()
        found = layer.read_many([(number * BLOCK, BLOCK) for number in range(10)])
        assert b"".join(map(bytes, found)) == layer.read(0, 10 * BLOCK)
        assert [call for call in base.calls if call[0] == "read_many"] == [("read_many", 0, 0)]
        with pytest.raises(BadRequest):
            layer.read_many([(0, BLOCK), (4096, 1)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cow, "CHUNK", 4)
    monkeypatch.setattr(cow, "WHOLE", {state: bytes([state]) * 4 for state in (BELOW, ZERO)})


@pytest.mark.usefixtures("small_chunks")
def test_ranges_over_many_chunks_of_states() -> None:
    layer = CopyOnWrite(base_device(4096))
    layer.write(BLOCK * 3, b"x" * BLOCK * 10)
    layer.zero(BLOCK * 5, BLOCK * 2)
    expected = bytearray(base_device(4096).data)
    expected[BLOCK * 3 : BLOCK * 13] = b"x" * BLOCK * 10
    expected[BLOCK * 5 : BLOCK * 7] = bytes(BLOCK * 2)
    assert layer.read(0, 4096) == expected
    layer.close()


def test_zeroing_a_range_reads_and_writes_nothing() -> None:
    base = base_device(1 << 20)
    layer = CopyOnWrite(base)
    layer.zero(0, 1 << 20)
    assert [call for call in base.calls if call[0] == "read"] == []
    assert list(layer.extents(0, 1 << 20)) == [(0, 1 << 20, True)]
    assert layer._file is None
    layer.close()


@pytest.mark.parametrize("clear", [CopyOnWrite.trim, CopyOnWrite.zero])
def test_what_was_cleared_takes_no_room(
    tmp_path: Path, clear: Callable[[CopyOnWrite, int, int], None]
) -> None:
    data = noise(1, 4 << 20)
    base = MemoryDevice(len(data), read_only=True)
    with contextlib.closing(CopyOnWrite(base, tmp_path)) as layer:
        layer.write(0, data)
        assert layer._file is not None
        clear(layer, 1 << 20, 2 << 20)
        assert os.fstat(layer._file.fileno()).st_blocks * 512 < 3 << 20
        assert layer.read(0, len(data)) == data[: 1 << 20] + bytes(2 << 20) + data[3 << 20 :]
        layer.write(2 << 20, b"again")
        assert layer.read((2 << 20) - 1, 7) == b"\0again\0"


class Vast(MemoryDevice):
    """A device of terabytes that has nothing but its size."""

    def __init__(self) -> None:
        super().__init__(0, block_size=4096, read_only=True)
        self.size = 4 << 40

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self.calls.append(("extents", offset, length))
        yield Extent(offset, length, True)


def test_a_vast_disk_is_told_of_in_few_pieces() -> None:
    base = Vast()
    with contextlib.closing(CopyOnWrite(base)) as layer:
        assert list(layer.extents(0, base.size)) == [(0, base.size, True)]
        layer.trim(1 << 40, 2 << 40)
        base.calls.clear()
        assert [extent[:2] for extent in layer.extents(0, base.size)] == [
            (0, 1 << 40),
            (1 << 40, 2 << 40),
            (3 << 40, 1 << 40),
        ]
        assert len(base.calls) == 2


def test_what_is_said_of_a_vast_disk_takes_little_memory() -> None:
    with contextlib.closing(CopyOnWrite(Vast())) as layer:
        layer.zero(1 << 20, 2 << 40)
        layer.zero(5 << 30, 1 << 20)
        owned = {id(states): len(states) for states in layer._states.values()}
        assert sum(owned.values()) <= 4 * CHUNK


@given(st.data())
@pytest.mark.usefixtures("small_chunks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_are_as_long_as_they_can_be(data: st.DataObject) -> None:
    blocks = 24
    model = [BELOW] * blocks
    with contextlib.closing(CopyOnWrite(base_device(blocks * BLOCK))) as layer:
        for _ in range(data.draw(st.integers(0, 6))):
            first = data.draw(st.integers(0, blocks - 1))
            count = data.draw(st.integers(1, blocks - first))
            state = data.draw(st.sampled_from([ZERO, WRITTEN]))
            if state == ZERO:
                layer.zero(first * BLOCK, count * BLOCK)
            else:
                layer.write(first * BLOCK, bytes(count * BLOCK))
            model[first : first + count] = [state] * count
        first = data.draw(st.integers(0, blocks - 1))
        stop = data.draw(st.integers(first + 1, blocks))
        runs = list(layer._runs(first * BLOCK, (stop - first) * BLOCK))
    expected = [(state, len(list(same))) for state, same in itertools.groupby(model[first:stop])]
    assert [(state, length // BLOCK) for _, length, state in runs] == expected


def test_the_file_has_no_name(tmp_path: Path) -> None:
    layer = CopyOnWrite(base_device(4096), tmp_path)
    layer.write(0, b"secret")
    assert list(tmp_path.iterdir()) == []
    layer.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.read(4000, 97), lambda d: d.write(4090, b"1234567"), lambda d: d.zero(4096, 1),
        lambda d: d.read(-1, 1), lambda d: list(d.extents(0, 4097)),
    ],
)  # fmt: skip
def test_beyond_the_end(call: Callable[[CopyOnWrite], object]) -> None:
    layer = CopyOnWrite(base_device(4096))
    with pytest.raises(BadRequest):
        call(layer)
    layer.close()


def test_a_file_that_cannot_grow_is_an_error_of_the_write() -> None:
    layer = CopyOnWrite(base_device(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(IOFailed, match="copy-on-write"):
            layer.write(100_000, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert layer.read(100_000, 100) == base_device(1 << 20).data[100_000:100_100]
    layer.write(100_000, b"fits again")
    assert layer.read(100_000, 10) == b"fits again"
    layer.close()
