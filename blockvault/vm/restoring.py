"""Saved memory and devices in a QEMU that was just started for them.

    prepare   beside QEMU's start: what its guest will touch first is read
    restore   the devices' state goes in, and the guest goes on

Much memory comes while the guest runs (``arriving``).  Less is written into its file while QEMU
starts (``filling``), which does not look at it before it is given the state of its devices.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from blockvault.errors import ToolFailed
from blockvault.ops import attachments, reading
from blockvault.vm import postcopy, state
from blockvault.vm.arriving import Arriving
from blockvault.vm.filling import Filling

if TYPE_CHECKING:
    from blockvault.vm.planning import Plan
    from blockvault.vm.running import Running

log = logging.getLogger(__name__)

SECONDS = 30.0
"""How long a QEMU that waits for a saved state may take to take it."""


def prepare(running: Running, saved: Plan) -> Arriving | None:
    """Memory that is to come while the guest runs; None where its state is not understood."""
    devices = saved.devices(running.vault)
    try:
        opened = postcopy.opening(devices, saved.memory.size)
    except ToolFailed as error:
        log.info("%s: all memory comes first: %s", running.session.branch.name, error)
        return None
    pin = reading.try_pin(running.vault, saved.position)
    device = attachments.device(running.vault, saved.memory, pin)
    hints = running.run.touched / saved.memory.root.hex()
    coming = Arriving(device, opened, running.run.unsound, hints)
    coming.prepare()
    return coming


def restore(running: Running, saved: Plan, filling: Filling | None, *, paused: bool) -> None:
    """Give a QEMU that waits for it a saved state; the guest goes on unless it was paused.

    Without a ``filling`` its memory comes while it runs, if it was prepared and QEMU can.
    """
    if filling is not None:
        _load(running, saved, filling)
    elif not _follow(running):
        with Filling(running.vault, saved.memory, running.run) as late:
            _load(running, saved, late)
    if not paused:
        running.monitor.execute("cont")


def _load(running: Running, saved: Plan, filling: Filling) -> None:
    state.prepare(running.monitor)
    filling.finish()
    state.load_devices(running.monitor, running.run.migration, saved.devices(running.vault))


def _follow(running: Running) -> bool:
    """Let QEMU begin before its memory is there; False where that cannot be."""
    coming = running.arriving
    if coming is None:
        return False
    try:
        state.expect(running.monitor, running.run.migration)
    except ToolFailed as error:
        if error.reason != "qemu-refused":
            raise
        log.info("%s: all memory comes first: %s", running.session.branch.name, error)
        coming.close()
        running.arriving = None
        return False
    coming.begin(running.run.migration, SECONDS)
    running.monitor.wait_for(lambda: _has_devices(running, coming), "the saved state")
    return True


def _has_devices(running: Running, coming: Arriving) -> bool | None:
    if coming.error is not None:
        raise coming.error
    return True if running.monitor.status() != "inmigrate" else None
