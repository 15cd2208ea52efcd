"""Events as people and programs read them.

The kind of an event is its class in small letters, ``RolledBack`` as ``rolled-back``.  Its JSON
holds its fields as they are in the log: ids in hex, volumes as in ``log``.  Branches are numbers in
the log, since names change; both forms show the name that the branch has now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from blockvault.cli import history, output
from blockvault.ids import ID_SIZE, short
from blockvault.model import events

if TYPE_CHECKING:
    from blockvault.vault import Vault

Branches = Mapping[int, str]


def branch_names(vault: Vault) -> Branches:
    """The present or last name of every branch, deleted ones included."""
    return {branch.id: branch.name for branch in vault.branches(deleted=True)}


def kind(event: events.Event) -> str:
    return _kind(type(event).__name__)


@cache  # a log has thousands of each
def _kind(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def branch_of(event: events.Event, seq: int, names: Branches) -> str | None:
    """The name of the branch that an event belongs to; a branch's id is its first event."""
    number = seq if isinstance(event, events.BranchCreated) else getattr(event, "branch", None)
    return names.get(number, f"#{number}") if number else None


def detail(event: events.Event, names: Branches) -> str:
    """What happened, in a few words behind the kind."""
    return output.clean(str(_DETAILS[type(event)](event, names)))


def fields_json(event: events.Event) -> dict[str, Any]:
    """The event's own fields, in types that JSON has."""
    return {name: _plain(name, getattr(event, name)) for name in event.FIELDS}


def _plain(name: str, value: Any) -> Any:
    if name == "volumes":
        return history.volumes_json(value)
    if name == "ids":
        return [value[at : at + ID_SIZE].hex() for at in range(0, len(value), ID_SIZE)]
    if isinstance(value, tuple):
        return [_plain("", each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def _range(event: Any, _names: Branches) -> str:
    return f"{event.volume} offset {event.offset} length {event.length}"


def _state(volumes: tuple[history.VolumeLike, ...]) -> str:
    return " ".join(f"{volume.name}={short(volume.root)}" for volume in volumes)


def _made(event: Any, names: Branches) -> str:
    if not event.source:
        return str(event.name)
    return f"{event.name} from {names.get(event.source, event.source)}@{{#{event.source_seq}}}"


def _returned(event: Any, names: Branches) -> str:
    target = names.get(event.target_branch, event.target_branch)
    return f"to {target}@{{#{event.target_seq}}}"


def _policy(event: Any, _names: Branches) -> str:
    whose = "" if event.branch else "of the vault "
    return whose + (" ".join(f"{name}={value}" for name, value in event.rules) or "none")


_DETAILS: dict[type[events.Event], Callable[[Any, Branches], str]] = {
    events.Init: lambda e, _: f"block size {e.block_size}, {e.compression}",
    events.BranchCreated: _made,
    events.BranchRenamed: lambda e, _: f"to {e.name}",
    events.BranchDeleted: lambda _e, _: "",
    events.BranchRestored: lambda e, _: f"as {e.name}",
    events.Switched: lambda _e, _: "",
    events.Tagged: lambda e, _: f"{e.name} {short(e.snapshot)}",
    events.Untagged: lambda e, _: e.name,
    events.Wrote: _range,
    events.Zeroed: _range,
    events.Trimmed: _range,
    events.Barrier: lambda _e, _: "",
    events.Checkpointed: lambda e, _: _state(e.volumes),
    events.Imported: lambda e, _: f"{short(e.snapshot)} {e.source}",
    events.Snapshotted: lambda e, _: short(e.snapshot),
    events.RolledBack: _returned,
    events.VolumeChanged: lambda e, _: f"{e.action} {e.volume}",
    events.Held: lambda e, _: f"{short(e.snapshot)} {output.subject(e.text)}",
    events.Unheld: lambda e, _: short(e.snapshot),
    events.PolicySet: _policy,
    events.Pruned: lambda e, _: f"{len(e.base)} rows stay",
}
