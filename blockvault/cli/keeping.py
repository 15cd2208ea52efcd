"""The options that say what to keep: the same for ``prune`` and for ``policy set``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockvault.cli.common import COUNT
from blockvault.errors import BadRequest

if TYPE_CHECKING:
    from blockvault.model.retention import Policy

F = TypeVar("F", bound=Callable[..., Any])

COUNTS = {
    "last": "Keep the newest N snapshots.",
    "hourly": "Keep the newest snapshot of each of the last N hours that have one.",
    "daily": "The same for days.",
    "weekly": "The same for weeks, which begin on Monday.",
    "monthly": "The same for months.",
    "yearly": "The same for years.",
}


def parse_time_span(text: str) -> int:
    """``48h``, ``30d``, ``1d12h`` as microseconds."""
    from blockvault.model.retention import parse_duration

    try:
        return parse_duration(text)
    except BadRequest as error:
        raise click.BadParameter(error.message) from None


def keep_options(function: F) -> F:
    """Add all ``--keep-`` options; they reach the command as ``keep_last`` and so on."""
    options = [
        click.option(f"--keep-{name}", metavar="N", type=COUNT, help=text)
        for name, text in COUNTS.items()
    ]
    options += [
        click.option(
            "--keep-within",
            metavar="TIME",
            type=parse_time_span,
            help="Keep snapshots at most so much older than the newest: 30d, 8w, 1y.",
        ),
        click.option(
            "--keep-tag",
            metavar="PATTERN",
            multiple=True,
            help="Keep snapshots with a tag like this.  [default: with any tag]",
        ),
        click.option(
            "--keep-events",
            metavar="TIME",
            type=parse_time_span,
            help="How long every write stays reachable.  [default: 48h]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def policy_from(given: dict[str, Any]) -> Policy | None:
    """The policy that the options state; None if there are none."""
    from blockvault.model.retention import Policy

    rules = {
        name.removeprefix("keep_"): value
        for name, value in given.items()
        if name.startswith("keep_") and value not in (None, ())
    }
    if "tag" in rules:
        rules["tags"] = rules.pop("tag")
    return Policy.from_rules(rules.items()) if rules else None


def text_of(policy: Policy) -> str:
    """The options that state a policy."""
    from blockvault.model.retention import format_duration

    words = []
    for name, value in policy.rules():
        if isinstance(value, tuple):
            words += [f"--keep-tag {pattern}" for pattern in value]
        elif name in ("within", "events"):
            words.append(f"--keep-{name} {format_duration(value)}")
        else:
            words.append(f"--keep-{name} {value}")
    return " ".join(words)


def json_of(policy: Policy) -> dict[str, Any]:
    """Every rule; times in seconds."""
    from dataclasses import asdict

    found = asdict(policy)
    found["tags"] = ["*"] if policy.tags is None else list(policy.tags)
    return found | {name: found[name] // 1_000_000 for name in ("within", "events")}


SHAPE = {
    "last": "how many of the newest stay",
    "hourly": "how many hours keep one",
    "daily": "how many days",
    "weekly": "how many weeks",
    "monthly": "how many months",
    "yearly": "how many years",
    "within": "seconds before the newest in which all stay",
    "tags[]": "patterns of the tags that keep their snapshots",
    "events": "seconds in which every write stays reachable",
}
