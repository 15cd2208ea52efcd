"""Image files: formats by tool, block devices, and what an image must not make us read."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, IOFailed, NoSpace, ToolFailed
from blockvault.ops import check, compare, copying, export, formats, programs
from blockvault.ops.ingest import Image, import_images
from tests.conftest import skip
from tests.oracle import BLOCK, noise

FORMATS = [name for name in formats.FORMATS if name != "raw"]
SUFFIX = {"vpc": ".vhd"}
SIZE = 5 << 20
DATA = noise(1, 200_000) + bytes(3 << 20) + noise(2, 70_000)
DATA += bytes(SIZE - len(DATA))

Run = Callable[..., str]


@pytest.fixture
def qemu_img(need_tool: Callable[[str], str]) -> Run:
    tool = need_tool("qemu-img")

    def run(*arguments: object) -> str:
        return subprocess.run(
            [tool, *map(str, arguments)], check=True, capture_output=True, text=True
        ).stdout

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_out_and_in_again(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, name: str
) -> None:
    import_images(vault, [Image(raw, "v")])
    target = tmp_path / f"out{SUFFIX.get(name, '.' + name)}"
    done = export.export(vault, "main~0", "v", target, format=name)
    assert (done.volume, done.size, done.path) == ("v", SIZE, target)
    qemu_img("compare", "-f", "raw", "-F", name, raw, target)
    import_images(vault, [Image(target, "again")])
    again = vault.open_volume("main~0", "again").read()
    assert again == DATA
    told = json.loads(qemu_img("info", "--output=json", "-f", name, target))
    assert told["virtual-size"] == SIZE
    assert compare.diff_file(vault, "main~0", "v", target).extents == ()
    assert not list(vault.path.glob("import-*")), "nothing is left of the decoded image"


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_vhd_comes_in_to_its_end_whatever_geometry_it_has(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, subformat: str
) -> None:
    """Those who follow its specification round that down, and give their guests all of the disk."""
    data = DATA[:-512] + noise(3, 512)
    raw.write_bytes(data)
    image = tmp_path / "of a, b=c.vhd"
    options = f"force_size=on,subformat={subformat}"
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", options, raw, image)
    made = bytearray(image.read_bytes())
    for at in {0, len(made) - 512} if subformat == "dynamic" else {len(made) - 512}:
        footer = made[at : at + 512]
        assert footer.startswith(b"conectix")
        footer[28:32], footer[56:60] = b"vbox", struct.pack(">HBB", 150, 4, 17)
        footer[64:68] = bytes(4)
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
        made[at : at + 512] = footer
    image.write_bytes(made)
    import_images(vault, [Image(image, "v")])
    assert vault.open_volume("main~0").read() == data


@pytest.mark.parametrize("name", ["qcow2", "vmdk"])
def test_a_backing_file_is_read_only_when_allowed(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, name: str
) -> None:
    base = tmp_path / f"base.{name}"
    qemu_img("convert", "-O", name, raw, base)
    top = tmp_path / f"top.{name}"
    qemu_img("create", "-f", name, "-b", base, "-F", name, top)
    with pytest.raises(BadRequest) as refused:
        import_images(vault, [Image(top, "v")])
    assert refused.value.reason == "backing-file"
    assert vault.branch().tip is None
    import_images(vault, [Image(top, "v")], allow_backing=True)
    assert vault.open_volume("main~0").read() == DATA


def test_an_external_data_file_is_refused(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run
) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", top, "1M")
    with pytest.raises(BadRequest) as refused:
        import_images(vault, [Image(top, "v")])
    assert refused.value.reason == "backing-file"


def test_an_extent_of_the_images_own_name_in_another_folder_is_refused(
    vault: Vault, tmp_path: Path, need_tool: Callable[[str], str]
) -> None:
    need_tool("qemu-img")
    other = tmp_path / "other" / "disk.vmdk"
    other.parent.mkdir()
    other.write_bytes(noise(3, 64 << 10))
    top = tmp_path / "disk.vmdk"
    descriptor(top, other)
    with pytest.raises(BadRequest, match=f"another file, {other};") as refused:
        import_images(vault, [Image(top, "v")])
    assert refused.value.reason == "backing-file"
    import_images(vault, [Image(top, "v")], allow_backing=True)
    assert vault.open_volume("main~0", "v").read()[: 64 << 10] == other.read_bytes()


DESCRIPTOR = (
    "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
    'createType="monolithicFlat"\n\nRW\n128 {kind}\t"{name}" 0\n\nddb.adapterType = "ide"\n'
)


def descriptor(path: Path, name: object, kind: str = "FLAT") -> None:
    """A VMDK that has its data elsewhere."""
    path.write_text(DESCRIPTOR.format(kind=kind, name=name))


def in_a_sparse_one(path: Path, name: object, kind: str = "FLAT") -> None:
    """The same in a header of another sort: no capacity, and text from the third sector on."""
    header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, (1 << 55) + 2, 20)
    path.write_bytes(header.ljust(1024, b"\0") + DESCRIPTOR.format(kind=kind, name=name).encode())


HEADED = ["SPARSE", "VMFSSPARSE", "SESPARSE"]
"""Types of extents in which QEMU looks for a header."""


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", ["{place}/pipe", "pipe", "nbd+unix:///x?socket={place}/socket"])
@pytest.mark.parametrize("how", [descriptor, in_a_sparse_one, *HEADED])
def test_qemu_sees_no_image_that_names_what_is_no_file(
    vault: Vault,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Any,
    name: str,
    trusted: bool,
) -> None:
    """It would wait for the pipe, and ask the server."""
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    os.mkfifo(tmp_path / "pipe")
    top, named = tmp_path / "top.vmdk", name.format(place=tmp_path)
    if how in HEADED:
        (tmp_path / "sub").mkdir()
        descriptor(top, "sub/inner.vmdk", how)
        in_a_sparse_one(tmp_path / "sub" / "inner.vmdk", named)
    else:
        how(top, named)
    with pytest.raises(BadRequest) as refused:
        import_images(vault, [Image(top, "v")], allow_backing=trusted)
    assert refused.value.reason == "backing-file"
    assert vault.branch().tip is None


@pytest.mark.parametrize("trusted", [False, True])
def test_to_an_extent_a_name_is_a_path_whatever_it_begins_with(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """Else another file would be looked at than the one that QEMU opens."""
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(64 << 10))
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(tmp_path / "elsewhere" / "b")
    (tmp_path / "file:a").symlink_to("elsewhere")
    descriptor(tmp_path / "top.vmdk", "file:a/b")
    with pytest.raises(BadRequest, match="neither a file"):
        import_images(vault, [Image(tmp_path / "top.vmdk", "v")], allow_backing=trusted)


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "-F", "raw", "-b", "file:there"),
        ("-u", "-F", "qcow2", "-b", "link/../base.qcow2"),
        ("-o", "data_file=there"),
    ],
)
def test_a_trusted_image_is_looked_at_as_qemu_does(
    vault: Vault, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Some names count from where that was started, and ``..`` may be behind a link."""
    folder, here, behind = (tmp_path / name for name in ("folder", "here", "behind"))
    for place in (folder, here, behind, behind / "it"):
        place.mkdir()
    (folder / "link").symlink_to(behind / "it")
    qemu_img("create", "-f", "qcow2", folder / "base.qcow2", "1M")
    pipe = here / "there"
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", pipe, behind / "base.qcow2", "1M")
    monkeypatch.chdir(folder)
    qemu_img("create", "-f", "qcow2", *words, "top.qcow2", "1M")
    (folder / "there").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(here)
    os.mkfifo(pipe)
    run = programs.run

    def described(command: list[str], *arguments: Any, **named: Any) -> str:
        assert "convert" not in command
        return run(command, *arguments, **named)

    monkeypatch.setattr(programs, "run", described)
    with pytest.raises(BadRequest, match="there, which is neither a file"):
        import_images(vault, [Image(folder / "top.qcow2", "v")], allow_backing=True)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("kind", ["VMFSRDM", "sparse", "SPARSE2"])
def test_an_extent_of_a_type_that_is_not_known_is_refused(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, trusted: bool
) -> None:
    """Another QEMU may follow it, to wherever that leads."""
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    (tmp_path / "inner.vmdk").write_bytes(bytes(64 << 10))
    descriptor(tmp_path / "top.vmdk", "inner.vmdk", kind)
    with pytest.raises(BadRequest, match=f"unknown type, {kind}") as refused:
        import_images(vault, [Image(tmp_path / "top.vmdk", "v")], allow_backing=trusted)
    assert refused.value.reason == "backing-file"


@pytest.mark.parametrize("deep", [False, True], ids=["itself", "what it stands on"])
@pytest.mark.parametrize(
    "name",
    ["{place}/pipe", "pipe", "nbd+unix:///x?socket={place}/socket", 'json:{{"driver":"nbd"}}'],
)
def test_a_trusted_image_stands_on_files_only(
    vault: Vault,
    tmp_path: Path,
    qemu_img: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    deep: bool,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    image, top = tmp_path / "image.qcow2", tmp_path / "top.qcow2"
    backing = name.format(place=tmp_path)
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, image, "1M")
    if deep:
        qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", image, top, "1M")
    run = programs.run

    def described(command: list[str], *arguments: Any, **named: Any) -> str:
        assert "convert" not in command
        return run(command, *arguments, **named)

    monkeypatch.setattr(programs, "run", described)
    with pytest.raises(BadRequest, match="neither a file") as refused:
        import_images(vault, [Image(top if deep else image, "v")], allow_backing=True)
    assert refused.value.reason == "backing-file"


def test_a_trusted_image_says_in_which_format_it_stands_on_another(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would find a header that a guest has written there, and follow that."""
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", raw, top)
    old = top.read_bytes()
    assert old.count(b"\xe2\x79\x2a\xca") == 1
    top.write_bytes(old.replace(b"\xe2\x79\x2a\xca", b"none"))  # as old programs wrote them
    run = programs.run

    def described(command: list[str], *arguments: Any, **named: Any) -> str:
        assert "convert" not in command
        return run(command, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(programs, "run", described)
        with pytest.raises(BadRequest, match="in which format") as refused:
            import_images(vault, [Image(top, "v")], allow_backing=True)
    assert refused.value.reason == "backing-file"
    assert f"rebase -u -F FORMAT -b {raw} {top}'" in str(refused.value)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", raw, top)
    import_images(vault, [Image(top, "v")], allow_backing=True)
    assert vault.open_volume("main~0").read() == DATA


def test_an_image_that_stands_on_nothing_that_is_there(
    vault: Vault, tmp_path: Path, qemu_img: Run
) -> None:
    top, base = tmp_path / "top.qcow2", tmp_path / "base.qcow2"
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, top, "1M")
    with pytest.raises(ToolFailed, match=base.name):
        import_images(vault, [Image(top, "v")], allow_backing=True)


def test_the_data_of_a_trusted_qcow2_is_in_a_file(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, data = tmp_path / "top.qcow2", tmp_path / "data"
    qemu_img("convert", "-O", "qcow2", "-o", f"data_file={data}", raw, top)
    import_images(vault, [Image(top, "v")], allow_backing=True)
    assert vault.open_volume("main~0").read() == DATA
    data.unlink()
    os.mkfifo(data)
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    with pytest.raises(BadRequest, match="neither a file") as refused:
        import_images(vault, [Image(top, "v")], allow_backing=True)
    assert refused.value.reason == "backing-file"


def test_images_that_stand_on_each_other_are_refused(
    vault: Vault, tmp_path: Path, qemu_img: Run
) -> None:
    one, other = tmp_path / "one.qcow2", tmp_path / "other.qcow2"
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, one, "1M")
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", one, other, "1M")
    with pytest.raises(BadRequest, match="refers to itself"):
        import_images(vault, [Image(one, "v")], allow_backing=True)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_vmdk_that_consists_of_itself_is_refused(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr(programs, "run", lambda *_, **__: pytest.fail("qemu-img was asked"))
    image = tmp_path / "disk.vmdk"
    in_a_sparse_one(image, image.name, "SPARSE")
    with pytest.raises(BadRequest, match="refers to itself"):
        import_images(vault, [Image(image, "v")], allow_backing=trusted)


def test_what_a_guest_wrote_into_a_vmdk_names_nothing(
    vault: Vault, tmp_path: Path, qemu_img: Run
) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(DESCRIPTOR.format(kind="FLAT", name="/dev/watchdog").encode().ljust(1 << 20))
    for subformat in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"):
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, image)
        import_images(vault, [Image(image, "v")], allow_backing=subformat != "monolithicSparse")
        assert vault.open_volume("main~0").read() == raw.read_bytes()


def with_room_for(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A disk with so many free bytes, of which what is decoded takes its share."""

    def usage(place: Path) -> SimpleNamespace:
        used = sum(path.stat().st_blocks * 512 for path in place.iterdir())
        return SimpleNamespace(free=limit - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_an_image_that_would_fill_the_disk_is_not_decoded(
    vault: Vault, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the file is that it is compressed in."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"a" * SIZE + bytes(SIZE))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", raw, image)
    assert image.stat().st_size < SIZE // 4
    with_room_for(monkeypatch, SIZE + SIZE // 4)
    with pytest.raises(NoSpace, match="decoding"):
        import_images(vault, [Image(image, "v")])
    with_room_for(monkeypatch, SIZE + SIZE // 2)
    import_images(vault, [Image(image, "v")])
    assert vault.open_volume("main~0").read() == raw.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_needs_no_room_for_its_zeros(
    vault: Vault, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not every format tells of them before it is decoded."""
    size = 256 << 20
    image = tmp_path / f"empty{SUFFIX.get(name, '.' + name)}"
    qemu_img("create", "-f", name, image, size)
    with_room_for(monkeypatch, 16 << 20)
    import_images(vault, [Image(image, "v")])
    assert vault.device("main~0").size >= size


def test_a_program_is_ended_by_what_watches_it() -> None:
    calls = iter([None, NoSpace("no room")])

    def watch() -> None:
        if error := next(calls):
            raise error

    with pytest.raises(NoSpace, match="no room"):
        programs.run(["sleep", "600"], "no image", watch=watch)


@pytest.mark.parametrize(
    ("said", "error"),
    [("error while writing at byte 0: No space left on device", NoSpace), ("no", ToolFailed)],
)
def test_a_full_disk_is_told_from_a_bad_image(said: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"no image: {said}"):
        programs.run(["sh", "-c", f"echo '{said}' >&2; exit 1"], "no image")


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ToolFailed, match="no image: sleep was ended after 0 seconds"):
        programs.run(["sleep", "600"], "no image", seconds=0.01)


def test_an_image_behind_a_link_is_its_own_extent(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run
) -> None:
    image, link = tmp_path / "image.vmdk", tmp_path / "link.vmdk"
    qemu_img("convert", "-O", "vmdk", raw, image)
    link.symlink_to(image)
    import_images(vault, [Image(link, "v")])
    assert vault.open_volume("main~0").read() == DATA


def test_a_raw_disk_is_never_probed(vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run) -> None:
    """A guest may write a header of another format into its disk; it stays bytes."""
    inner = tmp_path / "guest.img"
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", inner)
    import_images(vault, [Image(inner, "v", "raw")])
    assert vault.open_volume("main~0").read() == inner.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_is_named_as_a_raw_one_waits_for_a_word(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, name: str
) -> None:
    image = tmp_path / "cloud.img"
    qemu_img("convert", "-f", "raw", "-O", name, raw, image)
    with pytest.raises(BadRequest, match=f"begins as a {name} image") as refused:
        import_images(vault, [Image(image, "v")])
    assert refused.value.reason == "format-unknown"
    assert vault.branch().tip is None
    import_images(vault, [Image(image, "v", name), Image(image, "container", "raw")])
    assert vault.open_volume("main~0", "v").read()[:SIZE] == DATA
    assert vault.open_volume("main~0", "container").read() == image.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_image_of_its_format(vault: Vault, raw: Path, qemu_img: Run, name: str) -> None:
    with pytest.raises(ToolFailed):
        import_images(vault, [Image(raw, "v", name)])


def test_a_missing_tool_is_named(
    vault: Vault, raw: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolFailed, match="qemu-img is not installed") as refused:
        import_images(vault, [Image(raw, "v", "qcow2")])
    assert refused.value.reason == "tool-missing"


@pytest.mark.parametrize(
    ("file", "stated", "found"),
    [("a.img", None, "raw"), ("a", None, "raw"), ("a.QCOW2", None, "qcow2"), ("a.vhd", None, "vpc"),
     ("a.iso", None, "raw"), ("a.qcow2", "raw", "raw"), ("a.xyz", "vdi", "vdi")],
)  # fmt: skip
def test_formats_by_name(file: str, stated: str | None, found: str) -> None:
    assert formats.to_import(Path(file), stated) == found


# -- block devices ---------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path, need_tool: Callable[[str], str]) -> Iterator[Path]:
    """A loop device of ``SIZE`` bytes and one sector, over a file."""
    tool = need_tool("losetup")
    backing = tmp_path / "backing"
    backing.write_bytes(DATA + bytes(512))
    made = subprocess.run(
        [tool, "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run([tool, "--detach", made.stdout.strip()], check=True)


def test_block_devices_in_and_out(vault: Vault, loop: Path) -> None:
    import_images(vault, [Image(loop, "v")])
    assert vault.open_volume("main~0").read() == DATA + bytes(512)
    with vault.session() as session:
        session.device().write(5 * BLOCK + 1, b"changed")
        session.device().zero(0, 3 * BLOCK)
    expected = vault.open_volume("main").read()
    with pytest.raises(Conflict):
        export.export(vault, "main", "v", loop)
    with pytest.raises(BadRequest):
        export.export(vault, "main", "v", loop, format="qcow2", force=True)
    export.export(vault, "main", "v", loop, force=True)
    assert loop.read_bytes() == expected
    assert compare.diff_file(vault, "main", "v", loop).extents == ()
    with vault.session() as session:
        session.create_volume("large", SIZE + 513)
    with pytest.raises(NoSpace):
        export.export(vault, "main", "large", loop, force=True)
    assert loop.read_bytes() == expected
    assert check.verify(vault).ok


def test_a_device_in_use_is_left_alone(vault: Vault, loop: Path) -> None:
    """Whatever claims it does so as a mount does."""
    with vault.session() as session:
        session.create_volume("v", SIZE)
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(Busy) as refused:
            export.export(vault, "main", "v", loop, force=True)
    finally:
        os.close(holder)
    assert refused.value.reason == "device-busy"
    assert loop.read_bytes() == DATA + bytes(512)


def test_what_somebody_puts_in_the_way_of_a_converted_image_stays(
    vault: Vault, raw: Path, tmp_path: Path, qemu_img: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_images(vault, [Image(raw, "v")])
    folder, theirs = tmp_path / "shared", tmp_path / "theirs"
    folder.mkdir()
    theirs.write_bytes(b"theirs")
    copy_out = copying.copy_out

    def meanwhile(*what: Any) -> int:
        (temporary,) = folder.iterdir()
        temporary.with_name(f"{temporary.name}.qcow2").symlink_to(theirs)
        return copy_out(*what)

    monkeypatch.setattr(copying, "copy_out", meanwhile)
    with pytest.raises(IOFailed, match="File exists"):
        export.export(vault, "main", "v", folder / "out.qcow2")
    assert theirs.read_bytes() == b"theirs"
    assert [path.readlink() for path in folder.iterdir()] == [theirs]


def test_a_converted_image_is_private_until_it_has_its_name(
    vault: Vault, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_images(vault, [Image(raw, "v")])
    modes: list[int] = []

    def look(command: list[str], failure: str) -> str:
        modes.append(Path(command[-1].removeprefix("file:")).stat().st_mode & 0o777)
        return ""

    monkeypatch.setattr(programs, "run", look)
    target = tmp_path / "out.qcow2"
    target.touch(0o600)
    export.export(vault, "main", "v", target, force=True)
    assert modes == [0o600]
    assert target.stat().st_mode & 0o777 == 0o600
