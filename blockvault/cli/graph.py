"""Draw lines of history beside a list of snapshots, as ``git log --graph`` does.

Snapshots come newest first with their parents.  A *lane* is a vertical line that waits for one
snapshot; when several lanes wait for the same one, they run together just above it.  Lane ``k``
is drawn in text column ``2k``, the odd columns hold the slanted joints::

    * c  (two parents)        lanes before: c          after: a b
    |\\
    | * b                     lanes before: a b        after: a a
    |/
    * a                       both waited for a
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


class Graph:
    """The lanes; feed it every snapshot once, in the order of the list."""

    def __init__(self) -> None:
        self._lanes: list[bytes] = []
        self._ended: int | None = None  # the lane that ended with the last snapshot

    def draw(self, oid: bytes, parents: Sequence[bytes], text: Sequence[str]) -> list[str]:
        """Put the lanes in front of the lines of text that describe one snapshot."""
        lanes = self._lanes
        above = []
        if oid not in lanes:
            if self._ended == len(lanes):  # or it would seem to follow from the one above
                above.append("".join(self._bars()))
            lanes.append(oid)
        self._ended = None
        place = lanes.index(oid)
        while lanes.count(oid) > 1:
            above.append(self._join(place, len(lanes) - 1 - lanes[::-1].index(oid)))
        beside = [" ".join("*" if lane == place else "|" for lane in range(len(lanes)))]
        beside += self._branch_off(place, parents)
        rest = "".join(self._bars())
        width = max(map(len, [*beside, rest]))
        lines = []
        for left, right in zip_longest(beside, text):
            left = rest if left is None else left
            lines.append(f"{left:{width}} {right or ''}".rstrip())
        return above + lines

    def _branch_off(self, place: int, parents: Sequence[bytes]) -> list[str]:
        """Hand the lane on to the first parent and open one for each other, or end it."""
        if not parents:
            self._ended = place
            return self._end(place)
        self._lanes[place] = parents[0]
        lines = []
        for parent in reversed(parents[1:]):
            lines.append(self._split(place))
            self._lanes.insert(place + 1, parent)
        return lines

    def _join(self, target: int, source: int) -> str:
        """Lane ``source`` runs into ``target`` on its left; the lanes right of it move up."""
        cells = self._bars()
        for gap in range(2 * target + 1, 2 * source - 1, 2):
            cells[gap] = "_"
        for lane in range(source, len(self._lanes)):
            cells[2 * lane - 1], cells[2 * lane] = "/", " "
        del self._lanes[source]
        return "".join(cells).rstrip()

    def _split(self, place: int) -> str:
        """A new lane grows to the right of ``place``; the lanes there make room."""
        cells = [*self._bars(), " ", " "]
        for lane in range(place + 1, len(self._lanes) + 1):
            cells[2 * lane - 1], cells[2 * lane] = "\\", " "
        return "".join(cells).rstrip()

    def _end(self, place: int) -> list[str]:
        """The lane ``place`` ends; the lanes right of it move up."""
        cells = self._bars()
        cells[2 * place] = " "
        moved = place + 1 < len(self._lanes)
        for lane in range(place + 1, len(self._lanes)):
            cells[2 * lane - 1], cells[2 * lane] = "/", " "
        del self._lanes[place]
        return ["".join(cells).rstrip()] if moved else []

    def _bars(self) -> list[str]:
        return list(" ".join("|" for _ in self._lanes))
