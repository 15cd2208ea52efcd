"""Build the guest: kernel and modules from Debian's packages, busybox, and an ext4 disk.

Packages are downloaded with apt-get into a cache and unpacked with dpkg-deb; nothing is installed
and nothing runs as root.  The initramfs is not compressed: unpacking it under emulation takes
longer than reading it.
"""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
META_PACKAGE = "linux-image-cloud-amd64"
WANTED = ("virtio_pci", "virtio_blk", "virtio-rng", "virtio_console", "virtio_net")
"""Modules, loaded after those that they depend on; ext4, and in newer kernels more, is built in."""
APPEND = "console=ttyS0 quiet panic=-1"
DISK_MIB = 64


class NoGuest(Exception):
    """The guest cannot be built on this machine; the text says why."""


class Guest(NamedTuple):
    """Files of a guest; give them to ``vm create``."""

    kernel: Path
    initrd: Path
    disk: Path
    append: str = APPEND


def build(folder: Path) -> Guest:
    """Build the guest in ``folder``, or find it there; else ``NoGuest``."""
    guest = Guest(folder / "kernel", folder / "initrd", folder / "disk.img")
    folder.mkdir(parents=True, exist_ok=True)
    if not (guest.kernel.exists() and _is_new(guest.initrd)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _build_boot_files(guest, Path(scratch))
    if not guest.disk.exists():
        make_disk(guest.disk)
    return guest


def _is_new(built: Path) -> bool:
    """Whether the initramfs is younger than all that this folder puts into it."""
    parts = [HERE / name for name in ("init", "agent", "build.py")]
    return built.exists() and built.stat().st_mtime > max(part.stat().st_mtime for part in parts)


def make_disk(path: Path, mib: int = DISK_MIB) -> None:
    """A fresh ext4 file system in a sparse file."""
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        file.truncate(mib << 20)
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    _run([mke2fs or "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0", str(partial)])
    partial.rename(path)


def _build_boot_files(guest: Guest, scratch: Path) -> None:
    names = [kernel_package(), "busybox-static"]
    for number, name in enumerate(names):
        _run(["apt-get", "-qq", "download", name], cwd=scratch)
        (package,) = scratch.glob(f"{name}_*.deb")
        _run(["dpkg-deb", "-x", str(package), str(scratch / str(number))])
    modules = _modules(scratch / "0")
    initrd = scratch / "initrd"
    initrd.write_bytes(b"".join(archive(_files(scratch / "1", modules))))
    (kernel,) = (scratch / "0" / "boot").glob("vmlinuz-*")
    initrd.rename(guest.initrd)
    kernel.rename(guest.kernel)


def kernel_package() -> str:
    """The package that the cloud kernel's meta package stands for today."""
    said = _run(["apt-cache", "depends", "--important", META_PACKAGE])
    for line in said.splitlines():
        _, _, name = line.strip().partition("Depends: ")
        if name.startswith("linux-image-"):
            return name
    raise NoGuest(f"apt does not say which kernel {META_PACKAGE} stands for")


def _modules(root: Path) -> dict[str, bytes]:
    """The wanted modules by name, in the order in which they can be loaded."""
    found = {_module(path.name): path for path in root.rglob("*.ko*")}
    lists = [path.read_text() for path in root.rglob("modules.builtin")]
    builtin = {_module(Path(line).name) for text in lists for line in text.splitlines()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in builtin or name in ordered:
            return
        if name not in found:
            raise NoGuest(f"the kernel's package has no module {name}")
        data = _plain(found[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            add(_module(other))
        ordered[name] = data

    for name in WANTED:
        add(_module(name))
    return ordered


def _module(file: str) -> str:
    """The name of a module, in the spelling of the kernel."""
    return file.partition(".")[0].replace("-", "_")


def _plain(path: Path) -> bytes:
    """A module as ``insmod`` takes it; newer packages have them compressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _files(unpacked: Path, modules: dict[str, bytes]) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of what the initramfs holds."""
    folder, program, plain = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    for name in ("bin", "dev", "proc", "sys", "run", "disk", "modules"):
        yield name, folder, b""
    (busybox,) = unpacked.rglob("bin/busybox")  # below usr in newer packages
    yield "bin/busybox", program, busybox.read_bytes()
    yield "init", program, (HERE / "init").read_bytes()
    yield "agent", plain, (HERE / "agent").read_bytes()
    for name, data in modules.items():
        yield f"modules/{name}.ko", plain, data
    yield "modules/order", plain, "".join(f"{name}.ko\n" for name in modules).encode()


def archive(files: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """A cpio archive in the "new" form that the kernel reads (its initramfs documentation)."""
    for number, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoGuest(f"{command[0]} is not installed") from None
    if done.returncode:
        raise NoGuest(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.guest DIR")
    try:
        guest = build(Path(sys.argv[1]))
    except NoGuest as reason:
        raise SystemExit(f"no guest: {reason}") from None
    for path in guest[:3]:
        print(path)


if __name__ == "__main__":
    main()
