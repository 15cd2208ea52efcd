"""What a machine is: the configuration that is kept with its branch, and with every snapshot.

It is a small JSON text, an attachment named ``machine.json``; two states are compared line by line.
Kernel and initrd, where a machine is booted with them, are attachments too: a state that is
started years later must not depend on files of the host.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.ids import object_id

CONFIG, MEMORY, DEVICES, HOST = "machine.json", "memory", "device-state", "state.json"
LAYOUT, COMMAND = "memory.json", "qemu-command.json"
"""Kept with the state of a QEMU that somebody else started, and so configured."""
KERNEL, INITRD = "kernel", "initrd"
BOOT_FILES = (KERNEL, INITRD)
OWN = frozenset({CONFIG, MEMORY, DEVICES, HOST, LAYOUT, COMMAND, *BOOT_FILES})
"""The attachments that say what runs here, and how."""
NVRAM = "nvram"
"""The volume that holds the variables of UEFI firmware; it is a disk of the branch like others."""

VERSION = 1
NETS = ("none", "user")
FIRMWARES = ("bios", "uefi")
MIN_MEMORY, MAX_MEMORY = 16 << 20, 1 << 42
_MEBIBYTE = 1 << 20
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine.  ``memory`` in bytes; ``disks`` are names of volumes, the first one boots.

    ``type`` is a versioned machine type of QEMU, so that a later QEMU still builds the same
    hardware; ``qemu_args`` go to QEMU as they are.
    """

    memory: int
    cpus: int = 1
    disks: tuple[str, ...] = ()
    kernel: bool = False
    initrd: bool = False
    append: str = ""
    firmware: str = "bios"
    net: str = "none"
    mac: str = ""
    type: str = "q35"
    qemu_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % _MEBIBYTE:
            raise BadRequest(
                f"a machine cannot have {self.memory:,} bytes of memory: "
                "whole MiB from 16 MiB on are possible"
            )
        if not 1 <= self.cpus <= 255:
            raise BadRequest(f"a machine cannot have {self.cpus} processors: 1 to 255")
        if self.net not in NETS or self.firmware not in FIRMWARES:
            raise BadRequest(f"unknown network '{self.net}' or firmware '{self.firmware}'")
        if self.mac and not _MAC.fullmatch(self.mac):
            raise BadRequest(f"'{self.mac}' is no MAC address")
        if (self.initrd or self.append) and not self.kernel:
            raise BadRequest("--initrd and --append need --kernel")
        if len(set(self.disks)) != len(self.disks):
            raise BadRequest("a machine has each disk once")

    def encode(self) -> bytes:
        """The text that is stored: one line a field, so that a difference is a line."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Machine:
        """Read what ``encode`` wrote; ``Damaged``, or ``Unsupported`` for a later version."""
        try:
            value: dict[str, Any] = json.loads(data)
            version = value.pop("version")
            if version != VERSION:
                raise Unsupported(
                    f"machine configuration of version {version}; this program knows {VERSION}"
                )
            lists = {name: tuple(value[name]) for name in ("disks", "qemu_args")}
            return cls(**{**value, **lists})
        except (ValueError, KeyError, TypeError, AttributeError, BadRequest) as error:
            raise Damaged(f"machine configuration cannot be read: {error}") from None


def mac_for(seed: str) -> str:
    """A stable, locally administered MAC address in QEMU's range."""
    digest = object_id(seed.encode()).hex()
    return f"52:54:00:{digest[:2]}:{digest[2:4]}:{digest[4:6]}"


class Made(NamedTuple):
    """What made a full snapshot, and so what is needed to go on from it."""

    qemu: str
    accelerator: str
    paused: bool
    processor: str = ""
    """The host's, if the guest saw that; states that know nothing of it have none."""

    def encode(self) -> bytes:
        fields = self._asdict()
        if not self.processor:
            del fields["processor"]
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Made:
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise Damaged(f"{HOST} of a snapshot cannot be read: {error}") from None
