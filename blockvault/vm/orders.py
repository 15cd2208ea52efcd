"""What a running machine is asked through its control socket: each order to one method.

Orders come on threads of their own, one at a time but for the question how things are.  Those
without ``vm-`` are what any server of disks answers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from blockvault.errors import BadRequest, Busy, NotFound, ToolFailed
from blockvault.ops.snapshots import check_words
from blockvault.vm import agent, state

if TYPE_CHECKING:
    from blockvault.vm.running import Running
    from blockvault.vm.supervisor import Supervisor

POWER_SECONDS = 30.0
"""For a guest to shut down."""

Request = Mapping[str, Any]
Result = Mapping[str, Any]


class Orders:
    """The orders to one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def handlers(self) -> dict[str, Callable[[Request], Result]]:
        return {
            "status": self._status,
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

    def _status(self, request: Request) -> Result:
        supervisor = self._supervisor
        running, served, name = supervisor.running, supervisor.served, supervisor.branch.name
        seen = served.status() if served is not None else {}
        if running is None or not seen:
            raise NotFound(f"machine '{name}' is between two states")
        return {
            "pid": os.getpid(),
            "since": supervisor.since,
            "branches": {name: {"dirty_bytes": running.session.pending_bytes}},
            "names": [f"{name}/{volume.name}" for volume in running.session.volumes],
            "copy_on_write": False,
            "tls": False,
            **seen,
            "machine": _machine_status(running),
        }

    def _snapshot(self, request: Request) -> Result:
        with self._supervisor.ordered() as running:
            taken = state.take(running, *_words(request))
        return {
            "id": taken.id.hex(),
            "pause": taken.pause,
            "held": taken.held,
            "used": taken.used,
            "late": taken.late,
        }

    def _snapshot_disks(self, request: Request) -> Result:
        """The disks alone: as after a power cut, or with the guest's file systems frozen."""
        message, author = _words(request)
        quiet: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if request.get("quiesce"):
            run = self._supervisor.run_dir
            quiet = agent.frozen(run.agent, run.frozen)
        made = None
        try:
            with self._supervisor.ordered() as running, quiet:
                made = running.session.snapshot(message, author=author, attachments=running.files)
        except ToolFailed as error:
            if made is None:
                raise
            raise ToolFailed(
                f"snapshot {made.id.hex()} was recorded with the file systems frozen, but whether "
                f"they have thawed since is not known: {error}",
                kind=error.reason,
            ) from error
        return {"id": made.id.hex()}

    def _flush(self, request: Request) -> Result:
        # Not as an order: those take minutes for much memory, and every command asks this first.
        running = self._supervisor.running
        if running is None:
            raise NotFound(f"machine '{self._supervisor.branch.name}' is between two states")
        running.session.flush()
        return {}

    def _pause(self, request: Request) -> Result:
        with self._supervisor.ordered() as running:
            running.pause()
        return {}

    def _resume(self, request: Request) -> Result:
        with self._supervisor.ordered() as running:
            running.resume()
        return {}

    def _qmp(self, request: Request) -> Result:
        arguments = request.get("arguments")
        if arguments is not None and not isinstance(arguments, dict):
            raise BadRequest("the arguments of a QMP command are a JSON object")
        with self._supervisor.ordered() as running:
            return {"return": running.monitor.send(str(request.get("command")), arguments)}

    def _stop(self, request: Request) -> Result:
        supervisor = self._supervisor
        with supervisor.ordered() as running:
            if request.get("force"):
                return {"ended": supervisor.end("it was switched off")}
            running.press_power_button()
        # Whoever does not want to wait for the guest may order something else meanwhile.
        ended = supervisor.wait(float(request.get("seconds", POWER_SECONDS)))
        if ended is None:
            raise Busy(
                f"the guest of '{supervisor.branch.name}' does not react to the power button; "
                "--force switches it off",
                kind="guest-busy",
            )
        return {"ended": ended}

    def _rollback(self, request: Request) -> Result:
        supervisor = self._supervisor
        with supervisor.ordered():
            told = supervisor.go_back(
                str(request.get("revision")), force=bool(request.get("force"))
            )
            return {"told": told, "before": supervisor.before}


def _words(request: Request) -> tuple[str, str | None]:
    """Message and author of a snapshot."""
    message, author = str(request.get("message", "")), request.get("author")
    author = None if author is None else str(author)
    check_words(message, author)
    return message, author


def _machine_status(running: Running) -> dict[str, Any]:
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
        "serial": str(running.run.serial),
    }
