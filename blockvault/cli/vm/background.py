"""A machine's process behind the command that starts it: a fork, which has the program loaded.

To start the interpreter anew and load the program again would take longer than QEMU takes to start.
The fork comes first in a command, and loads what only it needs while the command looks the revision
up.  There it is sound: the command has one thread, and no vault is open yet, which LMDB does not
allow in a process that forks.

    command ── which machine ──────────> fork     one line of JSON each way, the answer in the form
            <── it is up, or why not ──            of control sockets; without a word the fork ends
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from blockvault.cli import failing
from blockvault.cli.vm import common
from blockvault.cli.vm.life import run_machine
from blockvault.errors import IOFailed, VaultError
from blockvault.nbd import control

if TYPE_CHECKING:
    from blockvault.vault import Vault
    from blockvault.vm.planning import How


class Fork:
    """A process for a machine; in a ``with``, at whose end it is on its own, or gone if unused."""

    def __enter__(self) -> Self:
        self._socket, its = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            self._socket.close()
            _be_the_machine(its)
        its.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, vault: Vault, branch: str, how: How) -> dict[str, Any]:
        """Run a machine there; return what it told once it was up.

        It has a session of its own.  What it logs is kept with the vault, and what goes wrong
        before the machine is up is raised here.
        """
        log = common.run_dir(vault, vault.branch(branch)).console_log.with_name("supervisor.log")
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked = {"vault": str(vault.path), "branch": branch, "how": how, "log": str(log)}
        line = b""
        with contextlib.suppress(OSError), self._socket.makefile("rb") as answers:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
            line = answers.readline()
        if not line:
            _, status = os.waitpid(self._child, 0)
            code = os.waitstatus_to_exitcode(status)
            raise IOFailed(f"the machine's process ended at once (exit {code}); {log} says why")
        answer = json.loads(line)
        if "error" in answer:
            os.waitpid(self._child, 0)
        return control.result_of(answer)


# -- in the fork -------------------------------------------------------------------------------


def _be_the_machine(asker: socket.socket) -> NoReturn:
    """All that the fork does: nothing of the command that it came from runs on after it."""
    code = VaultError.exit_code
    try:
        os.setsid()  # so that a Ctrl-C is the command's alone
        _load()
        with asker.makefile("rb") as words:
            line = words.readline()
        code = _run(json.loads(line), asker) if line else 0
    finally:
        os._exit(code)


def _load() -> None:
    """What it takes to start QEMU; the rest is loaded while that starts."""
    import blockvault.session
    import blockvault.vm.supervisor  # noqa: F401


def _let_go(log: Path) -> None:
    """Keep nothing open that belongs to whoever started the command.

    The files of this program go when others are executed; those without that mark were inherited,
    and their other ends would wait for this process.
    """
    with open(log, "ab") as said, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file.fileno(), number)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            with contextlib.suppress(OSError):
                if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                    os.close(number)


def _run(asked: dict[str, Any], asker: socket.socket) -> int:
    from blockvault.vault import Vault
    from blockvault.vm.planning import How

    def answer(said: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), asker:  # heard once
            asker.sendall(json.dumps(said).encode() + b"\n")

    try:
        _let_go(Path(asked["log"]))
        how = How(*asked["how"])
        with Vault.open(Path(asked["vault"])) as vault:
            run_machine(vault, asked["branch"], how, lambda told: answer({"result": told}))
        sys.stdout.flush()
    except BaseException as error:
        known = error if isinstance(error, VaultError) else IOFailed(f"it failed: {error}")
        answer(control.described(known))
        return failing.report(error, as_json=False)
    return 0
