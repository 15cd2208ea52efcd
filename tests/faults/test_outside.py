"""Files that a command leaves outside of the vault, and the power that fails meanwhile or after.

The states that a cut may leave are enumerated, as those of a vault are.  Under its name a file is
the old one or the new one, a manifest tells of files that are on the disk, and when the command has
ended all of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.ops import checkout, export, manifest
from blockvault.store import filesystem
from tests.oracle import BLOCK, noise
from tools.faults.crash import Replay, enumerate_cuts, promises
from tools.faults.mount import PowerMount

SIZE = 40 * BLOCK + 100
WORK = "deep/work"
Tree = dict[str, bytearray | None]
Judge = Callable[[Tree, bool], str]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Two states of a volume, on a disk that keeps its power."""
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            head = session.create_volume("vda", SIZE)
            for number, tag in enumerate(("v1", "v2")):
                head.write(9 * number * BLOCK, noise(number, 25 * BLOCK))
                session.snapshot()
                made.tag(tag)
        yield made


@pytest.fixture
def wanted(nightly: bool) -> int:
    return 1_250 if nightly else 300


def content(vault: Vault, rev: str) -> bytearray:
    return bytearray(vault.open_volume(rev).read())


def wrong_states(
    power: PowerMount, act: Callable[[], object], judge: Judge, wanted: int, seed: int
) -> list[str]:
    """What is wrong with the states that a cut in the middle of an act, or after it, may leave."""
    start = len(power.trace())
    act()
    power.mark("done")
    ops = power.trace()
    replay, cuts = Replay(ops), enumerate_cuts(ops, wanted, seed, start)
    print(f"{len(cuts)} crash states of {len(ops) - start} operations")
    assert len(cuts) > 20
    found = [(cut, judge(replay.image(cut).tree(), bool(promises(ops, cut)))) for cut in cuts]
    return [f"{what}, {cut}" for cut, what in found if what]


# -- export ----------------------------------------------------------------------------------------


def wrong_exports(
    vault: Vault, power: PowerMount, old: str | None, wanted: int, seed: int, *, sync: bool
) -> list[str]:
    target = power.path / "out.raw"
    before, after = None, content(vault, "v2")
    if old:
        export.export(vault, old, None, target, sync=True)
        before = content(vault, old)

    def judge(tree: Tree, done: bool) -> str:
        right = tree.get(target.name) in ((after,) if done else (before, after))
        return (
            "" if right else f"the file is not whole, the command was {'' if done else 'not '}over"
        )

    return wrong_states(
        power,
        lambda: export.export(vault, "v2", None, target, force=bool(old), sync=sync),
        judge,
        wanted,
        seed,
    )


@pytest.mark.parametrize("old", [None, "v1"])
def test_a_synced_export_cut_off_anywhere(
    vault: Vault, power: PowerMount, old: str | None, wanted: int, seed: int
) -> None:
    assert wrong_exports(vault, power, old, wanted, seed, sync=True) == []


@pytest.mark.parametrize("old", [None, "v1"])
def test_an_export_that_is_not_synced_is_caught(
    vault: Vault, power: PowerMount, old: str | None, wanted: int, seed: int
) -> None:
    assert wrong_exports(vault, power, old, wanted, seed, sync=False) != []


# -- checkout --------------------------------------------------------------------------------------


def wrong_checkouts(
    vault: Vault, power: PowerMount, old: str | None, wanted: int, seed: int
) -> list[str]:
    after = content(vault, "v2")
    roots = {vault.resolve(rev).volumes[0].root.hex(): content(vault, rev) for rev in ("v1", "v2")}

    def check_out(rev: str) -> None:
        # By force: the file system that loses its power has no times to know a file by.
        checkout.execute(vault, checkout.plan(vault, rev, power.path / WORK, force=True))

    def judge(tree: Tree, done: bool) -> str:
        file, told = tree.get(f"{WORK}/vda.raw"), tree.get(f"{WORK}/{manifest.FILE_NAME}")
        if done and (file != after or told is None):
            return "the command was over, and not all is there"
        entries = json.loads(told)["entries"] if told is not None else []
        complete = [each for each in entries if tuple(each["fingerprint"]) != manifest.WRITING]
        untrue = any(file != roots[each["root"]] for each in complete)
        return "the manifest calls a file complete that is not" if untrue else ""

    if old:
        check_out(old)
    return wrong_states(power, lambda: check_out("v2"), judge, wanted, seed)


@pytest.mark.parametrize("old", [None, "v1"])
def test_a_checkout_cut_off_anywhere(
    vault: Vault, power: PowerMount, old: str | None, wanted: int, seed: int
) -> None:
    assert wrong_checkouts(vault, power, old, wanted, seed) == []


@pytest.mark.parametrize("old", [None, "v1"])
def test_a_checkout_that_syncs_no_names_is_caught(
    vault: Vault,
    power: PowerMount,
    old: str | None,
    wanted: int,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filesystem, "sync_path", lambda path: None)
    assert wrong_checkouts(vault, power, old, wanted, seed) != []
