"""What to type to use an export: the exact lines for QEMU, libvirt, the kernel and other clients.

Only texts are made here, from an address and a name; every special character is quoted as the
program that reads it wants: revisions are full of ``@{#}`` and paths may hold anything.  Where the
certificates of a client under TLS are only its owner knows: ``CERTIFICATES`` stands for it.
"""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

SAFE = "/@~^+-._"  # characters of a name that a URI may hold as they are
CERTIFICATES = "CERTIFICATES"
RECONNECT_SECONDS = 300
"""A guest's requests wait so long for a server that is restarted, instead of failing at once."""
CREDENTIALS = f"tls-creds-x509,id=tls0,endpoint=client,dir={CERTIFICATES}"
EVERYWHERE = ("", "0.0.0.0", "::")  # hosts that a server can listen on and nobody can connect to


@dataclass(frozen=True)
class Address:
    """Where a server listens: a unix socket, or a host and port, with TLS or without."""

    path: Path | None = None
    host: str = ""
    port: int = 0
    tls: bool = False

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> Address:
        """From the form in which a server states its addresses: unix:PATH or tcp:HOST:PORT.

        Who listens on all addresses is reached by the name of this machine.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix":
            return cls(path=Path(rest))
        host, _, port = rest.rpartition(":")
        if host in EVERYWHERE:
            host = socket.gethostname()
        return cls(host=host, port=int(port), tls=tls)

    def uri(self, export: str) -> str:
        """The NBD URI of an export; QEMU understands it unless it asks for TLS."""
        name = quote(export, safe=SAFE)
        if self.path is not None:
            return f"nbd+unix:///{name}?socket={quote(os.fsencode(self.path), safe=SAFE)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'nbds' if self.tls else 'nbd'}://{host}:{self.port}/{name}"

    def libnbd_uri(self, export: str) -> str:
        """The same as libnbd's tools want it, which look for certificates where the URI says."""
        tls = f"?tls-certificates={CERTIFICATES}" if self.tls else ""
        return self.uri(export) + tls


def _qemu_options(address: Address, export: str, more: dict[str, str]) -> str:
    """The options of QEMU's NBD client, as -blockdev and --image-opts take them."""
    options = {"driver": "nbd", "export": export}
    if address.path is not None:
        options |= {"server.type": "unix", "server.path": str(address.path)}
    else:
        options |= {"server.type": "inet", "server.host": address.host}
        options |= {"server.port": str(address.port)}
    if address.tls:
        options["tls-creds"] = "tls0"
    options |= more
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())


def qemu(address: Address, export: str, *, read_only: bool) -> list[str]:
    """Arguments for qemu-system, one after the other."""
    use = {"read-only": "on"} if read_only else {"discard": "unmap"}
    use["reconnect-delay"] = str(RECONNECT_SECONDS)
    node = _qemu_options(address, export, {"node-name": "disk0", **use})
    tls = ["-object", CREDENTIALS] if address.tls else []
    return [*tls, "-blockdev", node, "-device", "virtio-blk-pci,drive=disk0"]


def qemu_nbd(address: Address, export: str, *, read_only: bool) -> list[str]:
    """A kernel device through qemu-nbd, which knows no URI with TLS; wants root and module nbd.

    Nobody is to guess a format from what the guest wrote: a disk is raw.  What is trimmed gets to
    the server only if it is told so: it answers each TRIM, and passes none on by itself.
    """
    use = "--read-only" if read_only else "--discard=unmap"
    words = ["qemu-nbd", use, "--connect=/dev/nbd0"]
    if address.tls:
        options = _qemu_options(address, export, {})
        return [*words, "--object", CREDENTIALS, "--image-opts", options]
    return [*words, "--format=raw", address.uri(export)]


def libvirt(address: Address, export: str, *, read_only: bool) -> str:
    """The <disk> element of a domain."""
    if address.path is not None:
        host = f"<host transport='unix' socket={quoteattr(str(address.path))}/>"
    else:
        host = f"<host name={quoteattr(address.host)} port='{address.port}'/>"
    tls = " tls='yes'" if address.tls else ""
    wait = f"<reconnect delay='{RECONNECT_SECONDS}'/>"
    lines = [
        "<disk type='network' device='disk'>",
        f"  <driver name='qemu' type='raw'{'' if read_only else ' discard=' + repr('unmap')}/>",
        f"  <source protocol='nbd' name={quoteattr(export)}{tls}>",
        f"    {host}",
        f"    {wait}",
        "  </source>",
        "  <target dev='vda' bus='virtio'/>",
        *(["  <readonly/>"] if read_only else []),
        "</disk>",
    ]
    return "\n".join(lines)


def nbd_client(address: Address, export: str, *, read_only: bool) -> list[str]:
    """The kernel's client; it wants root and the module nbd."""
    if address.path is not None:
        where = ["-unix", str(address.path), "/dev/nbd0"]
    else:
        where = [address.host, str(address.port), "/dev/nbd0"]
    files = {"cert": "client-cert", "key": "client-key", "cacert": "ca-cert"}
    named = [(f"-{what}file", f"{CERTIFICATES}/{name}.pem") for what, name in files.items()]
    tls = [word for pair in named for word in pair] if address.tls else []
    return ["nbd-client", *where, "-name", export, *tls, *(["-readonly"] if read_only else [])]


def recipes(address: Address, export: str, *, read_only: bool) -> dict[str, str]:
    """Every way to attach, as text to paste, by the name of the program."""
    uri = address.libnbd_uri(export)
    return {
        "uri": address.uri(export),
        "qemu-system": shlex.join(qemu(address, export, read_only=read_only)),
        "libvirt": libvirt(address, export, read_only=read_only),
        "qemu-nbd": shlex.join(qemu_nbd(address, export, read_only=read_only)),
        "nbd-client": shlex.join(nbd_client(address, export, read_only=read_only)),
        "nbdfuse": shlex.join(["nbdfuse", "MOUNTPOINT", uri]),
        "nbdcopy": shlex.join(["nbdcopy", uri, "FILE"]),
        "nbdinfo": shlex.join(["nbdinfo", uri]),
    }
