"""A command that is run thousands of times: imported once, then forked for each run.

``Warm("package.module:main")`` starts one process that imports the command; each ``run`` forks it,
sets arguments, directory and streams, and calls ``main(arguments)`` as the script would.  A run
costs a fork instead of a start of Python.  With the environment of a ``shim`` all runs are under
its orders.  Nothing of the vault may be open in the process that is forked, and nothing is.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.faults.channel import inherited, spawn

LIMIT = 120
"""Seconds after which a run is ended by SIGALRM: it hangs."""


class Ran(NamedTuple):
    """``code`` is an exit code, or minus a signal's number."""

    code: int
    out: str
    err: str


class Warm:
    """A context manager around the process that is forked."""

    def __init__(self, target: str, *modules: str, env: Mapping[str, str] | None = None) -> None:
        self._process, self._channel = spawn("tools.faults.warm", target, *modules, env=env)

    def run(self, *arguments: str, cwd: Path) -> Ran:
        self._channel.send((arguments, str(cwd)))
        return Ran(*self._channel.recv())

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.wait()


def _main(target: str, *modules: str) -> None:
    channel = inherited()
    for name in modules:
        importlib.import_module(name)
    module, _, name = target.partition(":")
    command: Callable[[Sequence[str]], Any] = getattr(importlib.import_module(module), name)
    with contextlib.suppress(EOFError):
        while True:
            arguments, directory = channel.recv()
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                child = os.fork()
                if child == 0:
                    channel.close()
                    signal.alarm(LIMIT)
                    os.chdir(directory)
                    os.dup2(out.fileno(), 1)
                    os.dup2(err.fileno(), 2)
                    sys.exit(command(arguments))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                texts = [_text(file) for file in (out, err)]
            channel.send((code, *texts))


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


if __name__ == "__main__":
    _main(*sys.argv[2:])
