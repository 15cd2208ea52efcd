"""Block status: what a client may ask about ranges of an export, and the answers' form.

A *context* names a property of every byte: ``base:allocation`` tells holes from data (the protocol
defines its bits), ``blockvault:diff:REV`` tells whether a range differs from another revision of
the volume (bit 0 = changed).  A stock client reads with it exactly what changed between any two
versions, and there is no bitmap that could be lost.

Whatever a context yields is clipped to what was asked, gaps are filled with its ``default`` and
neighbours that are alike become one: the protocol wants consecutive runs of non-zero length, and
clients disconnect from a server that sends anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from blockvault.device import Device
from blockvault.nbd.wire import State

ALLOCATION = "base:allocation"
DIFF_PREFIX = "blockvault:diff:"
CHANGED = 1

StatusRun = tuple[int, int, int]  # offset, length, status
ChangedRun = tuple[int, int, bool]  # offset, length, differs
Changes = Callable[[Device, int, int], Iterable[ChangedRun]]


class Context(NamedTuple):
    """A metadata context that can be selected; ``runs(device, offset, length)`` answers it.

    ``default`` is the status of what ``runs`` leaves out: the one that is safe to assume.
    """

    name: str
    runs: Callable[[Device, int, int], Iterable[StatusRun]]
    default: int


def allocation() -> Context:
    """``base:allocation``: zero runs take no space in a vault, so they are holes as well."""

    def runs(device: Device, offset: int, length: int) -> Iterator[StatusRun]:
        for extent in device.extents(offset, length):
            yield extent.offset, extent.length, (State.HOLE | State.ZERO) if extent.zero else 0

    return Context(ALLOCATION, runs, 0)


def diff(revision: str, changes: Changes) -> Context:
    """``blockvault:diff:REVISION``; what ``changes`` does not mention counts as changed."""

    def runs(device: Device, offset: int, length: int) -> Iterator[StatusRun]:
        for start, size, differs in changes(device, offset, length):
            yield start, size, CHANGED if differs else 0

    return Context(DIFF_PREFIX + revision, runs, CHANGED)


def offered() -> list[str]:
    """Names for a client that asks for all contexts; the diff's stands for any revision."""
    return [ALLOCATION, DIFF_PREFIX]


def listed(query: str, find_changes: Callable[[str], Changes | None]) -> list[str]:
    """Names that match a query of LIST_META_CONTEXT, where an empty leaf matches everything."""
    if query == "base:":
        return [ALLOCATION]
    if query in ("blockvault:", DIFF_PREFIX):
        return [DIFF_PREFIX]
    return [context.name for context in selected(query, find_changes)]


def selected(query: str, find_changes: Callable[[str], Changes | None]) -> list[Context]:
    """The context that a query of SET_META_CONTEXT selects; what nobody knows selects nothing."""
    if query == ALLOCATION:
        return [allocation()]
    revision = query.removeprefix(DIFF_PREFIX)
    if revision and revision != query:
        changes = find_changes(revision)
        if changes is not None:
            return [diff(revision, changes)]
    return []


def descriptors(
    context: Context, device: Device, offset: int, length: int, limit: int
) -> list[tuple[int, int]]:
    """Return 1 to ``limit`` pairs (length, status) that lie one after the other from ``offset``.

    They never reach beyond ``offset + length`` and may cover less: the client asks again.
    """
    merged: list[tuple[int, int]] = []
    for size, status in _consecutive(context, device, offset, length):
        if merged and merged[-1][1] == status:
            merged[-1] = (merged[-1][0] + size, status)
        elif len(merged) == limit:
            break
        else:
            merged.append((size, status))
    return merged


def _consecutive(
    context: Context, device: Device, offset: int, length: int
) -> Iterator[tuple[int, int]]:
    """Clip the context's runs to the range, and fill what they leave out."""
    position, stop = offset, offset + length
    for start, size, status in context.runs(device, offset, length):
        end = min(start + size, stop)
        if start > position:
            gap = min(start, stop) - position
            yield gap, context.default
            position += gap
        if end > position:
            yield end - position, int(status)
            position = end
        if position >= stop:
            return
    yield stop - position, context.default
