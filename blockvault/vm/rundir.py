"""The files of a running machine, on a memory file system: its memory, its sockets, who runs it.

    memory      the guest's memory, shared with QEMU        qmp       QEMU's monitor
    kernel      boot files, links into ../boot              nbd       where its disks are served
    initrd                                                  serial    its console
    state.json  processes, by number and start time         agent     its guest agent
    qemu.log    what QEMU said                              migration device state on its way
    standing    the guest stands still for a moment         saved     device state of a snapshot
    unsound     its memory is not whole, or of another      unflushed whether writes would be lost
                moment than its disks                       frozen    its file systems are frozen

A directory belongs to one branch of one vault and to no copy of that.  Names are short: the path of
a unix socket is limited to 107 bytes.  What outlives a machine, the log of its console, is kept in
the vault.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault import files
from blockvault.errors import BadRequest, IOFailed
from blockvault.ids import object_id
from blockvault.vm.machine import BOOT_FILES, CONFIG, MEMORY

if TYPE_CHECKING:
    from blockvault.vault import Vault

CONSOLE_LOG = "console.log"
LOGS = "machines"
STATE = "state.json"
_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be taken for a later one of the same number."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, start_time(pid) or 0)

    @property
    def alive(self) -> bool:
        return self.pid > 0 and start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot; None if it is gone or only waits to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@dataclass(frozen=True, slots=True)
class State:
    """Who runs a machine; ``ended`` says how it went when nobody does any more."""

    vault: str
    branch: str
    supervisor: Process
    qemu: Process | None = None
    control: str = ""
    accelerator: str = ""
    since: float = 0.0
    ended: str = ""
    throw_away: bool = False
    """Whether the branch goes when the machine has ended."""
    beginning: bool = False
    """QEMU was started, but the machine is not up: one that is found so cannot go on."""


class RunDir:
    """The run directory of one branch."""

    def __init__(self, base: Path, vault_id: bytes, branch: int, vault: Path) -> None:
        # A copy of a vault has its id, and another directory.  A vault that is moved keeps both.
        place = vault.stat()
        own = object_id(b"%s %d %d" % (vault_id, place.st_dev, place.st_ino)).hex()
        self.path = base / f"{own[:12]}-{branch}"
        self.boot_files = base / "boot"
        """Where the machines of this host share them, see ``filling``."""
        self.touched = base / "touched"
        """What guests touched first, see ``touched``."""
        self.console_log = vault / LOGS / str(branch) / CONSOLE_LOG
        self.memory = self.path / MEMORY
        self.qmp = self.path / "qmp"
        self.nbd = self.path / "nbd"
        self.serial = self.path / "serial"
        self.agent = self.path / "agent"
        self.migration = self.path / "migration"
        self.qemu_log = self.path / "qemu.log"
        self.unflushed = self.path / "unflushed"
        self.standing = self.path / "standing"
        self.unsound = self.path / "unsound"
        self.frozen = self.path / "frozen"
        self.saved = self.path / "saved"
        self._state = self.path / STATE
        if len(os.fsencode(self.migration)) >= _SOCKET_PATH:
            raise BadRequest(f"{base} is too long a path for sockets; choose a shorter one")

    def boot_file(self, name: str) -> Path:
        return self.path / name

    def make(self) -> None:
        """An empty directory that only its owner can look into."""
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
            check_own(self.path.parent)
            self.path.mkdir(mode=0o700, exist_ok=True)
            self.console_log.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        except OSError as error:
            raise IOFailed(f"{self.path} cannot be made: {error.strerror}") from None
        self.clear()

    def clear(self) -> None:
        """Remove what a machine that ended has left, but for the state and QEMU's last words."""
        sockets = (self.qmp, self.nbd, self.serial, self.agent, self.migration)
        marks = (self.unflushed, self.standing, self.unsound, self.frozen)
        boot_files = map(self.boot_file, BOOT_FILES)
        for path in (self.memory, self.saved, *sockets, *marks, *boot_files):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def save(self, state: State) -> None:
        """Write who runs the machine, all or nothing."""
        files.replace(self._state, (json.dumps(asdict(state)) + "\n").encode(), alone=True)

    def load(self) -> State | None:
        """Who runs or ran the machine; None if it never ran since the host was booted."""
        return _load(self._state)


def _load(path: Path) -> State | None:
    try:
        value = json.loads(path.read_text())
        processes = {
            name: Process(**value[name]) if value[name] else None for name in ("supervisor", "qemu")
        }
        return State(**{**value, **processes})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_own(base: Path) -> None:
    """Refuse a runtime directory where others can put files: which process is a machine's, and so
    may be ended, is believed from there.  One that is not there is none of theirs."""
    try:
        name, folder = base.lstat(), base.stat()
    except FileNotFoundError:
        return
    own = os.getuid()
    if folder.st_uid != own or name.st_uid not in (own, 0) or folder.st_mode & stat.S_IWOTH:
        raise IOFailed(
            f"{base} belongs to somebody else, or everybody may write there: nothing in it was "
            "believed, and nothing was started; remove it, or name another directory with "
            "BLOCKVAULT_RUNTIME",
            kind="not-permitted",
        )


def status(state: State | None) -> str:
    """``running``, ``stopped``, or what is wrong: ``orphaned`` has a guest and no supervisor."""
    if state is None:
        return "stopped"
    if state.supervisor.alive:
        return "running"
    if state.qemu is not None and state.qemu.alive:
        return "orphaned"
    return "stopped" if state.ended else "died"


def untouched(base: Path) -> int:
    """Bytes of memory that the guests of this host, whosever they are, have not used yet and may
    use any time."""
    total = 0
    for memory in base.glob(f"*/{MEMORY}"):
        # Not that of one who died; of one that is just being started nothing is known yet.
        if status(_load(memory.with_name(STATE))) != "died":
            with contextlib.suppress(FileNotFoundError):
                info = memory.stat()
                total += max(0, info.st_size - info.st_blocks * 512)
    return total


def deserted(base: Path, vault: Vault) -> Iterator[tuple[int, RunDir]]:
    """(number of the branch, directory) of each machine that died and lost its branch since."""
    live = {branch.id for branch in vault.branches()}
    ours = RunDir(base, vault.options.vault_id, 0, vault.path).path.name.removesuffix("0")
    for path in base.glob(f"{ours}*"):
        number = path.name.removeprefix(ours)
        if number.isdecimal() and int(number) not in live:
            run = RunDir(base, vault.options.vault_id, int(number), vault.path)
            if status(run.load()) == "died":
                yield int(number), run


def machines(base: Path, vault: Vault) -> list[tuple[str, State | None, str]]:
    """(branch, state, status) of every branch that has a machine."""
    # Dear to import, and orders to one machine need them not.
    from blockvault.ops import attachments, positions

    found = []
    for branch in vault.branches():
        if attachments.inherited(vault, positions.head_of(vault, branch), CONFIG) is None:
            continue
        known = RunDir(base, vault.options.vault_id, branch.id, vault.path).load()
        found.append((branch.name, known, status(known)))
    return found
