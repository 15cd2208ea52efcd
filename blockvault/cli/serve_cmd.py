"""``blockvault serve``: serve volumes to virtual machines over NBD."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from blockvault.cli import complete, logs, output, signals, tuning
from blockvault.cli.common import command, size_option, with_vault

if TYPE_CHECKING:
    from blockvault.nbd.serving import Serving
    from blockvault.vault import Vault

FILE = click.Path(path_type=Path)
TLS_EXAMPLE = "--tls-cert c.pem --tls-key k.pem --tls-ca ca.pem"
LOOPBACK_ONLY = "without TLS only a loopback address may be served, with --insecure"


class Listen(NamedTuple):
    """Where to listen: a unix socket, a TCP address, or both."""

    socket: Path | None
    tcp: tuple[str, int] | None


@command(
    "serve",
    examples={
        "blockvault serve": "The current branch, writable, on .blockvault/nbd.sock.",
        "blockvault serve --export main --export v1.0": "One branch, and a tag read-only.",
        "blockvault serve --export main~2 --copy-on-write": "Let a guest play with an old state.",
        "blockvault serve --listen 127.0.0.1:10809 --insecure": "On TCP, for this machine only.",
        f"blockvault serve --listen :10809 {TLS_EXAMPLE}": "For who has a certificate of yours.",
    },
    shape={
        "pid": "number of the serving process",
        "addresses[]": "where it listens: unix:PATH or tcp:HOST:PORT",
        "exports[].name": "name of an export: REVISION/VOLUME",
        "exports[].uris[]": "NBD URIs of it, one for each address",
    },
)
@click.option(
    "--export", "exports", metavar="REV", multiple=True, shell_complete=complete.revisions,
    help="Serve the volumes of REV: a branch writable, all else read-only.  [default: HEAD]",
)  # fmt: skip
@click.option("--only", is_flag=True, help="Serve no revision but those; else clients name any.")
@click.option(
    "--exact", is_flag=True, help="Take REV@{...} to the very event, not the flush before."
)
@click.option("--read-only", is_flag=True, help="Serve branches read-only too.")
@click.option(
    "--copy-on-write", is_flag=True, help="Let clients write to a copy that ends with the server."
)
@click.option(
    "--socket", metavar="PATH", type=click.Path(path_type=Path),
    help="Listen on this unix socket.  [default: nbd.sock in the vault, unless --listen]",
)  # fmt: skip
@click.option(
    "--listen", metavar="[HOST]:PORT",
    help="Listen on TCP, without HOST on all addresses; port 0 takes a free one.",
)  # fmt: skip
@click.option("--tls-cert", type=FILE, help="Certificate of this server, PEM.")
@click.option("--tls-key", type=FILE, help="Its private key.")
@click.option("--tls-ca", type=FILE, help="Authority that signed the clients' certificates.")
@click.option("--insecure", is_flag=True, help="Serve a loopback address without TLS.")
@size_option(
    "--cache", default="64M", show_default=True,
    help="What a branch may hold in memory before writers wait.",
)  # fmt: skip
@size_option(
    "--read-cache", default="4G", show_default=True,
    help="What decoded blocks may take in a file that ends with the server; 0 for none.",
)  # fmt: skip
@click.option(
    "--max-connections", type=click.IntRange(1, 10_000), default=256, show_default=True,
    help="Further clients are turned away.",
)  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log every client on standard error.")
@with_vault
def run(
    vault: Vault,
    exports: tuple[str, ...],
    only: bool,
    exact: bool,
    read_only: bool,
    copy_on_write: bool,
    socket: Path | None,
    listen: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    insecure: bool,
    cache: int,
    read_cache: int,
    max_connections: int,
    verbose: bool,
    as_json: bool,
) -> None:
    """Serve volumes to virtual machines over NBD.

    Runs until it is told to stop (Ctrl-C, SIGTERM), then answers what it has, makes it durable and
    gives its branches back.  Every write of a guest is an event of the branch's history.  The other
    commands work meanwhile; 'blockvault snapshot' records the running machine's disks.
    'blockvault attach' prints what to type to use an export.
    """
    from blockvault.nbd.serving import Serving

    if read_only and copy_on_write:
        raise click.UsageError("--read-only and --copy-on-write exclude each other")
    where = _where(vault, socket, listen)
    tls = _tls(where, tls_cert, tls_key, tls_ca, insecure)
    logs.begin(logging.INFO if verbose else logging.WARNING)
    tuning.for_months()
    stop = threading.Event()
    heeded = signals.on_end(stop.set)
    with Serving(
        vault, exports or ("HEAD",), read_only=read_only, copy_on_write=copy_on_write,
        only_listed=only, exact=exact, tls=tls, max_connections=max_connections, cache=cache,
        read_cache=read_cache,
        stop=stop,
    ) as serving:  # fmt: skip
        if where.socket is not None:
            serving.server.listen_unix(where.socket)
        if where.tcp is not None:
            serving.server.listen_tcp(*where.tcp)
        _announce(serving, tls is not None, as_json)
        stop.wait()
        # Who asks again wants out whatever it costs; nothing that was promised is lost even so.
        signals.end_at_once_if_told_again(heeded)


def _where(vault: Vault, socket: Path | None, listen: str | None) -> Listen:
    from blockvault.nbd.serving import default_socket

    if listen is None:
        return Listen(socket or default_socket(vault.path), None)
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"{listen!r} is not HOST:PORT")
    return Listen(socket, (host.strip("[]"), int(port)))


def _tls(
    where: Listen, cert: Path | None, key: Path | None, ca: Path | None, insecure: bool
) -> Any:
    """The TLS settings, None for none; refuses what would serve strangers."""
    from blockvault.nbd import sockets

    if cert and key and ca:
        if insecure or where.tcp is None:
            raise click.UsageError("--tls-... go with --listen and without --insecure")
        from blockvault.nbd.tls import server_context

        return server_context(cert, key, ca)
    if cert or key or ca:
        raise click.UsageError("TLS takes all of --tls-cert, --tls-key and --tls-ca")
    if where.tcp is not None and not (insecure and sockets.is_loopback(where.tcp[0])):
        raise click.UsageError(LOOPBACK_ONLY)
    return None


def _announce(serving: Serving, tls: bool, as_json: bool) -> None:
    """Say that clients may come, and where to."""
    import os

    from blockvault.nbd.attach import Address

    addresses = [Address.parse(text, tls=tls) for text in serving.server.addresses]
    uris = {name: [address.uri(name) for address in addresses] for name in serving.names}
    if as_json:
        output.write_json(
            {
                "pid": os.getpid(),
                "addresses": serving.server.addresses,
                "exports": [{"name": name, "uris": found} for name, found in uris.items()],
            }
        )
    else:
        for name, found in uris.items():
            output.write(f"Serving {output.clean(name)} at {' and '.join(found)}")
        if not uris:
            output.write(f"Serving at {' and '.join(serving.server.addresses)}")
    output.flush()
