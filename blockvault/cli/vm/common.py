"""What the commands about machines share: where they run, whom to ask, how disks are served."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockvault.errors import BadRequest, Busy, NotFound, VaultError

if TYPE_CHECKING:
    from blockvault.nbd.control import Remote
    from blockvault.nbd.server import Server
    from blockvault.ops.refs import Branch
    from blockvault.session import Session
    from blockvault.vault import Vault
    from blockvault.vm.disks import Served
    from blockvault.vm.rundir import RunDir

STARTED_SHAPE = {
    "branch": "the machine's branch",
    "told": "what was done: booted, resumed from a snapshot, or taken over",
    "pid": "number of the process that runs it",
}


def qmp_option() -> Callable[[Any], Any]:
    """Where the monitor of somebody else's QEMU listens."""
    return click.option(
        "--qmp",
        metavar="SOCKET",
        required=True,
        type=click.Path(path_type=Path),
        help="Unix socket of its QMP monitor.",
    )


def runtime() -> Path:
    """The directory for what running machines need in memory; it is the user's own."""
    from blockvault.vm import host, rundir

    named = os.environ.get("BLOCKVAULT_RUNTIME")
    folder = Path(os.path.abspath(named)) if named else Path(f"/dev/shm/blockvault-{os.getuid()}")
    # Made before it is looked at: nobody can come in between.  What needs it tells if that failed.
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rundir.check_own(folder)
    host.cache_in(folder)
    return folder


def run_dir(vault: Vault, branch: Branch) -> RunDir:
    from blockvault.vm.rundir import RunDir

    return RunDir(runtime(), vault.options.vault_id, branch.id, vault.path)


def machine(vault: Vault, name: str) -> Remote:
    """The process that runs a branch's machine; ``NotFound`` when none does."""
    from blockvault.nbd import control
    from blockvault.vm import rundir

    branch = vault.branch(name)
    state = run_dir(vault, branch).load()
    status = rundir.status(state)
    if state is None or status != "running":
        said = {
            "orphaned": "has lost its supervisor; 'blockvault vm start' takes it over, "
            "'vm stop --force' switches it off",
            "died": "is not running; it died with its supervisor; 'blockvault vm start' starts it, "
            "'vm stop --force' removes what it left in memory",
        }.get(status, "is not running; 'blockvault vm start' starts it")
        raise NotFound(f"machine '{branch.name}' {said}", kind="machine-stopped")
    if not state.control:
        raise Busy(
            f"machine '{branch.name}' is being started; nothing was done, try again when it is up",
            kind="machine-starting",
        )
    return control.Remote(Path(state.control))


@contextlib.contextmanager
def new_branch(vault: Vault, name: str, revision: str) -> Iterator[None]:
    """A branch for a new machine, which goes again if the machine does not start.

    If its process died and left a guest, the branch stays: the next start takes that over.
    """
    from blockvault.vm import rundir

    vault.create_branch(name, revision)
    try:
        yield
    except Exception:
        with contextlib.suppress(VaultError):  # it went by itself, or somebody has it already
            place = run_dir(vault, vault.branch(name))
            if rundir.status(place.load()) != "orphaned":
                vault.delete_branch(name)
                place.remove()
        raise


class Disks:
    """The volumes of a session, served over NBD from ``begin`` until ``close``.

    Who connects before waits: a QEMU is started while the server is still loaded.
    """

    def __init__(self, vault: Vault, session: Session, path: Path) -> None:
        from blockvault.nbd import sockets

        self._vault = vault
        self._session = session
        self._path = path
        self._listener = sockets.listen_unix(path)
        self._server: Server | None = None

    def begin(self) -> None:
        from blockvault.nbd.exports import Exports
        from blockvault.nbd.server import Server
        from blockvault.nbd.volumes import VaultCatalogue

        sessions = {self._session.branch.name: self._session}
        self._catalogue = VaultCatalogue(self._vault, sessions, only_listed=True)
        self._server = Server(Exports(self._catalogue))
        self._server.only_listed = True
        self._server.answer_unix(self._listener, self._path)

    def status(self) -> dict[str, Any]:
        return self._server.status() if self._server is not None else {}

    def close(self) -> None:
        if self._server is None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        else:
            self._server.stop()
            self._catalogue.close()


def server(vault: Vault) -> Callable[[Session, Path], Served]:
    """The way to serve disks that a supervisor is given."""
    return lambda session, path: Disks(vault, session, path)


def parse_arguments(text: str | None) -> dict[str, Any] | None:
    """The JSON object of a QMP command."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadRequest(f"the arguments are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the arguments of a QMP command are a JSON object")
    return value


def accelerator_note(name: str) -> str:
    """What to say once of how a machine runs."""
    return "" if name == "kvm" else " (KVM does not run here: QEMU emulates, which is slower)"
