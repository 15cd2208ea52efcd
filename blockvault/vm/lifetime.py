"""The lifetime of a machine: how it begins, and how all that it took is given back at its end.

It begins with one of three: a boot, the restoring of the full snapshot that the branch's head is,
or the adoption of a QEMU whose supervisor died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault.errors import Conflict, NotFound, ToolFailed, VaultError
from blockvault.ids import short
from blockvault.vm import arriving, disks, filling, host, restoring
from blockvault.vm.hold import Hold, clear_deserted, not_taken_over
from blockvault.vm.planning import How, Plan, plan
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import Process, RunDir, State
from blockvault.vm.running import Running

if TYPE_CHECKING:
    from blockvault.session import Session
    from blockvault.vault import Vault
    from blockvault.vm.disks import Serve, Served

log = logging.getLogger(__name__)

TakeOrders = Callable[[Any], Path]
"""Take orders for a supervisor; returns the socket where they come in."""


class Lifetime:
    """The half of a supervisor that brings the machine of one branch up, and ends it."""

    def __init__(
        self,
        vault: Vault,
        branch: str,
        base: Path,
        serve: Serve,
        take_orders: TakeOrders,
        how: How,
    ) -> None:
        self.vault = vault
        self.branch = vault.branch(branch)
        self.run_dir = RunDir(base, vault.options.vault_id, self.branch.id, vault.path)
        self.since = time.time()
        self.told_to_end = False
        """Set by a handler of signals, which may not wait for anything."""
        self.before = 0
        """The event after which the branch had the state that the last rollback left."""
        self.running: Running | None = None
        self.served: Served | None = None
        self._serve = serve
        self._take_orders = take_orders
        self._control: Path | None = None
        """Where the orders come in: for those who look for this machine."""
        self._how = how
        self._hold = Hold(vault, self.branch, self.run_dir)
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._up = False
        """Whether it ever was."""
        self._saved = False
        """Whether the run directory says that this process runs the machine."""
        self._ended = ""

    # -- beginning -----------------------------------------------------------------------------

    def start(self) -> str:
        """Bring the machine up; return in words what was done."""
        with self._lock:
            self._check_throw_away()
            # Nothing of the run directory is touched before the branch is ours.
            session = self._hold.take_over()
            try:
                orphan = self._hold.orphan(session)
            except BaseException:
                self._hold.give_back()
                raise
            try:
                if orphan is not None:
                    done = self._adopt(session, orphan)
                else:
                    done = self._begin(session, self._how)
                self._up = True
                return done
            except BaseException as error:
                if orphan is not None and not orphan.ended:
                    self._leave()
                    if isinstance(error, VaultError):
                        raise not_taken_over(self.branch.name, error) from error
                    raise
                self.end(f"it did not start: {error}")
                raise

    def _check_throw_away(self) -> None:
        """``Conflict`` if the branch is to go at the end, and could not."""
        if not self._how.throw_away:
            return
        with contextlib.suppress(NotFound):
            if self.vault.head == self.branch.name:
                raise Conflict(
                    f"branch '{self.branch.name}' is current and cannot be thrown away; nothing "
                    "was started, switch to another one first",
                    kind="branch-current",
                )

    def _begin(self, session: Session, how: How) -> str:
        """A new QEMU from the branch's head, which is not collected while it is read."""
        with self.vault.guard():
            branch = self.vault.branch(self.branch.name)
            chosen = plan(self.vault, branch, boot=how.boot, force=how.force)
            accelerator = host.accelerator()
            base = self.run_dir.path.parent
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What the one before has left counts as taken, and is of no more use.
            self.run_dir.memory.unlink(missing_ok=True)
            clear_deserted(self.vault, base)
            host.check_memory_place(base, chosen.machine.memory)
            self.run_dir.make()
            self._save(beginning=True)  # who comes now is told so, until it is said how it ended
            first = chosen.memory if how.eager or not arriving.worthwhile(chosen.memory) else None
            with filling.beside(self.vault, first, self.run_dir) as memory:
                filling.write_boot_files(self.vault, chosen.files, self.run_dir)
                return self._launch(session, chosen, accelerator, memory, paused=how.paused)

    def _launch(
        self,
        session: Session,
        chosen: Plan,
        accelerator: str,
        memory: filling.Filling | None,
        *,
        paused: bool,
    ) -> str:
        """Start QEMU, give it what it waits for, and let it go on."""
        served, running = self._disks(session, chosen, accelerator)
        saved = chosen.made
        running.start(incoming=saved is not None)
        self._save(running, beginning=True)  # from now on a QEMU would be left if we died
        # It has itself to load first, and so have we: the server, what takes orders, the monitor.
        self._open(served)
        if saved is not None and memory is None:
            running.arriving = restoring.prepare(running, chosen)
        running.connect()
        if saved is not None:
            restoring.restore(running, chosen, memory, paused=paused or saved.paused)
        self._save(running)
        return "booted" if saved is None else resumed(chosen)

    def _open(self, served: Served) -> None:
        """Answer QEMU, and those who have orders."""
        served.begin()
        if self._control is None:
            self._control = self._take_orders(self)

    def _adopt(self, session: Session, qemu: Qemu) -> str:
        """Take over a QEMU that still runs: serve its disks again, connect to its monitor."""
        assert self._hold.left is not None
        if self._hold.left.throw_away:
            self._how = self._how._replace(throw_away=True)
        chosen = plan(self.vault, self.vault.branch(self.branch.name), boot=True)
        served, running = self._disks(session, chosen, self._hold.left.accelerator)
        done = running.adopt(qemu, lambda: self._open(served))
        self._save(running)
        return f"taken over: {done}"

    def _leave(self) -> None:
        """Let go of a guest that could not be taken over: who tries next finds it as it was."""
        running, self.running = self.running, None
        self._close_served()
        with contextlib.suppress(VaultError):  # then the guest lost what it wrote, as it is marked
            if running is not None:
                running.session.flush()
        if running is not None:
            running.close()
        with contextlib.suppress(VaultError):
            self._hold.give_back()
        self._ending.set()

    def _disks(self, session: Session, chosen: Plan, accelerator: str) -> tuple[Served, Running]:
        """A machine without a QEMU, and its disks, which begin to be served."""
        disks.check_there(session, chosen.machine)
        self.served = self._serve(session, self.run_dir.nbd)
        self.running = Running(
            self.vault, session, self.run_dir, chosen.machine, accelerator, chosen.files
        )
        return self.served, self.running

    def _save(self, running: Running | None = None, *, beginning: bool = False) -> None:
        self._saved = True
        self.run_dir.save(
            State(
                vault=str(self.vault.path),
                branch=self.branch.name,
                supervisor=Process.of(os.getpid()),
                qemu=running.qemu.process if running is not None else None,
                control=str(self._control or ""),
                throw_away=self._how.throw_away,
                accelerator=running.accelerator if running is not None else "",
                since=self.since,
                beginning=beginning,
            )
        )

    # -- the end -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """End QEMU, whatever goes on here: this process is to end at once, and would leave it.

        A guest that was not taken over yet is as it was before.
        """
        state = self.run_dir.load() if self._saved else None
        if state is not None and state.qemu is not None and state.qemu.alive:
            with contextlib.suppress(ToolFailed):  # it has ended at this moment
                Qemu.find(state.qemu, self.run_dir.qemu_log).kill()

    def end(self, how: str) -> str:
        """Close everything and keep how it ended for those who ask; return that.

        The branch is ours as long as QEMU writes to it and its files are there; and nobody starts
        the machine before it is said that it has ended.
        """
        if self._ending.is_set():
            return self._ended
        self._ended = how
        steps = (self._switch_off, self._clear, self._hold.give_back, self._tell, self._ending.set)
        with contextlib.ExitStack() as closing:
            for step in reversed(steps):
                closing.callback(step)  # whatever became of the steps before
        return how

    def _switch_off(self) -> None:
        """End QEMU if it has not ended, and with it what is there for it."""
        running, self.running = self.running, None
        if running is not None:
            running.kill()
        self._close_served()
        if running is not None:
            running.close()

    def _clear(self) -> None:
        self.run_dir.clear()
        filling.drop_unused(self.run_dir.boot_files)

    def _tell(self) -> None:
        if self._saved:
            nobody = Process(0, 0)
            ended = State(str(self.vault.path), self.branch.name, nobody, ended=self._ended)
            with contextlib.suppress(OSError):  # somebody may have emptied the file system
                self.run_dir.save(ended)
        if self._how.throw_away and self._up:
            try:
                self.vault.delete_branch(self.branch.name)
            except VaultError as error:
                log.warning("%s is not thrown away: %s", self.branch.name, error)
            else:
                self.run_dir.remove()

    def _close(self) -> None:
        """Switch off, flush, and give the branch back: another state is to come."""
        try:
            self._switch_off()
        finally:
            self._hold.give_back()

    def _close_served(self) -> None:
        served, self.served = self.served, None
        if served is not None:
            served.close()


def resumed(target: Plan) -> str:
    """What was done, in words."""
    return f"resumed from snapshot {short(target.position.snapshot or b'')}"
