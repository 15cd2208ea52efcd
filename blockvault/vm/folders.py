"""Machines of other hypervisors: a folder comes in as volumes and attachments, and goes out again.

    VirtualBox   .vbox + .vdi ...            .sav, .nvram
    VMware       .vmx + .vmdk ...            .vmem, .vmss, .nvram
    Hyper-V      .vmcx + .vhdx ...           .vmrs, .vmgs
    Xen          .cfg + raw or qcow2         saved states

Disks become volumes, so they share blocks with everything else; every other file is kept byte for
byte as an attachment, none under a name by which this program keeps something: its ``machine.json``
would be a command line for QEMU.  ``folder.json`` says where each was.  On the way out qemu-img
writes disks in the format that they had, and they get their identities back (``traits``).

The machine must be switched off or suspended.  Disks that stand on others (the hypervisor's own
snapshots) are refused: what they stand on may lie anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from blockvault.errors import BadRequest, Busy, Damaged, IOFailed, NotFound
from blockvault.ops import (
    Progress,
    attachments,
    compose,
    export,
    formats,
    headers,
    images,
    programs,
    targets,
)
from blockvault.vm import references, traits
from blockvault.vm.machine import OWN

if TYPE_CHECKING:
    from blockvault.vault import Vault

DESCRIPTION = "folder.json"
VERSION = 1
_CONFIGURATIONS = {".vbox": "virtualbox", ".vmx": "vmware", ".vmcx": "hyper-v", ".cfg": "xen"}
_DISKS = {
    "virtualbox": (".vdi", ".vmdk", ".vhd"),
    "vmware": (".vmdk",),
    "hyper-v": (".vhdx", ".vhd"),
    "xen": (".qcow2", ".img", ".raw"),
}
_DEPTH = 3
_IGNORED = re.compile(r"\.(log|lck|tmp)$|^\.|-prev$|~$", re.IGNORECASE)
_LOCKS = ("*.lck", "*.vmx.lck")
_VMDK_PART = re.compile(r"-(flat|[sf]\d{3}|delta|ctk)\.vmdk$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as a file of the folder; ``options`` are qemu-img's, ``identity`` hex."""

    volume: str
    path: str
    format: str
    options: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds: paths are relative to it, with slashes."""

    kind: str
    configuration: str
    disks: tuple[Disk, ...]
    files: Mapping[str, str]

    def encode(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Folder:
        try:
            value: dict[str, Any] = json.loads(data)
            if value.pop("version") != VERSION:
                raise ValueError("it is of another version")
            disks = tuple(Disk(**disk) for disk in value["disks"])
            found = cls(**{**value, "disks": disks})
            for path in [*found.files.values(), *(disk.path for disk in disks)]:
                _check_inside(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{DESCRIPTION} cannot be read: {error}") from None
        return found


def _check_inside(path: str) -> None:
    """A path of a description must stay in the folder, whoever wrote it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"'{path}' leaves the folder")


# -- recognising -------------------------------------------------------------------------------


def recognise(folder: Path) -> Folder:
    """What machine a folder holds; ``NotFound`` when it holds none, ``BadRequest`` for several."""
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a directory", kind="no-machine")
    files = sorted(_walk(folder, _DEPTH))
    found = [path for path in files if path.suffix.lower() in _CONFIGURATIONS]
    if not found:
        raise NotFound(
            f"{folder} holds no machine: no {', '.join(_CONFIGURATIONS)} file", kind="no-machine"
        )
    if len(found) > 1:
        references.refuse_differences(folder, [])  # checkpoints have configurations, too
        named = ", ".join(path.name for path in found)
        raise BadRequest(f"{folder} holds several machines ({named}); move them apart")
    locks = [path for pattern in _LOCKS for path in folder.rglob(pattern)]
    if locks:
        raise Busy(f"the machine in {folder} is in use ({locks[0].name} exists); switch it off")
    configuration = found[0]
    kind = _CONFIGURATIONS[configuration.suffix.lower()]
    disks = [path for path in files if path.suffix.lower() in _DISKS[kind]]
    parts = {path for path in disks if _VMDK_PART.search(path.name)}
    whole = [path for path in disks if path not in parts]
    references.refuse_differences(folder, whole)
    references.check(folder, configuration, whole)
    names = _names(whole)
    kept = [path for path in files if path not in disks]
    return Folder(
        kind,
        configuration.relative_to(folder).as_posix(),
        tuple(_disk(folder, path, name) for path, name in names.items()),
        {name: path.relative_to(folder).as_posix() for path, name in _names(kept, True).items()},
    )


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise IOFailed(f"{folder} cannot be read: {error.strerror}") from None
    for path in entries:
        if path.is_symlink() or _IGNORED.search(path.name):
            continue
        if path.is_dir() and depth:
            yield from _walk(path, depth - 1)
        elif path.is_file():
            yield path


def _names(paths: list[Path], suffix: bool = False) -> dict[Path, str]:
    """A name for each file, its own where that is free and allowed."""
    names: dict[Path, str] = {}
    taken: set[str] = {DESCRIPTION, *OWN} if suffix else set()
    for path in paths:
        own = re.sub(r'[\\/:*?"<>|\s]+', "-", path.name if suffix else path.stem).strip(".- ")
        own = own or "file"
        name, number = own, 2
        while name in taken:
            name, number = f"{own}-{number}", number + 1
        taken.add(name)
        names[path] = name
    return names


def _disk(folder: Path, path: Path, volume: str) -> Disk:
    where = path.relative_to(folder).as_posix()
    image_format = formats.by_name(path)
    options = traits.vmdk_options(path) if image_format == "vmdk" else ""
    return Disk(volume, where, image_format, options, traits.identity(path, image_format))


# -- in ----------------------------------------------------------------------------------------


def bring_in(
    vault: Vault,
    folder: Path,
    branch: str,
    *,
    message: str = "",
    author: str | None = None,
    progress: Progress | None = None,
) -> tuple[Folder, Any]:
    """Make a hypervisor's machine the next snapshot of a branch; return that snapshot, too."""
    found = recognise(folder)
    sources = [_source(folder, disk) for disk in found.disks]
    files: dict[str, bytes | Path] = {name: folder / path for name, path in found.files.items()}
    files[DESCRIPTION] = found.encode()
    made = compose.compose(
        vault, branch, sources, files,
        message=message, author=author, origin=str(folder), progress=progress,
    )  # fmt: skip
    return found, made


def _source(folder: Path, disk: Disk) -> compose.Source:
    """A disk to read.  A VMDK may name further files as its extents, if they lie in the folder."""
    path = folder / disk.path
    trusted = disk.format == "vmdk" and _all_inside(folder, path)
    return compose.Source(disk.volume, image=path, format=disk.format, trusted=trusted)


def _all_inside(folder: Path, vmdk: Path) -> bool:
    """Whether an image stands on no other, and all of its extents are files of the folder.

    Those that its header names, before QEMU opens them; then those that QEMU has found.
    """

    def inside(other: str) -> bool:
        return Path(other).resolve().is_relative_to(folder.resolve())

    if not all(map(inside, headers.others(vmdk, "vmdk"))):
        return False
    info = images.image_info(vmdk, "vmdk")
    return "backing-filename" not in info and all(map(inside, images.data_files(vmdk, info)))


# -- and out -----------------------------------------------------------------------------------


def give_back(vault: Vault, rev: str, folder: Path, *, progress: Progress | None = None) -> Folder:
    """Write a machine that came from a folder as such a folder again.

    Its files are those of the newest snapshot that has them; its disks are those of the revision.
    """
    known = attachments.inherited(vault, vault.resolve(rev), DESCRIPTION)
    if known is None:
        raise NotFound(
            f"'{rev}' did not come from a hypervisor's folder; 'checkout' without --machine "
            "writes its volumes",
            kind="no-machine",
        )
    found = Folder.decode(attachments.content(vault, known.attachments, DESCRIPTION))
    with targets.written_folder(folder) as place:
        for name, path in found.files.items():
            kept = attachments.find(known.attachments, name)
            if kept is None:
                raise Damaged(f"the snapshot lacks attachment '{name}' of its machine")
            with open(_place(place, path), "xb") as file:
                attachments.restore(vault, kept, file.fileno())
        for disk in found.disks:
            _write_disk(vault, rev, disk, _place(place, disk.path), progress)
    return found


def _place(folder: Path, path: str) -> Path:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write_disk(
    vault: Vault, rev: str, disk: Disk, target: Path, progress: Progress | None
) -> None:
    """The disk in the format that it had; one that qemu-img cannot write as it was is sparse."""
    options = traits.writable(disk.options)
    if not options:
        export.export(vault, rev, disk.volume, target, format=disk.format, progress=progress)
    else:
        raw = target.with_name(f"{target.name}.raw")
        try:
            export.export(vault, rev, disk.volume, raw, format="raw", progress=progress)
            programs.run(
                [
                    *("qemu-img", "convert", "-f", "raw", "-O", disk.format, "-o", options),
                    *(formats.file_name(raw), formats.file_name(target)),
                ],
                f"{disk.path} could not be written as {disk.format} ({options})",
            )
        finally:
            raw.unlink(missing_ok=True)
    if disk.identity:
        traits.identify(target, disk.format, disk.identity)
