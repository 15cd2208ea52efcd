"""One machine while it runs: its QEMU, its monitor, and the session that holds its disks.

    start    a new QEMU; it boots, or waits for memory and devices (``restoring``)
    connect  to its monitor
    adopt    a QEMU whose supervisor died

and ``rewind`` goes back to a full snapshot inside of the QEMU that runs.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockvault.errors import ToolFailed, VaultError
from blockvault.ops import attachments
from blockvault.vm import agent, command, state
from blockvault.vm.machine import MEMORY, Machine
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import RunDir

if TYPE_CHECKING:
    from blockvault.session import Session
    from blockvault.vault import Vault
    from blockvault.vm.arriving import Arriving
    from blockvault.vm.qmp import Monitor

log = logging.getLogger(__name__)

START_SECONDS = 30.0
RESET_SECONDS = 30.0
_HALT_SECONDS = 2.0
"""How long an adopted QEMU may take to stop its guest before its disks are served all the same: one
that waits for them does not answer."""
_POLL = 0.01
_UNSTORED, _LOST = 0, 1
"""Bytes of the mark beside a machine: its session holds writes that nobody else has; a session that
died did, and the guest was not reset since."""
STOPPED = ("paused", "postmigrate", "prelaunch")


@dataclass(slots=True)
class Pause:
    """A guest that stands still, from the order to stop to the answer to go on."""

    before: str
    """Its status until then."""
    began: float
    seconds: float = 0.0


class Running:
    """A machine that runs; ``files`` are the attachments that every snapshot of it keeps."""

    def __init__(
        self,
        vault: Vault,
        session: Session,
        run: RunDir,
        machine: Machine,
        accelerator: str,
        files: Sequence[Any] = (),
    ) -> None:
        self.vault = vault
        self.session = session
        self.run = run
        self.machine = machine
        self.accelerator = accelerator
        self.version = ""
        self.files = files
        self.problem = ""
        self.powered_off = False
        """Whether the guest has ended by itself: of an adopted QEMU nobody else tells."""
        self.arriving: Arriving | None = None
        """Memory that comes while the guest runs."""
        self.devices = b""
        """Their state, where it is known: while the guest stands since it was saved or loaded."""
        self._qemu: Qemu | None = None
        self._monitor: Monitor | None = None
        self._happened = {name: threading.Event() for name in ("STOP", "RESET")}
        """Events of QEMU's that somebody waits for."""
        self._marker = self._mark()

    # -- beginnings ------------------------------------------------------------------------------

    def start(self, *, incoming: bool) -> None:
        """Start QEMU, which waits until its disks are served, and if ``incoming`` for a state."""
        words = command.command(
            self.machine, self.run, self.session.branch.name, self.accelerator, incoming=incoming
        )
        with self.session.keep() as keep:
            self._qemu = Qemu.start(words, self.run.qemu_log, keep)

    def adopt(self, qemu: Qemu, serve: Callable[[], None]) -> str:
        """Take over a QEMU that runs already; ``serve`` its disks.  Say what was done.

        QEMU repeats the requests that nobody has answered.  A guest whose writes are lost must not
        hear that its flush succeeded, so it is stopped before its disks are served.
        """
        self._qemu = qemu
        if not self.lost:
            serve()
            self.connect()
            return self._go_on()
        import_module("blockvault.vm.qmp")  # dear to load: not in the time that QEMU has
        with ThreadPoolExecutor(1, "halt") as beside:
            halting = beside.submit(self._halt)
            self._happened["STOP"].wait(_HALT_SECONDS)
            serve()
            halting.result()
        return self._power_cut()

    def _halt(self) -> None:
        """Stop the guest; QEMU answers only once its disks do, and tells before that it stands."""
        self.connect()
        if self.monitor.status() == state.RUNNING:
            self.monitor.execute("stop")
        self._happened["STOP"].set()

    def connect(self) -> None:
        """Reach the monitor; a QEMU that ended meanwhile tells why."""
        from blockvault.vm import qmp  # dear to load, so only now that QEMU is busy too

        for _ in range(int(START_SECONDS / _POLL)):
            if self.run.qmp.exists() or self.qemu.wait(_POLL):
                break
        if self.qemu.ended:
            raise ToolFailed(f"QEMU did not start: {self.qemu.last_words() or 'it said nothing'}")
        self._monitor = qmp.Monitor(self.run.qmp, timeout=START_SECONDS, listener=self._heard)
        self.version = self._monitor.version

    def wait_for_memory(self) -> None:
        """Until all memory is there, for what needs it; raises why it cannot come."""
        if self.arriving is not None:
            self.arriving.wait()

    def let_go_of_memory(self) -> None:
        """What brought it has megabytes in its hands, and no more use once all is there."""
        if self.arriving is not None and self.arriving.there:
            self.arriving.close()
            self.arriving = None

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event in self._happened:
            self._happened[event].set()
        if event == "SHUTDOWN":
            self.powered_off = bool(data.get("guest"))
        elif event == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self.problem = f"a disk failed ({data.get('reason', 'no reason given')}); it is paused"
            log.warning("%s: %s", self.session.branch.name, self.problem)
        elif event == "RESUME":
            self.problem = ""
            self.devices = b""

    def _mark(self) -> mmap.mmap:
        """A byte in shared memory that says whether the session holds writes nobody else has.

        Another one keeps what it said when a session died, until the guest was reset.
        """
        with open(self.run.unflushed, "a+b") as file:
            file.truncate(mmap.PAGESIZE)
            shared = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        if shared[_UNSTORED]:
            shared[_LOST] = 1
            shared[_UNSTORED] = 0
        self.lost = bool(shared[_LOST])
        self.session.unstored = shared
        return shared

    def use(self, session: Session) -> None:
        """Go on with another session; the one before is closed."""
        self.session.unstored = bytearray(1)
        self._marker[_UNSTORED] = 0
        session.unstored = self._marker
        self.session = session

    # -- while it runs ---------------------------------------------------------------------------

    @property
    def qemu(self) -> Qemu:
        if self._qemu is None:
            raise ToolFailed("the machine has no QEMU", kind="qemu-gone")
        return self._qemu

    @property
    def monitor(self) -> Monitor:
        if self._monitor is None:
            raise ToolFailed("QEMU's monitor is not connected", kind="qemu-gone")
        return self._monitor

    def status(self) -> str:
        found = self.monitor.status()
        return "paused" if found in STOPPED else found

    def pause(self) -> None:
        self.monitor.execute("stop")

    def resume(self) -> None:
        self.monitor.go_on()

    @contextlib.contextmanager
    def paused(self) -> Iterator[Pause]:
        """Let the guest stand still inside of the block.

        A mark beside the machine tells who takes it over, should this process die inside of it,
        that the guest is to go on.
        """
        before = self.monitor.status()
        mark = self.run.standing
        if before == state.RUNNING:
            mark.touch()
        pause = Pause(before, time.monotonic())
        try:
            self.monitor.execute("stop")
            yield pause
        finally:
            if before == state.RUNNING:
                self.resume()
                mark.unlink(missing_ok=True)
            pause.seconds = time.monotonic() - pause.began

    def last_memory(self) -> Any:
        """The memory of the branch's newest snapshot, most of which is still the same."""
        tip = self.vault.branch(self.session.branch.name).tip
        if tip is None:
            return None
        return attachments.find(self.vault.get_snapshot(tip).attachments, MEMORY)

    def _power_cut(self) -> str:
        """Reset an adopted guest that believes writes to be on its disk that the dead process had.

        To go on would be a disk that forgets; a reset is a power cut, which systems survive.
        """
        self.monitor.execute("system_reset")
        if not self._happened["RESET"].wait(RESET_SECONDS):
            raise ToolFailed(f"QEMU did not reset in {RESET_SECONDS:g} s", kind="qemu-stalled")
        self.monitor.execute("cont")
        self._marker[_LOST] = 0  # not before: who comes after another death has to do it again
        for mark in (self.run.standing, self.run.frozen):
            mark.unlink(missing_ok=True)
        return "writes that it had not flushed were lost, so it was reset as by a power cut"

    def _go_on(self) -> str:
        """Let an adopted guest go on that stood for a moment, or for its disks."""
        mark = self.run.standing
        done = "it ran on; nothing was lost"
        if mark.exists() or self.monitor.status() == "io-error":
            self.resume()
            done = "it goes on where it stood; nothing was lost"
        mark.unlink(missing_ok=True)
        try:
            agent.thaw(self.run.agent, self.run.frozen)
        except ToolFailed as error:
            log.warning("%s may be frozen: %s", self.session.branch.name, error.message)
            done += ", but its file systems may still be frozen: its agent does not answer"
        return done

    # -- ends --------------------------------------------------------------------------------------

    def press_power_button(self) -> None:
        """Ask the guest to shut down; one that stands goes on for that."""
        if self.monitor.status() != state.RUNNING:
            self.resume()
        self.monitor.execute("system_powerdown")

    def kill(self) -> None:
        """End QEMU at once; what the guest has flushed is safe."""
        if self._qemu is None:
            return
        if self._monitor is not None:
            with contextlib.suppress(VaultError):
                self.monitor.execute("quit", timeout=5.0)
            self._qemu.wait(5.0)
        if not self._qemu.ended:
            self._qemu.kill()

    def close(self) -> None:
        """Let go of everything but the QEMU process itself."""
        if self.arriving is not None:
            self.arriving.close()
        if self._monitor is not None:
            self._monitor.close()
        if self._qemu is not None:
            self._qemu.close()
        self.session.unstored = bytearray(1)
        self._marker.close()
