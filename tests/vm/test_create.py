"""``vm create``: what the disks of a machine are made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli.vm import create_cmd
from blockvault.errors import BadRequest, Conflict
from blockvault.ops.compose import Source, compose
from blockvault.vm import host

MIB = 1 << 20
Create = Callable[..., dict[str, bytes]]


@pytest.fixture
def create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Create:
    """Run ``vm create web`` beside a UEFI machine's branch; how each volume of it begins then."""
    empty = tmp_path / "OVMF_VARS.fd"
    empty.write_bytes(b"empty".ljust(MIB))
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setattr(host, "cache_in", lambda _: None)
    monkeypatch.setattr(host, "firmware", lambda: (empty, empty))
    monkeypatch.setattr(host, "machine_type", lambda: "q35")
    monkeypatch.chdir(tmp_path)
    with Vault.create(tmp_path) as made, made.session("main") as session:
        for name in ("vda", "nvram"):
            session.create_volume(name, MIB).write(0, b"main's")

    def call(*words: str) -> dict[str, bytes]:
        create_cmd.run.main(["web", *words, "-V", str(tmp_path)], standalone_mode=False)
        with Vault.open(tmp_path) as vault:
            names = [volume.name for volume in vault.resolve("web").volumes]
            return {name: vault.device("web", name).read(0, 6).strip() for name in names}

    return call


UEFI = ("--firmware", "uefi", "--disk", "vda=main:vda")


@pytest.mark.parametrize("source", ["main:nvram", "raw:./vars.fd"])
def test_variables_that_are_named_are_the_machines(create: Create, source: str) -> None:
    Path("vars.fd").write_bytes(b"main's".ljust(MIB))
    assert create(*UEFI, "--disk", f"nvram={source}") == {"vda": b"main's", "nvram": b"main's"}


def test_a_machine_without_variables_gets_empty_ones(create: Create) -> None:
    assert create(*UEFI) == {"vda": b"main's", "nvram": b"empty"}
    with Vault.open(Path()) as vault, vault.session("web") as session:
        session.device("nvram").write(0, b"theirs")
    assert create(*UEFI)["nvram"] == b"theirs", "those that it has stay"


@pytest.mark.parametrize("source", [Source("v", size=MIB), Source("v", revision="main", of="vda")])
def test_a_volume_is_made_of_one_thing(vault: Vault, tmp_path: Path, source: Source) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"image")
    with pytest.raises(Conflict, match="volume 'v' is given twice"):
        compose(vault, "web", [source, Source("v", image=image)], {})
    assert [branch.name for branch in vault.branches()] == ["main"]


@pytest.mark.parametrize("folder", ["", "./"])
def test_the_format_of_an_image_is_said_before_it(create: Create, folder: str) -> None:
    Path("cloud.img").write_bytes(b"QFI\xfb".ljust(MIB))
    Path("seed.iso").write_bytes(b"seed".ljust(MIB))
    disks = ("--disk", "cd=seed.iso", "--disk")
    with pytest.raises(BadRequest, match="NAME=FORMAT:FILE") as refused:
        create(*disks, f"vda={folder}cloud.img")
    assert refused.value.reason == "format-unknown"
    made = create(*disks, f"vda=raw:{folder}cloud.img")
    assert made == {"cd": b"seed", "vda": b"QFI\xfb"}


def test_an_image_of_another_format_than_its_name_says(
    create: Create, need_tool: Callable[[str], str]
) -> None:
    Path("disk.raw").write_bytes(b"guest".ljust(MIB))
    words = ["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "cloud.img"]
    subprocess.run([need_tool("qemu-img"), *words], check=True)
    assert create("--disk", "vda=qcow2:cloud.img") == {"vda": b"guest"}


def test_a_branch_that_is_called_as_a_format(create: Create) -> None:
    """What is no file is a revision and its volume."""
    with Vault.open(Path()) as vault:
        vault.create_branch("raw", "main")
    assert create("--disk", "vda=raw:vda") == {"vda": b"main's"}
