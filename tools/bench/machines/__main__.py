"""The command line of ``tools.bench.machines``: make guests ready, measure, judge."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tools.bench import ending, machines
from tools.bench.machines.qemu import Theirs
from tools.bench.machines.vault import Ours
from tools.guest.build import NoGuest, build


def main() -> int:
    parser = argparse.ArgumentParser(description=(machines.__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", default="512M")
    parser.add_argument(
        "--fill", type=int, default=0, help="MiB of the guest's memory to fill with noise"
    )
    parser.add_argument("--work", type=Path, help="the disk that vault and image are on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # asked to end, it takes the guests along, of which some have sessions of their own
    ending.heed()
    try:
        with both(arguments) as (ours, theirs):
            machines.measure(ours, theirs, arguments.rounds)
            figures = {"blockvault": ours.figures(), "qemu": theirs.figures()}
            missing = theirs.missing
    except NoGuest as reason:
        print(f"no guest: {reason}", file=sys.stderr)
        return 2  # 1 says that a target was missed
    found = machines.demands(figures["blockvault"], figures["qemu"])
    for name, (value, limit) in found.items():
        print(f"{name:32} {value:10.3f}  at most {limit:7.2f}  {'ok' if value <= limit else 'NO'}")
    together = figures["blockvault"] | figures["qemu"]
    print({name: round(value, 3) for name, value in together.items()})
    if arguments.json:
        arguments.json.write_text(json.dumps({**figures, "missing": missing}, indent=1))
    return int(any(value > limit for value, limit in found.values()))


@contextmanager
def both(arguments: argparse.Namespace) -> Iterator[tuple[Ours, Theirs]]:
    """Both guests, made ready and standing still; whatever happens, they are gone afterwards."""
    guest = build(Path.home() / ".cache" / "blockvault-guest")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.work)))
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bv")))
        (folder / "vault").mkdir()
        ours = stack.enter_context(closing(Ours(folder / "vault")))
        theirs = stack.enter_context(closing(Theirs(folder, sockets)))
        for side in (ours, theirs):
            side.boot(guest, arguments.memory, arguments.fill)
        yield ours, theirs


if __name__ == "__main__":
    sys.exit(main())
