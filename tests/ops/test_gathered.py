"""Ids that wait: by their first byte, each once when they are asked for."""

from __future__ import annotations

from blockvault.ids import ZERO_ID, object_id
from blockvault.ops.gathered import Gathered


def test_ids_come_back_by_their_first_byte() -> None:
    ids = [object_id(b"%d" % number) for number in range(5000)]
    gathered = Gathered()
    gathered.add(ids[:3000])
    gathered.add([*ids[2000:], ZERO_ID])
    assert len(gathered) == 6001
    for first in range(256):
        assert gathered.part(first) == {oid for oid in ids if oid[0] == first}
    gathered.clear()
    assert len(gathered) == 0
    assert not any(map(gathered.part, range(256)))
