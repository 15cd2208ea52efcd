"""Each contract test runs on every store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockvault.store.env import LmdbStore
from blockvault.store.format import RECENT_ROWS
from blockvault.store.memory import MemoryStore
from blockvault.store.types import Options, Store
from tests.store.material import OPTIONS

Make = Callable[[Options], Store]


@pytest.fixture(params=["lmdb", "lmdb-recent-rows", "lmdb-without-features", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes new stores, which are closed at the end."""
    with ExitStack() as stack:

        def make_one(options: Options = OPTIONS) -> Store:
            if request.param == "memory":
                return stack.enter_context(MemoryStore(options))
            if request.param == "lmdb-without-features":
                options = options._replace(features=())
            if request.param == "lmdb-recent-rows":
                options = options._replace(features=(RECENT_ROWS,))
            name = f"vault{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(LmdbStore.create(tmp_path / name, options))

        yield make_one


@pytest.fixture
def store(make: Make) -> Store:
    return make(OPTIONS)
