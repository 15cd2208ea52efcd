"""What a vault can do, one module per subject; ``Vault`` is the short way to most of them.

Which state is meant: a revision is resolved to a position, and that is read as a device.

    resolve   revision text -> Position            positions points in the log, and their states
    states    Position -> roots and overlay        reading   Position -> device
    treereader  block number -> id in one tree     trails    who reads a volume in order
    volumefile, statefile  a device as a file      points, bisect  the first bad state of a line
    refs      branches, tags, HEAD, rollback       snapshots making, loading, log, events
    compare   what differs between two states

In and out:

    images    image files as runs of bytes         ingest    images -> volumes of a snapshot
    formats   which format an image file has       headers   what an image file refers to
    programs  those of others: qemu-img
    intake    the bytes of images -> objects, trees, commits; hasher, hashing beside it
    export    volume -> image file or stream (targets), by copying or streaming, ahead
    checkout  snapshot -> a directory of files (manifest, overwrite); checkin back
    compose   a branch from several sources        attachments  files kept with snapshots
    capture   a file as of one instant, while others write it: the memory of a machine

What is kept, and whether it is whole:

    policy    what to keep, and how to pack it     prune, forget  what is not to be kept
    gc        mark -> condemn -> sweep, with roots, marks, marksfile, gathered, base, turns
    recompress  cold frames packed harder, by likeness
    check     verify all that is stored, with check_frames, check_trees, entries, needed, damage,
              report
    repair    bring back what is lost              rebuild   projections from the log, replaying
    recovery  what a killed session had promised   stats, metrics  who takes how much space

Each function takes the vault first.  Those that change files or drop data compute a plan that can
be shown, then execute it.
"""

from __future__ import annotations

from collections.abc import Callable

from blockvault.store.filesystem import file_system_type as file_system_type

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` in bytes, often; it must be cheap."""


def silent(done: int, total: int) -> None:
    """The progress of somebody who does not want to know."""
