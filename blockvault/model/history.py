"""Ancestry: walking from snapshots to their parents.

Snapshots come from ``load``, which takes an id and raises for one that does not exist; each is
loaded once per walk.  A snapshot's first parent is its own line of history, further ones are what
was merged into it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from blockvault.model.snapshot import Snapshot

Load = Callable[[bytes], Snapshot]


def walk(load: Load, starts: Iterable[bytes], *, first_parent: bool = False) -> Iterator[Snapshot]:
    """Yield all ancestors, the starts included, newest first, each once; lazily.

    The order is that of ``git log``: by time, a parent never before the child that led to it.
    """
    order = count()
    queue: list[tuple[int, int, int, Snapshot]] = []
    seen: set[bytes] = set()

    def push(ids: Iterable[bytes]) -> None:
        for oid in ids:
            if oid not in seen:
                seen.add(oid)
                found = load(oid)
                # Times may be equal, sequence numbers of two vaults incomparable: the last
                # resort is the order in which they were met, which never compares snapshots.
                heapq.heappush(queue, (-found.time_us, -found.seq, next(order), found))

    push(starts)
    while queue:
        snapshot = heapq.heappop(queue)[-1]
        yield snapshot
        push(snapshot.parents[:1] if first_parent else snapshot.parents)


def nth_ancestor(load: Load, snapshot: Snapshot, steps: int) -> Snapshot | None:
    """``snapshot~steps``: that many first parents back; None beyond the first snapshot."""
    for _ in range(steps):
        if not snapshot.parents:
            return None
        snapshot = load(snapshot.parents[0])
    return snapshot


def nth_parent(load: Load, snapshot: Snapshot, number: int) -> Snapshot | None:
    """``snapshot^number``: parents count from 1, 0 is itself; None if there is no such parent."""
    if number == 0:
        return snapshot
    return load(snapshot.parents[number - 1]) if number <= len(snapshot.parents) else None


class Nearest:
    """The nearest ancestors that are kept, when others go; each snapshot is looked at once."""

    def __init__(
        self, parents: Callable[[bytes], Sequence[bytes]], is_kept: Callable[[bytes], bool]
    ) -> None:
        self._parents = parents
        self._is_kept = is_kept
        self._found: dict[bytes, tuple[bytes, ...]] = {}

    def of(self, oid: bytes) -> tuple[bytes, ...]:
        """The snapshot itself if it is kept, else its nearest kept ancestors, each once."""
        # On a stack of its own: a line that goes may be longer than calls can be nested.
        waiting = [oid]
        parents: dict[bytes, Sequence[bytes]] = {}
        while waiting:
            last = waiting[-1]
            if last in self._found:
                waiting.pop()
            elif last in parents:
                self._found[last] = self._joined(parents[last])
            elif self._is_kept(last):
                self._found[last] = (last,)
            else:
                parents[last] = self._parents(last)
                waiting += parents[last]
        return self._found[oid]

    def _joined(self, parents: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(dict.fromkeys(each for oid in parents for each in self._found[oid]))
