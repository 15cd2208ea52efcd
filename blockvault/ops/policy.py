"""What the vault is told: what to keep, by policies and holds, and how to pack what is cold.

What is kept is part of history, and stored as events.  How frames are packed changes nothing that
can be read, so it is a row of ``meta``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockvault.encoding import pack, unpack
from blockvault.errors import NotFound
from blockvault.ids import short
from blockvault.model import events, projections
from blockvault.model.retention import Policy
from blockvault.ops import refs, states
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

VAULT = 0
"""In the place of a branch: the policy of all branches that have none of their own."""


_PACKING = b"packing"


class Packing(NamedTuple):
    """How every gc packs frames that no gc before has found younger than ``untouched_us``."""

    level: int
    untouched_us: int


class Hold(NamedTuple):
    """A snapshot that no policy takes away."""

    snapshot: bytes
    seq: int
    time_us: int
    text: str


def stored(reader: Reader, branch: int) -> Policy | None:
    """The policy set for exactly this branch, or for the vault."""
    rules = projections.policy_rules(reader, branch)
    return None if rules is None else Policy.from_rules(rules)


def effective(reader: Reader, branch: int) -> Policy | None:
    """The policy that holds for a branch: its own, else the vault's, else none."""
    return stored(reader, branch) or stored(reader, VAULT)


def show(vault: Vault) -> list[tuple[str | None, Policy]]:
    """All stored policies by the name of their branch, the vault's (None) first."""
    branches = refs.listing(vault)
    with vault.read() as reader:
        named: list[tuple[str | None, Policy | None]] = [(None, stored(reader, VAULT))]
        named += [(branch.name, stored(reader, branch.id)) for branch in branches]
    return [(name, policy) for name, policy in named if policy is not None]


def set_policy(vault: Vault, branch: str | None, policy: Policy | None) -> None:
    """Store the policy of a branch, or of the vault for None; no policy takes it away."""
    number = VAULT if branch is None else refs.find(vault, branch).id
    rules = () if policy is None else policy.rules()
    with vault.transaction() as transaction:
        if policy is None and stored(transaction.writer, number) is None:
            whose = "the vault" if branch is None else f"branch '{branch}'"
            raise NotFound(f"{whose} has no policy", kind="no-policy")
        transaction.add(events.PolicySet(branch=number, rules=rules))


def packing(vault: Vault) -> Packing | None:
    """How cold frames are to be packed; None if they are not."""
    with vault.read() as reader:
        data = reader.get(tables.META, _PACKING)
    return None if data is None else Packing(*unpack(data, "how cold frames are packed"))


def set_packing(vault: Vault, wanted: Packing | None) -> None:
    """Store how cold frames are packed from now on, or that they are not."""
    with vault.store.write() as writer:
        if wanted is None:
            writer.delete(tables.META, _PACKING)
        else:
            writer.put(tables.META, _PACKING, pack(wanted))


def hold(vault: Vault, rev: str, text: str = "") -> Hold:
    """Keep a state whatever the policies say; one that is no snapshot yet becomes one."""
    with vault.guard():
        position = vault.resolve(rev)
        oid = position.snapshot or states.freeze(vault, position, f"hold {rev}")
        with vault.transaction() as transaction:
            seq = transaction.add(events.Held(snapshot=oid, text=text))
            return Hold(oid, seq, transaction.time_us, text)


def unhold(vault: Vault, rev: str) -> bytes:
    """Let the policies decide on a snapshot again; return its id."""
    position = vault.resolve(rev)
    found = {held.snapshot: held for held in holds(vault)}
    oid = position.snapshot
    if oid is None or oid not in found:
        names = ", ".join(short(other) for other in found) or "none"
        raise NotFound(f"'{rev}' is not held; held snapshots: {names}", kind="no-hold")
    with vault.transaction() as transaction:
        transaction.add(events.Unheld(snapshot=oid))
    return oid


def holds(vault: Vault) -> list[Hold]:
    """Everything that is held, in the order in which it was."""
    with vault.read() as reader:
        found = [Hold(oid, *row) for oid, row in projections.holds(reader)]
    return sorted(found, key=lambda each: each.seq)
