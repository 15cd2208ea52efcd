"""Snapshots and rollbacks of a guest that writes to its disk all the time."""

from __future__ import annotations

import random
from typing import Any

WRITE = "dd if=/dev/urandom of=/disk/load bs=64k count=10"
LOAD = f"while :; do {WRITE}; sync; sleep 0.2; done >/dev/null 2>&1 &"


def test_cycles_under_a_disk_writing_load(lab: Any, nightly: bool, seed: int) -> None:
    """Every snapshot has disks and memory of one instant: the guest goes on from it unharmed."""
    rng = random.Random(seed)
    lab.create()
    console = lab.start()
    console.run(f"({LOAD})")
    made: list[tuple[str, int]] = []
    for cycle in range(60 if nightly else 20):
        console.run(f"echo {cycle} >/disk/cycle; sync; echo {cycle} >/run/cycle")
        snapshot = lab.snapshot(message=f"cycle {cycle}")
        made.append((snapshot["id"], cycle))
        console.run("echo wrecked >/run/cycle; echo wrecked >/disk/cycle; sync")
        oid, wanted = rng.choice(made)
        lab.run("vm", "rollback", "main", oid)
        console = lab.console()
        seen = console.run("cat /disk/cycle /run/cycle")
        assert seen == f"{wanted}\n{wanted}"
        assert console.run("dmesg | grep -c 'EXT4-fs error' || true") == "0"
    lab.run("vm", "stop", "main", "--force")
    for oid, _ in made:
        lab.check_disk(oid)
    lab.run("verify")
