"""A vault: its life, and its public face.

Everything that changes a vault goes through one ``Transaction``; nothing else writes.  Reading
needs no transaction of its own: every method takes a short snapshot of the store and lets it go.
What the methods do lives in ``ops``, one module per subject.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault.errors import Conflict, NotFound
from blockvault.model import events
from blockvault.model.checks import as_text
from blockvault.model.snapshot import Snapshot
from blockvault.ops import reading, refs, resolve, snapshots
from blockvault.ops.positions import Position
from blockvault.ops.volumefile import VolumeFile
from blockvault.pins import Guards, Pin
from blockvault.store import journal
from blockvault.store.env import LmdbStore
from blockvault.store.format import FEATURES, check_options
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.types import Options, Reader, Store, Writer
from blockvault.transaction import Transaction

if TYPE_CHECKING:
    from blockvault.ops import compare
    from blockvault.session import Session

DIRECTORY = ".blockvault"
FIRST_BRANCH = "main"


class Vault:
    """An open vault.  Safe to use from several threads; close it, or use it in a ``with``."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store = store
        self.path = path
        self.options: Options = store.options
        self.objects = ObjectReader(store)
        self.guards = Guards(store, path)
        self.author = default_author()

    # -- life ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] = ".",
        *,
        block_size: int = 4096,
        compression: str = "zstd:3",
    ) -> Vault:
        """Make a vault in ``path`` (its ``.blockvault`` folder) with an empty branch ``main``."""
        home = Path(path) / DIRECTORY
        if home.exists():
            raise Conflict(f"{home} exists already; nothing was changed", kind="vault-exists")
        options = check_options(Options(os.urandom(16), block_size, compression, FEATURES))
        home.parent.mkdir(parents=True, exist_ok=True)
        return cls(LmdbStore.create(home, options, lambda writer: _begin(writer, options)), home)

    @classmethod
    def open(cls, path: str | os.PathLike[str] = ".") -> Vault:
        """Open the vault at or around ``path``; ``NotFound`` when there is none.

        What servers that were killed had promised to their guests is stored first.  A vault that
        cannot be written can be read: whoever then changes it gets ``IOFailed``.
        """
        home = cls.discover(Path(path))
        vault = cls(LmdbStore.open(home, readonly=None), home)
        try:
            if vault.journals:
                from blockvault.ops import recovery

                recovery.recover(vault)
        except BaseException:
            vault.close()
            raise
        return vault

    @staticmethod
    def discover(start: Path) -> Path:
        """Find the vault directory: ``start`` itself, or ``.blockvault`` in it or above it."""
        start = Path(os.path.abspath(start))
        if start.name == DIRECTORY and start.is_dir():
            return start
        for folder in (start, *start.parents):
            if (folder / DIRECTORY).is_dir():
                return folder / DIRECTORY
        raise NotFound(
            f"no vault in {start} or above it; 'blockvault init' makes one", kind="no-vault"
        )

    def close(self) -> None:
        self.guards.close()
        self.objects.close()
        self.store.close()

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the join of model and store -----------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Append events, objects and projections in one atomic, durable commit."""
        with self.store.write() as writer:
            transaction = Transaction(writer)
            yield transaction
            transaction.finish()
        if not writer.wrote:
            transaction.number = 0

    def read(self) -> Reader:
        """A short read snapshot of the tables: ``with vault.read() as reader: ...``."""
        return self.store.read()

    @property
    def journals(self) -> bool:
        """Whether a session may have promised what cannot be read from the tables yet."""
        return bool(journal.left_behind(self.path))

    def give_back(self, least: int = 1) -> int:
        """Give space that the vault no longer uses back to the file system; return the bytes.

        ``least`` pages in a row are worth a hole; what is left will be written over.
        """
        return self.store.give_back(least)

    def guard(self, *, reading: bool = False) -> AbstractContextManager[None]:
        """What is looked up or stored inside of the block is not collected before its end.

        Held by whoever resolves a revision or prepares objects, until the event that names them is
        committed.  An open device keeps what it reads; for the look before that, ``reading`` does
        without a guard where none can be had.
        """
        return self.guards.guard(reading=reading)

    def new_objects(self, *, sparing: bool = False) -> ObjectWriter:
        """A collector for objects that a later transaction will store; under a guard.

        ``sparing`` if a guest waits for them.
        """
        if not self.guards.held:
            raise RuntimeError("objects are prepared under vault.guard(), or they may be collected")
        return ObjectWriter(self.store, sparing=sparing)

    # -- revisions and states ------------------------------------------------------------------

    def resolve(self, text: str = "HEAD", *, exact: bool = False) -> Position:
        """The state that a revision names.  ``exact`` keeps points between two barriers."""
        return resolve.resolve(self, text, exact=exact)

    @staticmethod
    def split(text: str) -> tuple[str, str | None]:
        """``"main~1:vda"`` as ``("main~1", "vda")``; no colon, no volume."""
        return resolve.split_volume(text)

    def device(
        self, rev: str, volume: str | None = None, *, exact: bool = False
    ) -> reading.StateDevice:
        """A volume at any moment of the past, as a read-only device."""
        with self.guard(reading=True):
            return reading.open_device(self, self.resolve(rev, exact=exact), volume)

    def pin(self, rev: str) -> Pin:
        """Keep a state from being collected until the pin is released, whatever is pruned.

        ``NoSpace`` if the disk has no room for the file that says so.
        """
        with self.guard():
            return reading.pin_position(self, self.resolve(rev))

    def open_volume(self, rev: str, volume: str | None = None) -> VolumeFile:
        """The same as a seekable, readable ``io.RawIOBase``; wrap it in ``io.BufferedReader``."""
        return VolumeFile(self.device(rev, volume))

    def diff(self, rev_a: str, rev_b: str) -> list[compare.VolumeDiff]:
        """What differs between two revisions, volume by volume; equal ones have no extents."""
        from blockvault.ops import compare

        return compare.diff(self, self.resolve(rev_a), self.resolve(rev_b))

    # -- names ---------------------------------------------------------------------------------

    @property
    def head(self) -> str:
        """The name of the current branch."""
        return refs.current(self).name

    def branches(self, *, deleted: bool = False) -> list[refs.Branch]:
        return refs.listing(self, deleted=deleted)

    def branch(self, name: str | None = None) -> refs.Branch:
        """One branch by name, or the current one; ``NotFound`` when there is none."""
        return refs.find(self, name)

    def create_branch(self, name: str, rev: str = "HEAD") -> refs.Branch:
        """A new line of history that starts at any revision; it copies nothing."""
        with self.guard():
            return refs.create(self, name, self.resolve(rev))

    def rename_branch(self, old: str, new: str) -> None:
        refs.rename(self, old, new)

    def delete_branch(self, name: str) -> None:
        """Take the name away; its history stays until it is pruned."""
        refs.delete(self, name)

    def restore_branch(self, name: str, new: str | None = None) -> None:
        """Bring back the branch that had this name last, with a new one where that is in use."""
        refs.restore(self, name, new)

    def switch(self, name: str) -> None:
        refs.switch(self, name)

    def rollback(self, branch: str, rev: str) -> int:
        """Give a branch the state of any revision; the one that it leaves stays in its history.

        Returns the event after which it had that: ``BRANCH@{#…}`` goes back to it.
        """
        with self.guard():
            return refs.rollback(self, branch, self.resolve(rev))

    def reflog(self, branch: str | None = None) -> list[refs.Move]:
        """Where a branch has been, newest first, without automatic checkpoints."""
        return refs.reflog(self, branch)

    def tags(self) -> list[refs.Tag]:
        return refs.tags(self)

    def tag(self, name: str, rev: str = "HEAD", *, force: bool = False) -> refs.Tag:
        """Name a state for ever; a state that is no snapshot yet becomes one.

        ``force`` moves a tag that exists.
        """
        with self.guard():
            return refs.tag(self, name, self.resolve(rev), force=force)

    def delete_tag(self, name: str) -> None:
        refs.untag(self, name)

    # -- history -------------------------------------------------------------------------------

    def session(self, branch: str | None = None, *, holder: str = "a session") -> Session:
        """Open the writable head of a branch; ``Busy`` names the process that has it."""
        from blockvault.session import Session

        return Session(self, self.branch(branch), holder)

    def snapshot(
        self, message: str = "", *, branch: str | None = None, author: str | None = None
    ) -> Snapshot:
        """Make the durable head of a branch an immutable version."""
        with self.session(branch, holder="a snapshot") as session:
            return session.snapshot(message, author=author)

    def get_snapshot(self, oid: bytes) -> Snapshot:
        return snapshots.load(self, oid)

    def log(self, rev: str = "HEAD") -> Iterator[Snapshot]:
        """The snapshots that lead to a revision, newest first."""
        return snapshots.log(self, self.resolve(rev))

    def first_event_since(self, time_us: int) -> int:
        """A number from which on all events lie that happened at a moment or later."""
        return snapshots.first_since(self, time_us)

    def last_event_until(self, time_us: int) -> int:
        """A number up to which all events lie that happened at a moment or earlier."""
        return snapshots.last_until(self, time_us)

    def events(
        self,
        branch: str | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        reverse: bool = False,
    ) -> Iterator[snapshots.Logged]:
        """The write-level log, of one branch or of all, from ``since`` to ``until`` inclusive."""
        number = None if branch is None else self.branch(branch).id
        return snapshots.events_of(self, number, since=since, until=until, reverse=reverse)


def _begin(writer: Writer, options: Options) -> None:
    """The first events of every vault: its parameters, and an empty current branch."""
    transaction = Transaction(writer)
    transaction.add(
        events.Init(
            vault_id=options.vault_id,
            block_size=options.block_size,
            compression=options.compression,
        )
    )
    transaction.add(events.Switched(branch=transaction.add(refs.beginning(FIRST_BRANCH))))
    transaction.finish()


def default_author() -> str:
    """Who made a snapshot when nobody says: user@host, as the system knows them."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return as_text(f"{user}@{os.uname().nodename}")
