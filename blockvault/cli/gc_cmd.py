"""``blockvault gc``: give back the space of what nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import output
from blockvault.cli.common import SECONDS, command, size_option, with_vault
from blockvault.cli.keeping import parse_time_span
from blockvault.cli.progress import progress

if TYPE_CHECKING:
    from blockvault.ops.gc import Collected, Plan
    from blockvault.ops.recompress import Packed
    from blockvault.vault import Vault

_PLAN = {
    "objects": "objects that are stored",
    "dead_objects": "of them, those that nothing needs",
    "stored": "bytes of all frames",
    "dead": "of them, those that nothing needs",
    "drop": "frames that are dead as a whole",
    "rewrite": "frames whose living objects are moved",
    "leave": "frames with so little dead that moving them is not worth it",
}
_DONE = {
    "complete": "false if somebody who began earlier is not done; a dry run has no 'done'",
    "objects": "objects removed",
    "frames_dropped": "frames removed",
    "frames_rewritten": "frames replaced",
    "bytes_freed": "bytes of frames that are free now",
    "records": "log records that became part of a gap",
    "given_back": "bytes that the file system has back",
    "unreadable[]": "numbers of frames that cannot be read and stay as they are",
    "foreign[]": "directories of other users beside the data, in use or left by killed commands",
}


@command(
    "gc",
    examples={
        "blockvault gc --dry-run": "How much there is to collect.",
        "blockvault gc": "Collect it; machines go on writing meanwhile.",
        "blockvault gc --wait 3600": "Wait up to an hour for a running import.",
        "blockvault gc --recompress 19 --older 30d": "Pack harder what is a month old, too.",
    },
    shape={
        **{f"plan.{name}": text for name, text in _PLAN.items()},
        **{f"done.{name}": text for name, text in _DONE.items()},
    },
)
@click.option("--dry-run", is_flag=True, help="Count what is dead, change nothing.")
@click.option(
    "--wait",
    metavar="SECONDS",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="How long to wait for operations that began earlier.",
)
@click.option(
    "--recompress",
    "level",
    metavar="LEVEL",
    type=click.IntRange(0, 22),
    help="Then pack frames together at this zstd level; slow, may be interrupted.  0: not now.  "
    "[default: what 'policy set --recompress' says]",
)
@click.option(
    "--older",
    metavar="TIME",
    type=parse_time_span,
    help="Pack only frames that an earlier gc met so long ago.  [default: what the "
    "policy says if that packs, else all]",
)
@size_option("--frame", default="2M", show_default=True, help="Bytes packed together.")
@with_vault
def run(
    vault: Vault,
    dry_run: bool,
    wait: float,
    level: int | None,
    older: int | None,
    frame: int,
    as_json: bool,
) -> None:
    """Give back the space of what nothing needs any more.

    Runs beside writers and readers.  It may be interrupted at any time; the next run goes on.
    What is reachable by any revision is never touched: prune decides what that is.  With
    --recompress the JSON has a field "packed": frames, became, bytes_before, bytes_after, skipped.
    """
    if dry_run and (level or older is not None):
        raise click.UsageError("--dry-run packs nothing: it takes neither --recompress nor --older")
    if dry_run:
        _would(vault, as_json)
    else:
        collect(vault, wait=wait, level=level, older=older, frame=frame, as_json=as_json)


def _would(vault: Vault, as_json: bool) -> None:
    from blockvault.ops import gc

    with progress("Collecting", quiet=as_json) as report:
        plan = gc.plan(vault, progress=report)
    if as_json:
        output.write_json({"plan": output.pick(plan, _PLAN)})
    else:
        _show(plan)


def collect(
    vault: Vault,
    *,
    as_json: bool,
    wait: float | None = None,
    level: int | None = None,
    older: int | None = None,
    frame: int | None = None,
) -> None:
    """Collect, pack what the policy or ``level`` says, and tell of it."""
    from blockvault.ops import gc

    if level is None:
        level, older = _by_policy(vault, older)
    if older is not None and not level:
        raise click.UsageError(
            "--older says what to pack, and nothing says how: it goes with --recompress or with "
            "what 'policy set --recompress' stored"
        )
    with progress("Collecting", quiet=as_json) as report:
        done = gc.collect(vault, wait=gc.WAIT if wait is None else wait, progress=report)
    packed = None
    if level and done.complete:
        packed = _pack(vault, level, older, frame, as_json)
    if as_json:
        output.write_json(_json(done, packed))
        return
    _tell(done)
    if packed is not None:
        sizes = f"{output.size(packed.bytes_before)} became {output.size(packed.bytes_after)}"
        output.write(f"Packed {output.plural(packed.frames, 'frame')}: {sizes}")


def _json(done: Collected, packed: Packed | None) -> dict[str, Any]:
    found = {"plan": output.pick(done.plan, _PLAN)}
    if packed is not None:
        found["packed"] = packed._asdict() | {"skipped": list(packed.skipped)}
    return {**found, "done": output.pick(done, [name.removesuffix("[]") for name in _DONE])}


def _by_policy(vault: Vault, older: int | None) -> tuple[int, int | None]:
    """Level and age by the stored policy, (0, ...) if it says nothing; ``older`` goes before it."""
    from blockvault.ops import policy

    packing = policy.packing(vault)
    if packing is None:
        return 0, older
    return packing.level, packing.untouched_us if older is None else older


def _pack(vault: Vault, level: int, older: int | None, frame: int | None, quiet: bool) -> Packed:
    from blockvault.model.events import now_us
    from blockvault.ops import recompress

    size = recompress.PACKED_BYTES if frame is None else frame
    upto = recompress.cold_frames(vault, None if older is None else now_us() - older)
    with progress("Packing", quiet=quiet) as report:
        return recompress.recompress(vault, level, upto=upto, frame_bytes=size, progress=report)


def _show(plan: Plan) -> None:
    dead = output.plural(plan.dead_objects, "object")
    output.write(f"{dead} of {plan.objects:,} are dead: {output.size(plan.dead)}")
    output.write(f"{output.plural(plan.drop, 'frame')} would be dropped")
    output.write(f"{output.plural(plan.rewrite, 'frame')} would be rewritten")


def _tell(done: Collected) -> None:
    for path in done.foreign:
        output.write(
            f"{output.clean(path)} is another user's; if a killed command left it, gc removes it "
            "when that user runs it"
        )
    if not done.complete:
        output.write(
            "An operation that began earlier is still running: nothing was removed yet; "
            "run gc again when it is done, or with a longer --wait"
        )
        return
    output.write(
        f"Removed {output.plural(done.objects, 'object')} and freed {output.size(done.bytes_freed)}"
    )
    if done.records:
        output.write(f"Removed {output.plural(done.records, 'log record')}")
    if done.given_back:
        output.write(f"The file system has {output.size(done.given_back)} back")
    for number in done.unreadable:
        output.write(f"Frame {number} cannot be read and stays: see 'blockvault verify'")
