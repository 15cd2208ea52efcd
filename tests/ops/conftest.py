"""What most tests of the operations begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as made:
        yield made
