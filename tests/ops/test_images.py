"""Image files: formats by tool, block devices, and what an image must not make us read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, NoSpace, ToolFailed
from blockvault.ops import check, compare, export, images
from blockvault.ops.ingest import Image, import_images
from tests.conftest import skip
from tests.oracle import BLOCK, noise

FORMATS = [name for name in images.FORMATS if name != "raw"]
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
    assert again[:SIZE] == DATA
    assert not any(again[SIZE:]), "some formats have sizes in units of their own"
    if name != "vpc":
        assert compare.diff_file(vault, "main~0", "v", target).extents == ()
    assert not list(vault.path.glob("import-*")), "nothing is left of the decoded image"


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
    top.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\n\nRW 128 FLAT "{other}" 0\n\nddb.adapterType = "ide"\n'
    )
    with pytest.raises(BadRequest, match=f"another file, {other};") as refused:
        import_images(vault, [Image(top, "v")])
    assert refused.value.reason == "backing-file"
    import_images(vault, [Image(top, "v")], allow_backing=True)
    assert vault.open_volume("main~0", "v").read()[: 64 << 10] == other.read_bytes()


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
    import_images(vault, [Image(inner, "v")])
    assert vault.open_volume("main~0").read() == inner.read_bytes()


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
    assert images.format_of(Path(file), stated) == found


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


def test_a_converted_image_is_private_until_it_has_its_name(
    vault: Vault, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_images(vault, [Image(raw, "v")])
    modes: list[int] = []

    def look(command: list[str], failure: str) -> str:
        modes.append(Path(command[-1].removeprefix("file:")).stat().st_mode & 0o777)
        return ""

    monkeypatch.setattr(images, "run_tool", look)
    target = tmp_path / "out.qcow2"
    target.touch(0o600)
    export.export(vault, "main", "v", target, force=True)
    assert modes == [0o600]
    assert target.stat().st_mode & 0o777 == 0o600
