"""What a supervisor holds: the branch of its machine, and what is left of the one before it.

    branch   a session, as the successor of whoever ran the machine last
    orphan   the QEMU of a supervisor that died; the branch is kept for it (``lease``)

Nobody can have written to a branch that is kept, so its QEMU can be taken over.  One that has no
hold of its branch is ended: its memory may be of another moment than its disks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from blockvault.errors import Busy, ToolFailed, VaultError
from blockvault.lease import Lease
from blockvault.session import Session
from blockvault.vm import rundir
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import Process, State

if TYPE_CHECKING:
    from pathlib import Path

    from blockvault.ops.refs import Branch
    from blockvault.vault import Vault
    from blockvault.vm.rundir import RunDir

HOLDER = "a running machine"
PATIENCE = 10.0
"""Seconds for which a machine that gave its branch back to move it waits for whoever came then."""
_RETRY = 0.02

T = TypeVar("T")


def patiently(act: Callable[[], T]) -> T:
    """What ``act`` gives once nobody else has the branch: a snapshot has it for a moment only."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(_RETRY)


class Hold:
    """The hold that one supervisor has of its machine's branch."""

    def __init__(self, vault: Vault, branch: Branch, run: RunDir) -> None:
        self._vault = vault
        self._branch = branch
        self._run = run
        self.left: State | None = None
        """What an earlier run left, once somebody has looked."""
        self.session: Session | None = None

    def take_over(self) -> Session:
        """The branch, and with it all that an earlier run has left; ``Busy`` if that goes on."""
        left = self.find()
        session = self.take()
        try:
            if self.find() != left:
                raise self._busy("was started or ended at this moment; try again")
        except BaseException:
            self.give_back()
            raise
        return session

    def take(self) -> Session:
        """The branch."""
        branch = self._vault.branch(self._branch.name)
        self.session = Session(self._vault, branch, HOLDER, successor=True)
        return self.session

    def give_back(self) -> None:
        """Flush, and let others have the branch, unless it is kept for a QEMU that lives."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def find(self) -> State | None:
        """Look what an earlier run has left; ``Busy`` if that goes on."""
        self.left = self._run.load()
        if self.left is not None and self.left.supervisor.alive:
            raise self._busy(f"is running (process {self.left.supervisor.pid})")
        return self.left

    def _busy(self, how: str) -> Busy:
        return Busy(f"machine '{self._branch.name}' {how}", kind="machine-running")

    def orphan(self, held: Session | Lease) -> Qemu | None:
        """The QEMU that lost its supervisor, if it can be taken over; one that cannot is ended.

        ``Busy`` if the branch is kept for another one than this run directory knows.
        """
        left = None if self.left is None else self.left.qemu
        if left is None or not left.alive:
            patiently(lambda: self._check_free(held))  # to die takes a moment
            return None
        try:
            qemu = Qemu.find(left, self._run.qemu_log)
        except ToolFailed:
            return None  # it ended at this moment
        if held.kept and self._can_go_on():
            return qemu
        qemu.kill()
        qemu.close()
        return None

    def _check_free(self, held: Session | Lease) -> None:
        if held.kept:
            raise Busy(
                f"branch '{self._branch.name}' is kept for a QEMU of which nothing is known in "
                f"{self._run.path}; nothing was changed. If it was started with another "
                "BLOCKVAULT_RUNTIME, name that; else end the process that has "
                f"leases/{self._branch.id}.keep of the vault open (fuser tells)",
                kind="branch-busy",
            )

    def _can_go_on(self) -> bool:
        """Whether a guest has all its memory, and disks of the same moment."""
        return not (self.left is None or self.left.beginning or self._run.unsound.exists())


def switch_off(vault: Vault, branch: Branch, run: RunDir) -> str:
    """End a guest that has lost its supervisor, as a power cut does; return how it ended.  Of one
    that died, only what it left is removed: as much memory as it had.

    Without a session: a guest can be switched off whatever has become of what it wrote.
    """
    hold = Hold(vault, branch, run)
    lease = Lease(vault.path, branch.id, branch.name, HOLDER, successor=True)
    try:
        hold.find()
        died = rundir.status(hold.left) == "died"
        qemu = hold.orphan(lease)
        if qemu is not None:
            qemu.kill()
            qemu.close()
        run.clear()
        ended = "it was switched off while it had no supervisor"
        if died:
            ended = "it died with its supervisor, and what it left was removed"
        run.save(State(str(vault.path), branch.name, Process(0, 0), ended=ended))
    finally:
        lease.release()
    if hold.left is not None and hold.left.throw_away:
        vault.delete_branch(branch.name)
        run.remove()
    return ended


def clear_deserted(vault: Vault, base: Path) -> None:
    """Remove what machines left that died and whose branches were deleted since."""
    for number, run in rundir.deserted(base, vault):
        with suppress(VaultError):  # it came back at this moment
            lease = Lease(vault.path, number, f"number {number}", HOLDER)
            try:
                if rundir.status(run.load()) == "died":
                    run.remove()
            finally:
                lease.release()


def not_taken_over(name: str, error: VaultError) -> VaultError:
    """The same error, with what it means for the guest."""
    return type(error)(
        f"machine '{name}' could not be taken over: {error.message}. Its guest was left as it was; "
        "'vm start' tries again, 'vm stop --force' switches it off",
        kind=error.reason,
    )
