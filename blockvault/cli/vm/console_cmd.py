"""``blockvault vm console``: a machine's serial console, until Ctrl-]."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common
from blockvault.errors import Busy

if TYPE_CHECKING:
    from blockvault.vault import Vault

ESCAPE = b"\x1d"  # Ctrl-]


@command("console", examples={"blockvault vm console web": "Type to it; Ctrl-] leaves."})
@click.argument("branch", shell_complete=complete.branches)
@with_vault
def run(vault: Vault, branch: str) -> None:
    """Connect to a machine's serial console.

    Ctrl-] leaves it; so does the end of standard input.  One console at a time can be connected.
    """
    from blockvault.nbd import control

    remote = common.machine(vault, branch)
    path = remote.ask("status", patience=control.STATUS_SECONDS)["machine"]["serial"]
    with socket.socket(socket.AF_UNIX) as serial:
        try:
            serial.connect(path)
        except OSError as error:
            raise Busy(f"the console of '{branch}' cannot be reached: {error.strerror}") from None
        if sys.stdin.isatty():
            output.write("Connected; Ctrl-] leaves.")
            output.flush()
        with _raw():
            _relay(serial)


@contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _relay(serial: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([0, serial.fileno()], [], [])
        if serial.fileno() in ready:
            data = serial.recv(65536)
            if not data:
                return
            os.write(1, data)
        if 0 in ready:
            typed = os.read(0, 4096)
            if not typed or ESCAPE in typed:
                return
            serial.sendall(typed)
