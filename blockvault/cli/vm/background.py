"""A machine's process behind the command that starts it: a fork, which has everything loaded.

Starting the interpreter anew and loading the program again took longer than starting QEMU.  A
fork is sound here because nothing goes on in a command beside it: it has one thread, and the vault
is closed before.  LMDB may not be open in a process that forks, and locks would have two owners.

The fork tells through a pipe, in one line of JSON as on control sockets, that the machine is up or
why it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from blockvault.cli import failing
from blockvault.cli.vm import common
from blockvault.cli.vm.life import run_machine
from blockvault.errors import IOFailed, VaultError
from blockvault.nbd import control

if TYPE_CHECKING:
    from blockvault.vault import Vault
    from blockvault.vm.planning import How


def launch(vault: Vault, branch: str, how: How) -> dict[str, Any]:
    """Run a machine in the background; return what it told once it was up.

    The vault is closed by this.  The new process has a session of its own; what it logs is kept
    with the vault, and what goes wrong before the machine is up is raised here.
    """
    log = common.run_dir(vault, vault.branch(branch)).console_log.with_name("supervisor.log")
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    vault.close()
    told, tell = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(told)
        _be_the_machine(vault.path, branch, how, log, tell)
    os.close(tell)
    with open(told, "rb") as answers:
        line = answers.readline()
    if not line:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        raise IOFailed(f"the machine's process ended at once (exit {code}); {log} says why")
    answer = json.loads(line)
    if "error" in answer:
        os.waitpid(child, 0)
    return control.result_of(answer)


# -- in the fork -------------------------------------------------------------------------------


def _be_the_machine(path: Path, branch: str, how: How, log: Path, tell: int) -> NoReturn:
    """All that the fork does: nothing of the command that it came from runs on after it."""
    code = VaultError.exit_code
    try:
        code = _run(path, branch, how, log, tell)
    finally:
        os._exit(code)


def _let_go(log: Path, tell: int) -> None:
    """Keep nothing open that belongs to whoever started the command.

    The files of this program go when others are executed; those without that mark were inherited,
    and their other ends would wait for this process.
    """
    with open(log, "ab") as said, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file.fileno(), number)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != tell:
            with contextlib.suppress(OSError):
                if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                    os.close(number)


def _run(path: Path, branch: str, how: How, log: Path, tell: int) -> int:
    from blockvault.vault import Vault

    waiting = [tell]

    def answer(said: dict[str, Any]) -> None:
        if waiting:
            with contextlib.suppress(BrokenPipeError), open(waiting.pop(), "wb") as pipe:
                pipe.write(json.dumps(said).encode() + b"\n")

    try:
        os.setsid()
        _let_go(log, tell)
        with Vault.open(path) as vault:
            run_machine(vault, branch, how, lambda told: answer({"result": told}))
        sys.stdout.flush()
    except BaseException as error:
        known = error if isinstance(error, VaultError) else IOFailed(f"it failed: {error}")
        answer(control.described(known))
        return failing.report(error, as_json=False)
    return 0
