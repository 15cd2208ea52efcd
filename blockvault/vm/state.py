"""The state of a running machine: memory and devices, into the vault and back.

    stream    the guest runs     its memory into a shadow and into the vault         (ops.capture)
    settle    the guest runs     what changed meanwhile into the shadow
    pause     the guest stands   QEMU has no write on its way; those that come wait from here on;
                                 devices from QEMU, what changed since into the shadow
    resume    the guest runs     the last pages into the vault, disks flushed, the event appended
    release                      disk writes go on

Memory is a file that is shared with QEMU, so QEMU writes only the state of devices (capability
``x-ignore-shared``), about a megabyte.  While the guest stands nothing waits for a disk, except for
the flush that QEMU itself makes when it stops, and that has little left to do.  All parts are of
the instant of the pause: the disks too, since no write gets through before the event is appended.
If anything fails the guest goes on and no event was appended, so there is no half snapshot.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.errors import Conflict, IOFailed, ToolFailed, VaultError
from blockvault.ops import Progress, attachments, silent
from blockvault.ops.capture import Capture
from blockvault.vm import command
from blockvault.vm.machine import DEVICES, HOST, MEMORY, Made

if TYPE_CHECKING:
    from blockvault.vm.qmp import Monitor
    from blockvault.vm.running import Running

_SHARED, _POSTCOPY = "x-ignore-shared", "postcopy-ram"
_SETTLED = 1 << 20
"""Changed bytes between two passes that are few enough to stop the guest for the rest."""
_PASSES = 6
_ACCEPT_SECONDS = 20.0


class Taken(NamedTuple):
    """A full snapshot, and what it cost the guest."""

    id: bytes
    pause: float
    """Seconds for which the guest stood still, from the order to stop to the answer to go on."""
    held: float
    """Seconds for which a write to a disk could have waited."""
    used: int
    """Bytes of memory that hold data."""
    late: int
    """Bytes that changed while the guest stood and had to be taken then."""


def prepare(monitor: Monitor) -> None:
    """Tell QEMU that memory is not its business."""
    _set_capabilities(monitor, {_SHARED: True, _POSTCOPY: False})


def _set_capabilities(monitor: Monitor, wanted: Mapping[str, bool]) -> None:
    capabilities = [{"capability": name, "state": on} for name, on in wanted.items()]
    monitor.execute("migrate-set-capabilities", capabilities=capabilities)


# -- into the vault ----------------------------------------------------------------------------


def take(
    machine: Running, message: str, author: str | None = None, progress: Progress = silent
) -> Taken:
    """Make everything that the machine is one snapshot of its branch."""
    vault, session = machine.vault, machine.session
    machine.wait_for_memory()
    fd = _open_memory(machine.run.memory)
    try:
        with Capture(vault, fd, MEMORY, machine.last_memory()) as capture:
            capture.stream(progress)
            for _ in range(_PASSES):
                if capture.settle() <= _SETTLED:
                    break
            session.checkpoint()
            prepare(machine.monitor)
            with ExitStack() as holding, ThreadPoolExecutor(1, "freeze") as beside:
                with machine.paused() as pause:
                    # Not earlier: QEMU has just waited for all writes that were on their way.
                    holding.enter_context(session.held())
                    # QEMU writes only the state of its devices: nobody touches memory meanwhile.
                    freezing = beside.submit(capture.freeze)
                    devices = _devices(machine, pause.before)
                    late = freezing.result()
                memory, frames = capture.finish()
                made = _made(machine, paused=pause.before != RUNNING)
                files = {DEVICES: devices, HOST: made.encode()}
                kept = [*attachments.keep(vault, files), memory, *machine.files]
                snapshot = session.snapshot(message, author=author, attachments=kept, frames=frames)
            held = time.monotonic() - pause.began
            return Taken(snapshot.id, pause.seconds, held, capture.used, late)
    finally:
        os.close(fd)


RUNNING = "running"
SAVED = "postmigrate"
"""The status of a QEMU that stands since it saved its state; then it does not save it again."""


def _devices(machine: Running, before: str) -> bytes:
    """The state of devices; for a guest that stands since it was saved, what was saved then."""
    if before != SAVED:
        machine.devices = save_devices(machine.monitor, machine.run.migration)
    elif not machine.devices:
        raise Conflict(
            "QEMU saves the state of a guest that stands only once, and what it saved is no longer "
            "known; nothing was recorded. After 'vm resume' it can be, paused again or not",
            kind="saved-once",
        )
    return machine.devices


def _made(machine: Running, *, paused: bool) -> Made:
    processor = command.processor(machine.machine, machine.accelerator)
    return Made(machine.version, machine.accelerator, paused, processor)


def _open_memory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise IOFailed(f"the machine's memory {path} is gone: {error.strerror}") from None


def save_devices(monitor: Monitor, path: Path) -> bytes:
    """The state of processors and devices of a machine that is paused; it then is ``SAVED``."""
    with _listening(path) as listener:
        received = _Received(listener)
        monitor.execute("migrate", uri=f"unix:{path}")
        try:
            monitor.wait_for(lambda: _finished(monitor), "the state of its devices")
        except VaultError:
            with contextlib.suppress(VaultError):
                monitor.execute("migrate_cancel", timeout=5.0)
            raise
        data = received.get()
    monitor.wait_for(
        lambda: True if monitor.status() == SAVED else None, "the end of its migration"
    )
    return data


def _finished(monitor: Monitor) -> bool | None:
    info: dict[str, Any] = monitor.execute("query-migrate")
    if info.get("status") in ("failed", "cancelled"):
        raise ToolFailed(f"QEMU could not save its devices: {info.get('error-desc', 'no reason')}")
    return True if info.get("status") == "completed" else None


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(_ACCEPT_SECONDS)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _Received:
    """All that one peer sends, taken on a thread of its own."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._parts: list[bytes] = []
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._take, name="device state", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            connected, _ = self._listener.accept()
            with connected:
                connected.settimeout(_ACCEPT_SECONDS)
                while part := connected.recv(1 << 20):
                    self._parts.append(part)
        except OSError as error:
            self._error = error

    def get(self) -> bytes:
        self._thread.join()
        if self._error is not None or not self._parts:
            raise ToolFailed(f"QEMU sent no state of its devices: {self._error or 'nothing came'}")
        return b"".join(self._parts)


# -- and back ----------------------------------------------------------------------------------


def expect(monitor: Monitor, path: Path) -> None:
    """Have a QEMU that waits for it listen for a state whose memory comes later (``postcopy``).

    ``ToolFailed`` of kind ``qemu-refused`` where it, or the system, does not know how.
    """
    _set_capabilities(monitor, {_SHARED: False, _POSTCOPY: True})
    path.unlink(missing_ok=True)
    monitor.execute("migrate-incoming", uri=f"unix:{path}")


def load_devices(monitor: Monitor, path: Path, data: bytes) -> None:
    """Give a QEMU that waits for it (``-incoming defer``) a saved state; then it is paused."""
    path.unlink(missing_ok=True)
    monitor.execute("migrate-incoming", uri=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(_ACCEPT_SECONDS)
        try:
            connected.connect(str(path))
            connected.sendall(data)
        except OSError as error:
            raise ToolFailed(
                f"QEMU does not take the state of its devices: {error}", kind="bad-state"
            ) from None
    monitor.wait_for(lambda: _loaded(monitor), "the saved state")
    path.unlink(missing_ok=True)


def _loaded(monitor: Monitor) -> bool | None:
    info: dict[str, Any] = monitor.execute("query-migrate")
    if info.get("status") == "failed":
        raise ToolFailed(f"QEMU cannot use the saved state: {info.get('error-desc', 'no reason')}")
    done = info.get("status") == "completed" and monitor.status() not in ("inmigrate",)
    return True if done else None
