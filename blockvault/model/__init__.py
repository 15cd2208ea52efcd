"""The model: values and algorithms that are true without a disk.

An *event* is one thing that happened: a write, a trim, a snapshot, a new branch.  The log of events
is the only source of truth; everything else here is folded from it or computed over it.  A *volume*
is a size and the root of a Merkle *tree* of block ids; a *snapshot* is an immutable object that
names volumes and its parents; a *branch* is a line of events of one machine.  The state of a branch
is its last *waypoint* (an event that carries complete volumes) and the *overlay* of the writes
after it.

    events       the closed set of events                     names     what may be called what
    fields       what their fields may hold                   rows      events as the log has them
    snapshot     Snapshot and Volume, encoded canonically     refs      the revision syntax
    state        the fold: log records -> projections         times     "10 minutes ago"
    projections  the tables it writes, and how to read them   projected  what their rows are
    history      ancestry of snapshots
    tree         nodes, lookups, walks                        update    new roots from old ones
    overlay      blocks written since a waypoint              builder   a root from all its leaves
    diff         what differs between two states              extents   algebra of runs
    checks       what single values may be                    retention what to keep
    bisect       the search for the first bad point

Nothing in this package reads a file or the environment, and only ``events.now_us`` a clock: trees
get their nodes from a ``NodeSource``, the fold writes to ``Tables``; the store implements both.
The vault and its sessions call down into the model; no module here knows who called.
"""
