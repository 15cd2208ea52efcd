"""Folders of other hypervisors: in, changed, and out again, as those write them.

The hypervisors are not here; their disks are written by qemu-img, which knows their formats, and
their other files are only kept, so any bytes will do.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, Damaged, NotFound, ToolFailed, VaultError
from blockvault.ops import headers, programs
from blockvault.vm import folders, references, traits
from blockvault.vm.folders import Folder, bring_in, give_back, recognise
from blockvault.vm.machine import OWN, Machine
from blockvault.vm.planning import plan

Tool = Callable[[str], str]
CREATE = 0x188


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault") as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path, need_tool: Tool) -> Callable[..., Path]:
    """``disk(path, format, options)``: an image in that format, with something on it."""
    qemu_img = need_tool("qemu-img")

    def make(path: Path, image_format: str, options: str = "") -> Path:
        raw = tmp_path / "source.raw"
        with open(raw, "wb") as file:
            file.truncate(8 << 20)
            file.write(random.Random(path.name).randbytes(300_000))
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = ["-o", options] if options else []
        words = [qemu_img, "convert", "-f", "raw", "-O", image_format, *extra, raw, path]
        subprocess.run(words, check=True)
        return path

    return make


def same_disk(a: Path, b: Path, image_format: str) -> None:
    words = ["qemu-img", "compare", "-f", image_format, "-F", image_format, a, b]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def noise(path: Path, size: int = 50_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(path.name).randbytes(size))


def virtualbox(folder: Path, disk: Callable[..., Path]) -> None:
    identity = uuid.uuid4()
    path = disk(folder / "web server.vdi", "vdi")
    with open(path, "r+b") as file:
        file.seek(CREATE)
        file.write(identity.bytes_le)
    (folder / "web.vbox").write_text(f'<HardDisk uuid="{{{identity}}}" location="web server.vdi"/>')
    (folder / "web.vbox-prev").write_text("old")
    noise(folder / "Snapshots" / "2026-11-23.sav")
    noise(folder / "web.nvram", 540_672)
    noise(folder / "Logs" / "VBox.log")


def vmware(folder: Path, disk: Callable[..., Path]) -> None:
    disk(folder / "db.vmdk", "vmdk", "subformat=monolithicFlat,adapter_type=lsilogic")
    disk(folder / "db-data.vmdk", "vmdk", "subformat=streamOptimized")
    (folder / "db.vmx").write_text('scsi0:0.fileName = "db.vmdk"\n')
    for name in ("db.nvram", "db-Snapshot1.vmsn", "db.vmem", "db.vmss"):
        noise(folder / name)
    (folder / "db.vmsd").write_bytes(b"")


def hyper_v(folder: Path, disk: Callable[..., Path]) -> None:
    disk(folder / "Virtual Hard Disks" / "disk.vhdx", "vhdx")
    number = "0F7D5A3C"
    for ending in ("vmcx", "vmrs", "VMRS.vmgs"):
        noise(folder / "Virtual Machines" / f"{number}.{ending}")


def xen(folder: Path, disk: Callable[..., Path]) -> None:
    disk(folder / "root.qcow2", "qcow2")
    disk(folder / "swap.img", "raw")
    (folder / "guest.cfg").write_text("disk = ['root.qcow2,qcow2,xvda']\n")


def appliance(folder: Path, disk: Callable[..., Path]) -> None:
    """One of VirtualBox's whose disks are not in its own format."""
    for name, options in (("a", "streamOptimized"), ("b", "monolithicFlat")):
        path = disk(folder / f"{name}.vmdk", "vmdk", f"subformat={options}")
        with open(path, "r+b") as file:
            before, last, rest = file.read(1 << 16).partition(b"ddb.toolsVersion")
            lines = f'ddb.uuid.image="{uuid.uuid4()}"\nddb.uuid.parent="{uuid.UUID(int=0)}"\n'
            file.seek(len(before))
            file.write(lines.encode() + last + rest.partition(b"\0")[0])
    disk(folder / "c.vhd", "vpc")
    (folder / "web.vbox").write_text("<VirtualBox/>")


MAKERS = {
    "appliance": appliance,
    "virtualbox": virtualbox,
    "vmware": vmware,
    "hyper-v": hyper_v,
    "xen": xen,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_in_and_out_again(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path], kind: str
) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again"
    MAKERS[kind](folder, disk)
    found, made = bring_in(vault, folder, "guest", message="in")
    assert found.kind == ("virtualbox" if kind == "appliance" else kind)
    assert [volume.name for volume in made.volumes] == sorted(d.volume for d in found.disks)
    give_back(vault, "guest", again)
    for each in found.disks:
        same_disk(folder / each.path, again / each.path, each.format)
        assert each.identity in (again / each.path).read_bytes()[:4096].hex()
    for path in found.files.values():
        assert (again / path).read_bytes() == (folder / path).read_bytes()
    assert recognise(again) == found, "what came out is recognised as what went in"
    # Taken in again, nothing differs.
    _, second = bring_in(vault, again, "guest")
    assert second.volumes == made.volumes


def test_what_virtualbox_compares_comes_back(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again"
    appliance(folder, disk)
    bring_in(vault, folder, "guest")
    give_back(vault, "guest", again)
    for name in ("a.vmdk", "b.vmdk"):
        before, after = ((each / name).read_bytes()[: 1 << 16] for each in (folder, again))
        lines = re.findall(rb"ddb\.uuid\S+", before)
        assert len(lines) == 2
        assert re.findall(rb"ddb\.uuid\S+", after) == lines
    before, after = ((each / "c.vhd").read_bytes() for each in (folder, again))
    assert after[:512] == after[-512:]
    assert after[0x44:0x54] == before[0x44:0x54]
    footer = bytearray(after[-512:])
    footer[0x40:0x44] = bytes(4)
    assert after[-0x1C0:-0x1BC] == (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")


@pytest.mark.parametrize("known", [False, True], ids=["now", "as it was recorded before"])
def test_disks_of_a_datastore_come_back(
    vault: Vault,
    tmp_path: Path,
    disk: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """qemu-img reads what it cannot write: a flat one is written as such, another one sparse."""
    folder, again = tmp_path / "folder", tmp_path / "again"
    vmware(folder, disk)
    image = folder / "db.vmdk"
    text = image.read_text().replace("monolithicFlat", "vmfs").replace(" FLAT ", " VMFS ")
    text = text.replace('flat.vmdk" 0', 'flat.vmdk"').replace('"lsilogic"', '"pvscsi"')
    image.write_text(text)
    if known:
        monkeypatch.setattr(traits, "writable", lambda options: options)
    found, _ = bring_in(vault, folder, "guest")
    assert (found.disks[1].options == "subformat=vmfs,adapter_type=pvscsi") == known
    monkeypatch.undo()
    give_back(vault, "guest", again)
    same_disk(image, again / "db.vmdk", "vmdk")
    assert 'createType="monolithicFlat"' in (again / "db.vmdk").read_text()


@pytest.mark.parametrize("made", [False, True], ids=["a new one", "an empty one"])
def test_nothing_is_left_of_a_folder_that_cannot_be_written(
    vault: Vault,
    tmp_path: Path,
    disk: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    made: bool,
) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again"
    vmware(folder, disk)
    bring_in(vault, folder, "guest")
    if made:
        again.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(traits, "writable", lambda _: "subformat=none")
        with pytest.raises(ToolFailed):
            give_back(vault, "guest", again)
    assert again.exists() == made
    give_back(vault, "guest", again)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}


def test_disks_are_those_of_the_revision(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    folder = tmp_path / "folder"
    xen(folder, disk)
    bring_in(vault, folder, "guest")
    with vault.session("guest") as session:
        session.device("swap").write(0, b"later")
    give_back(vault, "guest", tmp_path / "now")
    give_back(vault, "guest~0", tmp_path / "then")
    assert (tmp_path / "now" / "swap.img").read_bytes()[:5] == b"later"
    assert (tmp_path / "then" / "swap.img").read_bytes() == (folder / "swap.img").read_bytes()


def test_what_is_no_machine(vault: Vault, tmp_path: Path, disk: Callable[..., Path]) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(NotFound):
        recognise(folder)
    folder.mkdir()
    with pytest.raises(NotFound):
        recognise(folder)
    xen(folder, disk)
    (folder / "other.vmx").write_text("")
    with pytest.raises(BadRequest, match="several machines"):
        recognise(folder)
    (folder / "other.vmx").unlink()
    (folder / "root.qcow2.lck").mkdir()
    with pytest.raises(Busy):
        recognise(folder)
    with pytest.raises(NotFound):
        give_back(vault, "main", tmp_path / "out")


def test_a_disk_that_stands_on_another_is_refused(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path], need_tool: Tool
) -> None:
    folder = tmp_path / "folder"
    xen(folder, disk)
    base = folder / "root.qcow2"
    base.rename(tmp_path / "base.qcow2")
    words = [need_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
    subprocess.run([*words, tmp_path / "base.qcow2", base], check=True)
    with pytest.raises(BadRequest) as caught:
        bring_in(vault, folder, "guest")
    assert caught.value.reason == "backing-file"
    assert [branch.name for branch in vault.branches()] == ["main"]


def test_a_full_directory_is_left_alone(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    folder = tmp_path / "folder"
    xen(folder, disk)
    bring_in(vault, folder, "guest")
    with pytest.raises(Conflict):
        give_back(vault, "guest", folder)


VBOX = """<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{{cf6a3d7e-0b2c-4a77-9a8e-0f4d5c3b2a10}}" name="web" OSType="Debian_64">
    <MediaRegistry>
      <HardDisks>
        <HardDisk uuid="{{1b4e28ba-2fa1-11d2-883f-0016d3cca427}}" location="{location}"
          format="VDI" type="Normal">{inside}</HardDisk>
      </HardDisks>
      <DVDImages><Image uuid="{{}}" location="/usr/share/debian.iso"/></DVDImages>
    </MediaRegistry>
  </Machine>
</VirtualBox>
"""
CHILD = '<HardDisk uuid="{2}" location="Snapshots/{2}.vdi" format="VDI"/>'


@pytest.mark.parametrize(
    ("location", "inside", "kind"),
    [
        ("web server.vdi", "", None),
        ("/home/me/VirtualBox VMs/web/web server.vdi", "", None),
        ("C:\\Users\\me\\web\\web server.vdi", "", None),
        ("/mnt/big/data.vdi", "", "disk-missing"),
        ("Snapshots/web server.vdi", "", "disk-missing"),
        ("web server.vdi", CHILD, "backing-file"),
        ("web server.vdi", "<", "bad-request"),
    ],
)
def test_disks_that_a_vbox_file_names(
    tmp_path: Path, disk: Callable[..., Path], location: str, inside: str, kind: str | None
) -> None:
    virtualbox(tmp_path / "web", disk)
    text = VBOX.format(location=location, inside=inside)
    (tmp_path / "web" / "web.vbox").write_text(text)
    judged(tmp_path / "web", kind)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('scsi0:1.fileName = "db-data.vmdk"', None),
        ('ide1:0.fileName = "/iso/debian.iso"\nide1:0.deviceType = "cdrom-image"', None),
        ('ide1:0.fileName = "auto detect"', None),
        ('scsi0:1.fileName = "/vmfs/volumes/ds2/db/db-data.vmdk"', None),
        ('SCSI0:2.filename = "/vmfs/volumes/ds2/other/logs.vmdk"', "disk-missing"),
        ('scsi0:0.fileName = "db-000001.vmdk"', "disk-missing"),
    ],
)
def test_disks_that_a_vmx_file_names(
    tmp_path: Path, disk: Callable[..., Path], line: str, kind: str | None
) -> None:
    vmware(tmp_path / "db", disk)
    with open(tmp_path / "db" / "db.vmx", "a") as file:
        file.write(f'.encoding = "UTF-8"\nscsi0.present = "TRUE"\n{line}\n')
    judged(tmp_path / "db", kind)


@pytest.mark.parametrize(
    ("disks", "kind"),
    [
        ("'root.qcow2,qcow2,xvda,rw', 'swap.img,raw,xvdb'", None),
        ("'file:/var/xen/guest/swap.img,xvdb,w',\n  'tap:aio:root.qcow2,xvda,w'", None),
        ("'format=qcow2, vdev=xvda, access=rw, target=root.qcow2'", None),
        ("'/isos/debian.iso,raw,hdc,cdrom', ',,hdd,,cdrom'", None),
        ("'phy:/dev/vg0/guest,xvda,w'", "disk-missing"),
        ("'format=raw,vdev=xvdb,target=/dev/vg0/guest'", "disk-missing"),
    ],
)
def test_disks_that_a_xen_file_names(
    tmp_path: Path, disk: Callable[..., Path], disks: str, kind: str | None
) -> None:
    xen(tmp_path / "guest", disk)
    text = f"name = 'guest'\n# disk = [ 'phy:/dev/old,xvda,w' ]\nmemory = 512\ndisk = [ {disks} ]\n"
    (tmp_path / "guest" / "guest.cfg").write_text(text)
    judged(tmp_path / "guest", kind)


@pytest.mark.parametrize("name", ["a.vmx", "a.cfg"])
@pytest.mark.parametrize("text", ["\n", "disk = [\n", "a:0.fileName =\n", 'a:0.fileName = "\n'])
def test_a_configuration_that_says_little_at_length(tmp_path: Path, name: str, text: str) -> None:
    """Whoever looked through all of it from each line on would not be done within the hour."""
    (tmp_path / name).write_text(text * 400_000)
    references.check(tmp_path, tmp_path / name, [])


def test_of_a_huge_configuration_only_the_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vmx"
    path.write_text('scsi0:0.fileName = "missing.vmdk"\n')
    os.truncate(path, 1 << 43)
    with pytest.raises(BadRequest, match="missing"):
        references.check(tmp_path, path, [])


def judged(folder: Path, kind: str | None) -> None:
    if kind is None:
        assert recognise(folder).disks
        return
    with pytest.raises(BadRequest) as caught:
        recognise(folder)
    assert caught.value.reason == kind


def test_snapshots_of_the_hypervisors_own(tmp_path: Path, disk: Callable[..., Path]) -> None:
    hyper_v(tmp_path / "h", disk)
    noise(tmp_path / "h" / "Virtual Hard Disks" / "disk_9F1C.avhdx")
    noise(tmp_path / "h" / "Snapshots" / "9F1C.vmcx")
    virtualbox(tmp_path / "v", disk)
    child = disk(tmp_path / "v" / "Snapshots" / "{9f1c}.vdi", "vdi")
    with open(child, "r+b") as file:
        file.seek(0x4C)
        file.write((4).to_bytes(4, "little"))  # what a differencing image says that it is
    vmware(tmp_path / "w", disk)
    (tmp_path / "w" / "db-000001.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=5f0d1c2b\nparentCID=1a2b3c4d\n"
        'createType="vmfsSparse"\nparentFileNameHint="db.vmdk"\n'
    )
    for name in "hvw":
        with pytest.raises(BadRequest, match="snapshots of its hypervisor") as caught:
            recognise(tmp_path / name)
        assert caught.value.reason == "backing-file"


def reaching_out(folder: Path, kind: str) -> Path:
    """A machine whose disk has an extent in the folder, which has one in a file of the host."""
    secret = folder.with_name("secret")
    noise(secret, 64 << 10)
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="vmfsSparse"\n'
    folder.mkdir()
    (folder / "m.vmx").write_text('scsi0:0.fileName = "disk.vmdk"\n')
    (folder / "disk.vmdk").write_text(f'{text}RW 128 {kind} "disk-s001.vmdk"\n')
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 2, 20).ljust(1024, b"\0")
    (folder / "disk-s001.vmdk").write_bytes(head + f'{text}RW 128 FLAT "{secret}" 0\n'.encode())
    return secret


@pytest.mark.parametrize("kind", ["SPARSE", "VMFSSPARSE", "SESPARSE", "VMFSRDM"])
def test_no_extent_of_an_extent_is_outside_of_the_folder(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    reaching_out(tmp_path / "folder", kind)
    with pytest.raises(BadRequest) as refused:
        bring_in(vault, tmp_path / "folder", "guest")
    assert refused.value.reason == "backing-file"
    assert [branch.name for branch in vault.branches()] == ["main"]


@pytest.mark.parametrize("kind", ["SPARSE", "VMFSSPARSE"])
def test_what_qemu_finds_outside_of_the_folder_counts_as_well(
    vault: Vault, tmp_path: Path, need_tool: Tool, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Should it read a header in another way than we do."""
    need_tool("qemu-img")
    secret = reaching_out(tmp_path / "folder", kind)
    monkeypatch.setattr(headers, "others", lambda *_: iter(()))
    with pytest.raises(BadRequest, match=f"another file, .*{secret.name}") as refused:
        bring_in(vault, tmp_path / "folder", "guest")
    assert refused.value.reason == "backing-file"


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_a_description_cannot_lead_out_of_the_folder(path: str) -> None:
    bad = Folder("xen", "a.cfg", (), {"a.cfg": path}).encode()
    with pytest.raises(Damaged):
        Folder.decode(bad)
    for text in (b"", b"[]", b"{}", b'{"version": 9}'):
        with pytest.raises(VaultError):
            Folder.decode(text)


def test_names_are_made_unique(tmp_path: Path) -> None:
    names = ["a/x.vdi", "b/x.vdi", "b/..vdi", "c/-.vdi", "folder.json.vdi"]
    paths = [tmp_path / name for name in names]
    assert list(folders._names(paths).values()) == ["x", "x-2", "file", "file-2", "folder.json"]


def test_no_file_of_a_folder_is_taken_for_one_of_this_program(
    vault: Vault, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    """Its sender would say what QEMU is started with."""
    folder, again = tmp_path / "folder", tmp_path / "again"
    xen(folder, disk)
    (folder / "machine.json").write_bytes(
        Machine(memory=64 << 20, disks=("root",), qemu_args=("-incoming", "exec:x")).encode()
    )
    brought = {"machine.json", "folder.json", "memory.json", "state.json", "qemu-command.json"}
    brought |= {"kernel", "initrd", "saved/memory", "saved/device-state"}
    for name in brought - {"machine.json"}:
        noise(folder / name, 100)
    _, made = bring_in(vault, folder, "guest")
    kept = {each.name for each in made.attachments}
    assert not kept & OWN
    assert {f"{Path(name).name}-2" for name in brought} <= kept
    with pytest.raises(NotFound) as refused:
        plan(vault, "guest")
    assert refused.value.reason == "no-machine"
    give_back(vault, "guest", again)
    for name in brought:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_by_the_commands(vault: Vault, tmp_path: Path, disk: Callable[..., Path]) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again"
    vmware(folder, disk)
    program = [sys.executable, "-m", "blockvault.cli.main", "-V", str(vault.path)]
    subprocess.run([*program, "import", "--machine", folder, "-b", "guest"], check=True)
    subprocess.run([*program, "checkout", "guest", again, "--machine"], check=True)
    same_disk(folder / "db.vmdk", again / "db.vmdk", "vmdk")
    assert (again / "db.vmss").read_bytes() == (folder / "db.vmss").read_bytes()
