"""The first tables of the page: who is ahead, where, by how much, and how far the machine allows.

Each line stands for one row, or for the biggest member of a series.  A column is a family of peers,
of which the best in that row counts; what keeps no history, such as a raw file behind a server, is
shown in the detail only.  ``sections`` says which rows and whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tools.bench import floors
from tools.bench.floors import EVEN, advantage
from tools.bench.results import Results, Row
from tools.bench.sections import OURS, SECTIONS, Line
from tools.bench.stats import FEW, Summary, differs
from tools.bench.text import digits, spread, table


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


NOTE = """The peers' columns say how many times better blockvault is, in **bold** where it is ahead
by more than noise: 0.50 is half as good, 2.00 twice. By more than noise means that all samples of
the one are better than all of the other; with eight runs and more of both, that their quartiles do
not meet. The best program of a family counts; a † says that it was measured once or twice, which
is too seldom to call anything a lead. The limit is the least that this machine needed for the bare
work on the same bytes (the tables below say what that is), and behind it is how many times as
much blockvault takes. Where a contender does better than that, it is no limit: then it says
*beaten* if blockvault does, and has a * behind it if a peer does."""


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
        counts = [f"of {family} in {_counted(found)}" for family, found in self.leads.items()]
        return f"In short, blockvault is ahead {'; '.join(counts)}." if counts else ""


def _counted(leads: Sequence[Lead]) -> str:
    """In how many lines blockvault is ahead, and in how many that could not be seen."""
    ahead, few = sum(lead.ahead for lead in leads), sum(lead.once for lead in leads)
    return f"{ahead} of {len(leads)} lines" + (f" ({few} †)" if few else "")


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
