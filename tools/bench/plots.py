"""Plots of a run as SVG files.  matplotlib is imported here only, and only for reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import floors
from tools.bench.results import LIMIT, Results, Row
from tools.bench.sections import OURS
from tools.bench.stated import stated


class Plot(NamedTuple):
    """A drawing of the rows whose keys begin with ``prefix``; ``group`` is theirs."""

    name: str
    title: str
    prefix: str
    group: str = ""


BARS = (
    Plot("time-of-imports", "First imports together, seconds", "import/all"),
    Plot("time-of-exports", "Export, seconds", "export/"),
    Plot("nbd-random-write", "4 KiB random write at depth 16 over NBD, IOPS", "nbd/randwrite-16"),
    Plot("nbd-random-read", "4 KiB random read at depth 16 over NBD, IOPS", "nbd/randread-16"),
    Plot("nbd-fsync", "4 KiB random write over NBD, fsync after each, IOPS", "nbd/fsync-1"),
    Plot("vm-pause", "Pause of a running machine for a full snapshot, seconds", "vm/pause"),
)
LINES = (
    Plot("store-size", "Size of the store after each image, MB", "size/"),
    Plot("snapshot-by-size", "Snapshot by virtual size of the disk, seconds", "latency/snapshot@"),
    Plot("snapshot-by-number", "Snapshot after many snapshots, seconds", "growth/snapshot@"),
    Plot("diff-by-changes", "Diff by changed blocks, seconds", "changes/diff@"),
    Plot("import-by-data", "Import by amount of data, seconds", "scale/import@"),
)
STRONG, WEAK, FLOOR = "#1f6feb", "#9aa4b2", "#d1242f"
SHADES = ("#57606a", "#8250df", "#bf8700", "#1a7f37", "#cf5f2e", "#0e7c86", "#a0522d", "#7d8590")


def draw(results: Results, folder: Path) -> list[Plot]:
    """Write every plot that the results have figures for, as NAME.svg; returns which."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "blockvault", "font.size": 9, "svg.fonttype": "none"})
    folder.mkdir(parents=True, exist_ok=True)
    results = stated(results)
    drawn = []
    for plot in (*BARS, *LINES):
        rows = [row for row in results.rows.values() if row.key.startswith(plot.prefix)]
        path = folder / f"{plot.name}.svg"
        if plot in BARS and rows and (values := _values(results, rows[0])):
            _bars(path, plot.title, values)
        elif plot in LINES and len(rows) >= 2 and (lines := _lines(results, rows)):
            _curves(path, plot.title, rows, lines)
        else:
            continue
        drawn.append(plot._replace(group=rows[0].group))
    return drawn


def _values(results: Results, row: Row) -> dict[str, tuple[float, float, float]]:
    """Median and quartiles by contender, and what the limit is, the best first."""
    found = {}
    for name in results.cells[row.key]:
        summary = floors.figure(results, row, name)
        if summary is not None:
            found[name] = (summary.median, summary.low, summary.high)
    return dict(sorted(found.items(), key=lambda item: item[1][0], reverse=row.more_is_better))


def _lines(results: Results, rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Per contender the points (place of the row, median), and those of the limit."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for place, row in enumerate(rows):
        scale = 1e6 if row.unit == "B" else 1.0
        for name in results.cells[row.key]:
            summary = floors.figure(results, row, name)
            if summary is not None and summary.median > 0:
                lines.setdefault(name, []).append((place, summary.median / scale))
    return lines


def _color(name: str, place: int) -> str:
    if name == LIMIT:
        return FLOOR
    return STRONG if name == OURS else SHADES[place % len(SHADES)]


def _bars(path: Path, title: str, values: dict[str, tuple[float, float, float]]) -> None:
    figure, axes = _figure(title, height=0.9 + 0.28 * len(values))
    names = list(values)
    middle = [values[name][0] for name in names]
    spread = [
        [value[0] - value[1] for value in values.values()],
        [value[2] - value[0] for value in values.values()],
    ]
    colors = [
        STRONG if name.startswith(OURS) else FLOOR if name == LIMIT else WEAK for name in names
    ]
    axes.barh(names, middle, xerr=spread, color=colors, error_kw={"lw": 0.8})
    axes.invert_yaxis()
    _save(figure, path)


def _curves(
    path: Path, title: str, rows: Sequence[Row], lines: dict[str, list[tuple[int, float]]]
) -> None:
    figure, axes = _figure(title, height=3.2)
    for place, (name, points) in enumerate(sorted(lines.items())):
        style = {"color": _color(name, place), "lw": 2.2 if name == OURS else 1.1}
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", ms=3, label=name, **style)
    labels = [row.key.rpartition("@")[2].rpartition("/")[2] for row in rows]
    axes.set_xticks(range(len(rows)), labels)
    if not rows[0].key.startswith("size/"):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _figure(title: str, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="both", lw=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
