"""What most tests of the operations begin with."""

from __future__ import annotations

from collections import Counter

import pytest

from blockvault import Vault
from blockvault.store import frames
from blockvault.store.objects import ObjectReader
from tests.ops import scattered as scattered_disk
from tests.oracle import BLOCK


@pytest.fixture
def scattered(vault: Vault) -> bytes:
    """What volume ``v`` holds, whose blocks lie scattered."""
    return scattered_disk.make(vault)


@pytest.fixture
def decoded(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each frame of blocks is decoded, by a reader that keeps nearly nothing."""
    counted: Counter[bytes] = Counter()
    decode = frames.decode

    def counting(data: bytes | memoryview) -> frames.Objects:
        found = decode(data)
        if found.uniform == BLOCK:
            counted[bytes(data)] += 1
        return found

    monkeypatch.setattr(frames, "decode", counting)
    monkeypatch.setattr(vault, "objects", ObjectReader(vault.store, cache_bytes=1))
    return counted
