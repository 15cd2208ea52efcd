"""Disks of somebody else's QEMU copied into a branch while the guest runs (``blockdev-mirror``).

    begin    each disk is copied, with what the guest writes meanwhile, until both are in step
    settle   the guest stands: the copying ends, and the copy is the disk of this instant

QEMU then works with its own images alone, as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault.errors import Conflict, ToolFailed, VaultError
from blockvault.ops import compose, positions

if TYPE_CHECKING:
    from blockvault.session import Session
    from blockvault.vault import Vault
    from blockvault.vm.disks import Serve, Served
    from blockvault.vm.foreign import Disk
    from blockvault.vm.qmp import Monitor

HOLDER = "vm attach"
SECONDS = 24 * 3600.0
_POLL = 0.1
"""Copying takes its time, and the guest runs."""
_OURS = "blockvault-"
"""How the names of our nodes and jobs begin."""
_ENDED = "concluded"
"""The state of a job that is over, well or not, and still to be dismissed."""


def make_room(vault: Vault, branch: str, disks: Sequence[Disk]) -> None:
    """Give the branch, made if need be, a volume of the right size for each disk."""
    volumes: dict[str, int] = {}
    for found in vault.branches():
        if found.name == branch:
            head = positions.head_of(vault, found)
            volumes = {volume.name: volume.size for volume in head.volumes}
    for disk in disks:
        if volumes.get(disk.name, disk.size) != disk.size:
            raise Conflict(
                f"volume '{disk.name}' of '{branch}' has {volumes[disk.name]:,} bytes and QEMU's "
                f"disk {disk.size:,}; take another branch",
                kind="other-size",
            )
    new = [compose.Source(disk.name, size=disk.size) for disk in disks if disk.name not in volumes]
    if new:
        compose.compose(vault, branch, new, {}, message="room for disks", origin="vm attach")


class Mirrored:
    """Disks that are copied into a session's branch; see ``handover.Disks``."""

    def __init__(
        self, monitor: Monitor, session: Session, disks: Sequence[Disk], serve: Serve, socket: Path
    ) -> None:
        self._monitor = monitor
        self._session = session
        self._disks = {f"{_OURS}{number}": disk for number, disk in enumerate(disks)}
        self._socket = socket
        self._served: Served = serve(session, socket)
        self._served.begin()
        # Each before QEMU is asked for it: what it does too late is undone with the rest.
        self._nodes: list[str] = []
        self._jobs: list[str] = []

    def begin(self) -> None:
        self._take_out_old()
        for name, disk in self._disks.items():
            target = {
                "driver": "nbd",
                "node-name": name,
                "server": {"type": "unix", "path": str(self._socket)},
                "export": f"{self._session.branch.name}/{disk.name}",
                "discard": "unmap",
            }
            self._nodes.append(name)
            self._monitor.send("blockdev-add", target)
            job = {
                "job-id": name,
                "device": disk.node,
                "target": name,
                "sync": "full",
                "auto-dismiss": False,
            }
            self._jobs.append(name)
            self._monitor.send("blockdev-mirror", job)
        self._monitor.wait_for(self._in_step, "disks that are copied", SECONDS, every=_POLL)

    def _take_out_old(self) -> None:
        """Take out what a command left that was killed: nobody else is at this monitor now."""
        jobs = (job["id"] for job in self._monitor.execute("query-jobs"))
        nodes = (node["node-name"] for node in self._monitor.execute("query-named-block-nodes"))
        self._jobs = [name for name in jobs if name.startswith(_OURS)]
        self._nodes = [name for name in nodes if name.startswith(_OURS)]
        self._leave()

    def _in_step(self) -> bool | None:
        states = self._states()
        return True if all(states.get(name) == "ready" for name in self._jobs) else None

    def _states(self) -> dict[str, str]:
        """The state of each copying; ``ToolFailed`` if one went wrong."""
        states = {}
        for job in self._monitor.execute("query-jobs"):
            if job["id"] in self._disks:
                states[job["id"]] = job["status"]
                if "error" in job:
                    disk = self._disks[job["id"]].name
                    raise ToolFailed(f"disk '{disk}' could not be copied: {job['error']}")
        return states

    def settle(self) -> None:
        for name in self._jobs:
            # For one that is in step this is the end that leaves a whole copy.
            self._monitor.execute("block-job-cancel", device=name)
        self._monitor.wait_for(self._ended, "the end of copying")
        self._dismiss()
        self._remove_nodes()

    def _ended(self) -> bool | None:
        states = self._states()
        return True if all(states.get(name) == _ENDED for name in self._jobs) else None

    def _dismiss(self) -> None:
        while self._jobs:
            self._monitor.execute("job-dismiss", id=self._jobs.pop())

    def _remove_nodes(self) -> None:
        while self._nodes:
            self._monitor.execute("blockdev-del", node_name=self._nodes.pop())

    def record(self, message: str, author: str | None, kept: list[Any]) -> bytes:
        return self._session.snapshot(message, author=author, attachments=kept).id

    def close(self) -> None:
        """End what still copies, let go of the branch."""
        with contextlib.suppress(VaultError):
            self._leave()
        self._served.close()
        self._session.close()

    def _leave(self) -> None:
        """Take everything out of QEMU again.  It refuses to cancel a job that has failed, and
        what it never began."""
        for name in self._jobs:
            self._try("block-job-cancel", device=name, force=True)
        self._monitor.wait_for(self._gone, "the end of copying")
        while self._jobs:
            self._try("job-dismiss", id=self._jobs.pop())
        while self._nodes:
            self._try("blockdev-del", node_name=self._nodes.pop())

    def _try(self, command: str, **arguments: Any) -> None:
        try:
            self._monitor.execute(command, **arguments)
        except ToolFailed as error:
            if error.reason != "qemu-refused":
                raise

    def _gone(self) -> bool | None:
        jobs = {job["id"]: job["status"] for job in self._monitor.execute("query-jobs")}
        return True if all(jobs.get(name, _ENDED) == _ENDED for name in self._jobs) else None
