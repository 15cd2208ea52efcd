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
behind; ``report.py``, ``plots.py`` and ``compare.py`` only ever read that.

    tools/bench/run --quick                          # under three minutes, small made-up images
    tools/bench/run --full --images DIR --report     # real Debian images, docs/benchmarks.md
    tools/bench/run --compare OLD.json               # what a change cost or gained
"""
