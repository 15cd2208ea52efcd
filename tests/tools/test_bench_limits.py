"""The limits that rows are held against: floors that the machine really has, or said to be none."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import find_tool
from tests.tools.test_bench_figures import facts
from tools.bench import floors, headlines, plots, report
from tools.bench.bench import Bench
from tools.bench.commands import Command, CommandFailed, Cost, command, run
from tools.bench.peers.nbd import NbdServer, VaultServer
from tools.bench.peers.yardsticks import NbdkitFile, NbdkitMemory, QemuNbdRaw
from tools.bench.plan import MIB, QUICK
from tools.bench.results import LIMIT, Results, Row, Unit
from tools.bench.rows import collecting, limits, live, memory, nbd
from tools.bench.servers import Server, serving
from tools.bench.stated import APPEND, FLUSHED, FSYNC, SOONEST, stated

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


def test_of_two_limits_the_lower_at_its_best_is_the_limit() -> None:
    """And not the one whose median is lower: the best of it may be what nothing can reach."""
    made = measured(EACH, blockvault=3_000)
    for rate in (10_000, 10_000, 30_000):
        made.add(EACH, LIMIT, rate)
        made.add(FSYNC, LIMIT, 90e-6)
    best = floors.floor(stated(made), EACH)
    assert best is not None
    assert best.median == pytest.approx(1 / 90e-6)


@pytest.mark.parametrize("fact", ["processor", "file_system"])
def test_the_disk_of_another_machine_says_nothing(fact: str) -> None:
    made, other = measured(EACH, limit=10_000.0), measured(FSYNC, limit=1e-3)
    other.facts[fact] = "another"
    made.merge(other)
    assert stated(made).summary(EACH.key, LIMIT) is None


def test_rows_that_do_not_wait_keep_their_limit() -> None:
    row = dataclasses.replace(EACH, key="nbd/randwrite-1")
    made = measured(row, limit=10_000.0)
    made.add(FSYNC, LIMIT, 1e-3)
    assert stated(made) == made


def test_no_request_is_answered_sooner_than_by_who_keeps_nothing() -> None:
    row = Row("nbd-latency/randwrite-16", "NBD latency", "99.9 % within")
    made = measured(row, blockvault=7e-3, **{NbdkitMemory.name: 3e-3, QemuNbdRaw.name: 1e-3})
    found = stated(made)
    assert found.cells[row.key][LIMIT].samples == made.cells[row.key][QemuNbdRaw.name].samples
    assert found.rows[row.key].limit == SOONEST
    assert LIMIT not in made.cells[row.key], "what was measured stays"


def test_of_two_yardsticks_the_sooner_at_its_best_is_the_limit() -> None:
    row = Row("nbd-latency/randwrite-16", "NBD latency", "99.9 % within")
    made = measured(row, blockvault=7e-3)
    for idle, raw in ((3e-3, 2e-3), (3e-3, 2e-3), (1e-3, 2e-3)):
        made.add(row, NbdkitMemory.name, idle)
        made.add(row, QemuNbdRaw.name, raw)
    best = floors.floor(stated(made), row)
    assert best is not None
    assert best.median == 1e-3


@pytest.mark.parametrize(
    ("key", "contender"), [("fsync-32-flushes", NbdkitMemory.name), ("randwrite-16", "qcow2")]
)
def test_who_does_not_flush_or_has_a_store_limits_no_latency(key: str, contender: str) -> None:
    made = measured(Row(f"nbd-latency/{key}", "NBD latency", "L"), blockvault=1, **{contender: 1})
    assert stated(made) == made


def test_no_flush_is_answered_sooner_than_one_write_is_durable() -> None:
    row = Row("nbd-latency/fsync-32-flushes", "NBD latency", "99.9 % of flushes within")
    made, elsewhere = measured(row, blockvault=7e-3), measured(FSYNC, limit=1e-3)
    made.add(FSYNC, LIMIT, 2e-3)
    found = stated(made)
    assert found.cells[row.key][LIMIT].samples == made.cells[FSYNC.key][LIMIT].samples
    assert found.rows[row.key].limit == limits.TEXT["fsync"]
    elsewhere.facts["processor"] = "another"
    made.merge(elsewhere)
    assert LIMIT not in stated(made).cells[row.key]


def test_latencies_of_writes_without_the_flushes_they_wait_for_are_not_stated() -> None:
    made = measured(Row("nbd-latency/fsync-1", "NBD latency", "L"), blockvault=1, qcow2=2)
    assert not stated(made).rows
    assert made.rows, "what was measured stays"


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        ("Read, of the disk before all those writes", {"blockvault", "blockvault-many"}),
        ("Read, after all those writes", {"blockvault", "qcow2"}),
        ("Read", {"blockvault", "blockvault-many", "qcow2", "btrfs-nbd"}),
    ],
)
def test_who_was_asked_for_other_work_has_no_figure(title: str, kept: set[str]) -> None:
    names = ("blockvault", "blockvault-many", "qcow2", "btrfs-nbd", LIMIT)
    made = measured(Row("nbd/x", "NBD", title, "IOPS"), **dict.fromkeys(names, 1.0))
    found = stated(made).cells["nbd/x"]
    assert {name for name, cell in found.items() if cell.state == "measured"} == {*kept, LIMIT}
    assert all(cell.reason for cell in found.values() if cell.state == "not run")


def test_only_who_serves_an_old_state_is_asked_for_one(
    bench: Bench, clients: list[Command]
) -> None:
    bench.plan = dataclasses.replace(bench.plan, nbd_jobs=("seqread", "seqread-made"))
    nbd.run(bench, [NbdkitMemory, NbdkitFile])
    cells = bench.results.cells["nbd/seqread-made"]
    assert cells[NbdkitFile.name].state == "not offered"
    assert cells[LIMIT].summary() is not None, "the protocol is as fast for any state"


def test_the_job_that_goes_on_and_on_comes_behind_what_all_do() -> None:
    """Else some would be asked for a disk that it has written, and others for another one."""
    assert [job.long for job in nbd.JOBS] == [False] * (len(nbd.JOBS) - 1) + [True]


def test_of_who_flushes_the_flushes_are_told(tmp_path: Path) -> None:
    def times(value: int) -> dict[str, Any]:
        return {"percentile": {"99.900000": value}}

    last = {"write": {"clat_ns": times(10**6)}, "sync": {"lat_ns": times(10**9)}}
    path = tmp_path / "fio.json"
    path.write_text(json.dumps({"jobs": [last]}))
    job = next(job for job in nbd.JOBS if job.key == "fsync-1")
    assert nbd._slowest(path, job) == 1.0
    assert nbd._slowest(path, dataclasses.replace(job, key="randwrite-1")) == 1e-3
    assert nbd._latency_row(job).key == "nbd-latency/fsync-1-flushes"


@pytest.mark.parametrize(("side", "times"), [("write", "clat_ns"), ("sync", "lat_ns")])
def test_a_job_without_one_answer_has_failed(tmp_path: Path, side: str, times: str) -> None:
    path = tmp_path / "fio.json"
    path.write_text(json.dumps({"jobs": [{side: {times: {"min": 0, "max": 0, "N": 0}}}]}))
    with pytest.raises(CommandFailed, match="no request was answered"):
        nbd.figures_of(path, side)


def test_a_job_without_a_flush_has_a_rate_and_goes_on(
    bench: Bench, clients: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = nbd.figures_of

    def figures_of(report: Path, side: str) -> dict[str, Any]:
        if side == "sync":
            raise CommandFailed("no request was answered")
        return answered(report, side)

    monkeypatch.setattr(nbd, "figures_of", figures_of)
    bench.plan = dataclasses.replace(bench.plan, nbd_jobs=("fsync-32", "seqwrite"))
    nbd.run(bench, [NbdkitMemory])
    cells = bench.results.cells
    latency = cells["nbd-latency/fsync-32-flushes"][NbdkitMemory.name]
    assert (latency.state, latency.reason) == ("failed", "no request was answered")
    for job in ("fsync-32", "seqwrite"):
        assert len(cells[f"nbd/{job}"][NbdkitMemory.name].samples) == 1


@pytest.mark.parametrize("old", [True, False], ids=["append", "overwrite"])
def test_a_flush_is_limited_by_an_overwrite_where_that_was_measured(old: bool) -> None:
    made = measured(EACH, blockvault=1_000, limit=50_000)
    made.add(Row(APPEND, "limits", "An append"), LIMIT, 500e-6)
    if not old:
        made.add(FSYNC, LIMIT, 250e-6)
    found = stated(made)
    summary = found.summary(EACH.key, LIMIT)
    assert summary is not None
    assert summary.median == pytest.approx(2000 if old else 4000)
    assert (APPEND in found.rows) == old


def test_the_page_and_the_plots_state_the_disks_limit(tmp_path: Path) -> None:
    made = measured(EACH, blockvault=2_500.0, limit=11_348.0)
    made.add(FSYNC, LIMIT, 200e-6)
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert "| 2,500 | – | – | 5,000, 2.00 × |" in page
    assert "| 2,500 | 5,000 |" in page
    assert "* limit: the protocol; or one durable write a flush" in page
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
    """The best of several runs are held against each other: one alone may have been held up."""
    bench.plan = dataclasses.replace(bench.plan, runs=5)
    row = Row("start/version", "start", "Start", limit=limits.TEXT["command"])
    durable = Row("start/commit", "start", "Commit", limit=limits.TEXT["commit"])
    for each in (row, durable):
        bench.results.add(each, "blockvault", 1.0)
    limits.commands(bench, "start/")
    found = [
        floors.floor(bench.results, each)
        for each in (row, durable, limits.NOTHING, limits.PYTHON)
    ]
    best = [summary.median for summary in found if summary is not None]
    assert len(best) == 4
    least, with_append, nothing, python = best
    assert 0 < least == nothing < with_append
    assert nothing < python


def test_writing_an_image_takes_time_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 4096)
    assert 0 < limits.write_seconds(bench, image) < 60
    assert not (tmp_path / "limit-copy").exists()


def test_giving_back_takes_time_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    assert 0 < limits.give_back_seconds(bench, 3 * MIB) < 60
    assert not (tmp_path / "limit-shrink").exists()


def test_a_program_that_does_nothing_takes_less_memory_than_any_other() -> None:
    python = run([command(sys.executable, "-c", "import blockvault.session")]).peak
    assert 1 * MIB < limits.idle_peak() < python


@pytest.mark.parametrize("in_time", [0, 2])
def test_only_snapshots_that_end_before_the_writer_are_told_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, in_time: int
) -> None:
    taken: list[Cost] = []

    @contextlib.contextmanager
    def repeated(*_: object) -> Iterator[list[Cost]]:
        yield taken
        taken.append(Cost(100.0, 0, 0, 0))  # it was under way when the writer ended

    def client(*_: object, **__: object) -> None:
        taken[:] = [Cost(1.0, 0, 0, 0)] * in_time

    @contextlib.contextmanager
    def serving(*_: object) -> Iterator[Server]:
        yield Server()

    figures = {"clat_ns": {"max": 1, "percentile": {}}, "iops": 1}
    monkeypatch.setattr(nbd, "missing", lambda: None)
    monkeypatch.setattr(VaultServer, "missing", lambda: None)
    monkeypatch.setattr(VaultServer, "prepare", lambda *_: [])
    monkeypatch.setattr(nbd, "repeated", repeated)
    monkeypatch.setattr(nbd, "run_commands", client)
    monkeypatch.setattr(nbd, "serving", serving)
    monkeypatch.setattr(nbd, "figures_of", lambda *_: figures)
    monkeypatch.setattr(live.Lane, "show", lambda *_, **__: None)
    monkeypatch.setattr(live.limits, "commands", lambda *_: None)
    live.run(bench, [VaultServer])
    snapshot = bench.results.cells[live.SNAPSHOT.key]["blockvault"]
    assert [sample.value for sample in snapshot.samples] == [1.0] * (in_time > 0)
    assert bool(snapshot.reason) == (in_time == 0)
    number = bench.results.summary(live.TAKEN.key, "blockvault")
    assert number is not None
    assert report.spread(number, live.TAKEN.unit) == str(in_time)
    assert bench.results.cells[live.TAKEN.key]["qcow2"].state == "not run"


def test_writes_stand_with_and_without_what_disturbs_them_and_neither_is_a_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(_b: object, _s: object, _j: object, meanwhile: object, *_: object) -> nbd.Written:
        worst, rate = (0.5, 10) if meanwhile else (0.1, 20)
        clat = {"max": worst * 1e9, "percentile": {"99.900000": worst * 1e9}}
        figures = {"clat_ns": clat, "iops": rate}
        return nbd.Written(figures, None, [], 0, [], command("fio"), [], Path())

    monkeypatch.setattr(nbd, "missing", lambda: None)
    monkeypatch.setattr(VaultServer, "missing", lambda: None)
    monkeypatch.setattr(VaultServer, "prepare", lambda *_: [])
    bench.plan = dataclasses.replace(TINY, runs=2, collecting_runs=2)
    for rows in (live, collecting):
        monkeypatch.setattr(rows, "written", disturbed)
    monkeypatch.setattr(collecting, "_litter", lambda *_: None)
    monkeypatch.setattr(collecting, "run_commands", lambda *_, **__: None)
    live.run(bench, [VaultServer])
    collecting.run(bench, [VaultServer])
    for row, ours in (
        (live.WITH, 0.5),
        (live.RATE_WITH, 10),
        (live.WITHOUT, 0.1),
        (live.RATE_WITHOUT, 20),
        (collecting.WITH, 0.5),
        (collecting.RATE_WITH, 10),
        (collecting.WITHOUT, 0.1),
        (collecting.RATE_WITHOUT, 20),
    ):
        cells = bench.results.cells[row.key]
        assert [sample.value for sample in cells["blockvault"].samples] == [ours] * 2
        assert LIMIT not in cells


@pytest.mark.parametrize("what", ["snapshots", "gc"])
def test_what_one_contender_does_undisturbed_is_nobodys_limit(what: str) -> None:
    row = Row("live/worst-with", "live", "Longest write", limit=f"the same without {what}")
    made = measured(row, blockvault=0.5, limit=0.1, **{"btrfs-nbd": 0.05})
    found = stated(made)
    assert found.cells[row.key].keys() == {"blockvault", "btrfs-nbd"}
    assert floors.notes(found, list(found.rows.values())) == []
    assert LIMIT in made.cells[row.key], "what was measured stays"


def test_big_sparse_disks_are_limited_by_their_data(bench: Bench) -> None:
    bench.plan = dataclasses.replace(TINY, memory=(1 << 30,), memory_data=2 * MIB)
    memory.run(bench, [])
    rows = {row.key: row for row in bench.results.rows.values()}
    assert len(rows) == 6
    for key, row in rows.items():
        summary = bench.results.summary(key, LIMIT)
        assert row.limit
        assert summary is not None
        assert 0 < summary.median < (32 * MIB if row.unit == "B" else 5)


@pytest.mark.parametrize(
    "keys",
    [["import/all"], [f"growth/snapshot@{count}" for count in (1, 10)]],
    ids=["bars", "lines"],
)
def test_a_plot_draws_the_limit_that_the_table_states(tmp_path: Path, keys: Sequence[str]) -> None:
    def drawing(*samples: float) -> str:
        made = Results(facts=facts())
        for key in keys:
            row = Row(key, "group", key)
            made.add(row, "blockvault", 7.0)
            for sample in samples:
                made.add(row, LIMIT, sample)
        (plot,) = plots.draw(made, tmp_path)
        return (tmp_path / f"{plot.name}.svg").read_text()

    assert drawing(1.0, 4.0, 5.0) == drawing(1.0) != drawing(4.0)


@pytest.mark.parametrize(
    ("names", "runs", "said"),
    [
        (["blockvault"], 3, "Medians of 3 runs, commit "),
        (["blockvault", LIMIT], 3, "Medians of 3 runs, of limits the best, commit "),
        ([LIMIT], 3, "The best of 3 runs, commit "),
        (["blockvault", LIMIT], 1, "One run, commit "),
    ],
)
def test_a_table_says_what_its_figures_are_of_the_samples(
    names: Sequence[str], runs: int, said: str
) -> None:
    made = Results(facts=facts())
    for name in names * runs:
        made.add(Row("start/x", "start", "Start"), name, 1.0)
    assert said in report.page(made, plots=[], folder="f", raw="r", progress="")


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

    times = {"percentile": {"99.900000": 1}}
    figures: dict[str, Any] = {"iops": 1, "clat_ns": times, "lat_ns": times}
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
