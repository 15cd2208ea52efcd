"""Whether KVM runs a guest here, found out by having it run one for a moment.

``/dev/kvm`` may exist and refuse to work, or work for show: where one hypervisor runs under another
without the processor's help, KVM may interpret each instruction of a guest's kernel, which takes a
thousand times as long as QEMU's own emulation.  So the guest of the trial is a ROM that enters
protected mode, as every kernel does, and counts; after each round it tells by a byte on QEMU's
debug port.  In the time allowed a processor makes some thousand rounds, an interpreter four.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time

from blockvault import files

ROUNDS = 50
"""Rounds of the guest that prove a processor at work."""
ROUNDS_SECONDS = 0.25
"""Time that it has for them, from the first one on."""

_TOLD = b"r"
_ROM_BYTES = 64 << 10
_AT = 0xFF00
"""Where the program lies in the ROM, whose end is that of the first 4 GiB."""
_PROGRAM = bytes.fromhex(
    "fa"  # cli
    "2e660f011636ff"  # lgdtl  %cs:table
    "0f20c0"  # movl   %cr0, %eax
    "0c01"  # orb    $1, %al
    "0f22c0"  # movl   %eax, %cr0
    "66ea18ffffff0800"  # ljmpl  $8, $count
    "b9a0860100"  # count: movl $100000, %ecx
    "49"  # turn:  decl %ecx
    "75fd"  # jnz    turn
    "b072"  # movb   $'r', %al
    "e6e9"  # outb   %al, $0xe9
    "ebf2"  # jmp    count
    "0000000000000000ffff0000009bcf00"  # segments: none, and all memory as code
    "0f0026ffffff"  # table: 15, segments
)
_RESET = (0xFFF0, b"\xe9\x0d\xff")  # jmp to the program: where a processor begins


def runs(qemu: str, seconds: float) -> bool:
    """Whether KVM makes this QEMU run a guest at a processor's speed.

    False as well if the guest has not begun after ``seconds``, or QEMU says anything at all.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="blockvault-", suffix=".rom") as rom:
            rom.write(_rom())
            rom.flush()
            with subprocess.Popen(
                _command(qemu, rom.name),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) as process:  # fmt: skip
                try:
                    assert process.stdout is not None
                    return _keeps_telling(process.stdout.fileno(), seconds)
                finally:
                    process.kill()
    except OSError:
        return False


def _command(qemu: str, rom: str) -> list[str]:
    machine = ["-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "16", "-bios", rom]
    bare = ["-nodefaults", "-no-user-config", "-display", "none"]
    told = ["-chardev", "stdio,id=told", "-device", "isa-debugcon,chardev=told,iobase=0xe9"]
    return [qemu, *machine, *bare, *told]


def _rom() -> bytes:
    rom = bytearray(_ROM_BYTES)
    for at, code in ((_AT, _PROGRAM), _RESET):
        rom[at : at + len(code)] = code
    return bytes(rom)


def _keeps_telling(fd: int, seconds: float) -> bool:
    """Whether enough rounds are told in time; whatever else is said there is a complaint."""
    rounds, deadline = 0, time.monotonic() + seconds
    while rounds < ROUNDS:
        ready = files.readable(fd, deadline - time.monotonic())
        said = os.read(fd, 4096) if ready else b""
        if not said or said.strip(_TOLD):
            return False
        if not rounds:
            deadline = time.monotonic() + ROUNDS_SECONDS
        rounds += len(said)
    return True
