"""The first tables of the page: who is ahead, where, by how much, and how far the machine allows.

Each line stands for one row, or for the biggest member of a series.  A column is a family of peers,
of which the best in that row counts; what keeps no history, such as a raw file behind a server, is
shown in the detail only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tools.bench import floors
from tools.bench.floors import EVEN, advantage
from tools.bench.results import Results, Row
from tools.bench.stats import Summary, differs
from tools.bench.text import digits, spread, table

OURS = "blockvault"
FEW = 3
"""Of fewer runs it is said that they are few."""

ARCHIVES = {
    "borg": ("borg-fixed", "borg-default"),
    "restic": ("restic",),
    "bup, casync": ("bup", "casync"),
    "qcow2 files": ("qcow2-files", "qcow2-chain"),
    "btrfs": ("btrfs",),
}
DISKS = {
    "qcow2, internal": ("qcow2-internal",),
    "qcow2, chain": ("qcow2-chain",),
    "btrfs": ("btrfs",),
}
SERVERS = {
    "qcow2": ("qcow2",),
    "qcow2, zstd": ("qcow2-zstd", "qcow2-compressing"),
    "btrfs, just after a snapshot": ("btrfs-nbd",),
}
LATE_SERVERS = {
    "qcow2, just after a snapshot": ("qcow2-snapshot",),
    "qcow2, new chain of 10": ("qcow2-chain10",),
    "btrfs, just after a snapshot": ("btrfs-nbd",),
}
LATE_NOTE = """The lines are states of blockvault's disk. Beside each stands the one figure of a
peer, of a disk in the state that its column names; the sentence at the top counts it once, in the
first line."""
MACHINES = {"QEMU savevm": ("qemu-savevm",), "QEMU migrate": ("qemu-migrate",)}


class Line(NamedTuple):
    """``key`` is the row's, or that of a series with its ``@`` or ``/``; ``ours`` is the state of
    blockvault that the line is about, where that is not the plain one."""

    key: str
    title: str = ""
    ours: str = OURS


class Lead(NamedTuple):
    """How many times better blockvault is than the peer of that name; ``sure`` if that is more than
    noise, ``once`` if the peer was asked once or twice.
    """

    times: float
    name: str
    sure: bool
    once: bool

    @property
    def ahead(self) -> bool:
        return self.sure and self.times >= 1 + EVEN


class Section(NamedTuple):
    """One table: its lines, the families of peers that are its columns, and a word about both."""

    title: str
    families: Mapping[str, Sequence[str]]
    lines: tuple[Line, ...]
    note: str = ""


SECTIONS = (
    Section(
        "Disk images, kept state after state",
        ARCHIVES,
        (
            Line("import/all", "First imports of all images"),
            Line("import/unchanged"),
            Line("export/"),
            Line("size/", "Store after all images"),
            Line("diff"),
            Line("verify"),
            Line("gc/forget"),
            Line("gc/size"),
            Line("memory/series"),
        ),
    ),
    Section(
        "Snapshots of one disk, each a whole command",
        DISKS,
        (
            Line("latency/snapshot@"),
            Line("latency/branch@"),
            Line("latency/rollback@"),
            Line("changes/diff@"),
            Line("growth/snapshot@1000"),
            Line("growth/snapshot@"),
            Line("growth/read the oldest@"),
        ),
    ),
    Section(
        "A guest's disk over NBD, requests a second",
        SERVERS,
        tuple(
            Line(f"nbd/{job}")
            for job in (
                *("randwrite-1", "randwrite-16", "randread-1", "randread-16"),
                *("warmread-1", "warmread-16", "hotread-16"),
                *("fsync-1", "fsync-32", "seqwrite", "seqread", "seqread-warm"),
                *("exported", "sustained", "exported-worn"),
            )
        ),
    ),
    Section(
        "The same disk with a history",
        LATE_SERVERS,
        (
            Line("nbd/randwrite-16", "Random write just after a snapshot", "blockvault-snapshot"),
            Line("nbd/randwrite-16", "Random write after many snapshots", "blockvault-many"),
            Line("nbd/randwrite-16", "Random write on nested branches", "blockvault-nested"),
            Line("nbd/randread-16", "Random read just after a snapshot", "blockvault-snapshot"),
            Line("nbd/randread-16", "Random read after many snapshots", "blockvault-many"),
            Line("nbd/randread-16", "Random read on nested branches", "blockvault-nested"),
            Line("nbd/randread-made", "Random read of an old state"),
            Line("nbd/seqread-made", "256 KiB sequential read of an old state"),
        ),
        LATE_NOTE,
    ),
    Section(
        "Running machines",
        MACHINES,
        tuple(
            Line(f"{size}/{row}")
            for size in ("vm", "vm-large")
            for row in ("pause", "restore", "clone")
        ),
    ),
)

NOTE = """The peers' columns say how many times better blockvault is, in **bold** where it is ahead
by more than noise (the quartiles of both do not meet): 0.50 is half as good, 2.00 twice. The best
program of a family counts; a † says that it was measured once or twice. The limit is the least
that this machine needed for the bare work on the same bytes (the tables below say what that is),
and behind it is how many times that blockvault takes. Where a contender does better than that, it
is no limit: then it says *beaten* if blockvault does, and has a * behind it if a peer does."""


def page(results: Results) -> str:
    """The verdict in a sentence, a table for each section, and how to read them."""
    parts = []
    verdict = _Verdict()
    for section in SECTIONS:
        lines = []
        for line in section.lines:
            row = _row(results, line)
            if row is not None and (ours := results.summary(row.key, line.ours)):
                best = _best(results, row, ours, section.families)
                verdict.count(row, best)
                lines.append(_cells(results, row, line, best, section.families))
        if lines:
            head = ("", OURS, *section.families, "limit")
            parts += [f"**{section.title}**", table(head, lines), section.note]
    return "\n\n".join(part for part in (verdict.text(), *parts, NOTE) if part)


class _Verdict:
    """In how many lines blockvault is ahead of each family.

    A peer's figure counts once, in the first of the lines beside which it stands: several states
    of blockvault may be held against it.
    """

    def __init__(self) -> None:
        self.leads: dict[str, list[Lead]] = {}
        self.counted: set[tuple[str, str]] = set()

    def count(self, row: Row, best: Mapping[str, Lead | None]) -> None:
        for family, lead in best.items():
            if lead is not None and (row.key, lead.name) not in self.counted:
                self.counted.add((row.key, lead.name))
                self.leads.setdefault(family, []).append(lead)

    def text(self) -> str:
        counts = [
            f"of {family} in {sum(lead.ahead for lead in found)} of {len(found)} lines"
            for family, found in self.leads.items()
        ]
        return f"In short, blockvault is ahead {'; '.join(counts)}." if counts else ""


def why(results: Results, row: Row, name: str) -> str:
    """What stands in a cell that has no figure."""
    cell = results.cells[row.key].get(name)
    return cell.state if cell and cell.state != "measured" else "–"


def _row(results: Results, line: Line) -> Row | None:
    """The row of that key, or the biggest of a series in which blockvault has a figure."""
    if not line.key.endswith(("@", "/")):
        return results.rows.get(line.key)
    found = [
        row
        for row in results.rows.values()
        if row.key.startswith(line.key) and results.summary(row.key, line.ours)
    ]
    if not found:
        return None
    if found[0].series:
        return max(found, key=lambda row: row.work)
    return found[-1] if line.key == "size/" else found[0]  # of exports that of the newest image


def _best(
    results: Results, row: Row, ours: Summary, families: Mapping[str, Sequence[str]]
) -> dict[str, Lead | None]:
    """The best of each family, and how many times better blockvault is than that."""
    found: dict[str, Lead | None] = {}
    for family, names in families.items():
        leads = [
            Lead(advantage(row, ours, peer), name, differs(peer, ours), peer.runs < FEW)
            for name in names
            if (peer := results.summary(row.key, name)) and peer.median and ours.median
        ]
        found[family] = min(leads, default=None)
    return found


def _cells(
    results: Results,
    row: Row,
    line: Line,
    best: Mapping[str, Lead | None],
    families: Mapping[str, Sequence[str]],
) -> tuple[str, ...]:
    summary = results.summary(row.key, line.ours)
    assert summary is not None
    peers = (_words(results, row, families[family], lead) for family, lead in best.items())
    ours, bare = spread(summary, row.unit), floors.short(results, row, line.ours)
    return (line.title or row.title, ours, *peers, bare)


def _words(results: Results, row: Row, names: Sequence[str], lead: Lead | None) -> str:
    if lead is None:
        return min(why(results, row, name) for name in names)  # a word sorts before a dash
    text = digits(lead.times) + ("†" if lead.once else "")
    return f"**{text}**" if lead.ahead else text
