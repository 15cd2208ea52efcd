"""The story itself: without any fault the vault and the model agree after every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockvault import Vault
from tests.faults import story


@pytest.mark.parametrize("number", range(4))
def test_vault_and_model_agree(scratch: Path, seed: int, number: int) -> None:
    Vault.create(scratch).close()
    steps = story.script(seed + number, 80)
    prints = story.fingerprints(steps)
    player = story.Player(scratch)
    for step, expected in zip(steps, prints[1:], strict=True):
        player.do(step)
        if step.kind in story.SETTLING:
            assert story.look(player.vault) == expected, step
    player.close()
