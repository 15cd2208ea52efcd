"""The images that a run works on: a series of states, given or made up.

A *series* is what a person would have: states of one machine's disk, each a step further, and
perhaps another machine's disk at the end.  ``survey`` says how many bytes of each are data and how
many of those were in no earlier state; the limits are about exactly those bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.bench import shape, synthetic

MANIFEST = "series.json"
STATE = {"name": str, "file": str, "machine": str}
TAKEN = ("all", "unchanged", "again")
"""What no image can be called: rows, and a state of the series, have these names."""


@dataclass(frozen=True, slots=True)
class Image:
    """One state.  ``machine`` names the line of history that it belongs to."""

    name: str
    path: Path
    machine: str = "main"


@dataclass(frozen=True, slots=True)
class Survey:
    """Bytes of one image: its size, its non-zero 4 KiB blocks, those no earlier image had."""

    name: str
    size: int
    data: int
    new: int


def given(texts: Sequence[str]) -> list[Image]:
    """Images from the command line: a folder with a manifest, or files as ``[MACHINE:]FILE``."""
    if len(texts) == 1 and Path(texts[0]).is_dir():
        return _named_apart(_from_manifest(Path(texts[0])))
    images = []
    for text in texts:
        machine, _, file = text.rpartition(":")
        path = _image(Path(file))
        images.append(Image(path.stem, path, machine or "main"))
    return _named_apart(images)


def _named_apart(images: list[Image]) -> list[Image]:
    """The same images, of which each has rows, and a state in every store, by its name."""
    taken = {*TAKEN, *(image.machine for image in images)}
    for image in images:
        if image.name in taken:
            own = f"an image needs a name of its own, and {image.name!r} is taken"
            raise ValueError(f"{image.path}: {own}")
        taken.add(image.name)
    return images


def _from_manifest(folder: Path) -> list[Image]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}; name the images one by one")
    states = shape.read_as(manifest, {"states": [STATE]})["states"]
    if not states:
        raise ValueError(f"{manifest}: it names no image")
    return [Image(s["name"], _image(folder / s["file"]), s["machine"]) for s in states]


def _image(path: Path) -> Path:
    """The file itself, which must be there and readable: hours later is too late to find out."""
    if not path.is_file():
        raise ValueError(f"no image at {path.resolve()}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: not readable")
    return path.resolve()


def made_up(folder: Path, size: int) -> list[Image]:
    """A small series for runs without real images: four states of one disk and a second disk."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for name, machine, recipe in synthetic.series(size):
        path = folder / f"{name}.img"
        synthetic.write(path, recipe)
        images.append(Image(name, path, machine))
    return images


def survey(images: Sequence[Image]) -> list[Survey]:
    """What is in the images, counted over the whole series; runs in a process of its own."""
    paths = [str(image.path) for image in images]
    output = subprocess.run(
        [sys.executable, "-m", "tools.bench.kernels", "survey", *paths],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    counts = json.loads(output)
    return [
        Survey(image.name, count["size"], count["data"], count["new"])
        for image, count in zip(images, counts, strict=True)
    ]


def place(image: Path, target: Path) -> None:
    """Copy an image, holes kept, to the one path from which every contender reads its input."""
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)


def same_bytes(left: Path, right: Path) -> bool:
    """Whether two files hold the same bytes."""
    return subprocess.run(["cmp", "-s", str(left), str(right)], check=False).returncode == 0
