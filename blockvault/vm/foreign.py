"""A QEMU that somebody else started, by hand or through libvirt, as its monitor tells of it.

What it is (its disks, its command line, its accelerator), and its state, saved as the migration
stream that QEMU sends.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from blockvault.errors import BadRequest, Conflict, ToolFailed, Unsupported, VaultError
from blockvault.vm.qmp import Monitor
from blockvault.vm.receiving import Receiving, Saved
from blockvault.vm.state import SAVED

_HARMLESS = {
    "events",
    "auto-converge",
    "pause-before-switchover",
    "zero-blocks",
    "late-block-activate",
}
"""Migration capabilities that leave the stream as it is known here."""
_SWITCHOVER = "pause-before-switchover"
FD = "blockvault"
"""The name of the descriptor that is handed to QEMU for a stream."""
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


class Foreign:
    """Somebody else's QEMU through its monitor; close it, or use it in a ``with``."""

    def __init__(self, path: Path) -> None:
        if not path.is_socket():
            raise BadRequest(f"{path} is no socket, and so no monitor of QEMU")
        self._path = path
        self._stood: list[tuple[str, float]] = []
        self.monitor = Monitor(path, timeout=5.0, listener=self._heard)
        self.version = self.monitor.version

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

    def check(self) -> None:
        """Refuse what cannot be saved: a guest that QEMU saved already and that has stood since,
        settings of migration that change what the stream looks like."""
        if self.monitor.status() == SAVED:
            raise Conflict(
                "this QEMU stands since its state was saved, and QEMU does not save it a second "
                "time; nothing was changed. It can be recorded again when it has gone on (cont)",
                kind="saved-once",
            )
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
                self.monitor.hand_over(theirs.fileno(), FD)
            receiving = Receiving(ours)
            try:
                self.monitor.execute("migrate", uri=f"fd:{FD}")
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

    def _reach(self, status: str, receiving: Receiving) -> None:
        def reached() -> bool | None:
            receiving.check()
            info = self.monitor.execute("query-migrate")
            if info.get("status") in ("failed", "cancelled"):
                reason = info.get("error-desc", "no reason given")
                raise ToolFailed(f"QEMU could not save its state: {reason}")
            return True if info.get("status") == status else None

        self.monitor.wait_for(reached, f"the state '{status}' of its migration", SECONDS)

    def resume(self) -> None:
        """Let the guest go on once QEMU is done; one that runs runs on."""
        self.monitor.go_on()


# -- names ---------------------------------------------------------------------------------------


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
