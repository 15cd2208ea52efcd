"""Every error that blockvault raises on purpose, grouped by what the caller can do about it.

``kind`` is stable and meant for programs (``--json`` prints it); ``exit_code`` is what the command
line ends with.  The message says what happened, what is safe, and what to do next.

    VaultError
    ├── BadRequest      2   change the request
    ├── NotFound        3   name something that exists
    ├── Conflict        4   choose another name, or confirm
    ├── Busy            5   try again when the holder is done
    ├── Damaged         6   stop; verify, then repair
    ├── NoSpace / IOFailed  7   make room or mend the disk; nothing acknowledged is lost
    ├── Unsupported     8   use another version of the program
    └── ToolFailed      9   install or look at another program
"""

from __future__ import annotations

from typing import ClassVar


class VaultError(Exception):
    """Base of all errors raised on purpose.  ``kind`` may be narrowed where it is raised."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, kind: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = kind or type(self).kind


class BadRequest(VaultError):
    """The request makes no sense as it stands; nothing was changed."""

    kind = "bad-request"
    exit_code = 2


class NotFound(VaultError):
    """A name, revision, volume or file does not exist, or is ambiguous."""

    kind = "not-found"
    exit_code = 3


class Conflict(VaultError):
    """The request collides with something that exists; nothing was changed."""

    kind = "conflict"
    exit_code = 4


class Busy(VaultError):
    """Somebody else holds what is needed; the same request works later."""

    kind = "busy"
    exit_code = 5


class Damaged(VaultError):
    """Stored bytes are not what was stored.  Never raised for bad input from a user."""

    kind = "damaged"
    exit_code = 6


class IOFailed(VaultError):
    """The operating system refused a read, a write or a sync."""

    kind = "io-failed"
    exit_code = 7


class NoSpace(IOFailed):
    """The disk or the quota is full; what was acknowledged before is safe."""

    kind = "no-space"


class Unsupported(VaultError):
    """A format version, feature or platform that this program does not know."""

    kind = "unsupported"
    exit_code = 8


class ToolFailed(VaultError):
    """A program that blockvault needs is missing or failed."""

    kind = "tool-failed"
    exit_code = 9
