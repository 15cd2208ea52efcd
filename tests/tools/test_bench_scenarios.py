"""What scenarios record besides figures: why there are none, and what was run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tools.test_bench_contenders import TINY
from tests.tools.test_bench_figures import facts
from tools.bench import __main__ as cli
from tools.bench import report
from tools.bench.bench import Bench
from tools.bench.commands import CommandFailed
from tools.bench.peers.yardsticks import NbdkitMemory
from tools.bench.registry import SERVERS
from tools.bench.results import Results
from tools.bench.rows import nbd, vm


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
