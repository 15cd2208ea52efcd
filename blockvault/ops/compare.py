"""What differs between two states, or between a state and an image file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault.ids import ZERO_ID
from blockvault.model import diff as model_diff
from blockvault.model.diff import Side
from blockvault.model.snapshot import Volume
from blockvault.model.tree import NodeSource, Scratch
from blockvault.ops import reading, silent, states

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault


class VolumeDiff(NamedTuple):
    """One volume in two states; a size is None where the state has no such volume.

    ``extents`` are (offset, length) in bytes, ascending, in whole blocks cut at the larger size.
    """

    name: str
    size_a: int | None
    size_b: int | None
    extents: tuple[tuple[int, int], ...]

    @property
    def changed(self) -> int:
        """Bytes in all extents."""
        return sum(length for _, length in self.extents)

    @property
    def differs(self) -> bool:
        return bool(self.extents) or self.size_a != self.size_b


def diff(vault: Vault, a: Position, b: Position) -> list[VolumeDiff]:
    """Every volume of either state, by name; a missing one is compared as if it were zeros."""
    with _kept(vault, a, b):
        sides_a, sides_b = _sides(vault, a), _sides(vault, b)
        return [
            _volume_diff(vault, name, sides_a.get(name), sides_b.get(name))
            for name in sorted(sides_a | sides_b)
        ]


def diff_volumes(vault: Vault, a: Position, name_a: str, b: Position, name_b: str) -> VolumeDiff:
    """One volume of ``a`` against one of ``b``, whatever each is called; the name is ``a``'s."""
    with _kept(vault, a, b):
        return _volume_diff(vault, name_a, _sides(vault, a)[name_a], _sides(vault, b)[name_b])


@contextmanager
def _kept(vault: Vault, *positions: Position) -> Iterator[None]:
    """Nothing of these states is collected inside of the block, whatever is pruned."""
    with ExitStack() as stack:
        for position in positions:
            if (pin := reading.try_pin(vault, position)) is not None:
                stack.callback(pin.release)
        yield


_TEXT = ".json"
"""Attachments that are texts, compared line by line as well, are named so."""
_LONGEST_TEXT = 1 << 20


class AttachmentDiff(NamedTuple):
    """A file kept with two snapshots; ``lines`` of a text are those that differ, with - and +."""

    volume: VolumeDiff
    lines: tuple[str, ...]


def diff_attachments(vault: Vault, a: Position, b: Position) -> list[AttachmentDiff]:
    """What differs in memory, devices and configuration, where both states are snapshots."""
    if a.snapshot is None or b.snapshot is None:
        return []
    kept_a = {each.name: each for each in a.attachments}
    kept_b = {each.name: each for each in b.attachments}
    with _kept(vault, a, b):
        return [
            _attachment_diff(vault, name, kept_a.get(name), kept_b.get(name))
            for name in sorted(kept_a | kept_b)
        ]


def _attachment_diff(
    vault: Vault, name: str, before: Volume | None, after: Volume | None
) -> AttachmentDiff:
    a, b = (Side(each.size, each.root) if each else None for each in (before, after))
    difference = _volume_diff(vault, name, a, b)
    return AttachmentDiff(difference, _lines(vault, before, after) if difference.differs else ())


def _lines(vault: Vault, before: Volume | None, after: Volume | None) -> tuple[str, ...]:
    from difflib import unified_diff

    texts = []
    for each in (before, after):
        if each is not None and (not each.name.endswith(_TEXT) or each.size > _LONGEST_TEXT):
            return ()
        data = reading.of_volume(vault, each).read(0, each.size) if each is not None else b""
        texts.append(data.decode(errors="replace").splitlines())
    changed = unified_diff(texts[0], texts[1], n=0, lineterm="")
    return tuple(line for line in changed if not line.startswith(("---", "+++", "@@")))


def diff_file(
    vault: Vault,
    rev: str,
    volume: str | None,
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the word every image tool uses
) -> VolumeDiff:
    """One volume of a revision against an image file; nothing is stored."""
    # Much to import, and two revisions need none of it.
    from blockvault.ops import formats, images
    from blockvault.ops.intake import Intake

    opened = images.opened(path, formats.to_import(path, format), vault.path, False)
    with vault.guard(reading=True), opened as source:
        position = vault.resolve(rev)
        chosen = position.volume(volume, "with --volume")
        nodes = Scratch(vault.objects)
        intake = Intake(vault, silent, source.size, nodes)
        read = intake.volume(chosen.name, source, chosen)
        source.check_unchanged()
        side = _sides(vault, position)[chosen.name]
        return _volume_diff(vault, chosen.name, side, Side(read.size, read.root), nodes)


def _sides(vault: Vault, position: Position) -> dict[str, Side]:
    folded = states.overlays(vault, position)
    return {
        volume.name: Side(volume.size, volume.root, folded.get(volume.name))
        for volume in position.volumes
    }


def _volume_diff(
    vault: Vault, name: str, a: Side | None, b: Side | None, nodes: NodeSource | None = None
) -> VolumeDiff:
    none = Side(0, ZERO_ID)
    extents = model_diff.changed_bytes(
        nodes or vault.objects, a or none, b or none, vault.options.block_size
    )
    return VolumeDiff(name, a.size if a else None, b.size if b else None, tuple(extents))
