"""What scenarios record besides figures: why there are none, and what was run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tools.test_bench_contenders import TINY
from tests.tools.test_bench_figures import RATE, facts, results
from tools.bench import __main__ as cli
from tools.bench import report
from tools.bench.bench import Bench
from tools.bench.commands import CommandFailed
from tools.bench.peers.nbd import VaultServer
from tools.bench.peers.served_btrfs import QemuNbdBtrfs
from tools.bench.peers.yardsticks import NbdkitMemory
from tools.bench.plan import MIB
from tools.bench.registry import SERVERS
from tools.bench.results import Results
from tools.bench.rows import collecting, live, nbd, vm


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, Results(), tmp_path, [], tmp_path / "results.json")


SERVED = ("nbd/randwrite-16", "nbd/seqwrite", "nbd/exported")


@pytest.mark.parametrize(
    ("scenario", "keys"),
    [
        ("nbd", SERVED),
        ("live", [f"live/{key}" for key in ("snapshot", "worst-with", "worst-without")]),
        ("live", ["live/rate-with", "live/rate-without"]),
        ("collecting", [f"collecting/{key}" for key in ("gc", "slow-with", "slow-without")]),
        ("collecting", ["collecting/rate-with", "collecting/rate-without"]),
    ],
)
def test_a_program_that_a_scenario_needs_is_missed_in_each_row(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, scenario: str, keys: Sequence[str]
) -> None:
    monkeypatch.setattr(nbd, "missing", lambda: "fio not installed")
    bench.plan = dataclasses.replace(TINY, collecting_runs=1)
    cli._scenario(scenario, bench)
    for key in keys:
        cell = bench.results.cells[key]["blockvault"]
        assert (cell.state, cell.reason) == ("not run", "fio not installed")
    bench.results.facts |= facts()
    page = report.page(bench.results, plots=[], folder="", raw="", progress="")
    assert "* blockvault, not run: fio not installed (" in page


def test_each_server_is_named_in_its_own_jobs_where_fio_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "missing", lambda: "fio not installed")
    monkeypatch.setattr(NbdkitMemory, "missing", lambda: "nbdkit not installed")
    nbd.run(bench, SERVERS)
    told = {
        (key, name): cell.reason
        for key in SERVED
        for name, cell in bench.results.cells[key].items()
    }
    assert told["nbd/seqwrite", "nbdkit-memory"] == "nbdkit not installed"
    assert told["nbd/seqwrite", "qcow2-compressing"] == "fio not installed"
    assert ("nbd/randwrite-16", "qcow2-compressing") not in told
    assert "nbd/exported-worn" not in bench.results.cells
    bench.plan = dataclasses.replace(TINY, nbd_jobs=("fsync-1", "sustained", "exported"))
    nbd.run(bench, SERVERS)
    for key in ("nbd-latency/fsync-1-flushes", "nbd-latency/sustained", "nbd/exported-worn"):
        assert bench.results.cells[key]["qcow2"].reason == "fio not installed"


def test_who_snapshots_under_load_is_left_out_where_that_was_asked_for_or_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VaultServer, "missing", lambda: "no command 'serve' yet")
    monkeypatch.setattr(QemuNbdBtrfs, "missing", lambda: "the running kernel has no btrfs")
    bench.plan = dataclasses.replace(TINY, left_out=())
    cli._scenario("live", bench)
    cell = bench.results.cells["live/worst-with"]["btrfs-nbd"]
    assert (cell.state, cell.reason) == ("not run", "the running kernel has no btrfs")
    bench.results = Results()
    bench.plan = dataclasses.replace(TINY, left_out=("btrfs-nbd",), collecting_runs=1)
    cli._scenario("live", bench)
    assert bench.results.cells["live/worst-with"].keys() == {"blockvault", "qcow2"}
    bench.results = Results()
    bench.plan = dataclasses.replace(bench.plan, left_out=("blockvault",))
    cli._scenario("collecting", bench)
    assert not bench.results.cells


@pytest.mark.parametrize(
    ("scenario", "keys"),
    [("collecting", ["collecting/gc"]), ("vm", ["vm/pause", "vm/clone", "vm-large/later"])],
)
def test_what_only_a_full_run_measures_is_said_where_it_is_asked_for(
    bench: Bench, scenario: str, keys: Sequence[str]
) -> None:
    cli._scenario(scenario, bench)
    for key in keys:
        assert bench.results.cells[key]["blockvault"].reason == "only in a full run"


def test_machines_that_fail_are_named_in_each_row(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CommandFailed("apt knows no package")

    monkeypatch.setattr(vm, "run_commands", fail)
    monkeypatch.setattr(vm, "missing", lambda _: None)
    bench.plan = dataclasses.replace(TINY, machine_runs=1)
    vm.run(bench)
    rows = (*vm.Rows.of(vm.SMALL), *vm.Rows.of(vm.LARGE))
    cells = [bench.results.cells[row.key]["blockvault"] for row in rows]
    assert {(cell.state, cell.reason) for cell in cells} == {("failed", "apt knows no package")}


@pytest.mark.parametrize(
    ("scenario", "shown"),
    [
        (
            live,
            {
                "live/snapshot": "BIN/blockvault -V STORE snapshot -b main -m live0",
                "live/worst-without": "SERVER & FIO",
                "live/rate-without": "SERVER & FIO",
                "live/worst-with": "SERVER & FIO & SNAPSHOT",
                "live/taken": "SERVER & FIO & SNAPSHOT",
                "live/rate-with": "SERVER & FIO & SNAPSHOT",
            },
        ),
        (
            collecting,
            {
                "collecting/gc": "BIN/blockvault -V STORE gc",
                "collecting/slow-without": "SERVER & FIO",
                "collecting/rate-without": "SERVER & FIO",
                "collecting/slow-with": "SERVER & FIO & GC",
                "collecting/rate-with": "SERVER & FIO & GC",
            },
        ),
    ],
    ids=lambda value: getattr(value, "GROUP", ""),
)
def test_what_was_run_beside_a_writer_is_shown(
    bench: Bench, need_tool: Callable[[str], str], scenario: Any, shown: dict[str, str]
) -> None:
    need_tool("fio")
    bench.plan = dataclasses.replace(TINY, collecting_runs=1, nbd_seconds=0.6, nbd_sustained=0.3)
    scenario.run(bench, scenario.KINDS)
    page = report._commands(bench.results)
    names = {row.key: row.title for row in bench.results.rows.values()}
    assert len(set(names.values())) == len(names), "no two rows are called the same"
    for key, words in shown.items():
        line = page.partition(f"# {names[key]}\n")[2].partition("\n")[0]
        assert line.startswith("blockvault       ")
        assert _short(line.removeprefix("blockvault       ")) == words
    assert {key for key in names if not key.startswith("limit/")} == shown.keys()
    for key in (each for each in shown if "snapshot" in each or "rate" in each or "gc" in each):
        (sample,) = bench.results.cells[key]["blockvault"].samples
        assert sample.peak is not None
        assert sample.peak > 10 * MIB, "a server's, or a command's"


def _short(line: str) -> str:
    """One word for each command of a line with several."""
    parts = line.split(" & ")
    if len(parts) == 1:
        return line
    words = {" serve ": "SERVER", "fio ": "FIO", " snapshot ": "SNAPSHOT", " gc": "GC"}
    return " & ".join(next(words[each] for each in words if each in part) for part in parts)


def test_rows_without_commands_have_no_heading() -> None:
    made = results()
    made.commands[RATE.key] = {}
    page = report._commands(made)
    assert "# First imports together" in page
    assert "# Random write" not in page


def test_each_timed_row_of_a_machine_says_what_was_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "run_commands", lambda *_, **__: None)
    monkeypatch.setattr(vm, "_record", lambda *_: None)
    monkeypatch.setattr(vm, "missing", lambda _: None)
    (bench.work / "machines.json").write_text("{}")
    bench.plan = dataclasses.replace(TINY, machine_runs=1, machine_rounds=2)
    vm.run(bench)
    for size, memory in (("vm", "512M"), ("vm-large", "4096M")):
        for row in ("pause", "held", "restore", "order", "clone"):
            (line,) = bench.results.commands[f"{size}/{row}"]["blockvault"]
            assert f"tools.bench.machines --rounds 2 --work WORK --memory {memory}" in line


FOUND = {
    "blockvault": dict.fromkeys(
        (
            *("pause_ms", "held_ms", "restore_s", "restore_order_s", "clone_s", "used_bytes"),
            *("first_stored_of_used", "later_stored_of_used"),
        ),
        1000.0,
    )
    | {"held_ms": 3000.0},
    "qemu": dict.fromkeys(
        (
            *("savevm_ms", "migrate_ms", "stop_ms", "loadvm_s", "start_loadvm_s", "answer_s"),
            *("bare_s", "state_bytes"),
        ),
        2000.0,
    ),
}


@pytest.mark.parametrize("offered", [True, False])
def test_a_machine_is_told_of_with_the_wait_of_its_writes_and_beside_a_background_snapshot(
    bench: Bench, offered: bool
) -> None:
    rows, found = vm.Rows.of(vm.SMALL), dict(FOUND)
    if offered:
        found["qemu"] = FOUND["qemu"] | {"background_ms": 5.0}
    reasons = {"restore": "no"} if offered else {"pause": "no", "restore": "no"}
    vm._record(bench, rows, {**found, "missing": reasons})
    held = bench.results.summary(rows.held.key, "blockvault")
    assert held is not None
    assert held.median == 3.0
    pause = bench.results.cells[rows.pause.key]["qemu-background"]
    assert [sample.value for sample in pause.samples] == ([0.005] if offered else [])
    assert pause.state == ("measured" if offered else "not run")
    restore = bench.results.cells[rows.restore.key]["qemu-background"]
    assert (restore.state, restore.reason) == ("not run", "no")
