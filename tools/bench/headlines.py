"""The first table of the page: who is ahead, where, by how much, and how far the machine allows.

Each line stands for one row, or for the biggest member of a series.  A peer is whoever keeps
history; a raw file behind a server is shown in the detail, and is never "the best peer".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tools.bench.results import LIMIT, Results, Row
from tools.bench.stats import Summary
from tools.bench.text import amount, digits, spread, table

OURS = "blockvault"
EVEN = 0.03  # medians that are closer than this are called even


class Line(NamedTuple):
    """``key`` is the row's, or that of a series with its ``@`` or ``/``.

    ``ours`` and ``peers`` name states of a program where the line is not about the plain one; no
    peers: all that keep history.
    """

    key: str
    title: str = ""
    ours: str = OURS
    peers: tuple[str, ...] = ()


BEHIND_A_SNAPSHOT = ("qcow2-snapshot", "qcow2-chain10")
SECTIONS: dict[str, tuple[Line, ...]] = {
    "Disk images, kept state after state": (
        Line("import/all"),
        Line("import/unchanged"),
        Line("export/"),
        Line("size/", "Store after all images"),
        Line("diff"),
        Line("verify"),
        Line("gc/forget"),
        Line("gc/size"),
        Line("memory/series"),
        Line("sparse-memory/import@"),
    ),
    "Snapshots of one disk, the whole command": (
        Line("latency/snapshot@"),
        Line("latency/branch@"),
        Line("latency/rollback@"),
        Line("changes/diff@"),
        Line("growth/snapshot@"),
        Line("growth/read the oldest@"),
    ),
    "A guest's disk over NBD, requests a second": (
        Line("nbd/randwrite-16"),
        Line("nbd/randread-16"),
        Line("nbd/hotread-16"),
        Line("nbd/randwrite-1"),
        Line("nbd/randread-1"),
        Line("nbd/fsync-1"),
        Line("nbd/fsync-32"),
        Line("nbd/seqwrite"),
        Line("nbd/seqread"),
        Line(
            "nbd/randwrite-16",
            "4 KiB random write just after a snapshot",
            "blockvault-snapshot",
            BEHIND_A_SNAPSHOT,
        ),
        Line(
            "nbd/randwrite-16",
            "The same after many snapshots",
            "blockvault-many",
            BEHIND_A_SNAPSHOT,
        ),
        Line(
            "nbd/randread-16",
            "4 KiB random read after many snapshots",
            "blockvault-many",
            BEHIND_A_SNAPSHOT,
        ),
        Line(
            "nbd/randread-16",
            "4 KiB random read on nested branches",
            "blockvault-nested",
            ("qcow2-chain10",),
        ),
    ),
    "Running machines": (Line("vm/pause"), Line("vm/restore"), Line("vm/clone")),
}

NOTE = """Ahead and behind are ratios of medians, turned so that more is better for whoever it is
said of; less than {even:.0%} apart is even. The limit is what this machine needs for the bare work
on the same bytes (each table below says what that is), and the last column how much more
blockvault takes."""


class Standing(NamedTuple):
    """One line of the table, compared.  ``lead`` is above 1 where blockvault is ahead."""

    title: str
    row: Row
    ours: Summary | None
    why: str  # there are no figures
    peer: str
    best: Summary | None
    limit: Summary | None

    @property
    def lead(self) -> float | None:
        return _advantage(self.row, self.ours, self.best)

    @property
    def over_limit(self) -> float | None:
        """How many times the limit blockvault takes."""
        return _advantage(self.row, self.limit, self.ours)


def page(results: Results) -> str:
    """The verdict in a sentence, the table, and how to read it."""
    sections = {
        title: [standing for line in lines if (standing := _standing(results, line))]
        for title, lines in SECTIONS.items()
    }
    lines: list[tuple[str, ...]] = []
    for title, standings in sections.items():
        if standings:
            lines.append((f"*{title}*", "", "", "", "", ""))
            lines += map(_cells, standings)
    head = ("", "blockvault", "", "best peer", "limit", "of the limit")
    everything = [each for standings in sections.values() for each in standings]
    return "\n\n".join([_verdict(everything), table(head, lines), NOTE.format(even=EVEN)])


def best_peer(results: Results, row: Row, among: Iterable[str] = ()) -> tuple[str, Summary | None]:
    """The peer that is ahead of all others in a row, or of those named."""
    yardsticks = {LIMIT, *(n for n, c in results.facts["contenders"].items() if c["yardstick"])}
    found = [
        (name, summary)
        for name in among or results.cells[row.key]
        if name not in yardsticks and not name.startswith(OURS)
        if (summary := results.summary(row.key, name)) is not None
    ]
    if not found:
        return "", None
    pick = max if row.more_is_better else min
    return pick(found, key=lambda pair: pair[1].median)


def why(results: Results, row: Row, name: str) -> str:
    """What stands in a cell that has no figure."""
    cell = results.cells[row.key].get(name)
    return cell.state if cell and cell.state != "measured" else "–"


def _standing(results: Results, line: Line) -> Standing | None:
    row = _row(results, line)
    if row is None:
        return None
    ours = results.summary(row.key, line.ours)
    peer, best = best_peer(results, row, line.peers)
    title = line.title or row.title
    limit = results.summary(row.key, LIMIT)
    return Standing(title, row, ours, why(results, row, line.ours), peer, best, limit)


def _row(results: Results, line: Line) -> Row | None:
    """The row of that key, or the biggest of a series in which blockvault has a figure."""
    if not line.key.endswith(("@", "/")):
        return results.rows.get(line.key)
    found = [row for row in results.rows.values() if row.key.startswith(line.key)]
    measured = [row for row in found if results.summary(row.key, line.ours)]
    return _biggest(measured or found)


def _biggest(rows: list[Row]) -> Row | None:
    """Of rows with work the one with the most; of images the newest, which comes first."""
    if not rows:
        return None
    if rows[0].series:
        return max(rows, key=lambda row: row.work)
    return rows[-1] if rows[0].key.startswith("size/") else rows[0]


def _cells(standing: Standing) -> tuple[str, ...]:
    row, best, limit = standing.row, standing.best, standing.limit
    over = standing.over_limit
    return (
        standing.title,
        spread(standing.ours, row.unit) if standing.ours else standing.why,
        _words(standing.lead),
        f"{spread(best, row.unit)} ({standing.peer})" if best else "–",
        amount(limit.median, row.unit) if limit else "–",
        f"{digits(over)} ×" if over else "–",
    )


def _words(lead: float | None) -> str:
    if lead is None:
        return "–"
    if abs(lead - 1) < EVEN:
        return "even"
    return f"**{digits(lead)} × ahead**" if lead > 1 else f"{digits(1 / lead)} × behind"


def _verdict(standings: list[Standing]) -> str:
    """How many lines blockvault leads, and every line where it does not."""
    compared = [(each, lead) for each in standings if (lead := each.lead) is not None]
    ahead = sum(lead >= 1 + EVEN for _, lead in compared)
    even = sum(abs(lead - 1) < EVEN for _, lead in compared)
    behind = [
        f"{each.title[0].lower()}{each.title[1:]} ({digits(1 / lead)} ×, {each.peer})"
        for each, lead in compared
        if lead <= 1 - EVEN
    ]
    text = f"blockvault is ahead of the best peer in {ahead} of {len(compared)} lines"
    text += f", even in {even}"
    return f"{text}, behind in: {'; '.join(behind)}." if behind else f"{text}, behind in none."


def _advantage(row: Row, one: Summary | None, other: Summary | None) -> float | None:
    """How many times better ``one`` is than ``other``."""
    if one is None or other is None or not one.median or not other.median:
        return None
    better, worse = (other, one) if not row.more_is_better else (one, other)
    return better.median / worse.median
