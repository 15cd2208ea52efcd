"""The QEMU process.  It is no part of its supervisor's session: one can die without the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from blockvault import files
from blockvault.errors import IOFailed, ToolFailed
from blockvault.vm.rundir import Process

_LAST_WORDS = 4096


class Qemu:
    """A QEMU that was started here or found running."""

    def __init__(self, process: Process, child: subprocess.Popen[bytes] | None, log: Path) -> None:
        self.process = process
        self._child = child
        self._log = log
        try:
            self._fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            raise ToolFailed("QEMU has ended", kind="qemu-gone") from None

    @classmethod
    def start(cls, command: Sequence[str], log: Path, keep: int) -> Qemu:
        """Start QEMU in a session of its own; what it says goes to ``log``.

        It has the file ``keep`` open as long as it lives.
        """
        try:
            with open(log, "wb") as said:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                    pass_fds=(keep,),
                )
        except FileNotFoundError:
            raise ToolFailed(f"{command[0]} cannot be started", kind="tool-missing") from None
        except OSError as error:
            raise IOFailed(f"{command[0]} cannot be started: {error.strerror}") from None
        return cls(Process.of(child.pid), child, log)

    @classmethod
    def find(cls, process: Process, log: Path) -> Qemu:
        """One that a supervisor left behind."""
        return cls(process, None, log)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most ``seconds``."""
        ended = files.readable(self._fd, seconds)
        if ended and self._child is not None:
            self._child.wait()
        return ended

    @property
    def ended(self) -> bool:
        return self.wait(0)

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        self.wait(10.0)

    def close(self) -> None:
        os.close(self._fd)

    def reason(self, *, powered_off: bool = False) -> str:
        """How it ended, in words; ``powered_off`` if it said so of a guest that is not our child's.
        """
        code = self._child.returncode if self._child is not None else None
        said = self.last_words()
        if code == 0 or (code is None and powered_off):
            return "the guest was powered off"
        if code is not None and code < 0:
            return f"QEMU was killed by {signal.Signals(-code).name}"
        if code is None and not said:
            return "QEMU ended"
        return f"QEMU ended: {said or f'exit code {code}'}"

    def last_words(self) -> str:
        """The last line that it said."""
        try:
            data = self._log.read_bytes()[-_LAST_WORDS:]
        except OSError:
            return ""
        lines = data.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
