"""The story itself: without any fault the vault and the model agree, step for step.

The model knows nothing of trees, frames, logs or tables.  At the end all that follows from the log
is thrown away and replayed, and must come back byte for byte.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.ops import check, rebuild
from blockvault.store import tables
from tests.faults import story


@pytest.mark.parametrize("quick", [False, True])
def test_vault_and_model_agree(
    scratch: Path, seed: int, nightly: bool, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``quick``: commits in the background and checkpoints come every few writes."""
    if quick:
        story.quicken(monkeypatch.setattr)
    for number in range(2_500 if nightly else 20):
        path = scratch / str(number)
        path.mkdir()
        live_through(path, story.script(seed + number, 90))


def live_through(path: Path, steps: list[story.Step]) -> None:
    Vault.create(path).close()
    prints = story.fingerprints(steps)
    player = story.Player(path)
    for step, expected in zip(steps, prints[1:], strict=True):
        player.do(step)
        if step.kind in story.SETTLING:
            assert story.look(player.vault) == expected, step
    player.close()
    with Vault.open(path) as vault:
        assert story.look(vault) == prints[-1]
        assert check.verify(vault).ok


def test_inside_a_zero_that_cuts_blocks_are_states_of_its_events() -> None:
    """And only there: the checks of crash states must not let anything else pass."""
    offset, length = 11547, 9 * story.BLOCK
    steps = [
        story.Step("volume", ("vda", story.VOLUMES["vda"])),
        story.Step("write", ("vda", 0, story.VOLUMES["vda"], 1)),
        story.Step("zero", ("vda", offset, length)),
        story.Step("flush"),
    ]
    life = story.Life.of(steps)
    assert [len(states) for states in life.within] == [0, 0, 0, 2, 0]
    cut, both = life.within[3]
    assert all(life.may_be(state, 2) for state in (cut, both, life.after[3]))
    assert not any(life.may_be(state, 3) for state in (cut, both, life.after[2]))
    parts = story.events_of(steps[2])
    assert [part.arguments[1:] for part in parts] == [
        (offset, 741), (45056, offset + length - 45056), (12288, 32768),
    ]  # fmt: skip
    model = story.Model()
    for step in [*steps[:2], parts[2]]:
        model.do(step)
    assert not life.may_be(model.print(), 2)  # the last event without those before it


def all_rows(vault: Vault) -> dict[str, list[tuple[bytes, bytes]]]:
    names = (*tables.PROJECTIONS, tables.INDEX)
    with vault.read() as reader:
        return {name: list(reader.scan(name)) for name in names}


def test_tables_replayed_from_the_log_are_the_same(scratch: Path, seed: int) -> None:
    for number in range(5):
        path = scratch / str(number)
        path.mkdir()
        Vault.create(path).close()
        story.play(path, story.script(seed + number, 120), lambda promise: None)
        with Vault.open(path) as vault:
            before = all_rows(vault)
            with vault.store.write() as writer:
                for name in (*tables.PROJECTIONS, tables.INDEX):
                    writer.clear(name)
            assert not check.verify(vault).ok  # the control
            rebuild.rebuild(vault)
            assert all_rows(vault) == before
            assert check.verify(vault).ok
