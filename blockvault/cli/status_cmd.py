"""``blockvault status``: show what is being served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault

PERCENTILE = 0.99


@command(
    "status",
    examples={
        "blockvault status": "Who serves what, how much is going on, how long requests take.",
        "blockvault status --json": "With every counter and the whole latency histogram.",
    },
    shape={
        "pid": "number of the serving process",
        "silent": "true for one that does not answer; nothing else is known of it",
        "since": "when it began, UTC",
        "addresses[]": "where it listens: unix:PATH or tcp:HOST:PORT",
        "branches.NAME.dirty_bytes": "bytes of the branch that are not durable yet",
        "names[]": "the exports it lists",
        "only_listed": "whether clients may open no others",
        "copy_on_write": "whether clients write to copies that end with the server",
        "tls": "whether its TCP addresses want TLS",
        "machine": "only of a process that runs one: status, problem, process and version of QEMU, "
        "accelerator, memory, cpus, serial console",
        "refused": "connections turned away",
        "large_request_bytes": "memory that large requests take now",
        "clients[].peer": "who is connected",
        "clients[].export": "the export it uses, null before it has chosen",
        "clients[].since": "when it came, UTC",
        "exports.NAME.connections": "connections now",
        "exports.NAME.connections_ever": "connections since the server began",
        "exports.NAME.rates": "per second: reads, writes, bytes_read, bytes_written",
        "exports.NAME.requests": "requests by kind, since the server began",
        "exports.NAME.bytes_read": "bytes read",
        "exports.NAME.bytes_written": "bytes written",
        "exports.NAME.errors": "requests that were answered with an error",
        "exports.NAME.latency_us": "by kind: upper bound in microseconds, number of requests",
    },
)
@with_vault
def run(vault: Vault, as_json: bool) -> None:
    """Show what is being served.

    One paragraph for each server of this vault: its process and addresses, the branches that it
    writes with what is not durable yet, and for every export the clients, rates and latencies.
    """
    from blockvault.nbd import control

    found = False
    for remote, answer in control.statuses(vault.path):
        found = True
        if answer is None:
            silent = {"pid": remote.pid, "silent": True}
            output.write_json(silent) if as_json else output.write(_silent(remote.pid))
        elif as_json:
            output.write_json(_with_times(answer))
        else:
            for line in _lines(answer):
                output.write(line)
    if not found and not as_json:
        output.write("Nothing is being served; 'blockvault serve' does.")


def _silent(pid: int) -> str:
    return f"Process {pid} does not answer; it may have been stopped, or be overloaded."


def _with_times(answer: dict[str, Any]) -> dict[str, Any]:
    answer["silent"] = False
    answer["since"] = output.utc_time(int(answer["since"] * 1e6))
    for client in answer["clients"]:
        client["since"] = output.utc_time(int(client["since"] * 1e6))
    return answer


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    since = output.local_time(int(answer["since"] * 1e6))
    yield click.style(f"process {answer['pid']}", fg="yellow") + f", since {since}"
    yield f"  at {', '.join(map(output.clean, answer['addresses']))}"
    for name, branch in answer["branches"].items():
        yield f"  writes {output.clean(name)}, {output.size(branch['dirty_bytes'])} not durable yet"
    rows = [_row(name, export) for name, export in answer["exports"].items()]
    yield from (f"  {line}" for line in output.columns(rows))
    idle = [name for name in answer["names"] if name not in answer["exports"]]
    if idle:
        yield f"  not used yet: {', '.join(map(output.clean, idle))}"


def _row(name: str, export: Mapping[str, Any]) -> list[str]:
    rates = export["rates"]
    moved = rates["bytes_read"] + rates["bytes_written"]
    return [
        output.clean(name),
        output.plural(export["connections"], "client"),
        f"{rates['reads']:,.0f} reads/s",
        f"{rates['writes']:,.0f} writes/s",
        f"{output.size(int(moved))}/s",
        output.plural(export["errors"], "error"),
        *(f"{kind} 99% < {_slow(export, kind)}" for kind in ("read", "write", "flush")),
    ]


def _slow(export: Mapping[str, Any], kind: str) -> str:
    """The time below which nearly all requests of a kind stayed."""
    from blockvault.nbd.stats import quantile

    histogram = [(int(bound), count) for bound, count in export["latency_us"].get(kind, {}).items()]
    bound = quantile(histogram, PERCENTILE)
    if not bound:
        return "-"
    return f"{bound} µs" if bound < 10_000 else f"{bound / 1000:,.0f} ms"
