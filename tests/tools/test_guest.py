"""The guest is built from Debian's packages, old and new; where that cannot be, it is said why."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.guest import build
from tools.guest.build import NoGuest

ROOT = Path(__file__).resolve().parents[2]
NEEDS_A_GUEST = "tests/vm/test_cycles.py::test_cycles_under_a_disk_writing_load"
DRIVERS = "lib/modules/6/kernel/drivers"


def module(*depends: str) -> bytes:
    return b"name\0depends=%s\0intree=Y\0" % ",".join(depends).encode()


OLD = {  # as in Debian 12
    f"{DRIVERS}/virtio_pci.ko": module("virtio", "virtio-ring"),
    f"{DRIVERS}/virtio.ko": module(),
    f"{DRIVERS}/virtio_ring.ko": module("virtio"),
    f"{DRIVERS}/virtio_blk.ko": module("virtio"),
    f"{DRIVERS}/virtio-rng.ko": module(),
    f"{DRIVERS}/virtio_console.ko": module(),
    f"{DRIVERS}/virtio_net.ko": module("net_failover"),
    f"{DRIVERS}/net_failover.ko": module(),
    "bin/busybox": b"busy",
}
BUILT_IN = ("virtio", "virtio_ring", "virtio_pci", "virtio_console")
NEW = {  # as in Debian 13
    "usr/lib/modules/6/modules.builtin": "".join(f"kernel/{x}.ko\n" for x in BUILT_IN).encode(),
    f"usr/{DRIVERS}/virtio_blk.ko.xz": lzma.compress(module("virtio")),
    f"usr/{DRIVERS}/virtio-rng.ko.xz": lzma.compress(module()),
    f"usr/{DRIVERS}/virtio_net.ko.xz": lzma.compress(module("net_failover")),
    f"usr/{DRIVERS}/net_failover.ko.xz": lzma.compress(module()),
    "usr/bin/busybox": b"busy",
}


def unpacked(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize(
    ("files", "order"),
    [
        (OLD, "virtio virtio_ring virtio_pci virtio_blk virtio_rng virtio_console net_failover"),
        (NEW, "virtio_blk virtio_rng net_failover"),
    ],
    ids=["plain", "compressed or built in"],
)
def test_modules_are_plain_and_come_after_those_they_need(
    files: dict[str, bytes], order: str, tmp_path: Path
) -> None:
    root = unpacked(files, tmp_path)
    modules = build._modules(root)
    assert list(modules) == [*order.split(), "virtio_net"]
    made = {name: data for name, _, data in build._files(root, modules)}
    assert made["bin/busybox"] == b"busy"
    assert made["modules/order"].decode().split() == [f"{name}.ko" for name in modules]
    assert made["modules/virtio_net.ko"] == module("net_failover")


def test_a_kernel_without_a_module_makes_no_guest(tmp_path: Path) -> None:
    root = unpacked({"lib/modules/6/modules.order": b""}, tmp_path)
    with pytest.raises(NoGuest, match="virtio_pci"):
        build._modules(root)


@pytest.mark.usefixtures("no_kernel_package")
@pytest.mark.parametrize(
    ("program", "code"),
    [
        (["tools.guest", "guest"], 1),
        (["tools.bench.machines"], 2),  # 1 says that a target was missed
    ],
)
def test_programs_say_in_one_line_why_there_is_no_guest(
    program: list[str], code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("no guest: apt-cache depends")
    assert "No packages found" in line
    assert done.returncode == code


@pytest.mark.usefixtures("no_kernel_package")
@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_tests_of_machines_are_skipped_but_in_ci(
    ci: str, outcome: str, need_tool: Callable[[str], str]
) -> None:
    for tool in ("qemu-system-x86_64", "mke2fs", "apt-get", "dpkg-deb"):
        need_tool(tool)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", NEEDS_A_GUEST],
        cwd=ROOT,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    assert "no guest: apt-cache depends" in done.stdout
