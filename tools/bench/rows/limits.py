"""The floor under the rows of the series: what one core and the disk need for the same bytes.

Nothing that keeps an image can do without hashing its data, compressing what is new and writing
the result durably; nothing that gives one back can do without decompressing and writing it.  With
``n`` cores the processor's part takes at least an n-th; the disk's part may overlap with it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.bench.bench import Bench
from tools.bench.commands import command, run
from tools.bench.inputs import Image
from tools.bench.results import LIMIT, Row
from tools.bench.stated import FSYNC, OVERWRITE

ROOT = Path(__file__).parents[3]
OPERATIONS = {
    "read": "Read from the page cache",
    "hash": "BLAKE3 of each 4 KiB block",
    "hash_runs": "BLAKE3 of the data in runs of 1 MiB",
    "zstd": "zstd -3 of the new blocks",
    "write": "Write and fsync the compressed blocks",
    "unzstd": "Decompress the new blocks",
    "copy": "Write the image's data to a file",
}
TEXT = {
    "import": "read, hash and compress what is new, on all cores; or write that durably",
    "unchanged": "read and hash in long runs, on all cores",
    "export": "decompress on all cores; or write the data",
    "size": "the new blocks, compressed 256 KiB at a time, without any index",
    "verify": "decompress and hash everything stored, on all cores",
    "fsync": OVERWRITE,
    "command": "starting and ending a program that does nothing",
    "commit": "starting and ending a program that does nothing, and one 4 KiB write made durable",
    "copy": "writing the data to a file",
    "restore": "stopping a guest, letting it go on, and waiting until it answers",
    "clone": "starting a QEMU that has nothing to load, until its monitor answers",
    "pause": "stopping a guest and letting it go on, with nothing in between",
    "state": "QEMU's own file of the state, zstd -3",
    "collect": "taking as many bytes as are needed no more from a file, durably",
    "kept": "the blocks of the states that are kept, compressed 256 KiB at a time",
    "peak": "a program that does nothing, as its memory is measured here",
}

NOTHING = Row("limit/nothing", "limits", "A program that does nothing, from start to end")
PYTHON = Row("limit/python", "limits", "A Python program that does nothing, from start to end")

Measured = Mapping[str, float]


def measure(bench: Bench, images: Sequence[Image]) -> dict[str, Measured]:
    """Bytes and single-core seconds by image name, counted over these images."""
    report = bench.work / "limits.json"
    words = ("-m", "tools.bench.kernels", "series", "--scratch", bench.work)
    paths = [image.path for image in images]
    run([command(sys.executable, *words, *paths, cwd=ROOT, stdout=report)], settle=True)
    names = (image.name for image in images)
    return dict(zip(names, json.loads(report.read_text()), strict=True))


def measure_series(bench: Bench, images: Sequence[Image]) -> dict[str, Measured]:
    """The same, and a row for each bare operation."""
    measured = measure(bench, images)
    for name, title in OPERATIONS.items():
        row = Row(f"limit/{name}", "limits", f"{title}, all images, one core")
        bench.results.add(row, LIMIT, sum(each[name] for each in measured.values()))
    return measured


def import_floor(image: Measured) -> float:
    """Seconds under which no import of this image can be."""
    return max((image["read"] + image["hash"] + image["zstd"]) / cores(), image["write"])


def unchanged_floor(image: Measured) -> float:
    """Seconds under which nothing can know that an image did not change."""
    return (image["read"] + image["hash_runs"]) / cores()


def export_floor(image: Measured, series: Mapping[str, Measured]) -> float:
    """Seconds for decompressing all of the image's data, at the series' rate, or for writing it."""
    new = sum(each["new"] for each in series.values())
    rate = new / sum(each["unzstd"] for each in series.values())
    return max(image["data"] / rate / cores(), image["copy"])


def verify_floor(series: Mapping[str, Measured]) -> float:
    """Seconds for decompressing and hashing each block that was stored."""
    hashing = sum(each["hash"] * each["new"] / each["data"] for each in series.values())
    return (hashing + sum(each["unzstd"] for each in series.values())) / cores()


def write_seconds(bench: Bench, image: Path) -> float:
    """Seconds for writing an image's data to a file on the disk that is measured."""
    return _kernel(bench, "copy", "--scratch", bench.work, image)["seconds"]


def give_back_seconds(bench: Bench, size: int) -> float:
    """Seconds until the file system durably has ``size`` bytes of a file back."""
    return _kernel(bench, "shrink", "--size", str(size), "--scratch", bench.work)["seconds"]


def idle_peak() -> int:
    """Bytes of memory of a program that needs none: what every peak that is measured includes."""
    return run([command("true")]).peak


def _kernel(bench: Bench, *words: str | Path) -> dict[str, float]:
    """What one of the kernels that print a few figures printed."""
    report = bench.work / "limits.json"
    program = (sys.executable, "-m", "tools.bench.kernels")
    run([command(*program, *words, cwd=ROOT, stdout=report)])
    found: dict[str, float] = json.loads(report.read_text())
    return found


def commands(bench: Bench, prefix: str) -> None:
    """The floor of rows that are one short command, by the words of their limit, once a run."""
    rows = [row for key, row in bench.results.rows.items() if key.startswith(prefix)]
    for _ in bench.numbers():
        durable = fsync_latency(bench)
        empty = run([command("true")]).wall
        bench.results.add(NOTHING, LIMIT, empty)
        bench.results.add(PYTHON, LIMIT, run([command(sys.executable, "-I", "-c", "pass")]).wall)
        floors = {TEXT["fsync"]: durable, TEXT["command"]: empty, TEXT["commit"]: empty + durable}
        for row in rows:
            if row.limit in floors:
                bench.results.add(row, LIMIT, floors[row.limit])


def fsync_latency(bench: Bench) -> float:
    """Median seconds of one durable overwrite; recorded as a row of its own too."""
    median = _kernel(bench, "fsync", "--scratch", bench.work)["median"]
    bench.results.add(FSYNC, LIMIT, median)
    return median


def cores() -> int:
    """Processors that this run may use."""
    return len(os.sched_getaffinity(0))
