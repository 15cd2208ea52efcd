"""A saved state of devices as a file that a QEMU which runs takes back (``snapshot-load``).

QEMU reads such a state only out of an internal snapshot of a qcow2 image.  So one is made around
it: a disk of one cluster that nobody looks at, and a snapshot whose data, which lie where the disk
has ended, are the state.  The format is QEMU's ``docs/interop/qcow2.txt``; numbers are big endian.

    cluster  0 header   1 refcount table   2 refcounts   3 first table of the disk, empty
             4 first table of the snapshot   5 list of snapshots   6 its second table   7... data
"""

from __future__ import annotations

import struct

from blockvault.errors import BadRequest

TAG = "state"
CLUSTER = 1 << 16
_REFCOUNTS, _DISK, _FIRST, _LIST, _SECOND, _DATA = (n * CLUSTER for n in range(2, 8))
_PLACES = CLUSTER // 8
"""Entries of a second table, and so the clusters that a state can have."""
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_SNAPSHOT = struct.Struct(">QIHHIIQIIQQ")
_VERSION, _CLUSTER_BITS, _REFCOUNT_ORDER = 3, 16, 4


def around(state: bytes) -> bytes:
    """The image that holds ``state`` as snapshot ``TAG``."""
    count = -(-len(state) // CLUSTER)
    if not 0 < count <= _PLACES:
        raise BadRequest(f"a state of {len(state):,} bytes is not one of devices alone")
    image = bytearray(_DATA + count * CLUSTER)
    _HEADER.pack_into(
        image, 0, b"QFI\xfb", _VERSION, 0, 0, _CLUSTER_BITS, CLUSTER, 0, 2, _DISK, CLUSTER, 1, 1,
        _LIST, 0, 0, 0, _REFCOUNT_ORDER, _HEADER.size,
    )  # fmt: skip
    struct.pack_into(">Q", image, CLUSTER, _REFCOUNTS)
    uses = len(image) // CLUSTER
    struct.pack_into(f">{uses}H", image, _REFCOUNTS, *[1] * uses)
    struct.pack_into(">QQ", image, _FIRST, 0, _SECOND)
    _SNAPSHOT.pack_into(
        image, _LIST, _FIRST, 2, 1, len(TAG), 0, 0, 0, len(state), 16, len(state), CLUSTER
    )
    name = b"1" + TAG.encode()
    image[_LIST + _SNAPSHOT.size : _LIST + _SNAPSHOT.size + len(name)] = name
    places = range(_DATA, _DATA + count * CLUSTER, CLUSTER)
    struct.pack_into(f">{count}Q", image, _SECOND, *places)
    image[_DATA : _DATA + len(state)] = state
    return bytes(image)
