"""The disks that a hypervisor's configuration names: all of them must be in its folder.

    VirtualBox   <HardDisk location="...">; one inside of another is a snapshot's difference
    VMware       scsi0:0.fileName = "....vmdk"
    Xen          disk = [ 'PATH,FORMAT,DEVICE,...', 'phy:PATH,DEVICE,w', 'format=raw,target=PATH' ]
    Hyper-V      a binary file, which is not read

Differences that a hypervisor's own snapshots made are refused, by what their files say of
themselves: without the disks that they stand on they are nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from blockvault.errors import BadRequest

_MOST = 16 << 20
# The text is a stranger's: none of these looks further from any place than to the next of its kind.
_VMX_DISK = re.compile(
    r'^[ \t]*\w+:\d+\.fileName[ \t]*=[ \t]*"([^"]+\.vmdk)"', re.IGNORECASE | re.MULTILINE
)
_XEN_DISKS = re.compile(r"^[ \t]*disk[ \t]*=[ \t]*\[(.*?)(?:\]|\Z)", re.DOTALL | re.MULTILINE)
_XEN_DISK = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_XEN_PREFIX = re.compile(r"^(?:(?:phy|file|tap2?|aio|qdisk|raw|qcow2?|vhd):)+")
_VMDK_PARENT = re.compile(rb'parentFileNameHint\s*=\s*"', re.IGNORECASE)
_VDI_TYPE, _VDI_DIFFERENCE = 0x4C, 4
_HEAD = 1 << 16


def refuse_differences(folder: Path, disks: Sequence[Path]) -> None:
    """Refuse a machine with disks that stand on others."""
    for path in [*disks, *folder.rglob("*.avhd"), *folder.rglob("*.avhdx")]:
        if _is_difference(path):
            raise _snapshots(folder, path.name)


def check(folder: Path, configuration: Path, disks: Sequence[Path]) -> None:
    """Refuse a machine that has a disk which is not among these."""
    read = _READERS.get(configuration.suffix.lower())
    if read is None:
        return
    with open(configuration, "rb") as file:
        text = file.read(_MOST).decode(errors="replace")
    there = {path.relative_to(folder).as_posix() for path in disks}
    names = {path.name for path in disks}
    for named in read(folder, text):
        plain = named.replace("\\", "/")
        pure = PurePosixPath(plain)
        absolute = pure.is_absolute() or re.match("[A-Za-z]:", plain)
        beside = (configuration.parent.relative_to(folder) / pure).as_posix()
        # A folder that was moved may still have its old place in its paths.
        if not (pure.name in names if absolute else beside in there):
            raise BadRequest(
                f"{configuration.name} has a disk that is not in {folder}, or of no format that "
                f"its hypervisor writes: {named}",
                kind="disk-missing",
            )


def _is_difference(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in (".avhd", ".avhdx"):
        return True
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if suffix == ".vdi":
        return int.from_bytes(head[_VDI_TYPE : _VDI_TYPE + 4], "little") == _VDI_DIFFERENCE
    return suffix == ".vmdk" and bool(_VMDK_PARENT.search(head))


def _snapshots(folder: Path, name: str) -> BadRequest:
    return BadRequest(
        f"the machine in {folder} has snapshots of its hypervisor's own ({name} stands on another "
        "disk); merge them there first",
        kind="backing-file",
    )


def _virtualbox(folder: Path, text: str) -> Iterator[str]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise BadRequest(f"the .vbox file in {folder} cannot be read: {error}") from None
    for element in root.iter():
        if not element.tag.endswith("HardDisk"):
            continue
        if any(child.tag.endswith("HardDisk") for child in element):
            raise _snapshots(folder, element.get("location", ""))
        if location := element.get("location"):
            yield location


def _vmware(folder: Path, text: str) -> Iterator[str]:
    return iter(_VMX_DISK.findall(text))


def _xen(folder: Path, text: str) -> Iterator[str]:
    lines = "\n".join(line.partition("#")[0] for line in text.splitlines())
    for disks in _XEN_DISKS.findall(lines):
        for quoted in _XEN_DISK.findall(disks):
            words = [word.strip() for word in "".join(quoted).split(",")]
            if any(re.search(r"\bcdrom\b|\.iso$", word) for word in words):
                continue
            targets = [word.partition("=")[2] for word in words if word.startswith("target=")]
            if target := (targets or words)[0]:
                yield _XEN_PREFIX.sub("", target)


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".vbox": _virtualbox,
    ".vmx": _vmware,
    ".cfg": _xen,
}
