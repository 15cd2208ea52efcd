"""Format version and feature flags: which programs may open a vault.

The ``meta`` table holds, each packed under its name:

    format       the version of the layout as a whole
    features     [required, optional]: two sorted lists of names
    vault_id     16 random bytes
    block_size   bytes, a power of two from 4096 to 65536
    compression  "zstd:N" or "none"

A program refuses a newer format and any *required* feature it does not know; *optional* features
may be ignored.  A new idea thus becomes a new feature name, and an old program says what it lacks
instead of misreading the vault.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping

from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.store.codec import Codec
from blockvault.store.types import Options

FORMAT = 1
RECENT_ROWS = "recent-rows"
"""The index has rows under keys of two bytes too, each with a second byte of 0; see ``index``."""
WAITING_ROWS = "waiting-rows"
"""The second byte of such a key is 0 or 1."""
FEATURES = (WAITING_ROWS,)
"""Required features of the vaults that this program creates."""

KNOWN_FEATURES = frozenset((RECENT_ROWS, WAITING_ROWS))
VAULT_ID_SIZE = 16
BLOCK_SIZES = tuple(4096 << i for i in range(5))


def check_options(options: Options) -> Options:
    """Return ``options`` if a vault can have them; ``BadRequest`` says which it cannot."""
    if len(options.vault_id) != VAULT_ID_SIZE:
        raise BadRequest(f"a vault id has {VAULT_ID_SIZE} bytes")
    if options.block_size not in BLOCK_SIZES:
        raise BadRequest(
            f"a block size of {options.block_size} bytes is not supported: "
            f"use {', '.join(map(str, BLOCK_SIZES))}"
        )
    Codec(options.compression)
    return options


def index_levels(features: Collection[str]) -> int:
    """How many keys the rows of one part of the index may stand under."""
    if WAITING_ROWS in features:
        return 3
    return 2 if RECENT_ROWS in features else 1


def to_meta(options: Options, *, optional: Iterable[str] = ()) -> dict[bytes, bytes]:
    """The meta rows of a new vault."""
    rows = {
        "format": FORMAT,
        "features": [sorted(options.features), sorted(optional)],
        "vault_id": options.vault_id,
        "block_size": options.block_size,
        "compression": options.compression,
    }
    return {name.encode(): pack(value) for name, value in rows.items()}


def from_meta(rows: Mapping[bytes, bytes]) -> Options:
    """Check that this program may open a vault with these meta rows; return its options.

    ``Unsupported`` for a newer format or an unknown required feature, ``Damaged`` for rows that no
    program wrote.
    """
    _check_version(_row(rows, "format"))
    features = _check_features(_row(rows, "features"))
    values = [_row(rows, name) for name in ("vault_id", "block_size", "compression")]
    match values:
        case [bytes() as vault_id, int() as block_size, str() as compression]:
            options = Options(vault_id, block_size, compression, features)
        case _:
            raise _damaged("its options have the wrong types")
    try:
        return check_options(options)
    except BadRequest as error:
        raise _damaged(str(error)) from None


def _row(rows: Mapping[bytes, bytes], name: str) -> object:
    value = rows.get(name.encode())
    if value is None:
        raise _damaged(f"it does not state its {name}")
    return unpack(value, f"the vault's {name}")


def _check_version(version: object) -> None:
    if not isinstance(version, int) or version < 1:
        raise _damaged(f"its format version is {reprlib.repr(version)}")
    if version > FORMAT:
        raise Unsupported(
            f"this vault has format {version}; this program knows formats up to {FORMAT}. "
            "Nothing was changed. Use a newer blockvault.",
            kind="newer-format",
        )


def _check_features(features: object) -> tuple[str, ...]:
    """The required ones."""
    match features:
        case (tuple() as required, tuple() as optional) if all(
            isinstance(name, str) for name in (*required, *optional)
        ):
            unknown = sorted(set(required) - KNOWN_FEATURES)
        case _:
            raise _damaged("its feature flags cannot be read")
    if unknown:
        raise Unsupported(
            f"this vault needs features that this program lacks: {', '.join(unknown)}. "
            "Nothing was changed. Use a newer blockvault.",
            kind="unknown-feature",
        )
    return required


def _damaged(why: str) -> Damaged:
    return Damaged(f"the vault's description of itself is damaged: {why}", kind="bad-format")
