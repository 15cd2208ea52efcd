"""The store's tests: a vault directory each, and the root of the project on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockvault.store.env import LmdbStore
from tests.store.material import OPTIONS


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a vault directory may be made."""
    return tmp_path / ".blockvault"


@pytest.fixture
def store(home: Path) -> Iterator[LmdbStore]:
    with LmdbStore.create(home, OPTIONS) as created:
        yield created
