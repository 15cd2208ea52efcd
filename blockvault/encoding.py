"""The one place where msgpack's options are pinned.

Everything structured that reaches the disk goes through ``pack`` and ``unpack``.  Only nil, bool,
int, str, bytes and arrays are used: no maps, no floats, no extension types, so that one value has
one encoding and its hash is canonical.
"""

from __future__ import annotations

from typing import Any

import msgpack

from blockvault.errors import Damaged


def pack(value: Any) -> bytes:
    """Encode nested tuples or lists of scalars; equal values give equal bytes."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview, what: str) -> Any:
    """Decode what ``pack`` wrote, arrays as tuples; ``Damaged`` names ``what`` on anything else."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_ext_len=0,
            max_map_len=0,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=len(data),
        )
    except (ValueError, UnicodeDecodeError, RecursionError, msgpack.UnpackException) as error:
        raise Damaged(f"{what} cannot be decoded: {error}", kind="bad-encoding") from None
