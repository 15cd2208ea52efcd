"""A machine as QEMU's command line.

Everything is named on it: no defaults of QEMU's, no configuration files of the host.  The order of
devices decides their addresses, and a saved state fits only the same addresses: new devices go to
the end.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from blockvault.vm import host
from blockvault.vm.machine import INITRD, KERNEL, NVRAM, Machine
from blockvault.vm.rundir import RunDir

RECONNECT_SECONDS = 3600
"""How long a guest's I/O waits for a server that is gone before it fails."""
AGENT_PORT = "org.qemu.guest_agent.0"
GENERATION = "generation"
_SERIAL = 20
"""Bytes of a disk's serial number that a guest sees."""


def command(
    machine: Machine, run: RunDir, name: str, accelerator: str, *, incoming: bool = False
) -> list[str]:
    """The words that start QEMU; with ``incoming`` it waits for a saved state, and
    then for the order to go on."""
    return [
        host.qemu(),
        *("-name", f"guest={name.replace(',', ',,')},debug-threads=on"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-msg", "timestamp=on"),
        *_board(machine, run, accelerator),
        *_firmware(machine, run, name),
        *_monitor(run),
        *_console(run),
        *[word for disk in machine.disks for word in _disk(disk, run, name, machine)],
        *_network(machine),
        *_extras(run),
        *(["-incoming", "defer", "-S"] if incoming else []),
        *machine.qemu_args,
    ]


def _board(machine: Machine, run: RunDir, accelerator: str) -> list[str]:
    size = f"{machine.memory >> 20}M"
    memory = f"memory-backend-file,id=ram,size={size},mem-path={_quoted(run.memory)},share=on"
    return [
        *("-machine", f"{machine.type},memory-backend=ram", "-accel", accelerator),
        *("-cpu", "host" if accelerator == "kvm" else "max", "-smp", str(machine.cpus)),
        *("-m", size, "-object", memory),
    ]


def processor(machine: Machine, accelerator: str) -> str:
    """The host's processor if the machine's guest sees that; nothing where QEMU makes one up."""
    if accelerator != "kvm":
        return ""
    own = [
        value for word, value in itertools.pairwise(machine.qemu_args) if word.lstrip("-") == "cpu"
    ]
    model = own[-1].partition(",")[0] if own else "host"
    return host.processor() if model in ("host", "max") else ""


def _firmware(machine: Machine, run: RunDir, name: str) -> list[str]:
    words = []
    if machine.firmware == "uefi":
        code, _ = host.firmware()
        words += ["-drive", f"if=pflash,format=raw,readonly=on,file={_quoted(code)}"]
        words += ["-blockdev", _served("pflash1", NVRAM, run, name)]
        words += ["-machine", "pflash1=pflash1"]
    if machine.kernel:
        words += ["-kernel", str(run.boot_file(KERNEL))]
        words += ["-initrd", str(run.boot_file(INITRD))] if machine.initrd else []
        words += ["-append", machine.append]
    return words


def _monitor(run: RunDir) -> list[str]:
    socket = f"socket,id=qmp,path={_quoted(run.qmp)},server=on,wait=off"
    return ["-chardev", socket, "-mon", "chardev=qmp,mode=control"]


def _console(run: RunDir) -> list[str]:
    log = f"logfile={_quoted(run.console_log)},logappend=on"
    socket = f"socket,id=serial,path={_quoted(run.serial)},server=on,wait=off,{log}"
    return ["-chardev", socket, "-serial", "chardev:serial"]


def _disk(volume: str, run: RunDir, name: str, machine: Machine) -> list[str]:
    """One disk.  A write that the vault cannot take (no room) stops the guest, it does not fail."""
    number = machine.disks.index(volume)
    node = f"disk{number}"
    device = {
        "driver": "virtio-blk-pci",
        "id": f"virtio-{node}",
        "drive": node,
        "serial": _serials(machine.disks)[number],
        "bootindex": number + 1,
        "werror": "stop",
        "rerror": "stop",
    }
    return ["-blockdev", _served(node, volume, run, name), "-device", json.dumps(device)]


def _serials(volumes: Sequence[str]) -> list[str]:
    """By what a guest names each disk: its volume's name, as far as that fits, and no two alike."""
    serials: list[str] = []
    for number, volume in enumerate(volumes):
        serial, marks = _cut(volume, _SERIAL), itertools.count(number)
        while serial in serials:
            mark = f"-{next(marks)}"
            serial = _cut(volume, _SERIAL - len(mark)) + mark
        serials.append(serial)
    return serials


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _served(node: str, volume: str, run: RunDir, name: str) -> str:
    """A block device that the vault's NBD server serves."""
    return json.dumps(
        {
            "driver": "nbd",
            "node-name": node,
            "server": {"type": "unix", "path": str(run.nbd)},
            "export": f"{name}/{volume}",
            "reconnect-delay": RECONNECT_SECONDS,
            "discard": "unmap",
        }
    )


def _network(machine: Machine) -> list[str]:
    if machine.net == "none":
        return []
    card = {"driver": "virtio-net-pci", "netdev": "net0", "mac": machine.mac, "romfile": ""}
    return ["-netdev", "user,id=net0", "-device", json.dumps(card)]


def _extras(run: RunDir) -> list[str]:
    """Fresh randomness, a generation id that tells a clone that it is one, the agent's port."""
    return [
        *("-device", "virtio-rng-pci", "-device", f"vmgenid,guid=auto,id={GENERATION}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={_quoted(run.agent)},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
    ]


def _quoted(path: Path) -> str:
    """A path inside of one of QEMU's option lists, where a comma is written twice."""
    return str(path).replace(",", ",,")
