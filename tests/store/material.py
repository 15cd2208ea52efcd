"""Small things that the store's tests are made of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from blockvault.ids import object_id
from blockvault.store import frames
from blockvault.store.codec import Codec
from blockvault.store.format import FEATURES
from blockvault.store.frames import Frame
from blockvault.store.types import Options, Reader, Writer

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = Options(bytes(range(16)), 4096, "zstd:3", FEATURES)
CODEC = Codec("zstd:3")


def block(number: int, size: int = 4096) -> bytes:
    """A block that compresses, unlike any other number's."""
    return (b"block %09d " % number * (size // 16 + 1))[:size]


def noise(seed: int, size: int = 4096) -> bytes:
    """A block that does not compress."""
    import random

    return random.Random(seed).randbytes(size)


def framed(objects: Sequence[bytes], codec: Codec = CODEC) -> Frame:
    return Frame(frames.encode(objects, codec), tuple(map(object_id, objects)))


def commit_something(writer: Writer, number: int) -> bytes:
    """One of everything: an object, a record, a row.  Returns the object's id."""
    data = block(number)
    writer.add_frames([framed([data])])
    writer.append(b"payload %d" % number, 1, number)
    writer.put("refs", b"row %06d" % number, b"%d" % number)
    return object_id(data)


def run_python(
    code: str, *arguments: object, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the tests' material at hand."""
    return subprocess.run(
        command(code, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(code, *arguments),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def command(code: str, *arguments: object) -> list[str]:
    prelude = (
        "import os, signal, sys, time\n"
        "from blockvault.store.env import LmdbStore\n"
        "from tests.store.material import *\n"
    )
    return [sys.executable, "-W", "error", "-c", prelude + code, *map(str, arguments)]


def placed(reader: Reader, ids: Sequence[bytes]) -> list[int]:
    """The places of objects, asked for by the first byte of their ids."""
    parts = ({oid for oid in ids if oid[0] == first} for first in range(256))
    return [place for first, part in enumerate(parts) for place in reader.places(first, part)]
