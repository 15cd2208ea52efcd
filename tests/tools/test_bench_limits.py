"""The limits that rows are held against: floors that the machine really has, or said to be none."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_tool
from tests.tools.test_bench_figures import facts
from tools.bench import floors, headlines, plots, report
from tools.bench.bench import Bench
from tools.bench.commands import Command, run
from tools.bench.peers.nbd import NbdServer
from tools.bench.peers.yardsticks import NbdkitFile, NbdkitMemory
from tools.bench.plan import MIB, QUICK
from tools.bench.results import LIMIT, Results, Row, Unit
from tools.bench.rows import limits, nbd
from tools.bench.servers import Server, serving
from tools.bench.stated import FLUSHED, FSYNC, stated

EACH = Row("nbd/fsync-1", "NBD", "Flush after each", "IOPS", limit="the protocol")
SOME = Row("nbd/fsync-32", "NBD", "Flush after 32", "IOPS", limit="the protocol")
TINY = dataclasses.replace(QUICK, runs=1, nbd_size=8 * MIB, nbd_seconds=0.1, settle=False)


def measured(row: Row, **figures: float) -> Results:
    """One row with one figure for each contender."""
    made = Results(facts=facts())
    for name, value in figures.items():
        made.add(row, name, value)
    return made


@pytest.mark.parametrize(
    ("row", "rate", "append", "limit"),
    [
        (EACH, 10_000.0, 200e-6, 5_000.0),
        (EACH, 4_000.0, 200e-6, 4_000.0),
        (SOME, 80_000.0, 1e-3, 32_000.0),
        (SOME, 80_000.0, 200e-6, 80_000.0),
        (EACH, None, 200e-6, 5_000.0),
        (EACH, 10_000.0, None, None),
    ],
    ids=["disk", "protocol", "disk, 32", "protocol, 32", "no protocol", "no disk"],
)
def test_what_waits_for_the_disk_is_limited_by_it(
    row: Row, rate: float | None, append: float | None, limit: float | None
) -> None:
    made = measured(row, blockvault=3_000)
    if rate is not None:
        made.add(row, LIMIT, rate)
    if append is not None:
        made.add(FSYNC, LIMIT, append)
    summary = stated(made).summary(row.key, LIMIT)
    assert (summary.median if summary else None) == (pytest.approx(limit) if limit else None)
    before = made.summary(row.key, LIMIT)
    assert (before.median if before else None) == rate, "what was measured stays"


def test_the_disk_of_another_machine_says_nothing() -> None:
    made, other = measured(EACH, limit=10_000.0), measured(FSYNC, limit=1e-3)
    other.facts["processor"] = "another processor"
    made.merge(other)
    assert stated(made).summary(EACH.key, LIMIT) is None


def test_rows_that_do_not_wait_keep_their_limit() -> None:
    row = dataclasses.replace(EACH, key="nbd/randwrite-1")
    made = measured(row, limit=10_000.0)
    made.add(FSYNC, LIMIT, 1e-3)
    assert stated(made) == made


def test_the_page_and_the_plots_state_the_disks_limit(tmp_path: Path) -> None:
    made = measured(EACH, blockvault=2_500.0, limit=11_348.0)
    made.add(FSYNC, LIMIT, 200e-6)
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert "| 2,500 | – | – | – | 5,000, 2.00 × |" in page
    assert "| 2,500 | 5,000 |" in page
    assert "* limit: the protocol; or one durable append a flush" in page
    assert "11,348" not in page
    (plot,) = plots.draw(made, tmp_path)
    drawing = (tmp_path / f"{plot.name}.svg").read_text()
    assert stated(stated(made)) == stated(made)
    made.cells[EACH.key][LIMIT].samples.clear()
    made.add(EACH, LIMIT, 5_000.0)
    plots.draw(made, tmp_path)
    assert (tmp_path / f"{plot.name}.svg").read_text() == drawing


def test_the_rows_that_wait_are_those_whose_jobs_flush() -> None:
    flushing = {
        f"nbd/{job.key}": int(word.removeprefix("--fsync="))
        for job in nbd.JOBS
        for word in job.words
        if word.startswith("--fsync=")
    }
    assert flushing == FLUSHED


@pytest.mark.parametrize(("job", "appends"), [("fsync-1", True), ("randwrite-1", False)])
def test_the_append_is_measured_beside_jobs_that_flush(
    bench: Bench, clients: list[Command], job: str, appends: bool
) -> None:
    bench.plan = dataclasses.replace(bench.plan, nbd_jobs=(job,), runs=2)
    nbd.run(bench, [NbdkitMemory])
    found = bench.results.cells.get(FSYNC.key, {})
    assert [len(cell.samples) for cell in found.values()] == ([2] if appends else [])


@pytest.mark.parametrize(
    ("kind", "job", "jobs"),
    [
        (NbdkitMemory, "seqwrite", ["before", "seqwrite"]),
        (NbdkitMemory, "hotread-16", ["before", "once", "hotread-16"]),
        (NbdkitFile, "seqwrite", ["seqwrite"]),
    ],
)
def test_what_takes_memory_as_it_is_written_is_filled_before_each_job(
    bench: Bench, clients: list[Command], kind: type[NbdServer], job: str, jobs: Sequence[str]
) -> None:
    bench.plan = dataclasses.replace(bench.plan, nbd_jobs=(job,))
    nbd.run(bench, [kind])
    words = clients[-1].argv
    assert [word.removeprefix("--name=") for word in words if word.startswith("--name=")] == jobs
    if kind is NbdkitMemory:
        before = words.index("--name=before")
        assert words[before + 1 : before + 3] == (f"--size={8 * MIB}", "--rw=write")


def test_filling_writes_the_whole_disk_and_is_not_the_figure(bench: Bench, tmp_path: Path) -> None:
    find_tool("fio")
    find_tool("nbdkit")
    server, report_file = NbdkitMemory(tmp_path / "memory"), tmp_path / "fio.json"
    bench.input.write_bytes(bytes(8 * MIB))
    server.prepare(bench.input, 0, 0)
    job = next(job for job in nbd.JOBS if job.key == "hotread-16")
    listening = tmp_path / "s"
    with serving(server.serve(listening)[0], listening):
        uri = server.uri(listening)
        job = dataclasses.replace(job, span=2 * MIB)
        run([nbd.fio(bench, job, uri, report_file, server.fill)])
    jobs = json.loads(report_file.read_text())["jobs"]
    assert [each["jobname"] for each in jobs] == ["before", "once", "hotread-16"]
    assert jobs[0]["write"]["io_bytes"] == 8 * MIB
    assert jobs[1]["read"]["io_bytes"] == 2 * MIB
    assert nbd.figures_of(report_file, "read") == jobs[2]["read"]


def test_commands_are_limited_by_a_program_that_does_nothing(bench: Bench) -> None:
    row = Row("start/version", "start", "Start", limit=limits.TEXT["command"])
    durable = Row("start/commit", "start", "Commit", limit=limits.TEXT["commit"])
    for each in (row, durable):
        bench.results.add(each, "blockvault", 1.0)
    limits.commands(bench, "start/")
    found = {
        each.key: bench.results.summary(each.key, LIMIT)
        for each in (row, durable, limits.NOTHING, limits.PYTHON)
    }
    medians = [summary.median for summary in found.values() if summary is not None]
    assert len(medians) == 4
    least, with_append, nothing, python = medians
    assert 0 < least == nothing < with_append
    assert nothing < python


def test_writing_an_image_takes_time_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 4096)
    assert 0 < limits.write_seconds(bench, image) < 60
    assert not (tmp_path / "limit-copy").exists()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, Results(facts=facts()), tmp_path, [], tmp_path / "results.json")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """The clients of jobs, none of which is run; servers are not started either."""
    found: list[Command] = []

    @contextlib.contextmanager
    def not_serving(*_: object) -> Iterator[Server]:
        yield Server()

    def kept(commands: Sequence[Command], **_: object) -> None:
        found.extend(commands)

    figures: dict[str, Any] = {"iops": 1, "clat_ns": {"percentile": {"99.900000": 1}}}
    monkeypatch.setattr(nbd, "serving", not_serving)
    monkeypatch.setattr(nbd, "run_commands", kept)
    monkeypatch.setattr(nbd, "figures_of", lambda *_: figures)
    for kind in (NbdkitMemory, NbdkitFile):
        monkeypatch.setattr(kind, "missing", lambda: None)
    return found


@pytest.mark.parametrize(
    ("unit", "ours", "peer", "limit", "first", "detail", "by"),
    [
        ("s", 2.0, 3.0, 1.0, "1.00 s, 2.00 ×", "1.00 s", []),
        ("s", 2.0, 0.5, 1.0, "1.00 s, 2.00 × *", "1.00 s, beaten", ["borg-fixed"]),
        ("s", 0.5, 3.0, 1.0, "beaten", "1.00 s, beaten", ["blockvault"]),
        ("s", 0.98, 0.98, 1.0, "1.00 s, 0.98 ×", "1.00 s", []),
        ("IOPS", 200.0, 50.0, 100.0, "beaten", "100, beaten", ["blockvault"]),
        ("IOPS", 50.0, 200.0, 100.0, "100, 2.00 × *", "100, beaten", ["borg-fixed"]),
    ],
)
def test_a_limit_that_is_beaten_is_not_stated_as_one(
    unit: Unit, ours: float, peer: float, limit: float, first: str, detail: str, by: Sequence[str]
) -> None:
    row = Row("import/all", "series", "All", unit, limit="bare work")
    made = measured(row, **{"blockvault": ours, "borg-fixed": peer, "memory": peer, LIMIT: limit})
    made.add(row, "memory", 0.01 if unit == "s" else 1000.0)  # a yardstick beats nothing
    assert f"| {first} |" in headlines.page(made)
    assert floors.cell(made, row) == detail
    assert floors.beaten_by(made, row) == by
    notes = [f"* limit, beaten by {name}, so that it is none: All" for name in by]
    assert floors.notes(made, [row]) == ["* limit: bare work", *notes]
