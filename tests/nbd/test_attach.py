"""What to type: quoted so that the program gets exactly the name and the path."""

from __future__ import annotations

import shlex
import socket
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from blockvault.nbd.attach import Address, libvirt, nbd_client, qemu, qemu_nbd, recipes

NAMES = ["main/vda", "main@{#12}/vda", "main@{10 minutes ago}/disk 1", "v1/é,&\"'<>", "a%b/c?d#e"]
ODD = Address(path=Path("/srv/my vms/a,b&c'd/nbd.sock"))


@pytest.mark.parametrize("name", NAMES)
def test_uris_hold_any_name(name: str) -> None:
    parts = urlsplit(ODD.uri(name))
    assert parts.scheme == "nbd+unix"
    assert unquote(parts.path) == "/" + name
    assert parse_qs(parts.query) == {"socket": [str(ODD.path)]}


@pytest.mark.parametrize(
    ("text", "tls", "uri"),
    [
        ("unix:/run/nbd.sock", False, "nbd+unix:///main/vda?socket=/run/nbd.sock"),
        ("unix:/run/caf\udce9", False, "nbd+unix:///main/vda?socket=/run/caf%E9"),
        ("tcp:127.0.0.1:10809", False, "nbd://127.0.0.1:10809/main/vda"),
        ("tcp:example.org:1", True, "nbds://example.org:1/main/vda"),
        ("tcp:::1:10809", False, "nbd://[::1]:10809/main/vda"),
    ],
)
def test_addresses(text: str, tls: bool, uri: str) -> None:
    assert Address.parse(text, tls=tls).uri("main/vda") == uri


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_who_listens_everywhere_is_reached_by_name(host: str) -> None:
    address = Address.parse(f"tcp:{host}:10809", tls=True)
    assert address.uri("main/vda") == f"nbds://{socket.gethostname()}:10809/main/vda"


def blockdev(arguments: list[str]) -> dict[str, str]:
    """QEMU's own way to take a list of options apart: a doubled comma is one."""
    text = arguments[arguments.index("-blockdev") + 1].replace(",,", "\0")
    return {
        key: value.replace("\0", ",")
        for key, _, value in (part.partition("=") for part in text.split(","))
    }


@pytest.mark.parametrize("name", NAMES)
def test_qemu_gets_name_and_path(name: str) -> None:
    options = blockdev(qemu(ODD, name, read_only=False))
    assert options["export"] == name
    assert options["server.path"] == str(ODD.path)
    assert options["discard"] == "unmap"
    assert int(options["reconnect-delay"]) > 60, "a server is restarted without the guest's notice"
    assert blockdev(qemu(ODD, name, read_only=True))["read-only"] == "on"


def test_qemu_over_tls() -> None:
    arguments = qemu(Address(host="h", port=5, tls=True), "main/vda", read_only=False)
    assert "tls-creds-x509" in arguments[1]
    assert blockdev(arguments)["tls-creds"] == "tls0"
    words = qemu_nbd(Address(host="h", port=5, tls=True), "main/a,b", read_only=True)
    assert words[1] == "--read-only"
    assert "export=main/a,,b,server.type=inet,server.host=h,server.port=5" in words[-1]


def test_libnbd_is_told_where_certificates_are() -> None:
    lines = recipes(Address(host="h", port=5, tls=True), "main/vda", read_only=False)
    assert lines["uri"] == "nbds://h:5/main/vda"
    for program in ("nbdinfo", "nbdcopy", "nbdfuse"):
        assert "nbds://h:5/main/vda?tls-certificates=CERTIFICATES" in shlex.split(lines[program])
    plain = recipes(Address(host="h", port=5), "main/vda", read_only=False)
    assert plain["nbdinfo"] == "nbdinfo nbd://h:5/main/vda"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("read_only", [True, False])
def test_libvirt_is_xml(name: str, read_only: bool) -> None:
    disk = ElementTree.fromstring(libvirt(ODD, name, read_only=read_only))
    source = disk.find("source")
    assert source is not None
    assert source.get("name") == name
    assert disk.find("source/host").attrib == {"transport": "unix", "socket": str(ODD.path)}  # type: ignore[union-attr]
    assert (disk.find("readonly") is not None) == read_only
    assert int(source.find("reconnect").get("delay")) > 60  # type: ignore[union-attr]
    tls = ElementTree.fromstring(
        libvirt(Address(host="h", port=5, tls=True), name, read_only=read_only)
    )
    assert tls.find("source").get("tls") == "yes"  # type: ignore[union-attr]


def test_nbd_client() -> None:
    line = nbd_client(ODD, "main/vda", read_only=True)
    assert line == [
        "nbd-client", "-unix", str(ODD.path), "/dev/nbd0", "-name", "main/vda", "-readonly",
    ]  # fmt: skip
    assert nbd_client(Address(host="h", port=5), "x", read_only=False)[1:3] == ["h", "5"]


@pytest.mark.parametrize("name", NAMES)
def test_lines_survive_a_shell(name: str) -> None:
    lines = recipes(ODD, name, read_only=False)
    for program, line in lines.items():
        if program not in ("libvirt", "uri"):
            words = shlex.split(line)
            assert name in words or lines["uri"] in words or program == "qemu-system"
    assert blockdev(shlex.split(lines["qemu-system"]))["export"] == name
