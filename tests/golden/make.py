"""Make the fixtures of the present format: ``python -m tests.golden.make``.

A fixture is made once, when a format is released, and then kept for ever: later programs must read
it.  Before a release it may be made anew whenever the format still changes.  ``--example`` prints
the worked example of docs/format.md instead, from the tiny vault of the fixture.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from blake3 import blake3

from blockvault import Vault
from tests.format_reader import FormatReader, head_slots
from tests.golden import story

HERE = Path(__file__).resolve().parent
FORMAT = 1
ARCHIVE = HERE / f"format-{FORMAT}.tar.xz"
FACTS = HERE / f"format-{FORMAT}.json"
VAULTS = ("full", "pruned")
"""Everything that can happen; and the same after a prune and a collection."""
KEPT = ("data.mdb", "head")
"""The files that are a vault; locks and leases are made anew by whoever opens it."""


def make() -> None:
    """Write the archive of the vaults, and what must be found in them."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        with story.fixed_world():
            story.tell_tiny(home / "tiny").close()
        facts = {name: _told(home / name, name) for name in VAULTS}
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            for name in ("tiny", *VAULTS):
                for file in KEPT:
                    _add(archive, home / name / ".blockvault" / file, f"{name}/{file}")
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")


def _told(home: Path, name: str) -> dict[str, object]:
    home.mkdir()
    vault, told = told_anew(home, name)
    with vault:
        return _facts(vault, told)


def told_anew(home: Path, name: str) -> tuple[Vault, story.Told]:
    """The same vault as in the fixture, made by the program of today."""
    with story.fixed_world():
        vault, told = story.tell(home)
        return vault, story.forget(vault, told) if name == "pruned" else told


def _facts(vault: Vault, told: story.Told) -> dict[str, object]:
    with vault.read() as reader:
        last = reader.last()
    return {
        "last_seq": last.seq,
        "chain": last.chain.hex(),
        "branches": {branch.name: branch.seq for branch in vault.branches()},
        "tags": {tag.name: tag.snapshot.hex() for tag in vault.tags()},
        "states": {
            rev: {
                "volumes": {
                    name: [len(data), blake3(data).hexdigest()] for name, data in contents.items()
                },
                "roots": {name: root.hex() for name, _, root in vault.resolve(rev).volumes},
                "snapshot": (vault.resolve(rev).snapshot or b"").hex(),
            }
            for rev, contents in told.revisions.items()
        },
    }


def _add(archive: tarfile.TarFile, source: Path, name: str) -> None:
    data = source.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    archive.addfile(entry, io.BytesIO(data))


def unpack(name: str, into: Path) -> Path:
    """A copy of one fixture as a vault directory."""
    home = into / ".blockvault"
    home.mkdir(parents=True, mode=0o700)
    with tarfile.open(ARCHIVE) as archive:
        for file in KEPT:
            member = archive.extractfile(f"{name}/{file}")
            assert member is not None
            (home / file).write_bytes(member.read())
            (home / file).chmod(0o600)
    return home


# -- the worked example ----------------------------------------------------------------------------


def example() -> str:
    """Every row of the tiny vault, in hex, table by table."""
    with tempfile.TemporaryDirectory() as scratch:
        home = unpack("tiny", Path(scratch))
        with FormatReader(home) as reader:
            parts = [_table(reader, name) for name in ("meta", "log", "frames", "index")]
            parts += [_table(reader, name) for name in sorted(reader.fold.tables)]
        slot = max(head_slots((home / "head").read_bytes()))
        at = slot.txn_id % 64 * 64
        parts.append(
            f"head, slot {at // 64}\n{_wrapped((home / 'head').read_bytes()[at : at + 64])}"
        )
    return "\n\n".join(parts) + "\n"


def _table(reader: FormatReader, name: str) -> str:
    lines = [name]
    for key, value in reader.rows(name):
        shown = key.decode() if name in ("meta", "refs") else key.hex()
        lines += [f"  {shown}", _wrapped(value)]
    return "\n".join(lines)


def _wrapped(data: bytes) -> str:
    text = data.hex()
    return "\n".join(f"    {text[at : at + 80]}" for at in range(0, len(text), 80))


if __name__ == "__main__":
    if "--example" in sys.argv:
        sys.stdout.write(example())
    else:
        make()
