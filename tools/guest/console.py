"""The guest's serial shell: run a command, get what it printed.

python -m tools.guest.console SOCKET COMMAND
"""

from __future__ import annotations

import itertools
import re
import socket
import sys
import time
from pathlib import Path
from typing import Self

_numbers = itertools.count(1)
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROMPT = "guest# "


class Console:
    """A connection to the serial console; one at a time is possible."""

    def __init__(self, path: Path | str, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def wait_for_shell(self) -> None:
        """Return when the shell takes commands: an empty line is sent until a prompt comes."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            self._socket.sendall(b"\n")
            if PROMPT in self._until(PROMPT, 0.5):
                return
        raise TimeoutError("the guest's shell did not come up")

    def run(self, command: str, seconds: float | None = None) -> str:
        """What a command printed, without the echo of it; ``AssertionError`` if it failed."""
        number = next(_numbers)
        # The quotes keep the echo of the line from looking like its result.
        self._socket.sendall(f"echo be''gin{number}; {command}; echo e''nd{number}=$?\n".encode())
        text = self._until(f"end{number}=", seconds or self.seconds)
        if not re.search(rf"end{number}=\d+\s", text):
            text += self._until("\n", 5.0)
        text = _STEERING.sub("", text).replace("\r", "")
        found = re.search(rf"begin{number}\n(.*)end{number}=(\d+)", text, re.DOTALL)
        if found is None:
            raise TimeoutError(f"the guest did not finish {command!r}: {text[-500:]!r}")
        output = found[1]
        assert found[2] == "0", f"{command!r} failed in the guest: {output}"
        return output.strip()

    def counter(self) -> int:
        """The number that lives in the guest's memory."""
        return int(self.run("cat /run/counter"))

    def _until(self, text: str, seconds: float) -> str:
        data = b""
        deadline = time.monotonic() + seconds
        while text.encode() not in data and time.monotonic() < deadline:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                more = self._socket.recv(65536)
            except TimeoutError:
                break
            if not more:
                break
            data += more
        return data.decode(errors="replace")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tools.guest.console SOCKET COMMAND")
    with Console(sys.argv[1], 60.0) as console:
        console.wait_for_shell()
        try:
            print(console.run(sys.argv[2]))
        except AssertionError as error:
            print(error)


if __name__ == "__main__":
    main()
