"""All contenders, in the order of the tables' columns."""

from __future__ import annotations

from tools.bench.peers.base import Archive, Contender, Machine
from tools.bench.peers.borg import BorgDefault, BorgFixed
from tools.bench.peers.btrfs import Btrfs
from tools.bench.peers.bup import Bup
from tools.bench.peers.casync import Casync
from tools.bench.peers.nbd import (
    NbdServer,
    QemuNbd,
    QemuNbdChain,
    QemuNbdCompressing,
    QemuNbdSnapshot,
    QemuNbdZstd,
    VaultServer,
    VaultServerMany,
    VaultServerNested,
    VaultServerSnapshot,
)
from tools.bench.peers.qcow2 import Qcow2Chain, Qcow2Files, Qcow2Internal
from tools.bench.peers.qemu import QemuBackground, QemuMigrate, QemuSavevm
from tools.bench.peers.restic import Restic
from tools.bench.peers.served_btrfs import QemuNbdBtrfs
from tools.bench.peers.vault import Blockvault
from tools.bench.peers.yardsticks import NbdkitFile, NbdkitMemory, QemuNbdRaw

ARCHIVES: tuple[type[Archive], ...] = (
    Blockvault,
    BorgFixed,
    BorgDefault,
    Restic,
    Bup,
    Casync,
    Qcow2Files,
    Qcow2Chain,
    Btrfs,
)
MACHINES: tuple[type[Machine], ...] = (Blockvault, Qcow2Internal, Qcow2Chain, Btrfs)
SERVERS: tuple[type[NbdServer], ...] = (
    VaultServer,
    VaultServerSnapshot,
    VaultServerMany,
    VaultServerNested,
    QemuNbd,
    QemuNbdSnapshot,
    QemuNbdChain,
    QemuNbdZstd,
    QemuNbdCompressing,
    QemuNbdBtrfs,
    QemuNbdRaw,
    NbdkitMemory,
    NbdkitFile,
)


def everyone() -> list[type[Contender]]:
    """Every contender once, by name; a program that plays two parts is named once."""
    found: dict[str, type[Contender]] = {}
    kinds: tuple[type[Contender], ...] = (
        *(*ARCHIVES, *MACHINES, *SERVERS),
        *(QemuSavevm, QemuMigrate, QemuBackground),
    )
    for kind in kinds:
        found.setdefault(kind.name, kind)
    return list(found.values())
