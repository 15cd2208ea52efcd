"""A disk with a volatile write cache, as the worst file system that POSIX allows would use it.

``Disk`` takes operations one by one and keeps two images: ``now``, what programs see, and ``base``,
what surely survives a power cut.  Between the two lies ``pending``: operations of which any part
may or may not have reached the platter.  The rules, from weak to strong:

- writes, holes and size changes of a file become durable with a sync of that file, in no order
  before;
- a write through a descriptor opened with O_DSYNC is durable when it returns, alone;
- a write that is in flight may be torn at any boundary of 512-byte sectors, and so may a hole;
- names (create, rename, remove) become durable with a sync of their directory; before that, the
  names of one directory reach the platter in order, those of two directories in any order;
- a rename is atomic.  A sync of a file does not save its name.

Real file systems keep more than this; what survives here survives there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = 1
SECTOR = 512
WHOLE = -1  # a sector mask that keeps all of a write


class Make(NamedTuple):
    """A name appears: a new file or directory, or a hard link to ``ino``."""

    ino: int
    parent: int
    name: str
    directory: bool = False


class Remove(NamedTuple):
    parent: int
    name: str


class Move(NamedTuple):
    ino: int
    parent: int
    name: str
    new_parent: int
    new_name: str


class Write(NamedTuple):
    ino: int
    offset: int
    data: bytes
    durable: bool = False


class Punch(NamedTuple):
    """A range becomes a hole: it reads as zeros, and the size of the file stays."""

    ino: int
    offset: int
    length: int

    @property
    def data(self) -> bytes:
        return bytes(self.length)


class Resize(NamedTuple):
    ino: int
    size: int


class Sync(NamedTuple):
    ino: int


class Mark(NamedTuple):
    """Not I/O: what the program told somebody at this point, e.g. "acknowledged 17"."""

    text: str


Op = Make | Remove | Move | Write | Punch | Resize | Sync | Mark


class Entry(NamedTuple):
    """A pending operation; ``must`` ones are durable but wait for their order."""

    op: Op
    must: bool


@dataclass
class Image:
    """Names and contents; files without a name are kept until somebody asks for the tree."""

    dirs: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> Image:
        return Image(
            {ino: dict(names) for ino, names in self.dirs.items()},
            {ino: bytearray(data) for ino, data in self.files.items()},
        )

    def apply(self, op: Op, mask: int = WHOLE) -> None:
        match op:
            case Write(ino, offset, data):
                content = self.files.setdefault(ino, bytearray())
                for start, piece in _surviving(offset, data, mask):
                    _put(content, start, piece)
            case Punch(ino, offset, length):
                content = self.files.setdefault(ino, bytearray())
                inside = min(length, len(content) - offset)
                for start, piece in _surviving(offset, bytes(inside), mask) if inside > 0 else ():
                    _put(content, start, piece)
            case Resize(ino, size):
                _resize(self.files.setdefault(ino, bytearray()), size)
            case Make(ino, parent, name, directory):
                _names(self, parent)[name] = ino
                if directory:
                    _names(self, ino)
                else:
                    self.files.setdefault(ino, bytearray())
            case Remove(parent, name):
                _names(self, parent).pop(name, None)
            case Move(ino, parent, name, new_parent, new_name):
                _names(self, parent).pop(name, None)
                _names(self, new_parent)[new_name] = ino
            case Sync() | Mark():
                pass

    def tree(self, top: int = ROOT) -> dict[str, bytearray | None]:
        """Relative path → content, ``None`` for a directory; parents come before children."""
        found: dict[str, bytearray | None] = {}
        for name, ino in sorted(self.dirs.get(top, {}).items()):
            if ino in self.dirs:
                found[name] = None
                found.update({f"{name}/{rest}": data for rest, data in self.tree(ino).items()})
            else:
                found[name] = self.files[ino]
        return found

    def write_to(self, directory: Path) -> None:
        """Lay the tree out below an existing, empty ``directory``."""
        for name, data in self.tree().items():
            if data is None:
                (directory / name).mkdir(mode=0o700)
            else:
                (directory / name).write_bytes(data)


@dataclass
class Disk:
    """``now``, ``base`` and what is pending between them; see the top of the module."""

    base: Image = field(default_factory=Image)
    now: Image = field(default_factory=Image)
    pending: list[Entry] = field(default_factory=list)
    settled: int = 0  # how often ``base`` has changed: names a base within one trace

    def apply(self, op: Op) -> None:
        """Do ``op`` completely: a sync, or a durable write, has returned."""
        self.now.apply(op)
        match op:
            case Mark():
                pass
            case Sync(ino):
                self._settle(self._names_needed(ino) if ino in self.now.dirs else self._of(ino))
            case Write(ino, durable=True):
                self.pending.append(Entry(op, must=True))
                self._settle(self._leading_musts(ino))
            case _:
                self.pending.append(Entry(op, must=False))

    def begin(self, op: Op) -> None:
        """Leave ``op`` in flight: even if it is a durable write, it may still be lost or torn."""
        self.now.apply(op)
        if not isinstance(op, Sync | Mark):
            self.pending.append(Entry(op, must=False))

    def survivors(self, kept: Mapping[int, int]) -> Image:
        """The image after a power cut; ``kept``: pending position → mask of sectors kept."""
        image = self.base.copy()
        for position, (op, must) in enumerate(self.pending):
            if must:
                image.apply(op)
            elif position in kept:
                image.apply(op, kept[position])
        return image

    def restart(self, image: Image) -> None:
        """Power is back, and ``image`` is what the platter held."""
        self.base, self.now, self.pending = image, image.copy(), []
        self.settled += 1

    def _of(self, ino: int) -> list[int]:
        return [i for i, entry in enumerate(self.pending) if data_of(entry.op) == ino]

    def _leading_musts(self, ino: int) -> list[int]:
        leading = []
        for position in self._of(ino):
            if not self.pending[position].must:
                break
            leading.append(position)
        return leading

    def _names_needed(self, directory: int) -> list[int]:
        """Every pending operation that the names in ``directory`` stand on, moves included."""
        needed, wanted = [], {directory}
        for position in range(len(self.pending) - 1, -1, -1):
            touched = directories_of(self.pending[position].op)
            if wanted & touched:
                wanted |= touched
                needed.append(position)
        return needed[::-1]

    def _settle(self, positions: Iterable[int]) -> None:
        chosen = set(positions)
        if not chosen:
            return
        for position in sorted(chosen):
            self.base.apply(self.pending[position].op)
        self.pending = [entry for i, entry in enumerate(self.pending) if i not in chosen]
        self.settled += 1


def data_of(op: Op) -> int | None:
    """The file whose content or size ``op`` changes."""
    return op.ino if isinstance(op, Write | Punch | Resize) else None


def directories_of(op: Op) -> frozenset[int]:
    """The directories whose names ``op`` changes."""
    match op:
        case Make(parent=parent) | Remove(parent=parent):
            return frozenset((parent,))
        case Move(parent=parent, new_parent=new_parent):
            return frozenset((parent, new_parent))
        case _:
            return frozenset()


def sectors(offset: int, length: int) -> int:
    """How many sectors the bytes touch; bit n of a mask stands for the nth of them."""
    return (offset + length + SECTOR - 1) // SECTOR - offset // SECTOR


def _surviving(offset: int, data: bytes, mask: int) -> Iterable[tuple[int, bytes]]:
    if mask == WHOLE:
        return ((offset, data),)
    first, end = offset // SECTOR, offset + len(data)
    pieces = []
    for n in range(sectors(offset, len(data))):
        if mask >> n & 1:
            start = max(offset, (first + n) * SECTOR)
            stop = min(end, (first + n + 1) * SECTOR)
            pieces.append((start, data[start - offset : stop - offset]))
    return pieces


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _names(image: Image, directory: int) -> dict[str, int]:
    return image.dirs.setdefault(directory, {})
