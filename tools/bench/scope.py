"""What a row was measured on: the mode, the images and the sizes of its work.

Two figures of a row can only be held against each other where these are the same: the import of
an image of 16 MiB says nothing about that of another of 2 GiB, whatever both are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Scope = dict[str, Any]

IMAGES = "images"
ACCELERATOR = "accelerator"
NOT_NOTED = "unknown"  # by earlier runs
UNKNOWN = "sizes unknown"  # in the scope of a row that was put together before scopes were kept
LATENCY = ("latency_data",)
NBD = ("nbd_size", "nbd_seconds", "nbd_sustained", "nbd_snapshots", "nbd_branches", "nbd_jobs")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "import/": (IMAGES,),
    "size/": (IMAGES,),
    "export/": (IMAGES,),
    "verify": (IMAGES,),
    "diff": (IMAGES,),
    "gc/": (IMAGES,),
    "memory/": (IMAGES,),
    "limit/fsync": (),
    "limit/overwrite": (),
    "limit/": (IMAGES,),
    "start/": (),
    "latency/": LATENCY,
    "work/": LATENCY,
    "growth/": LATENCY,
    "changes/": LATENCY,
    "sparse/": ("memory_data",),
    "sparse-memory/": ("memory_data",),
    "scale/": (),
    "nbd/": NBD,  # the jobs too: the disk that one finds is what those before it have written
    "nbd-latency/": NBD,
    "live/": ("nbd_size", "nbd_seconds"),
    "collecting/": ("nbd_size", "nbd_sustained"),
    "vm/": ("machine_rounds", ACCELERATOR),
    "vm-large/": ("machine_rounds", ACCELERATOR),
}
"""By the beginning of a row's key, what of a plan its work follows from; the rest is in the key."""


def scope(facts: Mapping[str, Any], key: str, *, sizes_known: bool = True) -> Scope:
    """That of a row which was measured in the run with these facts; plain JSON."""
    needs = _needs(key)
    found: Scope = {"mode": facts.get("mode")}
    if IMAGES in needs:
        found[IMAGES] = [
            {name: each.get(name) for name in ("name", "size", "data", "new")}
            for each in facts.get("inputs", ())
        ]
    if ACCELERATOR in needs:
        found[ACCELERATOR] = facts.get(ACCELERATOR, NOT_NOTED)
    sizes = [name for name in needs if name not in (IMAGES, ACCELERATOR)]
    if sizes and not sizes_known:
        return {**found, UNKNOWN: True}
    return {**found, **{name: _plain(facts.get("plan", {}).get(name)) for name in sizes}}


def complete(kept: Scope, key: str) -> Scope:
    """A scope that was kept by a run which did not note all that it is made of today."""
    return {ACCELERATOR: NOT_NOTED, **kept} if ACCELERATOR in _needs(key) else kept


def _needs(key: str) -> tuple[str, ...]:
    for start, needs in NEEDS.items():
        if key.startswith(start):
            return needs
    return ()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
