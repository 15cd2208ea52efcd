"""The process that runs a machine: holds the branch, serves its disks, watches QEMU, takes orders.

It begins with one of three: a boot, the restoring of the full snapshot that the branch's head is,
or the adoption of a QEMU whose supervisor died.  It ends when the guest has ended or it is told to.
Orders come from the control socket, on other threads; one lock lets them come one at a time.

A rollback replaces everything: QEMU is ended, the branch given back, moved, taken again, and a new
QEMU started from the target.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockvault.errors import BadRequest, Busy, Conflict, NotFound, ToolFailed, VaultError
from blockvault.ids import short
from blockvault.ops import attachments
from blockvault.vm import agent, host, rundir, state
from blockvault.vm.machine import CONFIG, DEVICES, HOST, MEMORY, Machine, Made
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import Process, RunDir, State
from blockvault.vm.running import Running, machine_of, write_boot_files

if TYPE_CHECKING:
    from blockvault.ops.resolve import Position
    from blockvault.session import Session
    from blockvault.vault import Vault

log = logging.getLogger(__name__)

HOLDER = "a running machine"
_TICK = 0.5
_KEPT = (CONFIG, "kernel", "initrd")


class Served(Protocol):
    """Disks being served; whoever starts a supervisor brings it."""

    def close(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


Serve = Callable[["Session", Path], Served]
"""Serve the volumes of a session as BRANCH/VOLUME over NBD, on a unix socket at this path."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine would be started from."""

    position: Position
    machine: Machine
    files: tuple[Any, ...]
    memory: Any
    made: Made | None

    @property
    def resumes(self) -> bool:
        return self.memory is not None


def plan(vault: Vault, rev: str, *, boot: bool = False, force: bool = False) -> Plan:
    """How a revision starts: from saved memory where it has it, else from its disks.

    ``NotFound`` where no machine was ever configured; ``Conflict`` where the saved state was made
    by a QEMU or an accelerator that this host does not have, unless ``force``.
    """
    position = vault.resolve(rev)
    known = attachments.inherited(vault, position, CONFIG)
    if known is None:
        raise NotFound(
            f"'{rev}' has no machine: 'blockvault vm create' configures one", kind="no-machine"
        )
    machine = machine_of(vault, known.attachments)
    files = tuple(each for each in known.attachments if each.name in _KEPT)
    memory = None if boot else attachments.find(position.attachments, MEMORY)
    if memory is None:
        return Plan(position, machine, files, None, None)
    made = Made.decode(attachments.content(vault, position.attachments, HOST))
    if not force:
        _check_fits(rev, made)
    return Plan(position, machine, files, memory, made)


def _check_fits(rev: str, made: Made) -> None:
    here, accelerator = host.version(), host.accelerator()
    if host.series(made.qemu) != host.series(here):
        raise Conflict(
            f"the state of '{rev}' was saved by QEMU {made.qemu}, and this is {here}; --force "
            "tries it, --boot starts from the disks",
            kind="other-qemu",
        )
    if made.accelerator != accelerator:
        raise Conflict(
            f"the state of '{rev}' was saved under {made.accelerator}, and this host runs "
            f"{accelerator}; --force tries it, --boot starts from the disks",
            kind="other-qemu",
        )


class Supervisor:
    """Runs the machine of one branch.  ``run`` returns how it ended."""

    def __init__(
        self, vault: Vault, branch: str, base: Path, serve: Serve, *, throw_away: bool = False
    ) -> None:
        self.vault = vault
        self.branch = vault.branch(branch)
        self.run_dir = RunDir(base, vault.options.vault_id, self.branch.id, vault.path)
        self.since = time.time()
        self.told_to_end = False
        """Set by a handler of signals, which may not wait for anything."""
        self.control = ""
        """Where the orders come in: for those who look for this machine."""
        self._serve = serve
        self._throw_away = throw_away
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._ended = ""
        self._running: Running | None = None
        self._served: Served | None = None

    # -- life --------------------------------------------------------------------------------------

    def start(self, *, boot: bool = False, force: bool = False, paused: bool = False) -> str:
        """Bring the machine up; return in words what was done."""
        with self._lock:
            left = self.run_dir.load()
            if left is not None and left.supervisor.alive:
                raise Busy(
                    f"machine '{self.branch.name}' is running (process {left.supervisor.pid})",
                    kind="machine-running",
                )
            # Nothing of the run directory is touched before the branch is ours.
            session = self.vault.session(self.branch.name, holder=HOLDER)
            try:
                if left is not None and left.qemu is not None and left.qemu.alive:
                    return self._adopt(session, left)
                return self._begin(session, boot=boot, force=force, paused=paused)
            except BaseException as error:
                session.close()
                self._end(f"it did not start: {error}")
                raise

    def _begin(
        self, session: Session, *, boot: bool = False, force: bool = False, paused: bool = False
    ) -> str:
        """A new QEMU from the branch's head, which is not collected while it is read."""
        with self.vault.guard():
            return self._begin_guarded(session, boot, force, paused)

    def _begin_guarded(self, session: Session, boot: bool, force: bool, paused: bool) -> str:
        chosen = plan(self.vault, self.branch.name, boot=boot, force=force)
        accelerator = host.accelerator()
        base = self.run_dir.path.parent
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        host.check_memory_place(base, chosen.machine.memory)
        self.run_dir.make()
        write_boot_files(self.vault, chosen.files, self.run_dir)
        running = self._serve_disks(session, chosen, accelerator)
        if chosen.made is not None:
            devices = attachments.content(self.vault, chosen.position.attachments, DEVICES)
            running.restore(chosen.memory, devices, paused=paused or chosen.made.paused)
            told = f"resumed from snapshot {short(chosen.position.snapshot or b'')}"
        else:
            running.boot()
            told = "booted"
        self._save(running)
        return told

    def _adopt(self, session: Session, left: State) -> str:
        """Take over a QEMU that still runs: serve its disks again, connect to its monitor."""
        assert left.qemu is not None
        chosen = plan(self.vault, self.branch.name, boot=True)
        running = self._serve_disks(session, chosen, left.accelerator)
        running.adopt(Qemu.find(left.qemu, self.run_dir.qemu_log))
        self._save(running)
        return f"taken over: {running.after_a_death()}"

    def _serve_disks(self, session: Session, chosen: Plan, accelerator: str) -> Running:
        """A machine that has its disks and no QEMU yet."""
        have = {name for name, _, _ in session.volumes}
        missing = [disk for disk in chosen.machine.disks if disk not in have]
        if missing:
            raise NotFound(
                f"branch '{self.branch.name}' has no volume '{missing[0]}', which its machine has "
                "as a disk",
                kind="no-volume",
            )
        self._served = self._serve(session, self.run_dir.nbd)
        running = Running(self.vault, session, self.run_dir, chosen.machine, accelerator)
        running.files = chosen.files
        self._running = running
        return running

    def _save(self, running: Running) -> None:
        self.run_dir.save(
            State(
                vault=str(self.vault.path),
                branch=self.branch.name,
                supervisor=Process.of(os.getpid()),
                qemu=running.qemu.process,
                control=self.control,
                accelerator=running.accelerator,
                since=self.since,
            )
        )

    def run(self) -> str:
        """Watch until the machine has ended, or ``told_to_end`` was set; return how."""
        while not self._ending.wait(_TICK):
            if self.told_to_end:
                with self._lock:
                    self._end("its supervisor was told to end; it was switched off")
                break
            # While an order is being carried out QEMU may be on its way out or in.
            if self._lock.acquire(blocking=False):
                try:
                    self._look()
                finally:
                    self._lock.release()
        return self._ended

    def _look(self) -> None:
        running = self._running
        if running is None:
            return
        if running.qemu.ended:
            self._end(running.qemu.reason())
        elif running.session.unstored[0]:
            # So that the death of this process alone hardly ever costs a guest a write.
            with contextlib.suppress(VaultError):
                running.session.commit(barrier=False)

    def _end(self, how: str) -> None:
        """Close everything, say how it ended."""
        self._ended = how
        try:
            self._close()
        finally:
            self.run_dir.clear()
            if self.run_dir.path.exists():
                ended = State(str(self.vault.path), self.branch.name, Process(0, 0), ended=how)
                self.run_dir.save(ended)
            if self._throw_away:
                self.vault.delete_branch(self.branch.name)
                self.run_dir.remove()
            self._ending.set()

    def _close(self) -> None:
        """End QEMU if it has not ended, flush, and give the branch back."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
        self._close_served()
        if running is not None:
            try:
                running.close()
            finally:
                running.session.close()

    def _close_served(self) -> None:
        served, self._served = self._served, None
        if served is not None:
            served.close()

    # -- orders ------------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        """What the control socket answers; those without ``vm-`` are what a disk server answers."""
        return {
            "status": self._tell_status,
            "snapshot": self._snapshot_disks,
            "flush": self._flush,
            "stop": self._stop,
            "vm-snapshot": self._snapshot,
            "vm-stop": self._stop,
            "vm-pause": self._pause,
            "vm-resume": self._resume,
            "vm-rollback": self._rollback,
            "vm-qmp": self._qmp,
        }

    @contextlib.contextmanager
    def _ordered(self) -> Any:
        with self._lock:
            if self._running is None:
                raise NotFound(f"machine '{self.branch.name}' has ended", kind="machine-ended")
            yield self._running

    def _tell_status(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        running, served = self._running, self._served
        if running is None or served is None:
            raise NotFound(f"machine '{self.branch.name}' is between two states")
        dirty = {"dirty_bytes": running.session.pending_bytes}
        return {
            "pid": os.getpid(),
            "since": self.since,
            "branches": {self.branch.name: dirty},
            "names": [f"{self.branch.name}/{name}" for name, _, _ in running.session.volumes],
            "copy_on_write": False,
            "tls": False,
            **served.status(),
            "machine": self._machine_status(running),
        }

    def _machine_status(self, running: Running) -> dict[str, Any]:
        try:
            status = running.status()
        except ToolFailed as error:
            status = error.reason
        return {
            "status": status,
            "problem": running.problem,
            "qemu": running.qemu.process.pid,
            "accelerator": running.accelerator,
            "version": running.version,
            "memory": running.machine.memory,
            "cpus": running.machine.cpus,
            "serial": str(self.run_dir.serial),
        }

    def _snapshot(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        author = request.get("author")
        with self._ordered() as running:
            taken = state.take(
                running, str(request.get("message", "")), None if author is None else str(author)
            )
        return {
            "id": taken.id.hex(),
            "pause": taken.pause,
            "held": taken.held,
            "used": taken.used,
            "late": taken.late,
        }

    def _snapshot_disks(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The disks alone: as after a power cut, or with the guest's file systems frozen."""
        author = request.get("author")
        quiet = agent.frozen(self.run_dir.agent) if request.get("quiesce") else _nothing()
        with self._ordered() as running, quiet:
            made = running.session.snapshot(
                str(request.get("message", "")),
                author=None if author is None else str(author),
                attachments=running.files,
            )
        return {"id": made.id.hex()}

    def _flush(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._ordered() as running:
            running.session.flush()
        return {}

    def _pause(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._ordered() as running:
            running.pause()
        return {}

    def _resume(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._ordered() as running:
            running.resume()
        return {}

    def _qmp(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        arguments = request.get("arguments")
        if arguments is not None and not isinstance(arguments, dict):
            raise BadRequest("the arguments of a QMP command are a JSON object")
        with self._ordered() as running:
            return {"return": running.monitor.send(str(request.get("command")), arguments)}

    def _stop(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._ordered() as running:
            if not request.get("force"):
                seconds = float(request.get("seconds", 30.0))
                if not running.power_off(seconds):
                    raise Busy(
                        f"the guest of '{self.branch.name}' does not react to the power button; "
                        "--force switches it off",
                        kind="guest-busy",
                    )
                self._end("the guest was powered off")
            else:
                self._end("it was switched off")
        return {"ended": self._ended}

    def _rollback(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the branch another state and start from that."""
        rev = str(request.get("revision"))
        force = bool(request.get("force"))
        with self._ordered():
            target = plan(self.vault, rev, force=force)
            exact = target.position.snapshot
            rev = exact.hex() if exact else rev
            self._close()
            try:
                self.vault.rollback(self.branch.name, rev)
                session = self.vault.session(self.branch.name, holder=HOLDER)
                try:
                    told = self._begin(session, force=force)
                except BaseException:
                    session.close()
                    raise
            except BaseException as error:
                self._end(f"a rollback to {rev} failed: {error}")
                raise
        return {"told": told}


@contextlib.contextmanager
def _nothing() -> Any:
    yield


def find_states(base: Path, vault: Vault) -> list[tuple[str, State | None, str]]:
    """(branch, state, status) of every branch that has a machine."""
    found = []
    for branch in vault.branches():
        if attachments.inherited(vault, vault.resolve(branch.name), CONFIG) is None:
            continue
        known = RunDir(base, vault.options.vault_id, branch.id, vault.path).load()
        found.append((branch.name, known, rundir.status(known)))
    return found


