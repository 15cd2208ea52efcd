"""What a vault can do, one module per subject; ``Vault`` is the short way to most of them.

    resolve   revision text -> Position            reading   Position -> device
    treereader  block number -> id in one tree     volumefile  device -> file object
    trails    who reads a volume in order
    refs      branches, tags, HEAD, rollback       snapshots building, loading, log, events
    images    image files as runs of bytes         ingest    images -> volumes of a snapshot
    intake    the bytes of images -> objects, trees, commits
    export    volume -> image file or stream       checkout  snapshot -> a directory of files
    checkin   those files -> the next snapshot
    compare   what differs between two states      check     verify all that is stored
    rebuild   projections from the log             stats     who takes how much space
    attachments  files kept with snapshots     compose  a branch from several sources
    capture   a file as of one instant, while others write it: the memory of a machine

Each function takes the vault first.  Those that change files or drop data compute a plan that can
be shown, then execute it.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` in bytes, often; it must be cheap."""


def silent(done: int, total: int) -> None:
    """The progress of somebody who does not want to know."""
