"""The process that runs a machine: holds the branch, serves its disks, watches QEMU.

``lifetime`` brings it up and ends it: when the guest has ended, or it is told to.  Orders come on
other threads; one lock lets them come one at a time.

To go back the branch is given back, moved and taken again.  If the target is a full snapshot of
this very machine, the QEMU that runs goes back to it; otherwise a new one is started from there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blockvault.errors import NotFound, VaultError
from blockvault.ops import refs
from blockvault.vm import consolelog, rewind, state
from blockvault.vm.hold import patiently
from blockvault.vm.lifetime import Lifetime, resumed
from blockvault.vm.planning import How, Plan, plan

if TYPE_CHECKING:
    from blockvault.vm.running import Running

log = logging.getLogger(__name__)

_TICK = 0.5


class Supervisor(Lifetime):
    """Runs the machine of one branch.  ``run`` returns how it ended."""

    _unknown = ""
    """What was in the way of storing last, that nobody thought of."""

    # -- watching ------------------------------------------------------------------------------

    def run(self) -> str:
        """Watch until the machine has ended, or ``told_to_end`` was set; return how."""
        while not self._ending.wait(_TICK):
            if self.told_to_end:
                with self._lock:
                    self.end("its supervisor was told to end; it was switched off")
                break
            # While an order is being carried out QEMU may be on its way out or in.
            if self._lock.acquire(blocking=False):
                try:
                    self._look()
                finally:
                    self._lock.release()
        return self._ended

    def wait(self, seconds: float) -> str | None:
        """How the machine has ended; None if it has not after ``seconds``."""
        return self._ended if self._ending.wait(seconds) else None

    def _look(self) -> None:
        running = self.running
        if running is None:
            return
        consolelog.bound(self.run_dir.console_log)
        if running.qemu.ended:
            self.end(running.qemu.reason(powered_off=running.powered_off))
        elif running.arriving is not None and running.arriving.error is not None:
            self.end(f"its memory could not be restored: {running.arriving.error}")
        else:
            running.let_go_of_memory()
            if running.session.unstored[0]:
                # So that the death of this process alone hardly ever costs a guest a write.
                self._store(running)

    def _store(self, running: Running) -> None:
        """Store what the guest wrote, if that is possible now; the next tick tries again.

        Whatever is in the way, the guest is not left alone for it.
        """
        try:
            running.session.commit(barrier=False)
        except VaultError:
            pass  # whoever flushes is told
        except Exception as error:
            if repr(error) != self._unknown:
                log.exception("%s: what it wrote is not stored yet", self.branch.name)
                self._unknown = repr(error)

    # -- for orders ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ordered(self) -> Iterator[Running]:
        """The machine, for one order at a time; ``NotFound`` once it has ended."""
        with self._lock:
            if self.running is None:
                raise NotFound(f"machine '{self.branch.name}' has ended", kind="machine-ended")
            yield self.running

    def go_back(self, rev: str, *, force: bool = False) -> str:
        """Give the branch another state and go on from that; return in words what was done."""
        with self.ordered() as running, self.vault.guard():
            target = plan(self.vault, rev, force=force)
            # The very state, whatever time passes and the guest writes until the branch is moved.
            rev = target.position.canonical
            if rewind.possible(running, target):
                return self._rewind(running, target, rev)
            return self._start_over(lambda: self._roll_back(rev), force)

    def _rewind(self, running: Running, target: Plan, rev: str) -> str:
        """Go back inside of the QEMU that runs.  If the branch cannot be moved, the guest goes on;
        if QEMU cannot follow it, a new one is started."""
        running.wait_for_memory()
        before = running.monitor.status()
        try:
            # In here: QEMU obeys an order to stand, too, that it did not answer in time.
            running.pause()
            self.run_dir.unsound.touch()
            self._move_branch(running, rev)
        except BaseException as error:
            if self.served is None:
                self.end(f"a rollback to {rev} failed: {error}")
            else:
                self.run_dir.unsound.unlink(missing_ok=True)
                if before == state.RUNNING:
                    running.resume()
            raise
        try:
            rewind.rewind(running, target)
        except Exception as error:
            log.warning("%s: a new QEMU is started: %s", self.branch.name, error)
            return self._start_over(lambda: None, True)
        self.run_dir.unsound.unlink()
        if target.made is not None and not target.made.paused:
            running.resume()
        return resumed(target)

    def _move_branch(self, running: Running, rev: str) -> None:
        """Roll the branch back under a machine that stands still, and serve it again.

        QEMU has nothing on its way and connects again when it next has.
        """
        running.session.flush()
        self._close_served()
        self._hold.give_back()
        try:
            patiently(lambda: self._roll_back(rev))
        finally:
            running.use(patiently(self._hold.take))
            served = self._serve(running.session, self.run_dir.nbd)
            served.begin()
            self.served = served

    def _roll_back(self, rev: str) -> None:
        """Move the branch, which has all that the guest wrote and is nobody's now."""
        position = self.vault.resolve(rev)
        self.before = refs.rollback(self.vault, self.branch.name, position, successor=True)

    def _start_over(self, move: Callable[[], object], force: bool) -> str:
        """A new QEMU instead of the one that runs, from the branch's head after ``move``."""
        try:
            self._close()
            patiently(move)
            return self._begin(patiently(self._hold.take), How(force=force, eager=self._how.eager))
        except BaseException as error:
            self.end(f"a rollback failed: {error}")
            raise
