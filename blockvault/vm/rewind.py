"""Back to a full snapshot inside of the QEMU that runs, which saves starting another one.

    the guest stands, its disks are those of the snapshot already (supervisor)
    memory      what differs from the snapshot's is written into the file that QEMU shares
    devices     QEMU resets the machine and loads their state, as ``loadvm`` does
    generation  a new id for the guest: it has been here before

QEMU flushes what it had translated from the old memory when it loads the state of a processor.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from blockvault.errors import ToolFailed
from blockvault.ops.overwrite import overwrite
from blockvault.vm import state, statefile
from blockvault.vm.machine import NVRAM

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from blockvault.vm.planning import Plan
    from blockvault.vm.qmp import Monitor
    from blockvault.vm.running import Running

_NODE, _JOB = "saved", "rewind"
_SECTION = b"\x07vmgenid" + bytes(4) + (1).to_bytes(4, "big")
"""How the generation id's section of a saved state begins: its name, instance 0, version 1; then
comes the address at which the guest's firmware put the id (QEMU's ``docs/specs/vmgenid.txt``)."""


def possible(running: Running, target: Plan) -> bool:
    """Whether the machine that runs is the one that the snapshot was taken of."""
    return (
        target.made is not None
        and target.machine == running.machine
        and target.made.qemu == running.version
        and target.made.accelerator == running.accelerator
        and _contents(target.files) == _contents(running.files)
        and _sizes(running, target.position.volumes) == _sizes(running, running.session.volumes)
    )


def _contents(files: Iterable[Any]) -> set[tuple[str, bytes]]:
    return {(each.name, each.root) for each in files}


def _sizes(running: Running, volumes: Iterable[Any]) -> dict[str, int]:
    wanted = {*running.machine.disks, NVRAM}
    return {each.name: each.size for each in volumes if each.name in wanted}


def rewind(running: Running, target: Plan) -> None:
    """Replace memory and devices of a machine that stands still; it still does afterwards.

    When this fails the machine is neither what it was nor what it should be: QEMU is to be ended.
    """
    devices = target.devices(running.vault)
    overwrite(running.vault, target.memory, running.run.memory)
    state.prepare(running.monitor)
    _load(running.monitor, running.run.saved, devices)
    running.devices = devices
    _renew(running, devices)


def _load(monitor: Monitor, path: Path, devices: bytes) -> None:
    path.write_bytes(statefile.around(devices))
    file = {"driver": "file", "filename": str(path)}
    monitor.send("blockdev-add", {"driver": "qcow2", "node-name": _NODE, "file": file})
    try:
        job = {"job-id": _JOB, "tag": statefile.TAG, "vmstate": _NODE, "devices": [_NODE]}
        monitor.send("snapshot-load", job)
        ended = monitor.wait_for(lambda: _ended(monitor), "the saved state")
        monitor.execute("job-dismiss", id=_JOB)
        if "error" in ended:
            raise ToolFailed(f"QEMU cannot use the saved state: {ended['error']}", kind="bad-state")
    finally:
        monitor.execute("blockdev-del", node_name=_NODE)
        path.unlink()


def _ended(monitor: Monitor) -> dict[str, Any] | None:
    jobs: list[dict[str, Any]] = monitor.execute("query-jobs")
    return next((job for job in jobs if job["id"] == _JOB and job["status"] == "concluded"), None)


def _renew(running: Running, devices: bytes) -> None:
    """Write a fresh generation id where the guest looks for it.

    QEMU has just put its own there and told the guest to look; but a guest that goes back inside
    of one QEMU knows that one, and would repeat its random numbers.
    """
    found = devices.find(_SECTION)
    if found < 0:
        return
    at = found + len(_SECTION)
    place = int.from_bytes(devices[at : at + 8], "little")
    if place >= running.machine.memory:
        return  # the guest says where, and may say anything
    own = running.monitor.execute("query-vm-generation-id")["guid"]
    with open(running.run.memory, "r+b", buffering=0) as memory:
        memory.seek(place)
        if memory.read(16) == uuid.UUID(own).bytes_le:
            memory.seek(place)
            memory.write(uuid.uuid4().bytes_le)
