"""Each contender's commands really do what the rows are about, on tiny images.

A program that is not installed is not passed over: it must then say so, with a reason, and what is
about it is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import find_tool
from tests.tools.needs import need, need_programs
from tests.tools.test_bench_figures import PUBLISHED
from tools.bench import __main__ as cli
from tools.bench import inputs, report
from tools.bench.bench import Bench, turns
from tools.bench.commands import Command, CommandFailed, Cost, command, run
from tools.bench.inputs import Image
from tools.bench.peers.base import Archive, Contender, NotOffered
from tools.bench.peers.btrfs import Btrfs
from tools.bench.peers.casync import Casync
from tools.bench.peers.nbd import LONG, PLAIN, SUSTAINED, NbdServer, QemuNbd
from tools.bench.peers.qcow2 import Qcow2Chain, Qcow2Files, Qcow2Internal
from tools.bench.peers.restic import Restic
from tools.bench.peers.yardsticks import NbdkitMemory
from tools.bench.plan import FULL, GIB, MIB, QUICK
from tools.bench.registry import ARCHIVES, MACHINES, SERVERS, everyone
from tools.bench.results import Results
from tools.bench.rows import changes, growth, latency, limits, memory, nbd, scale, series
from tools.bench.servers import Server

K = TypeVar("K", bound=Contender)
TINY = dataclasses.replace(
    QUICK,
    runs=1,
    virtual=(16 * MIB,),
    latency_data=MIB,
    nbd_size=8 * MIB,
    nbd_seconds=0.1,
    nbd_jobs=("randwrite-16", "fsync-1", "seqwrite", "randread-made", "exported"),
    nbd_snapshots=3,
    nbd_branches=2,
    warm_up=MIB,
    settle=False,  # others may be writing much
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    return inputs.made_up(tmp_path_factory.mktemp("images"), 4 * MIB)


@pytest.fixture
def bench(tmp_path: Path, images: list[Image]) -> Bench:
    return Bench(TINY, Results(), tmp_path, images, tmp_path / "results.json")


def present(kinds: tuple[type[K], ...]) -> list[type[K]]:
    return [kind for kind in kinds if kind.missing() is None]


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.name)
def test_a_contender_is_here_or_says_why_not(kind: type[Contender]) -> None:
    facts = report.facts_of(kind)
    assert facts["title"]
    assert bool(facts["missing"]) != bool(facts["version"])
    if facts["version"]:
        assert any(letter.isdigit() for letter in facts["version"])


@pytest.mark.parametrize("kind", ARCHIVES, ids=lambda kind: kind.name)
def test_archives_give_back_what_they_took(kind: type[Archive], bench: Bench) -> None:
    """And keep equal blocks once: all but the one that has each state in a file of its own."""
    need(kind)
    with bench.lanes([kind]) as (lane,):
        archive = lane.contender
        run(archive.create())
        sizes = [archive.size()]
        for state, image in (("one", 0), ("same", 0), ("other", 3)):
            inputs.place(bench.images[image].path, bench.input)
            run(archive.save(bench.input, state, "main"))
            sizes.append(archive.size())
        first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
        assert first > 0
        assert (second < 0.7 * first) == (kind.name != "qcow2-files")
        for state, image in (("same", 0), ("other", 3)):
            target = bench.fresh_output()
            run(archive.restore(state, target))
            assert inputs.same_bytes(archive.restored(target), bench.images[image].path)
        with contextlib.suppress(NotOffered):
            run(archive.forget(["one", "same"], ["other"]))
            run(archive.restore("other", target := bench.fresh_output()))
            assert inputs.same_bytes(archive.restored(target), bench.images[3].path)
            assert archive.size() < 1.5 * sizes[-1], "little is gone, and a database has slack"


def test_archives_take_turns_through_the_series(bench: Bench) -> None:
    kinds = [kind for kind in ARCHIVES if kind.name in ("blockvault", "qcow2-chain")]
    need_programs(kinds)
    series.run(bench, kinds)
    results = bench.results
    for kind in kinds:
        for key in ("import/base", "import/all", "import/unchanged", "size/b", "export/v4"):
            summary = results.summary(key, kind.name)
            assert summary is not None, (key, kind.name, results.cells[key][kind.name].reason)
            assert summary.runs == TINY.runs
        assert results.summary("memory/series", kind.name) is not None
    for key in ("import/all", "verify", "gc/forget", "gc/size", "memory/series"):
        floor = results.summary(key, "limit")
        assert floor is not None, key
        assert floor.median > 0
        assert results.rows[key].limit
    assert not list((bench.work / "stores").iterdir()), "stores and mounts are gone"


def test_a_wrong_restore_puts_a_contender_out(bench: Bench) -> None:
    """The positive control of the round trip: what comes back changed is not measured as if."""

    class Forgetful(CopyArchive):
        def restore(self, state: str, target: Path) -> list[Command]:
            return [command("cp", self.folder / "base.img", target)]

    series.run(bench, [CopyArchive, Forgetful])
    cells = bench.results.cells["export/v4"]
    assert cells["copy"].state == "measured"
    assert "byte for byte" in cells["forgetful"].reason


def test_a_failing_contender_sits_out_and_the_others_go_on(bench: Bench) -> None:
    class Broken(CopyArchive):
        def save(self, image: Path, state: str, machine: str) -> list[Command]:
            return [command("sh", "-c", "echo no space left >&2; exit 1")]

    series.run(bench, [Broken, CopyArchive])
    first, later = (bench.results.cells[key] for key in ("import/base", "export/v4"))
    assert (first["broken"].state, later["broken"].state) == ("not run", "not run")
    assert "no space left" in first["broken"].reason
    assert later["copy"].state == "measured"


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(bench: Bench) -> None:
    closed = []

    class Busy(CopyArchive):
        def close(self) -> None:
            closed.append(self.name)
            raise CommandFailed("busy")

    with (
        pytest.raises(CommandFailed, match="busy"),
        bench.lanes([CopyArchive, Busy, Busy]) as lanes,
    ):
        lanes[1].contender.create()
    assert closed == ["busy", "busy"]
    assert not lanes[1].contender.folder.exists()


def test_a_mount_that_is_in_use_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    umount, notes = tmp_path / "umount", tmp_path / "notes"
    umount.write_text(f'#!/bin/sh\necho "$*" >>{notes}\n[ "$1" = -l ]\n')
    umount.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("os.path.ismount", lambda _: True)
    Btrfs(tmp_path).close()
    mounted = tmp_path / "mounted"
    assert notes.read_text().splitlines() == [f"{mounted}", f"-l {mounted}"]


def test_what_cannot_be_given_back_is_in_nobodys_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.bench.bench.shutil.rmtree", lambda *_, **__: None)
    for _ in range(2):
        with bench.lanes([CopyArchive]) as (lane,):
            lane.contender.create()


class CopyArchive(Archive):
    """``cp``: an archive that is plainly right. Subclasses are named after their class."""

    name = "copy"
    title = "cp"
    programs = ("cp",)

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()

    def start(self) -> list[Command]:
        return [command("cp", "--version")]

    def create(self) -> list[Command]:
        self.folder.mkdir()
        return []

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        return [command("cp", image, self.folder / f"{state}.img")]

    def restore(self, state: str, target: Path) -> list[Command]:
        return [command("cp", self.folder / f"{state}.img", target)]


def test_machines_are_measured_with_and_without_their_start(bench: Bench) -> None:
    latency.run(bench, present(MACHINES))
    for kind in present(MACHINES):
        whole = bench.results.summary("latency/snapshot@0GiB", kind.name)
        work = bench.results.summary("work/snapshot@0GiB", kind.name)
        assert whole is not None
        assert work is not None
        assert 0 <= work.low <= work.median < whole.median
        assert whole.runs == TINY.runs
    need_programs(MACHINES)


def test_servers_answer_fio_or_are_named(bench: Bench, nightly: bool) -> None:
    find_tool("fio")
    some = (
        *("blockvault", "blockvault-snapshot", "qcow2-chain10", "qcow2-compressing"),
        *("btrfs-nbd", "nbdkit-memory"),
    )
    kinds: list[type[NbdServer]] = [kind for kind in SERVERS if nightly or kind.name in some]
    nbd.run(bench, kinds)
    for kind in kinds:
        job = "randwrite-16" if kind.does("randwrite-16") else "seqwrite"
        cell = bench.results.cells[f"nbd/{job}"][kind.name]
        if kind.missing() is None:
            assert cell.state == "measured", (kind.name, cell.reason)
            assert len(cell.samples) == TINY.runs
            assert all(sample.value > 0 for sample in cell.samples)
        else:
            assert cell.reason == kind.missing()
    for key in ("nbd-latency/fsync-1-flushes", "nbd/randread-made"):
        summary = bench.results.summary(key, "blockvault")
        assert summary is not None, key
        assert summary.median > 0
    exported = bench.results.cells["nbd/exported"]
    assert len(exported["blockvault"].samples) == len(exported["limit"].samples) == TINY.runs
    assert {exported[name].state for name in ("qcow2-chain10", "nbdkit-memory")} == {"not offered"}
    assert "qcow2-compressing" not in exported
    need_programs(kinds)


@pytest.mark.parametrize("settle", [True, False])
def test_servers_begin_on_a_clean_disk_and_runs_with_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: bool
) -> None:
    steps: list[str] = []
    figures = {"iops": 1, "clat_ns": {"percentile": {"99.900000": 1}}}

    @contextlib.contextmanager
    def serving(*_: object) -> Iterator[Server]:
        steps.append("served")
        yield Server()

    prepare = NbdkitMemory.prepare

    def made(*arguments: Any) -> list[Command]:
        steps.append("made")
        return prepare(*arguments)

    monkeypatch.setattr("tools.bench.bench.flush_disk", lambda: steps.append("synced"))
    monkeypatch.setattr(nbd, "serving", serving)
    monkeypatch.setattr(nbd, "run_commands", lambda *_, **__: None)
    monkeypatch.setattr(nbd, "figures_of", lambda *_: figures)
    monkeypatch.setattr(NbdkitMemory, "missing", lambda: None)
    monkeypatch.setattr(NbdkitMemory, "prepare", made)
    jobs = ("randwrite-16", "seqwrite")
    plan = dataclasses.replace(TINY, runs=2, settle=settle, nbd_jobs=jobs)
    nbd.run(Bench(plan, Results(), tmp_path, [], tmp_path / "results.json"), [NbdkitMemory])
    job = ["synced", "served"] if settle else ["served"]
    assert steps == ["made", *job, *job] * 2


@dataclasses.dataclass
class Dirty:
    """Whose writes the disk has not yet, and which command that was measured began meanwhile."""

    writers: set[str] = dataclasses.field(default_factory=set)
    burdened: list[str] = dataclasses.field(default_factory=list)
    measured: int = 0

    def run(self, commands: Sequence[Command], *, settle: bool = False, **_: object) -> Cost:
        text = " ".join(word for each in commands for word in each.argv)
        writers = {kind.name for kind in CLEAN if f"/{kind.name}/" in text}
        if not settle:
            self.writers |= writers
            return Cost(1.0, 1.0, 0.0, 1)
        if self.writers - writers:
            self.burdened.append(f"{text}: {sorted(self.writers - writers)}")
        self.writers.clear()
        self.measured += 1
        return Cost(1.0, 1.0, 0.0, 1)

    def written(self, *_: object) -> None:
        self.writers.add("the harness")


CLEAN = (Qcow2Files, Casync, Qcow2Chain, Qcow2Internal)


@pytest.mark.parametrize(
    ("scenario", "kinds"),
    [
        (series, (Qcow2Files, Casync)),
        (scale, (Qcow2Files, Casync)),
        (memory, (Qcow2Files, Casync)),
        (latency, (Qcow2Chain, Qcow2Internal)),
        (changes, (Qcow2Chain,)),
        (growth, (Qcow2Chain, Qcow2Internal)),
    ],
    ids=["series", "scale", "memory", "latency", "changes", "growth"],
)
def test_what_others_left_unwritten_burdens_no_command_that_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, scenario: Any, kinds: Sequence[Any]
) -> None:
    dirty = Dirty()
    figures = defaultdict(lambda: 1.0)
    monkeypatch.setattr("tools.bench.bench.run", dirty.run)
    monkeypatch.setattr("tools.bench.bench.flush_disk", dirty.writers.clear)
    monkeypatch.setattr(inputs, "place", dirty.written)
    monkeypatch.setattr(os, "utime", dirty.written)
    monkeypatch.setattr(inputs, "same_bytes", lambda *_: True)
    monkeypatch.setattr(limits, "commands", lambda *_: None)
    monkeypatch.setattr(limits, "idle_peak", lambda: 1)
    monkeypatch.setattr(series._Round, "_limits", lambda _: None)

    def sparse(*_: object) -> Path:
        dirty.written()
        bench.input.write_bytes(b"")
        return bench.input

    def measure(_: Bench, images: Sequence[Image]) -> dict[str, Any]:
        dirty.writers.clear()
        return {image.name: figures for image in images}

    monkeypatch.setattr(limits, "measure", measure)
    for rows in (scale, memory, latency, changes, growth):
        monkeypatch.setattr(rows, "sparse_image", sparse)
    sizes = {"scale": (MIB,), "memory": (MIB,), "virtual": (MIB,), "changed": (1,)}
    bench.plan = dataclasses.replace(TINY, runs=2, settle=True, snapshots=(1, 3), **sizes)
    scenario.run(bench, kinds)
    assert dirty.burdened == []
    assert dirty.measured >= 2


def test_exports_of_served_disks_begin_on_a_clean_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirty = Dirty({"the last job"})
    monkeypatch.setattr("tools.bench.bench.run", dirty.run)
    monkeypatch.setattr("tools.bench.bench.flush_disk", dirty.writers.clear)
    monkeypatch.setattr(limits, "write_seconds", lambda *_: 1.0)
    bench.plan = dataclasses.replace(TINY, settle=True)
    with bench.lanes([QemuNbd]) as lanes:
        nbd._export(bench, lanes, nbd.EXPORT, 0)
    assert (dirty.burdened, dirty.measured) == ([], 1)


def test_the_long_jobs_are_jobs_and_have_few_takers() -> None:
    assert set(LONG) < {job.key for job in nbd.JOBS}
    for key in LONG:
        yardstick = [] if key == SUSTAINED else ["nbdkit-memory"]
        assert [kind.name for kind in SERVERS if kind.does(key)] == [*PLAIN, *yardstick]


def test_turns_start_one_further_each_run(bench: Bench) -> None:
    with bench.lanes(ARCHIVES[:3]) as lanes:
        orders = [[lane.name for lane in turns(lanes, number)] for number in range(3)]
    first = [kind.name for kind in ARCHIVES[:3]]
    assert orders == [first, [*first[1:], first[0]], [first[2], *first[:2]]]


def test_the_command_line_measures_saves_and_compares(
    tmp_path: Path, images: list[Image], capsys: pytest.CaptureFixture[str]
) -> None:
    out, paths = tmp_path / "new.json", [str(image.path) for image in images[:2]]
    words = ["--rows", "series", "start", "--contenders", "qcow2-files", "--runs", "1"]
    words += ["--images", *paths, "--work", str(tmp_path), "--out", str(out)]
    assert cli.main(words) == 0
    results = Results.load(out)
    assert results.facts["contenders"]["borg-fixed"]["missing"]
    assert [each["name"] for each in results.facts["inputs"]] == ["base", "v2"]
    assert results.summary("start/version", "qcow2-files") is not None
    assert cli.main(["--load", str(out), "--compare", str(out)]) == 0
    assert "No peer" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json"], "nothing left behind"


def test_quick_and_full_ask_for_enough_runs() -> None:
    assert QUICK.runs >= 5
    assert FULL.runs >= 5
    assert 1024 * GIB in QUICK.virtual
    assert {1 * GIB, 64 * GIB, 1024 * GIB} <= set(FULL.virtual)
    names = {kind.name for kind in everyone()}
    published = Results.load(PUBLISHED)
    assert set(QUICK.left_out) <= names
    for plan in (QUICK, FULL):
        once = set(plan.once)
        assert once <= {kind.name for kind in ARCHIVES} - set(plan.left_out)
        assert once <= set(plan.slow), "only for whom a round takes minutes"
        quick = {name for name in once if round_of(published, name) < 60}
        assert not quick, "a round of the published series took it less than a minute"
        assert not once & {"blockvault", "borg-fixed", "restic", "qcow2-files", "btrfs"}, (
            "of each family the first is measured as often as blockvault"
        )


def round_of(results: Results, name: str) -> float:
    """Seconds that the imports and exports of a round of the series take."""
    exports = (key for key in results.rows if key.startswith("export/"))
    keys = ("import/all", "import/unchanged", *exports)
    found = (results.summary(key, name) for key in keys)
    return sum(summary.median for summary in found if summary is not None)


@pytest.mark.parametrize(
    ("words", "sparse"),
    [("      --sparse    restore files as sparse", True), ("      --target string", False)],
    ids=["0.15", "0.14"],
)
def test_restic_is_asked_for_holes_where_it_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, sparse: bool
) -> None:
    restic = tmp_path / "restic"
    restic.write_text(f"#!/bin/sh\n[ \"$*\" = 'restore --help' ] && echo '{words}'\n")
    restic.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (restore,) = Restic(tmp_path / "restic").restore("one", tmp_path / "out" / "disk.img")
    assert ("--sparse" in restore.argv) == sparse
    assert "--tag one" in " ".join(restore.argv)
