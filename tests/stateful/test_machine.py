"""Whole lives of a vault beside a dict of bytes, invented and made smaller by hypothesis.

``tests.faults.story`` tells one long life by a seed, for crashes; here every rule may come in any
order, and what fails is reduced to the fewest steps.  The oracle is the model of that story; this
machine adds what a crash test does not need: every snapshot, and every point of every branch's
past, is compared too, after each reopening and at the end.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import blockvault.behind
import blockvault.folding
import blockvault.pending
import blockvault.session
from blockvault import Vault
from blockvault.errors import Busy, Conflict, NotFound
from blockvault.ops import check, checkin, checkout, compare, ingest, rebuild
from blockvault.session import Session
from tests.faults import story
from tests.oracle import BLOCK, check_extents, noise, whole

VOLUMES = list(story.VOLUMES)
Contents = dict[str, bytes]

lengths = st.sampled_from([1, 512, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 9 * BLOCK + 7])
volumes = st.sampled_from(VOLUMES)
seeds = st.integers(0, 1 << 16)
small = st.integers(0, 1 << 16)


class VaultMachine(RuleBasedStateMachine):
    """The vault under test, its one session, and the oracle."""

    def __init__(self) -> None:
        super().__init__()
        parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.home = Path(tempfile.mkdtemp(prefix="blockvault-machine-", dir=parent))
        self.vault = Vault.create(self.home)
        self.open: Session | None = None
        self.model = story.Model()
        self.snapshots: dict[bytes, Contents] = {}
        self.points: dict[int, tuple[int, Contents]] = {}
        """Event that made a state -> branch id, and what the branch held after it."""
        self.unflushed = False
        self.named = 0
        for seed, (name, size) in enumerate(story.VOLUMES.items(), 1):
            self.session.create_volume(name, size).write(0, story.content(seed, size))
            self._do("volume", name, size)
            self._took("write", name, 0, size, seed)
        self._flushed()

    def teardown(self) -> None:
        try:
            self._flushed()
            self._close()
            self._check_past()
            self._check_projections()
            assert check.verify(self.vault).problems == []
        finally:
            self._close()
            self.vault.close()
            shutil.rmtree(self.home)

    # -- helpers ---------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        if self.open is None:
            self.open = self.vault.session()
        return self.open

    @property
    def held(self) -> Contents:
        return self.model.branches[self.model.head]

    def _close(self) -> None:
        session, self.open = self.open, None
        if session is not None:
            session.close()

    def _settled(self, branch: str | None = None) -> None:
        """The last event of a branch is a point of its past that holds what the model holds."""
        row = self.vault.branch(branch or self.model.head)
        assert row.barrier_seq == row.seq
        self.points[row.seq] = row.id, dict(self.model.branches[row.name])

    def _flushed(self) -> None:
        if self.unflushed:
            self.session.flush()
            self.unflushed = False
            self._settled()

    def _idle(self) -> None:
        """Whoever changes names needs the branches to be nobody's."""
        self._flushed()
        self._close()

    def _do(self, kind: str, *arguments: Any) -> None:
        self.model.do(story.Step(kind, arguments))

    def _name(self, number: int) -> str:
        """A branch or tag, chosen by a number."""
        names = sorted([*self.model.branches, *self.model.tags])
        return names[number % len(names)]

    def _branch(self, number: int) -> str:
        return sorted(self.model.branches)[number % len(self.model.branches)]

    def _fresh(self) -> str:
        self.named += 1
        return f"name{self.named}"

    def _took(self, kind: str, volume: str, offset: int, length: int, *seed: int) -> None:
        self._do(kind, volume, offset, length, *seed)
        self.unflushed = True

    def _range(self, volume: str, start: int, length: int, aligned: bool) -> tuple[int, int]:
        size = story.VOLUMES[volume]
        offset = start % size
        offset -= offset % BLOCK if aligned else 0
        return offset, min(length, size - offset)

    # -- the head --------------------------------------------------------------------------------

    @rule(volume=volumes, starts=st.lists(small, min_size=1, max_size=4), length=lengths,
          aligned=st.booleans(), seed=seeds)  # fmt: skip
    def write(self, volume: str, starts: list[int], length: int, aligned: bool, seed: int) -> None:
        for start in starts:
            offset, count = self._range(volume, start * 7, length, aligned)
            self.session.device(volume).write(offset, story.content(seed, count))
            self._took("write", volume, offset, count, seed)

    @rule(volume=volumes, start=small, length=lengths, aligned=st.booleans(), trim=st.booleans())
    def clear(self, volume: str, start: int, length: int, aligned: bool, trim: bool) -> None:
        offset, length = self._range(volume, start * 7, length, aligned)
        kind = "trim" if trim else "zero"
        getattr(self.session.device(volume), kind)(offset, length)
        self._took(kind, volume, offset, length)

    @rule()
    def flush(self) -> None:
        self.session.flush()
        self._flushed()

    @rule()
    def commit(self) -> None:
        self.session.commit(barrier=False)

    @rule()
    def checkpoint(self) -> None:
        self._flushed()
        self.session.checkpoint()
        self._settled()

    @rule()
    def snapshot(self) -> None:
        self._flushed()
        parent = self.vault.branch().tip
        made = self.session.snapshot("a step")
        assert made.parents == ((parent,) if parent else ())
        self.snapshots[made.id] = dict(self.held)
        self._settled()

    # -- names -----------------------------------------------------------------------------------

    @rule(number=small)
    def branch(self, number: int) -> None:
        self._idle()
        rev, name = self._name(number), self._fresh()
        self.vault.create_branch(name, rev)
        self._do("branch", name, rev)
        self._settled(name)

    @rule(number=small)
    def branch_from_the_past(self, number: int) -> None:
        self._idle()
        seq = sorted(self.points)[number % len(self.points)]
        branch, contents = self.points[seq]
        names = {row.id: row.name for row in self.vault.branches()}
        if branch not in names:
            return
        name = self._fresh()
        self.vault.create_branch(name, f"{names[branch]}@{{#{seq}}}")
        self.model.branches[name] = dict(contents)
        self._settled(name)

    @rule(number=small)
    def tag(self, number: int) -> None:
        self._idle()
        rev, name = self._name(number), self._fresh()
        made = self.vault.tag(name, rev)
        self._do("tag", name, rev)
        self.snapshots[made.snapshot] = dict(self.model.tags[name])

    @rule(number=small, onto=small)
    def rollback(self, number: int, onto: int) -> None:
        self._idle()
        branch, rev = self._branch(number), self._name(onto)
        self.vault.rollback(branch, rev)
        self._do("rollback", branch, rev)
        self._settled(branch)

    @rule(number=small)
    def switch(self, number: int) -> None:
        self._idle()
        name = self._branch(number)
        self.vault.switch(name)
        self._do("switch", name)

    @rule(number=small)
    def rename(self, number: int) -> None:
        self._idle()
        old, new = self._branch(number), self._fresh()
        self.vault.rename_branch(old, new)
        self._do("rename", old, new)

    @rule(number=small)
    @precondition(lambda self: len(self.model.branches) > 1)
    def delete(self, number: int) -> None:
        self._idle()
        name = self._branch(number)
        if name == self.model.head:
            with pytest.raises(Conflict):
                self.vault.delete_branch(name)
            return
        contents = dict(self.model.branches[name])
        self.vault.delete_branch(name)
        with pytest.raises(NotFound):
            self.vault.resolve(name)
        if number % 2:
            self.vault.restore_branch(name)
            assert story.volumes_at(self.vault, name) == contents
            return
        self._do("delete", name)

    # -- images ----------------------------------------------------------------------------------

    @rule(volume=volumes, seed=seeds)
    def import_image(self, volume: str, seed: int) -> None:
        self._idle()
        image = self.home / "image.raw"
        image.write_bytes(story.content(seed, story.VOLUMES[volume]))
        made = ingest.import_images(self.vault, [ingest.Image(image, volume)])
        self._do("ingest", volume, seed)
        self.snapshots[made.id] = dict(self.held)
        self._settled()

    @rule(number=small, seed=seeds, volume=volumes)
    def checkout_and_back(self, number: int, seed: int, volume: str) -> None:
        """A checkout over what an earlier one left; sometimes a file is changed and taken in."""
        self._idle()
        folder, name = self.home / "files", self._name(number)
        checkout.execute(self.vault, checkout.plan(self.vault, name, folder))
        contents = self.model._rev(name)
        found = {path.stem: path.read_bytes() for path in folder.glob("*.raw")}
        assert found == contents
        if seed % 3:
            return
        data = noise(seed, 600)
        with open(folder / f"{volume}.raw", "r+b") as file:
            file.seek(BLOCK - 300)
            file.write(data)
        made = checkin.snapshot_from(self.vault, folder, branch=self.model.head, force=True)
        old = contents[volume]
        changed = old[: BLOCK - 300] + data + old[BLOCK + 300 :]
        if changed != old:
            self.model.branches[self.model.head] = {**self.held, volume: changed}
        self.snapshots[made.id] = dict(self.held)
        self._settled()

    # -- looking ---------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self._idle()
        self.vault.close()
        self.vault = Vault.open(self.home)
        assert story.look(self.vault) == story.print_of(
            self.model.head, self.model.branches | self.model.tags
        )
        self._check_past()

    @rule(number=small)
    def look_back(self, number: int) -> None:
        self._check_point(sorted(self.points)[number % len(self.points)])

    @rule(a=small, b=small)
    def diff(self, a: int, b: int) -> None:
        self._flushed()
        names = self._name(a), self._name(b)
        position = self.vault.resolve
        for found in compare.diff(self.vault, position(names[0]), position(names[1])):
            x, y = (self.model._rev(name)[found.name] for name in names)
            size = max(len(x), len(y))  # an image may be shorter than the disk that it replaces
            x, y = x.ljust(size, b"\0"), y.ljust(size, b"\0")
            differ = {
                at for at in range(0, size, BLOCK) if x[at : at + BLOCK] != y[at : at + BLOCK]
            }
            told = {at for start, length in found.extents
                    for at in range(start, start + length, BLOCK)}  # fmt: skip
            assert told == differ

    @rule()
    def another_writer_is_refused(self) -> None:
        assert self.session
        with pytest.raises(Busy):
            self.vault.session()

    @invariant()
    def the_head_reads_as_written(self) -> None:
        if self.open is None:
            return
        for name, data in self.held.items():
            device = self.open.device(name)
            assert whole(device) == data
            check_extents(device, data, 0, len(data))

    def _check_past(self) -> None:
        for oid, contents in self.snapshots.items():
            assert story.volumes_at(self.vault, oid.hex()) == contents
        for seq in self.points:
            self._check_point(seq)

    def _check_point(self, seq: int) -> None:
        branch, contents = self.points[seq]
        names = {row.id: row.name for row in self.vault.branches()}
        if branch in names:
            rev = f"{names[branch]}@{{#{seq}}}"
            position = self.vault.resolve(rev)
            assert position.seq == seq
            assert story.volumes_at(self.vault, rev) == contents

    def _check_projections(self) -> None:
        found = rebuild.rebuild(self.vault, dry_run=True)
        assert (found.changed_rows, found.index_entries) == (0, 0)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short lives meet background commits and checkpoints."""
    monkeypatch.setattr(blockvault.behind, "COMMIT_BYTES", 24 * BLOCK)
    monkeypatch.setattr(blockvault.pending, "TRANSACTION_BYTES", 10 * BLOCK)
    monkeypatch.setattr(blockvault.folding, "NODES_AT_ONCE", 8)
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", 30)
    monkeypatch.setattr(blockvault.folding, "LEFT_OVER_BLOCKS", 15)


def test_the_vault_and_the_oracle_agree(small_limits: None, nightly: bool) -> None:
    run_state_machine_as_test(
        VaultMachine,
        settings=settings(
            max_examples=5000 if nightly else 200,
            stateful_step_count=60 if nightly else 20,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_wrong_vault_is_found(small_limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a vault that passes over trims is told from one that does them."""
    monkeypatch.setattr(blockvault.session.HeadDevice, "trim", lambda *_: None)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(
            VaultMachine,
            settings=settings(
                max_examples=400,
                stateful_step_count=25,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
