"""Spoilt bytes in every decoder: only the documented error, soon, and in little memory."""

from __future__ import annotations

import pytest

from tests.faults import fuzz_case
from tools.faults.children import Children

BATCH = 500


@pytest.mark.parametrize("name", fuzz_case.DECODERS)
def test_spoilt_bytes_are_refused_or_read(name: str, seed: int, nightly: bool) -> None:
    batches = 2_000 if nightly else 40
    tasks = [(name, seed + number, BATCH) for number in range(batches)]
    outcomes = Children("tests.faults.fuzz_case:fuzzer", timeout=120).run(tasks)
    broken = [outcome for outcome in outcomes if not outcome.returned]
    assert not broken, broken[:2]
    bad = [line for outcome in outcomes for line in outcome.value.bad]
    assert not bad, f"{len(bad)}: " + "\n".join(bad[:5])
    refused = sum(outcome.value.refused for outcome in outcomes)
    slowest = max(outcome.value.slowest for outcome in outcomes)
    print(f"{name}: {refused} of {batches * BATCH} refused, slowest {slowest * 1000:.1f} ms")
    assert slowest < fuzz_case.SOON
    assert refused > batches * BATCH / 4
