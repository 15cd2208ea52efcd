"""The state of somebody else's QEMU taken into the vault, and given back to one.

    its disks    are on the vault's NBD server already, or are copied while it runs (mirror)
    its memory   comes as a migration stream, twice: first while the guest runs, to have most of it
                 in the vault; then for good, and the guest stands for what has changed since

What started the QEMU knows its configuration.  So its state goes back into another one that is
started in the same way, and waits (``-incoming defer``).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockvault.errors import Conflict, ToolFailed, VaultError
from blockvault.ops import attachments, reading
from blockvault.vm import stream
from blockvault.vm.foreign import FD, SECONDS
from blockvault.vm.machine import COMMAND, DEVICES, HOST, LAYOUT, MEMORY, Made
from blockvault.vm.state import RUNNING

if TYPE_CHECKING:
    from blockvault.vault import Vault
    from blockvault.vm.foreign import Foreign
    from blockvault.vm.qmp import Monitor
    from blockvault.vm.receiving import Saved


class Disks(Protocol):
    """How the disks get into the vault: where they are now decides."""

    def begin(self) -> None:
        """Bring most of them there; the guest runs."""

    def settle(self) -> None:
        """The guest stands: from now on they are of this instant."""

    def record(self, message: str, author: str | None, kept: list[Any]) -> bytes:
        """Make them a snapshot, with these attachments; return its id."""

    def close(self) -> None:
        """Leave QEMU as it was."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, and for how many seconds the guest stood still for it."""

    id: bytes
    pause: float
    used: int


# -- into the vault ----------------------------------------------------------------------------


def take(vault: Vault, foreign: Foreign, disks: Disks, message: str, author: str | None) -> Taken:
    """Everything that the machine is, as one snapshot, once it was seen that it can be saved
    (``Foreign.check``); whoever brings the disks closes them."""
    runs = foreign.monitor.status() == RUNNING
    with vault.guard():
        earlier: list[Any] = []
        if runs:
            with contextlib.closing(_saved(foreign, lambda: None, runs)) as first:
                foreign.resume()
                earlier = attachments.keep(vault, {MEMORY: _file(first.fd)})
        disks.begin()
        with contextlib.closing(_saved(foreign, disks.settle, runs)) as saved:
            try:
                made = Made(
                    qemu=foreign.version, accelerator=foreign.accelerator(), paused=not runs
                )
                files: dict[str, bytes | Path] = {
                    MEMORY: _file(saved.fd),
                    LAYOUT: saved.layout.encode(),
                    DEVICES: saved.tail,
                    HOST: made.encode(),
                    COMMAND: json.dumps(foreign.command_line(), indent=1).encode() + b"\n",
                }
                oid = disks.record(message, author, attachments.keep(vault, files, earlier))
            finally:
                if runs:
                    foreign.resume()
            used = os.fstat(saved.fd).st_blocks * 512
        return Taken(oid, foreign.pause if runs else 0.0, used)


def _saved(foreign: Foreign, settle: Callable[[], None], runs: bool) -> Saved:
    """What ``save`` gives; a guest that ran goes on if it fails."""
    try:
        return foreign.save(settle)
    except BaseException:
        if runs:
            with contextlib.suppress(VaultError):
                foreign.resume()
        raise


def take_disks(foreign: Foreign, disks: Disks, message: str, author: str | None) -> Taken:
    """The disks alone, all of one instant, as a power cut would leave them."""
    runs = foreign.monitor.status() == RUNNING
    disks.begin()
    try:
        # An order that was not answered in time is obeyed later: there is no stop without a go.
        foreign.monitor.execute("stop")
        disks.settle()
        oid = disks.record(message, author, [])
    finally:
        if runs:
            foreign.resume()
    return Taken(oid, foreign.pause if runs else 0.0, 0)


# -- and back ----------------------------------------------------------------------------------


def give(vault: Vault, rev: str, foreign: Foreign, *, paused: bool = False) -> None:
    """Give a QEMU that waits for it the state of a revision; it goes on from there."""
    position = vault.resolve(rev)
    if attachments.find(position.attachments, LAYOUT) is None:
        raise Conflict(
            f"'{rev}' has no state of a QEMU that was started elsewhere; 'vm start' starts it",
            kind="no-machine-state",
        )
    if foreign.monitor.status() != "inmigrate":
        raise Conflict(
            "this QEMU does not wait for a state: start it as the other one was, with "
            "-incoming defer",
            kind="not-waiting",
        )
    layout = stream.Layout.decode(attachments.content(vault, position.attachments, LAYOUT))
    tail = attachments.content(vault, position.attachments, DEVICES)
    made = Made.decode(attachments.content(vault, position.attachments, HOST))
    memory = attachments.find(position.attachments, MEMORY)
    assert memory is not None
    device = attachments.device(vault, memory, reading.try_pin(vault, position))
    paused = paused or made.paused
    if paused:
        foreign.monitor.execute("stop")  # else it goes on by itself when it has all
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            foreign.monitor.hand_over(theirs.fileno(), FD)
        foreign.monitor.execute("migrate-incoming", uri=f"fd:{FD}")
        try:
            for part in stream.put_together(layout, device.read, tail):
                ours.sendall(part)
            ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ToolFailed(f"QEMU does not take the state: {error}", kind="bad-state") from None
        foreign.monitor.wait_for(lambda: _arrived(foreign.monitor), "the saved state", SECONDS)
    if not paused:
        foreign.monitor.execute("cont")


def _arrived(monitor: Monitor) -> bool | None:
    info = monitor.execute("query-migrate")
    if info.get("status") == "failed":
        reason = info.get("error-desc", "it is of another machine")
        raise ToolFailed(f"QEMU cannot use the saved state: {reason}", kind="bad-state")
    return True if info.get("status") == "completed" and monitor.status() != "inmigrate" else None


def _file(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")
