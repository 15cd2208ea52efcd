"""What the five states are: a machine's life in four steps, and a second machine.

They are chosen for what they do to a store.  A fresh install is all new.  Added packages bring new
blocks and little change to old ones.  A database server and deleted documentation move free space
about.  Removed packages with a table of rows that are updated all over is what a backup sees at
night: little change, everywhere.  The second machine is installed apart: the same files, at other
places of another file system.
"""

from __future__ import annotations

from typing import NamedTuple

SIZE = 2 << 30
SUITE = "bookworm"
_COMMON = ("python3", "openssh-server", "systemd-sysv")
_APT = "apt-get -y -q --no-install-recommends"


class State(NamedTuple):
    """One image.  ``parent`` None means a fresh install of ``packages``; else ``script`` is run
    inside a copy of the parent, with /bin/sh and as root."""

    name: str
    machine: str
    parent: str | None = None
    packages: tuple[str, ...] = ()
    script: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}.img"


_ROWS = """
import random, sqlite3
rng = random.Random(4)
with sqlite3.connect('/var/lib/readings.db') as base:
    base.execute('create table readings (id integer primary key, text)')
    rows = ((number, rng.randbytes(20).hex()) for number in range(300_000))
    base.executemany('insert into readings values (?, ?)', rows)
    base.execute('create index by_text on readings (text)')
with sqlite3.connect('/var/lib/readings.db') as base:
    rows = ((rng.randbytes(20).hex(), number) for number in range(0, 300_000, 7))
    base.executemany('update readings set text = ? where id = ?', rows)
"""

STATES = (
    State("base", "main", packages=(*_COMMON, "vim-tiny", "nginx-light")),
    State(
        "v2",
        "main",
        parent="base",
        script=f"apt-get -q update; {_APT} install gcc libc6-dev make git sqlite3",
    ),
    State(
        "v3",
        "main",
        parent="v2",
        script=f"{_APT} install postgresql; apt-get clean; rm -rf /usr/share/doc/*",
    ),
    State(
        "v4",
        "main",
        parent="v3",
        script=f'{_APT} purge gcc nginx-light; {_APT} autoremove; python3 -c "{_ROWS}"',
    ),
    State("b", "second", packages=(*_COMMON, "gcc", "git", "curl", "perl")),
)
