"""What a vault must still be after a crash: the checks that run in child processes.

``state_checker`` judges one cut of the trace of a story; ``rebirth_checker`` judges what is left of
a creation, ``rescue_checker`` of the rescue of a meta page.  All return what is wrong, in words, or
nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from blockvault import Vault
from blockvault.errors import VaultError
from blockvault.ops import check
from blockvault.store import pages, salvage, shared
from tests.faults import story
from tests.faults.story import BLOCK, Promise
from tools.faults.crash import Cut, Replay, promises
from tools.faults.disk import SECTOR, Op, Punch
from tools.faults.mount import mark


def state_checker(
    lane: int, ops: list[Op], scratch: Path, seed: int, count: int
) -> Callable[[Cut], str]:
    replay, here = Replay(ops), scratch / f"lane{lane}"
    life = story.Life.of(story.script(seed, count))

    def check_cut(cut: Cut) -> str:
        made = [Promise.parse(text) for text in promises(ops, cut)]
        try:
            if made and punched_lately(ops, cut):
                lay_out(replay, cut, here)
                if wrong := fallen_back(here):
                    return wrong
            lay_out(replay, cut, here)
            return judge(here, made, life)
        except VaultError as error:
            return f"{type(error).__name__} {error.reason}: {error.message}"

    return check_cut


def rebirth_checker(lane: int, ops: list[Op], scratch: Path) -> Callable[[Cut], str]:
    replay, here = Replay(ops), scratch / f"lane{lane}"

    def check_cut(cut: Cut) -> str:
        lay_out(replay, cut, here)
        try:
            return reborn(here, promised=bool(promises(ops, cut)))
        except VaultError as error:
            return f"{type(error).__name__} {error.reason}: {error.message}"

    return check_cut


def rescue_checker(
    lane: int, ops: list[Op], scratch: Path, number: int, before: bytes
) -> Callable[[Cut], str]:
    """``before`` is what was in meta page ``number`` when its rescue began."""
    replay, here = Replay(ops), scratch / f"lane{lane}"
    home = here / ".blockvault"

    def check_cut(cut: Cut) -> str:
        lay_out(replay, cut, here)
        with (home / shared.DATA).open("rb") as file:
            page = os.pread(file.fileno(), len(before), number * len(before))
        kept = home / f"meta-{number}.damaged"
        if page != before and not (kept.exists() and kept.read_bytes() == before):
            return "the page was written over, and what was there is not kept"
        if salvage.rescue_meta(home) and "rescued" in promises(ops, cut):
            return "the page was rescued, and is destroyed"
        with Vault.open(here) as vault:
            return problems(vault)

    return check_cut


def reborn(path: Path, *, promised: bool) -> str:
    """No vault, and making one works; or a vault, and it works.  Only leftovers lie beside it."""
    others = [p.name for p in path.iterdir() if not p.name.startswith(".blockvault.new-")]
    if others not in ([], [".blockvault"]):
        return f"creation left {others}"
    if not others:
        if promised:
            return "the vault was promised, and there is none"
        Vault.create(path).close()
    with Vault.open(path) as vault:
        if wrong := problems(vault):
            return wrong
        if vault.head != "main":
            return "the new vault has no branch main"
        write_on(vault)
        return problems(vault) or written_on(vault)


def lay_out(replay: Replay, cut: Cut, here: Path) -> None:
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    replay.image(cut).write_to(here)


def judge(path: Path, made: list[Promise], life: story.Life) -> str:
    """Open, verify, compare with the model, look into the past, and write on."""
    if not made:
        return ""  # creation was not over: test_init looks into that
    with Vault.open(path) as vault:
        if wrong := problems(vault):
            return wrong
        seen = story.look(vault)
        last = made[-1].step
        if not life.may_be(seen, last):
            older = [n for n, there in enumerate(life.after[:last]) if there == seen]
            return f"promised step {last}, and it is {older or 'no state at all'}"
        pruned = last_prune(last, life.steps)
        if wrong := past(vault, [one for one in made if one.step > pruned], life.after):
            return wrong
        write_on(vault)
    with Vault.open(path) as vault:
        return problems(vault, fast=True) or written_on(vault)


def punched_lately(ops: list[Op], cut: Cut) -> bool:
    """Whether holes were made just before, so that no commit after them has saved them all yet."""
    return any(isinstance(op, Punch) for op in ops[max(0, cut.at - 20) : cut.at + cut.in_flight])


def fallen_back(path: Path) -> str:
    """What is wrong with the commit to which ``repair`` goes back if the newest is destroyed."""
    home = path / ".blockvault"
    with (home / shared.DATA).open("r+b") as file:
        metas = [pages.read_meta(file.fileno(), number) for number in (0, 1)]
        newest = max(filter(None, metas))
        file.seek(metas.index(newest) * newest.page_size)
        file.write(bytes(SECTOR))
    (home / shared.HEAD).unlink(missing_ok=True)  # that commit is lost, and it would say so
    if not salvage.rescue_meta(home):
        return "both meta pages are destroyed"
    with Vault.open(path) as vault:
        wrong = problems(vault)
    return wrong and f"the commit before the newest one: {wrong}"


def last_prune(promised: int, steps: list[story.Step]) -> int:
    """The last prune that may have begun: it may have forgotten what was flushed before it."""
    found = 0
    for number, step in enumerate(steps, 1):
        if step.kind == "prune":
            found = number
        if number > promised and step.kind in story.PROMISED:
            break
    return found


def problems(vault: Vault, *, fast: bool = False) -> str:
    found = check.verify(vault, fast=fast).problems
    return "; ".join(f"{problem.kind}: {problem.message}" for problem in found[:3])


def past(vault: Vault, made: list[Promise], prints: list[story.Print]) -> str:
    """Up to three flushes that were promised, read as they were then."""
    names = {branch.id: branch.name for branch in vault.branches()}
    flushes = [promise for promise in made if promise.branch in names]
    for step, branch, seq in random.Random(len(made)).sample(flushes, min(3, len(flushes))):
        there = story.hash_of(story.volumes_at(vault, f"{names[branch]}@{{#{seq}}}"))
        if there != prints[step].of(prints[step].head):
            return f"event {seq}, the flush of step {step}, reads otherwise now"
    return ""


LAST_WORD = b"written after the crash".ljust(BLOCK, b".")


def write_on(vault: Vault) -> None:
    with vault.session(holder="the checker") as session:
        if not session.volumes:
            session.create_volume("vda", story.VOLUMES["vda"])
        session.device("vda").write(BLOCK, LAST_WORD)
        session.flush()
    vault.snapshot("after the crash")


def written_on(vault: Vault) -> str:
    ok = vault.device("HEAD~0", "vda").read(BLOCK, BLOCK) == LAST_WORD
    return "" if ok else "what was written after the crash is not there"


def main(path: str, mode: str) -> None:
    """Create a vault on a recording file system, and promise it."""
    story.endanger(mode)
    Vault.create(path).close()
    mark(path, "created")


if __name__ == "__main__":
    main(*sys.argv[1:])
