"""How a revision starts: from the memory that a full snapshot has, else from its disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.errors import Conflict, NotFound
from blockvault.ops import attachments, positions
from blockvault.vm import host
from blockvault.vm.machine import BOOT_FILES, CONFIG, DEVICES, HOST, LAYOUT, MEMORY, Machine, Made

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.ops.refs import Branch
    from blockvault.vault import Vault

KEPT = (CONFIG, *BOOT_FILES)
"""The attachments that every snapshot of a machine has."""


class How(NamedTuple):
    """How a machine is to be started."""

    boot: bool = False
    """From the disks, even if memory was saved."""
    paused: bool = False
    force: bool = False
    """From a state that another QEMU saved, if need be."""
    throw_away: bool = False
    """Its branch goes when it ends."""
    eager: bool = False
    """All memory comes before the guest goes on, however much it is."""


class Plan(NamedTuple):
    """What a machine would be started from."""

    position: Position
    machine: Machine
    files: tuple[Any, ...]
    memory: Any
    made: Made | None

    def devices(self, vault: Vault) -> bytes:
        """The state of the devices that belongs to ``memory``."""
        return attachments.content(vault, self.position.attachments, DEVICES)


def plan(vault: Vault, what: str | Branch, *, boot: bool = False, force: bool = False) -> Plan:
    """How a revision or a branch starts: from saved memory where it has it, else from its disks.

    ``NotFound`` where no machine was ever configured; ``Conflict`` where the saved state was made
    by a QEMU, an accelerator or, under KVM, a processor that this host does not have, unless
    ``force``.
    """
    position = vault.resolve(what) if isinstance(what, str) else positions.head_of(vault, what)
    rev = position.text
    if not boot and attachments.find(position.attachments, LAYOUT):
        raise Conflict(
            f"the memory of '{rev}' is that of a QEMU that was started elsewhere: start one in the "
            "same way with -incoming defer, and 'blockvault vm load' it; --boot starts from the "
            "disks",
            kind="foreign-state",
        )
    known = attachments.inherited(vault, position, CONFIG)
    if known is None:
        raise NotFound(
            f"'{rev}' has no machine: 'blockvault vm create' configures one", kind="no-machine"
        )
    machine = Machine.decode(attachments.content(vault, known.attachments, CONFIG))
    files = tuple(each for each in known.attachments if each.name in KEPT)
    memory = None if boot else attachments.find(position.attachments, MEMORY)
    if memory is None:
        return Plan(position, machine, files, None, None)
    made = Made.decode(attachments.content(vault, position.attachments, HOST))
    if not force:
        _check_fits(rev, made)
    return Plan(position, machine, files, memory, made)


def _check_fits(rev: str, made: Made) -> None:
    here, accelerator = host.version(), host.accelerator()
    if host.series(made.qemu) != host.series(here):
        raise Conflict(
            f"the state of '{rev}' was saved by QEMU {made.qemu}, and this is {here}; --force "
            "tries it, --boot starts from the disks",
            kind="other-qemu",
        )
    if made.accelerator != accelerator:
        raise Conflict(
            f"the state of '{rev}' was saved under {made.accelerator}, and this host runs "
            f"{accelerator}; --force tries it, --boot starts from the disks",
            kind="other-qemu",
        )
    if made.processor and made.processor != host.processor():
        raise Conflict(
            f"the state of '{rev}' was saved on another processor, {made.processor}, and this host "
            f"has {host.processor()}; --force tries it, --boot starts from the disks",
            kind="other-qemu",
        )
