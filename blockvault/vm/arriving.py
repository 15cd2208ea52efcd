"""Memory that comes while its guest runs already: what the guest waits for first, then the rest.

    QEMU ── requests ──> answer ──┬── pages, a leaf of 32 blocks at a time ──> QEMU
                           send ──┘

A machine with much memory so starts as fast as one with little.  What guests from the same memory
touched before goes first (``touched``).  Each page goes once; what is zero goes only to a guest
that waits for it.  Until all is there the guest depends on this process: a mark in its run
directory says that a QEMU that was left alone then cannot go on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault.errors import IOFailed, ToolFailed, VaultError
from blockvault.vm import postcopy, touched
from blockvault.vm.stream import PAGE

if TYPE_CHECKING:
    from blockvault.ops.reading import StateDevice
    from blockvault.vm.postcopy import Opening

WORTHWHILE = 256 << 20
"""Bytes of memory from which on a guest is not made to wait for all of it."""
_CHUNK = 128 << 10
"""Bytes that are read and sent at once: a guest that waits, waits for at most one of others."""
_NEAR = 32 << 10
"""Bytes around a page that was asked for of which it is assumed that the next guest asks for them.
Less, and a few clones would have to ask for each page once; more, and all would get too much."""
_HINTED = 64
"""Pages that are sent at once because others touched them."""
_QUIET = 0.02
"""Seconds without a request after which the rest is sent."""
_ALONE = 0.2
"""Seconds for which a guest that has what others needed gets the processors for itself."""
_STALLED = 60.0
"""Seconds in which QEMU takes nothing, after which nobody waits for the rest any longer."""
_ALLOWED = Path("/proc/sys/vm/unprivileged_userfaultfd")


def worthwhile(memory: Any) -> bool:
    """Whether a saved memory, if there is one, should come while its guest runs.

    It can if this user's QEMU may be told of the pages that its guest touches (``userfaultfd``);
    QEMU says so for certain when it is asked to.
    """
    if memory is None or memory.size < WORTHWHILE:
        return False
    try:
        return os.geteuid() == 0 or _ALLOWED.read_text().strip() == "1"
    except OSError:
        return False


class Arriving:
    """The memory of one machine on its way.

    ``prepare`` it, ``begin`` when QEMU listens, ``wait`` until it is there, and ``close`` it.
    """

    def __init__(self, memory: StateDevice, opened: Opening, mark: Path, hints: Path) -> None:
        """``mark`` is a file that is there as long as the guest cannot do without this process;
        ``hints`` one with the pages that others from the same memory touched first."""
        self.error: VaultError | None = None
        self._device = memory
        self._size = memory.size
        self._opened = opened
        self._mark = mark
        self._hints = hints
        self._touched: dict[int, bytes] = {}
        """Pages by number, those that others touched before: see ``touched``."""
        self._known: set[int] = set()
        """Where chunks begin of which others touched pages, but not those that are asked for now:
        their neighbours are not sent along, or nobody would ever know which of them are used."""
        self._recalled = threading.Event()
        self._sent = bytearray(memory.size // PAGE)
        self._gone: set[int] = set()
        """Where chunks begin of which all that is not zero was sent."""
        self._sending = threading.Lock()
        self._all_sent = False
        self._asked = time.monotonic()
        self._socket = socket.socket(socket.AF_UNIX)
        self._connected = False
        self._begun = threading.Event()
        self._there = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True)
            for work in (self._send, self._answer)
        ]

    def prepare(self) -> None:
        """Recall what the guest will touch first, while its QEMU starts."""
        for thread in self._threads:
            thread.start()

    def begin(self, path: Path, seconds: float) -> None:
        """Send to a QEMU that listens at ``path`` for a migration to come in."""
        self._socket.settimeout(seconds)
        self._socket.connect(str(path))
        self._socket.settimeout(None)
        self._connected = True
        self._mark.touch()
        self._begun.set()

    @property
    def there(self) -> bool:
        """Whether QEMU has all of it."""
        return self._there.is_set() and self.error is None

    def wait(self, seconds: float = _STALLED) -> None:
        """Until all of it is there; raises what went wrong, or that for so long nothing came."""
        sent = self._sent.count(1)
        while not self._there.wait(seconds):
            before, sent = sent, self._sent.count(1)
            if sent == before:
                raise ToolFailed(
                    f"QEMU took nothing of the machine's memory for {seconds:g} s. Nothing was "
                    "done and nothing is lost; if the host is not just busy, 'vm stop --force' "
                    "ends this QEMU, and 'vm start' begins anew",
                    kind="qemu-stalled",
                )
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Stop sending, for a QEMU that has ended or has all, or never began."""
        self._hang_up()
        self._begun.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except VaultError as error:
            self._fail(error)
        except Exception as error:
            self._fail(IOFailed(f"its memory could not be restored: {error}"))

    def _fail(self, error: VaultError) -> None:
        if not self._there.is_set():
            self.error = error
            self._there.set()
            self._hang_up()

    # -- what the guest waits for ----------------------------------------------------------------

    def _answer(self) -> None:
        self._begun.wait()
        self._recalled.wait()
        if not self._connected:
            return
        recalled = len(self._touched)
        with self._socket.makefile("rb") as source:
            for offset, length in postcopy.requests(source):
                asked = range(offset, offset + length, PAGE)
                for start in range(offset // _CHUNK * _CHUNK, offset + length, _CHUNK):
                    self._send_chunk(start, asked)
                self._asked = time.monotonic()
        self._mark.unlink(missing_ok=True)
        self._there.set()
        if self._device.pin is not None:
            self._device.pin.release()
        if len(self._touched) > recalled:
            touched.save(self._hints, self._touched)

    # -- the rest --------------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            hinted = self._recall()
        finally:
            self._recalled.set()
        self._begun.wait()
        if not self._connected:
            return
        self._socket.sendall(self._opened.data)
        for at in range(0, len(hinted), _HINTED):
            self._put(hinted[at : at + _HINTED])
        if hinted:
            self._asked = time.monotonic() + _ALONE
        for start in self._chunks():
            if start in self._gone:
                continue
            # Who waits for one page will wait for others in a moment.
            while (quiet := time.monotonic() - self._asked) < _QUIET:
                if self._there.wait(_QUIET - quiet):
                    return
            self._send_chunk(start)
        with self._sending:
            self._all_sent = True
            self._socket.sendall(postcopy.closing(self._opened))

    def _recall(self) -> list[tuple[int, bytes]]:
        """What others touched, each page behind its offset."""
        self._touched = touched.load(self._hints)
        hinted = [(number * PAGE, page) for number, page in self._touched.items()]
        self._known = {at // _CHUNK * _CHUNK for at, _ in hinted}
        return [each for each in hinted if each[0] < self._size]

    def _chunks(self) -> Iterator[int]:
        """Where data begins, in order."""
        last = -1
        for extent in self._device.extents(0, self._size):
            if not extent.zero:
                low = max(last + 1, extent.offset // _CHUNK)
                last = (extent.offset + extent.length - 1) // _CHUNK
                yield from range(low * _CHUNK, (last + 1) * _CHUNK, _CHUNK)

    def _send_chunk(self, start: int, asked: range = range(0)) -> None:
        """The pages of a chunk that were asked for, what lies near them, then the rest of it."""
        data = self._device.read(start, min(_CHUNK, self._size - start))
        pages = [(start + at, data[at : at + PAGE]) for at in range(0, len(data), PAGE)]
        full = [each for each in pages if each[1] != postcopy.ZEROS]
        near = {at // _NEAR for at in asked}
        first = [each for each in pages if each[0] in asked]
        first += [each for each in full if each[0] // _NEAR in near]
        for at, page in first:
            touched.note(self._touched, at // PAGE, page)
        if first and start in self._known:
            self._put(first)
            return
        self._put([*first, *full])
        self._gone.add(start)

    def _put(self, pages: Sequence[tuple[int, bytes]]) -> None:
        """Those of some pages that have not gone yet, each behind its offset."""
        with self._sending:
            if self._all_sent:
                return  # what is asked for now is zero, which QEMU knows when it reads the end
            missing = []
            for at, page in pages:
                if not self._sent[at // PAGE]:
                    self._sent[at // PAGE] = 1
                    missing.append((at, page))
            if missing:
                self._socket.sendall(postcopy.part(self._opened, missing))
