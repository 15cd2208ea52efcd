"""The bytes of a vault on disk: one LMDB environment, and nothing that gives them a meaning.

The vault directory *is* the environment::

    .blockvault/  data.mdb  every table; one commit is one atomic, durable change of all of them
                  lock.mdb  LMDB's reader slots and writer mutex, preallocated
                  head      the newest commits' log position, kept apart from LMDB to catch rollback
                  bloom     what the last writer knew of a large index, for the next one

    table        key                     value
    meta         name                    format version, feature flags, vault id, options
    frames       frame number            a frame: 1..65535 objects compressed together
    index        object id               where it is: frame number << 16 | place in the frame
    runs         id of a tree leaf       one hash over the blocks of that leaf
    dead         frame number            places whose objects a collection found dead
    log          seq of its first event  a record: the events of one commit, chained by hash
    refs branches waypoints trail snapshots   projections: what replaying the log yields

*Objects* are byte strings named by their BLAKE3-256.  They are written in *frames*, because
compressing neighbours together gains half again over compressing 4 KiB blocks alone, and because
LMDB stores few large values at a fraction of the cost of many small ones.  The *log* is the only
source of truth: it is append-only, and each record's hash covers the whole log before it.

Reading order: ``types`` says what a store is and ``chained`` what its log is, ``codec``, ``frames``
and ``eventlog`` define the bytes, ``tables`` and ``format`` name and version them; ``env`` is the
LMDB store, over ``creating`` (made at once), ``shared`` (one environment per process), ``readtxn``
and ``writetxn`` (its transactions), ``index`` (its largest table), ``bloom`` and ``bloomfile``
(what is certainly not in it), ``writelock`` (who writes next), ``headfile``, ``journal`` (flushes
before their commit), ``pages`` and ``subpages`` (the file as seen without the engine),
``freespace`` (unused pages given back), ``residency`` (what was read does not stay mapped),
``faults`` (errors); ``memory`` is the same store in dictionaries.
``objects`` gets objects through either, ``locating`` says where many are, ``decoding`` decodes
frames once; ``leaves`` gets whole leaves, over ``runs`` (what lies together) and ``scattered``;
``caches`` and ``decoded`` keep what was read in memory and in a file (``ring``), ``athand`` finds
it there without the index; ``gathering`` collects new objects into frames.

What is not here: events, trees, branches, and when an object is garbage.
"""

from __future__ import annotations
