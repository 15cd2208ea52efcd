"""How the figures of the page came about: what holds for all of them, and what does for these."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.results import Results
from tools.bench.stated import FORGET
from tools.bench.text import amount, table

METHOD = """## Method

* The series, the start and the latency begin with a warm-up that is thrown away (in the series it
  checks each round trip byte for byte, and so does the first run); all else is measured from its
  first run on.
* In each run the contenders take turns, in an order that starts one further each time: in the
  series and over NBD at every step, elsewhere with all that a run does with one of them.
* Figures are medians of as many runs as stand above the table; behind those of fewer stands how
  many. ± is half the distance of the quartiles, shown from 5 % on.{once}
* Each command runs under a launcher of its own. Wall time is the launcher's clock; CPU and peak
  memory are the kernel's (`wait4`), children included. The peak is that of the biggest process;
  mapped pages of a file count, so a store that maps its file shows them.
* What the kernel does for a program counts as that program's only while it waits: btrfs compresses
  in threads of the kernel, so its processor seconds are too few.
{memory}* Input is in the page cache. After each command the disk is synced, not timed here but
  kept in the raw figures (`settle`): what a program left unwritten does not burden the next. So
  `cp` to btrfs and `qemu-img` end before their data is on the disk, blockvault's imports after.
* Sizes of stores are allocated bytes (`du`); for btrfs what the file system says is used.
* btrfs lies in a sparse file on the file system named above, behind a loop device (`mkfs.btrfs`,
  `mount -o loop,compress=zstd:3,noatime`): each flush of it is one of a file that grows. Blocks
  that an image has changed are brought to it by a program of this harness (`tools.bench.patch`),
  for there is none that does it: nearly all of the time of an import of equal bytes is that.
* restic encrypts, which it cannot do without; nothing else here does. A restored image has holes
  for its zeros, but for bup's, and that of a restic before 0.15, which write them.
* NBD: fio and the server share the machine. Each run begins with disks that are made anew. Each
  job has a server of its own, which begins when all that was written before is on the disk.
* Where a disk is served, processor seconds and memory are the server's.
* What a client has not flushed is as safe as each server makes it: qemu-nbd leaves it to the page
  cache, blockvault stores all but the last of it meanwhile; rows that flush wait for the disk.
  fio writes bytes that nothing compresses, so what compresses gains nothing by that here.
* An import of blockvault is two processes, of which the smaller hashes, in some 20 MB beside the
  peak of the bigger one.
* Of what nobody needs any more each program leaves what it does by default: blockvault up to
  3 % of it, in frames that are mostly alive; `borg compact` what is less than 10 % of a segment;
  `restic forget --prune` up to 5 % of the repository; all others nothing.{told}
{growth}{guest}* All samples of a row are of one machine; where that is not the first one named
  above, the table says so. A commit is named as in the working copy that was measured: where it was
  put together with others since, it is not found by that name. The days behind it, above, are those
  of measuring.
* Images ({images}): {inputs}.
* {system}, Linux {kernel}, Python {python}; libraries of blockvault: {libraries}. Load of the
  machine before and after: {load}. All parts together took {minutes} minutes.
* To measure again: `tools/images/build DIR`, then `tools/bench/run --full --images DIR --report`;
  in parts: `--rows series --part 1/5 --out 1.json` and so on, then `--load *.json --report`.
  `--quick` takes three minutes and needs no images, `--compare OLD.json` says what changed since.

"""
MEMORY = """* Before the first row{but} the memory that is free is filled with a file: a virtual
  machine may get each page from its host only when it is first touched, which only who makes files
  longer would pay for.
"""
FILLED = "2026-11-28T20"
"""Since when full runs do that; quick ones never did."""
TOLD = """
  Here {told},
  which leaves nothing and is more work."""
LEAVES_NOTHING = {
    "--threshold 0": "`borg compact` was told `--threshold 0`",
    "--max-unused 0": "`restic forget` was told `--max-unused 0`",
}
GROWTH = """* Many snapshots: each program had {limit:.0f} s to get from one number of them to the
  next. Blockvault takes a hundred of these in one process, through its Python interface; the others
  take each by a command, with a write before it.{ours}
"""
BY_COMMANDS = """ By commands blockvault would take some {reached:,.0f} in that
  time, if the writes took none."""
GUEST = """* "Half of it in use" is {used} of the guest's memory of {memory}: {part:.0f} %.
"""
LARGE_GUEST = 4 << 30


def page(results: Results) -> str:
    """The rules, the circumstances, and who took part in which version."""
    versions = [
        (name, facts["title"], facts["version"] or "–", facts["missing"] or "")
        for name, facts in results.facts["contenders"].items()
    ]
    facts = results.facts
    inputs = ", ".join(
        f"{each['name']} ({amount(each['data'], 'B')} of data, {amount(each['new'], 'B')} new)"
        for each in facts["inputs"]
    )
    text = METHOD.format(
        libraries=", ".join(f"{n} {v}" for n, v in facts["libraries"].items()),
        inputs=inputs,
        load=f"{facts['load_before']:.1f} and {facts['load_after']:.1f}",
        minutes=f"{facts['duration'] / 60:.0f}",
        once=_once(facts["plan"].get("once", ())),
        memory=_memory(results),
        told=_told(results),
        growth=_growth(results),
        guest=_guest(results),
        **{name: facts[name] for name in ("images", "system", "kernel", "python")},
    )
    head = ("", "what", "version", "missing because")
    return text + table(head, versions)


def _once(names: Sequence[str]) -> str:
    """Who was asked once, to save time."""
    return f" In the series {', '.join(names)} take part in one run only." if names else ""


def _memory(results: Results) -> str:
    """Whose memory was filled: of no row, of all, or of all but some groups."""
    groups = results.groups()
    without = [
        group
        for group, rows in groups.items()
        if not all(_filled(results, row.key) for row in rows)
    ]
    if len(without) == len(groups):
        return ""
    return MEMORY.format(but=f" ({', '.join(without)}: not so)" if without else "")


def _filled(results: Results, key: str) -> bool:
    since = min(origin.when for origin in results.origin(key))
    return results.scope(key)["mode"] == "full" and since >= FILLED


def _told(results: Results) -> str:
    """Where the commands that were measured are not those of the defaults."""
    spelled = "\n".join(
        each for commands in results.commands.get(FORGET, {}).values() for each in commands
    )
    found = [words for option, words in LEAVES_NOTHING.items() if option in spelled]
    return TOLD.format(told=" and ".join(found)) if found else ""


def _growth(results: Results) -> str:
    """What the clock was that some did not get further by, and where it would have left us."""
    rows = [row for row in results.rows.values() if row.key.startswith("growth/snapshot@")]
    limit = results.facts["plan"].get("grow_limit")
    if not rows or not limit:
        return ""
    ours = results.summary(max(rows, key=lambda row: row.work).key, "blockvault")
    reached = BY_COMMANDS.format(reached=round(limit / ours.median, -1)) if ours else ""
    return GROWTH.format(limit=limit, ours=reached)


def _guest(results: Results) -> str:
    used = results.summary("vm-large/used", "blockvault")
    if used is None:
        return ""
    used_text, memory = (amount(each, "B") for each in (used.median, LARGE_GUEST))
    return GUEST.format(used=used_text, memory=memory, part=100 * used.median / LARGE_GUEST)
