"""A QEMU that somebody else started, by hand or through libvirt: its state taken and given back.

    its disks    are on the vault's NBD server already, or are copied while it runs (mirror)
    its memory   comes as a migration stream, twice: first while the guest runs, to have most of it
                 in the vault; then for good, and the guest stands for what has changed since

What started the QEMU knows its configuration.  So its state goes back into another one that is
started in the same way, and waits (``-incoming defer``).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from blockvault.errors import BadRequest, Conflict, ToolFailed, Unsupported, VaultError
from blockvault.ops import attachments
from blockvault.vm import stream
from blockvault.vm.machine import COMMAND, DEVICES, HOST, LAYOUT, MEMORY, Made
from blockvault.vm.qmp import Monitor
from blockvault.vm.state import RUNNING

if TYPE_CHECKING:
    from blockvault.vault import Vault

_HARMLESS = {
    "events",
    "auto-converge",
    "pause-before-switchover",
    "zero-blocks",
    "late-block-activate",
}
"""Migration capabilities that leave the stream as it is known here."""
_SWITCHOVER = "pause-before-switchover"
_FD = "blockvault"
_MOST_BANDWIDTH = 1 << 40
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a QEMU; ``server`` and ``export`` where it is on an NBD server."""

    name: str
    node: str
    size: int
    server: str = ""
    export: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """Memory as a file in memory, that ``close`` gives up, and all else of one instant."""

    fd: int
    layout: stream.Layout
    tail: bytes

    def close(self) -> None:
        os.close(self.fd)


class Disks(Protocol):
    """How the disks get into the vault: where they are now decides."""

    def begin(self) -> None:
        """Bring most of them there; the guest runs."""

    def settle(self) -> None:
        """The guest stands: from now on they are of this instant."""

    def record(self, message: str, author: str | None, kept: list[Any]) -> bytes:
        """Make them a snapshot, with these attachments; return its id."""

    def close(self) -> None:
        """Leave QEMU as it was."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, and for how many seconds the guest stood still for it."""

    id: bytes
    pause: float
    used: int


class Foreign:
    """Somebody else's QEMU through its monitor; close it, or use it in a ``with``."""

    def __init__(self, path: Path) -> None:
        if not path.is_socket():
            raise BadRequest(f"{path} is no socket, and so no monitor of QEMU")
        self._path = path
        self._stood: list[tuple[str, float]] = []
        self.monitor = Monitor(path, timeout=5.0, listener=self._heard)
        found = self.monitor.execute("query-version")["qemu"]
        self.version = f"{found['major']}.{found['minor']}.{found['micro']}"

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event in ("STOP", "RESUME"):
            self._stood.append((event, time.monotonic()))

    @property
    def pause(self) -> float:
        """Seconds for which the guest stood still last."""
        times = dict(self._stood)
        return max(0.0, times.get("RESUME", time.monotonic()) - times["STOP"]) if times else 0.0

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *error: object) -> None:
        self.monitor.close()

    # -- what it is --------------------------------------------------------------------------------

    def disks(self) -> list[Disk]:
        """Its writable disks."""
        found = []
        for row in self.monitor.execute("query-block"):
            inserted = row.get("inserted")
            if inserted is None or inserted.get("ro"):
                continue
            name = row.get("device") or _device_name(row.get("qdev", "")) or inserted["node-name"]
            server, export = _nbd(inserted["file"])
            size = inserted["image"]["virtual-size"]
            found.append(Disk(name, inserted["node-name"], size, server, export))
        return found

    def command_line(self) -> list[str]:
        """How it was started; empty where that cannot be seen from here."""
        with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
            peer.connect(str(self._path))
            told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            words = Path(f"/proc/{struct.unpack('3i', told)[0]}/cmdline").read_bytes()
            return [word.decode(errors="replace") for word in words.split(b"\0")[:-1]]
        return []

    def accelerator(self) -> str:
        return "kvm" if self.monitor.execute("query-kvm")["enabled"] else "tcg"

    # -- its state ---------------------------------------------------------------------------------

    def check_stream(self) -> None:
        """Refuse settings of migration that change what the stream looks like."""
        on = {
            row["capability"]
            for row in self.monitor.execute("query-migrate-capabilities")
            if row["state"]
        }
        if on - _HARMLESS:
            raise Unsupported(
                f"this QEMU migrates with {', '.join(sorted(on - _HARMLESS))}: its memory would "
                "come in a form that is not known here; switch that off (migrate-set-capabilities)"
            )

    def save(self, settle: Callable[[], None]) -> Saved:
        """Everything but its disks, of the instant at which ``settle`` is called, while the guest
        stands; it still does when this returns.  If this fails it goes on."""
        ours, theirs = socket.socketpair()
        with ours, self._settings():
            with theirs:
                self.monitor.hand_over(theirs.fileno(), _FD)
            receiving = _Receiving(ours)
            try:
                self.monitor.execute("migrate", uri=f"fd:{_FD}")
                self._reach("pre-switchover", receiving)
                settle()
                self.monitor.send("migrate-continue", {"state": "pre-switchover"})
                self._reach("completed", receiving)
                return receiving.get()
            except BaseException:
                with contextlib.suppress(VaultError):
                    self.monitor.execute("migrate_cancel", timeout=5.0)
                receiving.abandon()
                raise

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """As fast as it goes, and a stop before the end; afterwards as it was."""
        before = self.monitor.execute("query-migrate-parameters")["max-bandwidth"]
        self._set(True, _MOST_BANDWIDTH)
        try:
            yield
        finally:
            self._set(False, before)

    def _set(self, switchover: bool, bandwidth: int) -> None:
        wanted = [{"capability": _SWITCHOVER, "state": switchover}]
        self.monitor.execute("migrate-set-parameters", max_bandwidth=bandwidth)
        self.monitor.wait_for(lambda: self._capability(wanted), "the end of its migration")

    def _capability(self, wanted: list[dict[str, Any]]) -> bool | None:
        try:
            self.monitor.execute("migrate-set-capabilities", capabilities=wanted)
        except ToolFailed as error:
            if error.reason != "qemu-refused":
                raise
            return None  # refused as long as a migration is being cleaned up
        return True

    def _reach(self, status: str, receiving: _Receiving) -> None:
        def reached() -> bool | None:
            receiving.check()
            info = self.monitor.execute("query-migrate")
            if info.get("status") in ("failed", "cancelled"):
                reason = info.get("error-desc", "no reason given")
                raise ToolFailed(f"QEMU could not save its state: {reason}")
            return True if info.get("status") == status else None

        self.monitor.wait_for(reached, f"the state '{status}' of its migration", SECONDS)

    def resume(self) -> None:
        """Let the guest go on once QEMU is done."""
        if self.monitor.status() != RUNNING:
            self.monitor.execute("cont")


class _Receiving:
    """A stream, taken apart on a thread of its own."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None
        self._error: Exception | None = None
        self._told: tuple[stream.Layout, bytes] | None = None
        self._thread = threading.Thread(target=self._take, name="stream", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            with self._peer.makefile("rb", buffering=1 << 20) as source:
                self._told = stream.take_apart(source, self._allocate)
        except Exception as error:
            self._error = error
            self._peer.close()  # QEMU would wait for ever

    def _allocate(self, size: int) -> stream.Write:
        os.ftruncate(self._fd, size)
        memory = self._map = mmap.mmap(self._fd, size)
        fresh = bytearray(size // stream.PAGE)

        def write(at: int, page: bytes) -> None:
            # A page of zeros that never had anything else stays a hole.
            if fresh[at // stream.PAGE] or page.count(0) != stream.PAGE:
                fresh[at // stream.PAGE] = 1
                memory[at : at + stream.PAGE] = page

        return write

    def check(self) -> None:
        if isinstance(self._error, VaultError):
            raise self._error
        if self._error is not None:
            raise ToolFailed(f"QEMU's stream could not be read: {self._error}", kind="bad-stream")

    def get(self) -> Saved:
        self._thread.join()
        self.check()
        assert self._told is not None
        self._unmap()
        return Saved(self._fd, *self._told)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._unmap()
        os.close(self._fd)

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()


# -- into the vault ----------------------------------------------------------------------------


def take(vault: Vault, foreign: Foreign, disks: Disks, message: str, author: str | None) -> Taken:
    """Everything that the machine is, as one snapshot."""
    foreign.check_stream()
    runs = foreign.monitor.status() == RUNNING
    with vault.guard(), contextlib.closing(disks):
        earlier: list[Any] = []
        if runs:
            with contextlib.closing(_saved(foreign, lambda: None, runs)) as first:
                foreign.resume()
                earlier = attachments.keep(vault, {MEMORY: _file(first.fd)})
        disks.begin()
        with contextlib.closing(_saved(foreign, disks.settle, runs)) as saved:
            try:
                made = Made(
                    qemu=foreign.version, accelerator=foreign.accelerator(), paused=not runs
                )
                files: dict[str, bytes | Path] = {
                    MEMORY: _file(saved.fd),
                    LAYOUT: saved.layout.encode(),
                    DEVICES: saved.tail,
                    HOST: made.encode(),
                    COMMAND: json.dumps(foreign.command_line(), indent=1).encode() + b"\n",
                }
                oid = disks.record(message, author, attachments.keep(vault, files, earlier))
            finally:
                if runs:
                    foreign.resume()
            used = os.fstat(saved.fd).st_blocks * 512
        return Taken(oid, foreign.pause if runs else 0.0, used)


def _saved(foreign: Foreign, settle: Callable[[], None], runs: bool) -> Saved:
    """What ``save`` gives; a guest that ran goes on if it fails."""
    try:
        return foreign.save(settle)
    except BaseException:
        if runs:
            with contextlib.suppress(VaultError):
                foreign.resume()
        raise


def take_disks(foreign: Foreign, disks: Disks, message: str, author: str | None) -> Taken:
    """The disks alone, all of one instant, as a power cut would leave them."""
    runs = foreign.monitor.status() == RUNNING
    with contextlib.closing(disks):
        disks.begin()
        foreign.monitor.execute("stop")
        try:
            disks.settle()
            oid = disks.record(message, author, [])
        finally:
            if runs:
                foreign.resume()
    return Taken(oid, foreign.pause if runs else 0.0, 0)


# -- and back ----------------------------------------------------------------------------------


def give(vault: Vault, rev: str, foreign: Foreign, *, paused: bool = False) -> None:
    """Give a QEMU that waits for it the state of a revision; it goes on from there."""
    position = vault.resolve(rev)
    if attachments.find(position.attachments, LAYOUT) is None:
        raise Conflict(
            f"'{rev}' has no state of a QEMU that was started elsewhere; 'vm start' starts it",
            kind="no-memory",
        )
    if foreign.monitor.status() != "inmigrate":
        raise Conflict(
            "this QEMU does not wait for a state: start it as the other one was, with "
            "-incoming defer",
            kind="not-waiting",
        )
    layout = stream.Layout.decode(attachments.content(vault, position.attachments, LAYOUT))
    tail = attachments.content(vault, position.attachments, DEVICES)
    made = Made.decode(attachments.content(vault, position.attachments, HOST))
    memory = attachments.find(position.attachments, MEMORY)
    assert memory is not None
    device = attachments.device(vault, memory)
    paused = paused or made.paused
    if paused:
        foreign.monitor.execute("stop")  # else it goes on by itself when it has all
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            foreign.monitor.hand_over(theirs.fileno(), _FD)
        foreign.monitor.execute("migrate-incoming", uri=f"fd:{_FD}")
        try:
            for part in stream.put_together(layout, device.read, tail):
                ours.sendall(part)
            ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ToolFailed(f"QEMU does not take the state: {error}", kind="bad-state") from None
        foreign.monitor.wait_for(lambda: _arrived(foreign.monitor), "the saved state", SECONDS)
    if not paused:
        foreign.monitor.execute("cont")


def _arrived(monitor: Monitor) -> bool | None:
    info = monitor.execute("query-migrate")
    if info.get("status") == "failed":
        reason = info.get("error-desc", "it is of another machine")
        raise ToolFailed(f"QEMU cannot use the saved state: {reason}", kind="bad-state")
    return True if info.get("status") == "completed" and monitor.status() != "inmigrate" else None


# -- names ---------------------------------------------------------------------------------------


def _file(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")


def _device_name(path: str) -> str:
    """``/machine/peripheral/disk0/virtio-backend`` is ``disk0``."""
    found = re.search(r"/machine/peripheral/([^/]+)", path)
    return found[1] if found else ""


def _nbd(filename: str) -> tuple[str, str]:
    """Server, as ``unix:PATH`` or ``tcp:HOST:PORT``, and export of a disk that is on one."""
    if filename.startswith("json:"):
        return _nbd_options(json.loads(filename[5:]))
    address = urlsplit(filename)
    export = unquote(address.path.lstrip("/"))
    if address.scheme == "nbd+unix":
        return f"unix:{parse_qs(address.query).get('socket', [''])[0]}", export
    if address.scheme == "nbd":
        return f"tcp:{address.hostname}:{address.port or 10809}", export
    return "", ""


def _nbd_options(options: Mapping[str, Any]) -> tuple[str, str]:
    """The same from a block device's options, nested or with dots."""
    if options.get("driver") == "nbd":
        server = options.get("server") or {
            key.removeprefix("server."): value
            for key, value in options.items()
            if key.startswith("server.")
        }
        export = str(options.get("export", ""))
        if "path" in server:
            return f"unix:{server['path']}", export
        return f"tcp:{server.get('host')}:{server.get('port')}", export
    below = options.get("file")
    return _nbd_options(below) if isinstance(below, dict) else ("", "")
