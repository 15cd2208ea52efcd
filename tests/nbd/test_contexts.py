"""Block status: clipped, gapless, merged, bounded, whatever a device yields."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockvault.nbd import contexts
from blockvault.nbd.contexts import Context, descriptors
from tests.nbd.memory import MemoryDevice

DEVICE = MemoryDevice(0)
RUNS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 500), st.integers(0, 2)))


@given(RUNS, st.integers(0, 2000), st.integers(1, 1000), st.integers(1, 20))
def test_descriptors_are_what_the_protocol_wants(
    runs: list[tuple[int, int, int]], offset: int, length: int, limit: int
) -> None:
    runs.sort()
    context = Context("x:y", lambda device, start, size: iter(runs), 9)
    found = descriptors(context, DEVICE, offset, length, limit)
    assert 1 <= len(found) <= limit
    assert all(size > 0 for size, _ in found)
    total = sum(size for size, _ in found)
    assert total <= length
    assert total == length or len(found) == limit
    assert all(a[1] != b[1] for a, b in pairwise(found))
    # Byte by byte: the first run that covers a byte says its status.
    place = offset
    for size, status in found:
        for byte in range(place, place + size):
            covering = [s for start, n, s in runs if start <= byte < start + n]
            assert status == (covering[0] if covering else 9)
        place += size


def test_a_diff_that_is_silent_about_a_range_means_changed() -> None:
    context = contexts.diff("v1", lambda device, offset, length: iter([(0, 10, False)]))
    assert context.name == "blockvault:diff:v1"
    assert descriptors(context, DEVICE, 0, 30, 8) == [(10, 0), (20, 1)]


def test_allocation_that_is_silent_means_data() -> None:
    device = MemoryDevice(8192)
    device.data[4096] = 1
    assert descriptors(contexts.allocation(), device, 0, 8192, 8) == [(4096, 3), (4096, 0)]
    silent = Context("base:allocation", lambda device, offset, length: iter(()), 0)
    assert descriptors(silent, device, 0, 8192, 8) == [(8192, 0)]
