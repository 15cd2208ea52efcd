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

Reading order:

    types, chained             what a store is, and what its log is
    codec, frames, eventlog    the bytes; tables, format  their names and versions
    env                        the LMDB store, made by creating, on a filesystem that will do
      shared                   one environment per process
      readtxn, writetxn        its transactions; writelock  who writes next
      rows, index              rows that know when they are damaged, and the largest table
      bloom, bloomfile         what is certainly not in it
      headfile, journal        where the log ends; flushes before their commit
      residency                what was read does not stay mapped
      faults                   errors
    pages, subpages            the file as seen without the engine
      freespace, compaction    unused pages given back, and the file written anew without them
      salvage                  a destroyed meta page, written anew
    scratch                    directories that end with a process
    memory                     the same store in dictionaries
    objects                    objects out of either
      locating, decoding       where many are; frames decoded once
      leaves, runs, scattered  whole leaves, out of what lies together and what does not
      caches, decoded, ring    what was read, kept in memory and in a file; athand finds it there
    gathering, workers         new objects into frames, and the threads that pack them

What is not here: events, trees, branches, and when an object is garbage.
"""

from __future__ import annotations
