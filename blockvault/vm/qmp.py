"""QEMU's monitor, for code that waits: every command has a deadline, every event a listener.

The protocol is the ``qemu.qmp`` library's, which is asyncio; it runs on a thread of its own.  A
monitor that does not answer in time is an error, and never a command that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from blockvault.errors import ToolFailed

SECONDS = 30.0
POLL = 0.0005
"""Seconds between two questions where a guest may stand meanwhile."""
_RETRY = 0.02
_UNFINISHED = "not finalized"
"""What QEMU says to ``cont`` between a migration's end and its cleaning up."""

T = TypeVar("T")
Listener = Callable[[str, Mapping[str, Any]], None]


class Monitor:
    """A connected monitor; close it, or use it in a ``with``."""

    def __init__(self, path: Path, *, timeout: float = SECONDS, listener: Listener | None = None):
        """Connect within ``timeout``; ``listener(event, data)`` is called on the monitor's thread.

        After ``close`` or the end of QEMU the listener gets one last event, ``""``.
        """
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client: QMPClient = QMPClient("blockvault")
        self._events: asyncio.Task[None] | None = None
        try:
            self._call(self._connect(path, time.monotonic() + timeout), timeout + 5)
        except BaseException:
            self._end_loop()
            raise

    async def _connect(self, path: Path, deadline: float) -> None:
        while True:
            try:
                await asyncio.wait_for(self._client.connect(str(path)), deadline - time.monotonic())
                break
            except (ConnectError, TimeoutError) as error:
                if time.monotonic() + _RETRY > deadline:
                    raise _stalled(f"QEMU's monitor cannot be reached: {error}") from None
                await asyncio.sleep(_RETRY)
        events = EventListener()
        self._client.register_listener(events)
        self._events = asyncio.ensure_future(self._forward(events))

    async def _forward(self, events: Any) -> None:
        async for event in events:
            self._tell(str(event["event"]), event.get("data", {}))

    def _tell(self, name: str, data: Mapping[str, Any]) -> None:
        if self._listener is not None:
            self._listener(name, data)

    # -- asking ----------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """QEMU's, with which it greets: ``7.2.22``."""
        greeting = self._client.greeting
        if greeting is None:
            raise ToolFailed("QEMU went away", kind="qemu-gone")
        found: Any = greeting.QMP.version["qemu"]
        return f"{found['major']}.{found['minor']}.{found['micro']}"

    def execute(self, command: str, *, timeout: float = SECONDS, **arguments: Any) -> Any:
        """Run one command; names with ``_`` are sent with ``-``.  ``ToolFailed`` says why not."""
        plain = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.send(command, plain, timeout=timeout)

    def send(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = SECONDS
    ) -> Any:
        """The same with the arguments as they are sent."""
        try:
            return self._call(self._client.execute(command, arguments or None), timeout)
        except ExecuteError as error:
            raise ToolFailed(f"QEMU refused {command}: {error}", kind="qemu-refused") from None
        except (QMPError, EOFError, OSError) as error:
            raise ToolFailed(
                f"QEMU went away during {command}: {error}", kind="qemu-gone"
            ) from None

    def hand_over(self, fd: int, name: str) -> None:
        """Give QEMU an open file under a name; this process may close its own afterwards."""

        async def send() -> None:
            self._client.send_fd_scm(fd)

        self._call(send(), SECONDS)
        self.execute("getfd", fdname=name)

    def status(self) -> str:
        """``running``, ``paused``, ``io-error``, ``postmigrate``, ..."""
        return str(self.execute("query-status")["status"])

    def go_on(self) -> None:
        """Let the guest run, as soon as QEMU is done with a migration that has just ended."""
        self.wait_for(self._continue, "the end of its migration")

    def _continue(self) -> bool | None:
        try:
            self.execute("cont")
        except ToolFailed as error:
            if _UNFINISHED not in error.message:
                raise
            return None
        return True

    def wait_for(
        self,
        ready: Callable[[], T | None],
        what: str,
        timeout: float = SECONDS,
        *,
        every: float = POLL,
    ) -> T:
        """Ask again and again until ``ready`` gives something."""
        deadline = time.monotonic() + timeout
        while True:
            found = ready()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise _stalled(f"QEMU did not get to {what} in {timeout:g} s")
            time.sleep(every)

    def _call(self, work: Awaitable[T], timeout: float) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, timeout)

        try:
            return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        except TimeoutError:
            raise _stalled(f"QEMU's monitor did not answer in {timeout:g} s") from None

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the monitor; QEMU runs on."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._call(self._hang_up(), SECONDS)
        self._end_loop()
        self._tell("", {})

    async def _hang_up(self) -> None:
        if self._events is not None:
            self._events.cancel()
        with contextlib.suppress(Exception):
            await self._client.disconnect()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _stalled(message: str) -> ToolFailed:
    return ToolFailed(message, kind="qemu-stalled")
