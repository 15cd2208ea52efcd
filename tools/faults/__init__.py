"""Tools that break things on purpose, and say exactly how they broke them.

    disk      a disk with a write cache: what was synced apart from what was only written
    crash     the states in which a power cut may leave such a disk, enumerated from one trace
    powerfs   the same disk as a FUSE file system, for real programs; ``mount`` drives it
    shim      makes the nth write or sync of a program fail, fall short, tear or kill
    warm      runs one command thousands of times, by fork
    pages     which byte of an LMDB file means what; ``bitrot`` flips bits and truncates
    children  runs checks in processes that may die of what they are given
    kill      programs that are killed in the middle, and what they had promised by then
    smalldisk file systems that are small enough to fill

Nothing here imports blockvault.  Every tool is tested against plain LMDB first, with durability
switched off as the positive control: a harness that finds nothing there proves nothing.
"""
