"""Run one program and say what it cost: started as a small process of its own, never imported.

Linux hands a child the peak resident size of whatever called ``exec``: a program that is started
from a big Python process seems to need as much memory as that process.  This launcher imports
almost nothing, so the floor of every measured peak is its own few megabytes.  ``wait4`` reports
the program together with all its children that were waited for; the peak is that of the largest
one of them, not their sum.

Argument: JSON ``{"argv", "env", "cwd", "stdout", "stderr"}``.  Output: JSON ``{"wall", "user",
"system", "peak", "status"}`` in seconds and bytes; ``status`` is negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # the name that type checkers know; typing itself is not worth a megabyte
if TYPE_CHECKING:
    from typing import Any


def become(request: dict[str, Any]) -> None:
    """Turn this forked child into the program; never returns."""
    try:
        for path, target in ((request["stdout"], 1), (request["stderr"], 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), target)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if request["cwd"]:
            os.chdir(request["cwd"])
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def main() -> None:
    request = json.loads(sys.argv[1])
    # a program is ended by a signal to its whole session; what it cost is still to be told
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        become(request)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    json.dump(
        {
            "wall": wall,
            "user": usage.ru_utime,
            "system": usage.ru_stime,
            "peak": usage.ru_maxrss * 1024,
            "status": os.waitstatus_to_exitcode(status),
        },
        sys.stdout,
    )


main()
