"""``blockvault compact``: write the data file anew without its free pages."""

from __future__ import annotations

from blockvault.cli import output
from blockvault.cli.common import command, vault_directory


@command(
    "compact",
    examples={"blockvault compact": "After a large gc, when nothing else uses the vault."},
    shape={"before": "bytes on the disk before", "after": "bytes on the disk now"},
)
def run(as_json: bool) -> None:
    """Write the data file anew without its free pages.

    Needs room for the copy, and that nobody else has the vault open.  An interrupted run leaves the
    vault as it was, and so does one that would lose damaged rows.  gc gives most of the space back
    without that.
    """
    from blockvault.store.compaction import compact

    done = compact(vault_directory())
    if as_json:
        output.write_json(done._asdict())
    else:
        output.write(f"{output.size(done.before)} became {output.size(done.after)}")
