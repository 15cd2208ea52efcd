"""Blockvault beside its peers: the same work, on the same machine, in one interleaved run.

Three kinds of things meet here:

* a *contender* (``peers/``) is a program that keeps versions of disk images.  It only knows how its
  commands are spelled; it never measures anything.
* a *scenario* (``rows/``) is a piece of work.  It says in which order the contenders do what, and
  records one sample per run under a row: "first import of base", "snapshot at 64 GiB".
* a *limit* (``kernels.py``) is the physical floor beside a row: copying, hashing or compressing the
  same bytes, or one fsync, measured in the same run.

Every command runs under ``launcher.py``, which takes wall time, CPU and peak memory of the whole
process tree from the kernel.  ``results.py`` holds the samples and is the JSON that a run leaves
behind; whoever reports or compares only ever reads that.

    what to do      plan, inputs, synthetic, registry; beforehand refuses what would fail at the end
    the stage       bench (places and turns), commands, launcher, servers, beside, host
    results         results, their file (saved, shape), what a row was measured on (scope)
    the page        report: headlines (of which rows: sections), growing, method, floors, plots;
                    stated reads old results by the rules of today; stats and text for figures
    since when      compare
    inside of work  guest (small writes), patch (a changed block), kernels (the limits)
    on their own    longlog, machines

    tools/bench/run --quick                          # under three minutes, small made-up images
    tools/bench/run --full --images DIR --report     # real Debian images, docs/benchmarks.md
    tools/bench/run --compare OLD.json               # what a change cost or gained
"""
