"""What a run leaves behind: rows, samples and the circumstances, as one JSON file.

A *row* is one question ("how long does the first import of base take?"), a *cell* is one
contender's answer: samples, or the reason why there are none.  Reports and comparisons are made
from this file alone, so that numbers can be looked at again long after the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from blockvault import files
from tools.bench import saved
from tools.bench.commands import Cost
from tools.bench.scope import Scope, complete, scope
from tools.bench.stats import Summary, summarize

FORMAT = 2
LIMIT = "limit"  # the contender under which the physical floor of a row is recorded

Unit = Literal["s", "B", "IOPS", "MB/s", ""]  # "": a number of things done
State = Literal["measured", "failed", "not offered", "not run", "not built yet"]


@dataclass(frozen=True, slots=True)
class Row:
    """One question.  ``work`` is the amount of work behind it where cost is fitted over several
    rows of the same ``series`` (bytes, snapshots, blocks)."""

    key: str
    group: str
    title: str
    unit: Unit = "s"
    limit: str = ""
    series: str = ""
    work: float = 0.0

    @property
    def more_is_better(self) -> bool:
        return self.unit in ("IOPS", "MB/s", "")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: the value in the row's unit, and what it cost where a process was measured."""

    value: float
    cpu: float | None = None
    peak: int | None = None
    settle: float | None = None


class Origin(NamedTuple):
    """The run that a row was measured in: what, when, which part of it (``1/1``: all), and where.
    What is not said of the machine is as in the results' facts.
    """

    commit: str
    when: str
    part: str
    processor: str = ""
    cores: str = ""
    file_system: str = ""

    @property
    def machine(self) -> tuple[str, str, str]:
        """What tells machines apart, as far as that is known."""
        return self.processor, self.cores, self.file_system


@dataclass(slots=True)
class Cell:
    """One contender's samples in a row, or why it has none."""

    state: State = "measured"
    reason: str = ""
    samples: list[Sample] = field(default_factory=list)

    def join(self, other: Cell) -> None:
        """Add the samples of another part; a reason why there are none outweighs them."""
        self.samples += other.samples
        if self.state == "measured":
            self.state, self.reason = other.state, other.reason

    def summary(self) -> Summary | None:
        """Of the values; None unless something was measured."""
        if not self.samples or self.state != "measured":
            return None
        return summarize([sample.value for sample in self.samples])


@dataclass(slots=True)
class Results:
    """All rows of one run in the order they were asked, and the facts around them.

    ``origins`` says of each row of results that were put together where it comes from, ``scopes``
    what it was measured on; a row of a single run comes from that run (``origin``, ``scope``).
    """

    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    commands: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    origins: dict[str, list[Origin]] = field(default_factory=dict)
    scopes: dict[str, Scope] = field(default_factory=dict)

    def cell(self, row: Row, contender: str) -> Cell:
        """The cell of a row, which is added where it is new."""
        self.rows.setdefault(row.key, row)
        return self.cells.setdefault(row.key, {}).setdefault(contender, Cell())

    def add(self, row: Row, contender: str, value: float) -> None:
        """Record a value that no process was measured for, such as a size."""
        self.cell(row, contender).samples.append(Sample(value))

    def add_cost(self, row: Row, contender: str, cost: Cost) -> None:
        """Record the wall time of a command, with its CPU and memory."""
        sample = Sample(cost.wall, cost.cpu, cost.peak, cost.settle)
        self.cell(row, contender).samples.append(sample)

    def add_served(self, row: Row, contender: str, value: float, server: Cost | None) -> None:
        """Record a client's figure, with the CPU and memory of its server where they are known."""
        cpu, peak = (server.cpu, server.peak) if server is not None else (None, None)
        self.cell(row, contender).samples.append(Sample(value, cpu, peak))

    def leave_out(self, row: Row, contender: str, state: State, reason: str) -> None:
        """Say why a contender has no answer; a reason that stands already is kept."""
        cell = self.cell(row, contender)
        if cell.state == "measured":
            cell.state, cell.reason = state, reason

    def summary(self, key: str, contender: str) -> Summary | None:
        """Median and spread of a cell; None where nothing was measured."""
        cell = self.cells.get(key, {}).get(contender)
        return cell.summary() if cell else None

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, both in the order they were asked."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows.values():
            grouped.setdefault(row.group, []).append(row)
        return grouped

    def origin(self, key: str) -> list[Origin]:
        """The runs that a row comes from."""
        facts = self.facts
        part = "/".join(map(str, facts["plan"]["part"]))
        here = Origin(facts["commit"], facts["when"], part)
        return [
            each._replace(
                processor=each.processor or facts["processor"],
                cores=each.cores or str(facts["cores"]),
                file_system=each.file_system or facts["file_system"],
            )
            for each in self.origins.get(key, [here])
        ]

    def in_turns(self, key: str) -> bool:
        """Whether all contenders of a row were measured in the same runs.

        Where there are none, the row is about the machine alone, which any run may ask.
        """
        parts = [each.part for each in self.origin(key)]
        return len(parts) == len(set(parts)) or self.cells[key].keys() <= {LIMIT}

    def scope(self, key: str) -> Scope:
        """What a row was measured on.  Of rows that were put together before that was kept, mode
        and images are those of the facts, and the sizes are not known.
        """
        if key in self.scopes:
            return complete(self.scopes[key], key)
        return scope(self.facts, key, sizes_known=key not in self.origins)

    def merge(self, other: Results) -> None:
        """Take the rows of another run, which may have been that of another machine.

        Where both hold different parts of one run at one commit, or other contenders of one part,
        the samples are put together; else the other's row replaces this one's, so that a row is
        always of one program and of one work.
        """
        for key, row in other.rows.items():
            mine, theirs = self.origin(key) if key in self.rows else [], other.origin(key)
            if mine and self._joins(key, mine, other, theirs):
                for name, cell in other.cells[key].items():
                    self.cell(row, name).join(cell)
                theirs = [*mine, *theirs]
                spelled = self.commands.get(key, {})
            else:
                self.cells[key], spelled = other.cells[key], {}
            self.scopes[key] = other.scope(key)
            self.rows[key], self.origins[key] = row, theirs
            self.commands[key] = spelled | other.commands.get(key, {})
        self.facts["duration"] += other.facts["duration"]
        mine = self.facts["contenders"]
        for name, each in other.facts["contenders"].items():
            mine[name] = _measured(mine[name], each) if name in mine else each

    def _joins(
        self, key: str, mine: Sequence[Origin], other: Results, theirs: Sequence[Origin]
    ) -> bool:
        cut = {
            (each.commit, each.part.partition("/")[2], each.machine) for each in (*mine, *theirs)
        }
        if len(cut) > 1 or self.scope(key) != other.scope(key):
            return False
        again = {each.part for each in mine} & {each.part for each in theirs}
        return not again or not (self.cells[key].keys() & other.cells[key].keys()) - {LIMIT}

    def save(self, path: Path) -> None:
        """Write all of it as JSON; what is in the file already stays until that is done."""
        document = {
            "format": FORMAT,
            "origins": self.origins,
            "scopes": self.scopes,
            "facts": self.facts,
            "rows": [asdict(row) for row in self.rows.values()],
            "cells": {
                key: {name: asdict(cell) for name, cell in cells.items()}
                for key, cells in self.cells.items()
            },
            "commands": self.commands,
        }
        text = json.dumps(document, indent=1) + "\n"
        files.replace(path, text.encode(), mode=0o666, durable=True)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote; ``ValueError`` for any other file, which it names."""
        document = saved.read(path, FORMAT)
        rows = [Row(**_known(saved.ROW, row)) for row in document["rows"]]
        return cls(
            facts=document["facts"],
            rows={row.key: row for row in rows},
            cells={
                key: {name: _cell(value) for name, value in cells.items()}
                for key, cells in document["cells"].items()
            },
            commands=document["commands"],
            origins={
                key: [Origin(*each) for each in origins]
                for key, origins in document["origins"].items()
            },
            scopes=document.get("scopes", {}),
        )


def _measured(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What two runs say of a contender together: all versions of it that were measured."""
    if mine["missing"] or other["missing"]:
        return mine if other["missing"] else other
    versions = dict.fromkeys([*str(mine["version"]).split(", "), str(other["version"])])
    return mine | {"version": ", ".join(versions)}


def _cell(value: Mapping[str, Any]) -> Cell:
    samples = [Sample(**_known(saved.SAMPLE, sample)) for sample in value["samples"]]
    return Cell(state=value["state"], reason=value["reason"], samples=samples)


def _known(names: Iterable[str], value: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a later version may have added."""
    return {name: value[name] for name in names}
