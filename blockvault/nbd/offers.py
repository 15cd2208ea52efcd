"""Who offers a revision: the server that runs, and the name of the export there.

A server that was told to serve no more than it lists is asked for one of those names, or not at
all.  So is one whose clients write to copies: nobody gets a copy for the branch who was not told to
use one, and whoever gets one is told that it is.  If nobody offers the revision, the command that
would begin a server for it is told.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.errors import BadRequest, NotFound
from blockvault.nbd import control, sockets
from blockvault.nbd.attach import Address
from blockvault.nbd.serving import default_socket
from blockvault.ops.refs import branch_of

if TYPE_CHECKING:
    from blockvault.vault import Vault

Status = Mapping[str, Any]
NEW_BRANCH = "NAME"
"""Stands in a command for a name that its user has to choose."""


class Offer(NamedTuple):
    """An export and where it is; ``start`` is the command to be run first if nobody serves it.

    Of a ``copy`` the changes are thrown away when the server ends; ``keep`` begins a server that
    keeps them.
    """

    export: str
    address: Address
    read_only: bool
    start: str | None = None
    copy: bool = False
    keep: str | None = None


def find(vault: Vault, revision: str, volume: str) -> Offer:
    """The offer of a server that writes the branch ``revision``, else of any, else of a new one.

    ``BadRequest`` if clients cannot name its socket.
    """
    running = [status for _, status in control.statuses(vault.path) if status is not None]
    for status in sorted(running, key=lambda status: revision not in status["branches"]):
        export = _name(vault, status, revision, volume)
        if export is not None and status["addresses"]:
            copy = status["copy_on_write"]
            writable = copy or _revision(export) in status["branches"]
            keep = _keep(vault, running, revision) if copy else None
            return Offer(export, _address(status), not writable, copy=copy, keep=keep)
    return _new(vault, running, revision, volume)


def _name(vault: Vault, status: Status, revision: str, volume: str) -> str | None:
    """What the server calls the volume; None if it does not offer it."""
    export = f"{revision}/{volume}"
    if export in status["names"] or not (status["only_listed"] or status["copy_on_write"]):
        return export
    for name in status["names"]:
        other = _revision(name)
        if name == f"{other}/{volume}" and _means(vault, status, other, revision):
            return str(name)
    return None


def _means(vault: Vault, status: Status, offered: str, revision: str) -> bool:
    """Whether a name of the server stands for the same as ``revision``."""
    other = branch_of(vault, offered)
    if other == revision:
        return True
    # A branch moves, so no state is the same; and copies are of what a name meant once.
    branches = {branch.name for branch in vault.branches()}
    if {revision, other} & branches or status["copy_on_write"]:
        return False
    try:
        found, wanted = (vault.resolve(text, exact=True) for text in (offered, revision))
    except NotFound:
        return False  # it was pruned since
    return (found.branch, found.seq) == (wanted.branch, wanted.seq)


def _revision(export: str) -> str:
    return export.rpartition("/")[0]


def _address(status: Status) -> Address:
    """The first one that clients can name."""
    addresses = [Address.parse(text, tls=status["tls"]) for text in status["addresses"]]
    for address in addresses:
        if address.path is None or not sockets.unnamable(address.path):
            return address
    return _named(addresses[0])


def _named(address: Address) -> Address:
    complaint = address.path and sockets.unnamable(address.path)
    if complaint:
        raise BadRequest(complaint)
    return address


def _new(vault: Vault, running: Sequence[Status], revision: str, volume: str) -> Offer:
    """What ``blockvault serve`` would offer, beside the servers that run."""
    branches = {branch.name for branch in vault.branches()}
    named = bool(running) or (revision in branches and revision != vault.head)
    path = _free_socket(vault.path, running)
    start = _serve(vault.path, path, revision if named else None)
    address = _named(Address(path=path))
    return Offer(f"{revision}/{volume}", address, revision not in branches, start)


def _keep(vault: Vault, running: Sequence[Status], revision: str) -> str:
    """What begins a server, beside those that run, in which the same can be written for good.

    Only a branch can: of any other state one has to be made.
    """
    path = _free_socket(vault.path, running)
    if revision in {branch.name for branch in vault.branches()}:
        return _serve(vault.path, path, revision)
    branch = shlex.join(["blockvault", "branch", NEW_BRANCH, revision])
    return f"{branch} && {_serve(vault.path, path, NEW_BRANCH)}"


def _serve(vault: Path, path: Path, revision: str | None) -> str:
    """The command for a server at a socket; without a revision for what it serves by itself."""
    words = ["blockvault", "serve"]
    if revision is not None:
        words += ["--export", revision]
    if path != default_socket(vault):
        words += ["--socket", str(path)]
    return shlex.join(words)


def _free_socket(vault: Path, running: Sequence[Status]) -> Path:
    taken = {text for status in running for text in status["addresses"]}
    first = default_socket(vault)
    others = (first.with_name(f"nbd{number}.sock") for number in count(2))
    return next(path for path in chain([first], others) if f"unix:{path}" not in taken)
