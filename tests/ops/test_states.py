"""States between two waypoints: overlays replayed from the log, and folded into trees."""

from __future__ import annotations

from blockvault import Vault
from blockvault.ops import states
from tests.oracle import BLOCK, Disk


def test_materialized_states_are_what_their_overlays_say(vault: Vault) -> None:
    """Folding a state into a tree changes nothing that is read from it."""
    with vault.session() as session:
        disk = Disk(3000 * BLOCK + 5, session.create_volume("v", 3000 * BLOCK + 5))
        disk.write(5, b"a" * 9000)
        disk.zero(0, 2000 * BLOCK)
        disk.write(1999 * BLOCK - 3, b"b" * 9000)
        disk.trim(2500 * BLOCK, 500 * BLOCK + 5)
    position = vault.resolve("main")
    assert set(states.overlays(vault, position)) == {"v"}
    tagged = vault.tag("t")
    assert vault.resolve("t").waypoint_seq == vault.resolve("t").seq
    assert states.overlays(vault, vault.resolve("t")) == {}
    for rev in ("main", "t", tagged.snapshot.hex()):
        assert vault.open_volume(rev).read() == disk.data


def test_an_overlay_holds_one_branch_and_one_volume(vault: Vault) -> None:
    """Records of other branches lie between, and their events are passed over."""
    with vault.session() as session:
        session.create_volume("v", 9 * BLOCK)
        session.create_volume("w", 9 * BLOCK)
    vault.create_branch("b")
    with vault.session() as main, vault.session("b") as other:
        for number in range(4):
            main.device("v").write(number * BLOCK, b"main")
            other.device("w").write(number * BLOCK, b"other")
            main.flush()
            other.flush()
    found = states.overlays(vault, vault.resolve("main"))
    assert {name: sorted(overlay.blocks) for name, overlay in found.items()} == {"v": [0, 1, 2, 3]}
    found = states.overlays(vault, vault.resolve("b"))
    assert {name: sorted(overlay.blocks) for name, overlay in found.items()} == {"w": [0, 1, 2, 3]}
    assert vault.open_volume("main", "w").read() == bytes(9 * BLOCK)
